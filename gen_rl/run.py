"""A run: its state, what it writes on the way, and what it ends with."""

from collections.abc import Callable, Sequence
import io
import sys
import time
from typing import Any

import jax
import ml_collections

from gen_rl import (
  assemble,
  checkpoint,
  checks,
  commands,
  evaluators,
  export,
  hacking,
  host_stage,
  initial,
  metrics,
  profiles,
  report,
  results,
  run_folder,
  sharding,
  train_state,
  train_step,
  watch,
)
from gen_rl.data import feeds
from gen_rl.evals import MAIN
from gen_rl.evaluators import Evaluations
from gen_rl.rewards import combine, evaluate
from gen_rl.types import Params
from gen_rl.utils import hosts, progress, rng, system, tree, words


class Run:
  """Training in a folder that is ours, from its newest checkpoint or the start.

  Attributes:
    state: the TrainState, on the devices.
    start: updates that were done before.
    resumed: whether there was a checkpoint.
    line: where progress is printed.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str,
    built: assemble.Setup,
    layout: sharding.Layout,
    step: train_step.Step,
    init: Callable[[Params], train_state.TrainState],
    started: float,
    profile: profiles.Profile,
    keep: Callable[[str, Any], Any] = lambda name, function: function,
  ):
    """Makes the state, or restores it.

    Args:
      config: see configs/base.py.
      workdir: the folder.
      built: of the config.
      layout: where arrays live.
      step: the training step.
      init: parameters -> the state before the first step.
      started: `time.monotonic()` from which wall time counts.
      profile: which updates are recorded.
      keep: (name, jitted) -> what keeps its program, see `utils.programs`.

    Raises:
      CheckpointError: the run began from other parameters.
    """
    self.config, self.workdir, self.built = config, workdir, built
    self._layout, self._step, self._started = layout, step, started
    self._profile, self._measured, self._keep = profile, None, keep
    self._clock = progress.Stopwatch()
    self._key = rng.training_key(config.seed)
    self._averaged = 'ema' if config.ema else 'params'
    self._manager = checkpoint.open_manager(
      f'{workdir}/checkpoints', config.checkpoint.keep
    )
    # On the host: the state's own copy is donated to the step.
    self._base = jax.device_get(initial.params(config, built.policy))
    self._host, self._parts = host_stage.of_config(
      config, built, layout.row_shards
    )
    self._on_host = self._host.rewards
    self._held = layout.held(
      config.data.prompts_per_step, self._parts if self._on_host else 1
    )
    self._batches = feeds.training(config, built, self._held)
    labels = combine.weights(built.rewards or {})
    self._watch = watch.Watch(labels, config.stop_after_skipped)
    self._running: tuple[int, Any] | None = None  # (number, metrics) of a step
    self._elapsed_before, self._first_metric, self._most_memory = 0.0, None, 0
    self.state = init(self._base)
    self.resumed = self._restore()
    self.start = int(self.state.step)
    self.primary = jax.process_index() == 0
    self.line = progress.Progress(
      config.steps, self.start, stream=None if self.primary else io.StringIO()
    )
    at = f'from step {self.start} on' if self.resumed else (
      f'{config.steps} updates'
    )  # fmt: skip
    self.line.note(f'{config.name} in {workdir}, {at}')
    if missed := profile.missed(self.start):
      self.line.note(missed)

  def _restore(self) -> bool:
    """Puts the state on the devices; that of a checkpoint, if there is one."""
    config, built = self.config, self.built
    models = self.state.frozen['rewards']
    judges = {k: v for k, v in models.items() if k not in built.monitors}
    self._origin = tree.checksum((self._base, judges))
    # As releases before had it.
    origins = self._origin, tree.checksum((self._base, models))
    self._frozen = tree.checksum(self.state.frozen['policy'])
    self.state = self._layout.put(self.state)
    # What never moves was made here, and is the run's if its origin is.
    still = initial.still_copies(config)
    self._given = ['frozen', *(f'refs/{name}' for name in still)]
    restored = checkpoint.restore_latest(
      self._manager, self.state, config.to_dict(), self._given
    )
    if not restored:
      return False
    if restored.extra['origin'] not in origins:
      raise checkpoint.CheckpointError(
        f'the run in {self.workdir} began from other parameters than '
        f'{config.init or config.released!r} holds now, or with other reward '
        'models; use a new workdir'
      )
    self.state = restored.state
    self._batches.set_state(restored.extra['data'])
    self._elapsed_before = restored.extra['wall_seconds']
    self._first_metric = restored.extra['seconds_to_first_metric']
    self._most_memory = restored.extra.get('peak_rss_bytes', 0)
    self._watch.silence = restored.extra.get('silence', {})
    return True

  def ended(self) -> dict[str, Any] | None:
    """The result of a run that had taken all its steps; None: it goes on."""
    if self.start < self.config.steps:
      return None
    before = hosts.from_first(
      lambda: run_folder.finished(self.workdir, self.start)
    )
    if not before:
      return None
    self.close()
    config, policy = self.config, self.built.policy
    if config.export and hosts.from_first(
      lambda: not export.target(config, self.workdir, policy).exists()
    ):
      path = export.write(
        config, self.workdir, policy, self.trained(), self.start,
        before['trained'],
      )  # fmt: skip
      self.line.note(f'Exported: {path}')
    export.learned(config, self.workdir, self.state.aux, missing=True)
    if self.primary:
      print(results.table(before))
      print(
        f'This run had ended after {self.start} updates; to train on, '
        f'--config.steps={self.start + config.steps}, else a new --workdir.'
      )
    return before

  def prepare(self) -> None:
    """Traces what will run: mistakes show before anything is written."""
    config, built, layout = self.config, self.built, self._layout
    step = self._step
    self._evals = evaluators.Evaluators(
      config, built, layout, self._base, self._keep
    )
    with layout.scope():
      first, _ = next(feeds.training(config, built, self._held))
      if layout.mesh.size > 1:
        first = layout.shapes(first)
      self._pace = checks.paced(
        built, step, (self.state, first, self._key), layout, self._on_host
      )
    if share := self._evals.trained_on[MAIN]:
      of = 'of the prompts of the evaluation are trained on'
      self.line.note(f'{words.percent(share)} {of}')

  def close(self) -> None:
    """Waits for checkpoints in writing; a profile that is recorded ends."""
    self._profile.give_up()
    checkpoint.close(self._manager)

  def trained(self) -> Params:
    """The parameters that are evaluated and exported, the averaged ones."""
    near = self._layout.near(self.state)
    return train_state.full_params(near, self._averaged)

  def writer(self) -> metrics.Writer:
    """Of the run's metrics, from where it is."""
    return metrics.Writer(
      self.workdir,
      resume_step=self.start if self.resumed else None,
      tensorboard=self.config.log.tensorboard,
    )

  def export(self, params: Params, trained: Evaluations) -> None:
    """Writes what the config asks for, of the policy and of learners.

    Args:
      params: of the policy.
      trained: what evaluations say of them.
    """
    config, policy = self.config, self.built.policy
    if config.export:
      summary = trained[MAIN].summary()
      export.write(config, self.workdir, policy, params, config.steps, summary)
    export.learned(config, self.workdir, self.state.aux)

  def due(self, done: int) -> list[str]:
    """Evaluations that come after `done` updates."""
    return self._evals.due(done)

  def evaluate(
    self,
    writer: metrics.Writer,
    at: int,
    params: Params | None = None,
    labels: Sequence[str] | None = None,
  ) -> tuple[Evaluations, float | None]:
    """Evaluates and logs; also returns the KL from the base, if defined.

    Args:
      writer: of the metrics.
      at: updates done.
      params: what to evaluate; None: the base.
      labels: which evaluations; None: all.
    """
    with self._clock.stage('eval'):
      found, kl = self._evals(params, labels)
    scalars = {} if kl is None else {'kl/base': kl}
    for label, result in found.items():
      scalars |= result.metrics(label)
    writer.write_scalars(at, scalars)
    self._first_metric = self._first_metric or self._wall()
    for label, result in found.items():
      self.line.note(f'step {at}: {self._evals.says(label, result)}')
      writer.write_images(at, self._evals.grid(label, result))
    return found, kl

  def evaluate_base(self) -> Evaluations:
    """What the report compares with, where it was not evaluated by this run."""
    found, _ = self._evals()
    return found

  def update(self, writer: metrics.Writer, done: int) -> None:
    """Starts a step; the one before is logged and looked at meanwhile.

    Args:
      writer: of the metrics.
      done: updates with this one.

    Raises:
      FloatingPointError, RewardError: see `settle`.
    """
    if self._profile.begins(done):
      self.settle(writer)
      self._profile.start()
    if not self._running:
      self._since = time.perf_counter()
    batch, _ = next(self._batches)
    if self._on_host:
      self.state, logged = host_stage.scored_step(
        self._step, self._host, self.state, batch, self._key, self._parts,
        lambda: self._clock.stage('host rewards'), self._layout.place,
      )  # fmt: skip
    else:
      batch = self._layout.place(batch)
      self.state, logged = self._step.train_step(self.state, batch, self._key)
    before, self._running = self._running, (done, logged)
    if before:
      self._look_at(writer, before[0], self._fetch(before[1]))
    if self._profile.ends(done):
      self.settle(writer)
      # With host rewards other programs run than those that are counted.
      ran = [] if self._on_host else self._pace.programs
      with self._layout.scope():
        self._measured = self._profile.stop(ran)
      self.line.note(self._profile.says(self._measured))

  def settle(self, writer: metrics.Writer) -> None:
    """Waits for the step that was started last, logs it and looks at it.

    Raises:
      FloatingPointError: too many updates in a row were not finite.
      RewardError: a reward scored no row for too long.
    """
    if not self._running:
      return
    (done, logged), self._running = self._running, None
    self._look_at(writer, done, self._fetch(logged))

  def _fetch(self, logged: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a step that has ended; it took since the one before had."""
    fetched = jax.device_get(logged)
    now = time.perf_counter()
    self._clock.add('step', now - self._since)
    self._since = now
    return fetched

  def _look_at(
    self, writer: metrics.Writer, done: int, logged: dict[str, Any]
  ) -> None:
    config = self.config
    rows = config.data.prompts_per_step * config.data.group_size
    self.line.update(
      done, reward=logged.get('reward/score'), samples_per_step=rows
    )
    in_a_row = int(logged['optim/skipped_in_a_row'])
    diverged = in_a_row >= config.stop_after_skipped
    # A run in which a reward scored no row at all has not succeeded either.
    limit = self._watch.limit(done == config.steps, done)
    worst = self._watch.see(logged)
    last = done == config.steps or diverged or worst >= limit
    if done % config.log.every == 0 or last:
      took = self._clock.summary(rows)
      took |= self._pace.metrics(took.get('seconds/step'))
      writer.write_scalars(done, {**logged, **took}, samples=done * rows)
    if diverged:
      raise FloatingPointError(
        f'the last {in_a_row} updates (to step {done}) were not finite and '
        'were skipped; the newest checkpoint holds the parameters from before; '
        f'see {self.workdir}/metrics.jsonl, and try a lower optimizer.lr in a '
        'new workdir'
      )
    reasons = {label: evaluate.failure(label) for label in self._on_host}
    self._watch.check(limit, done, reasons)

  def save(self) -> None:
    """Writes a checkpoint, in the background."""
    extra = dict(
      data=self._batches.get_state(),
      origin=self._origin,
      frozen=self._frozen,
      wall_seconds=self._wall(),
      seconds_to_first_metric=self._first_metric,
      peak_rss_bytes=self._memory(),
      silence=self._watch.silence,
    )
    with self._clock.stage('checkpoint'):
      checkpoint.save(
        self._manager, int(self.state.step), self.state, self.config.to_dict(),
        extra, given=self._given,
      )  # fmt: skip

  def check(self, writer: metrics.Writer, stop: bool) -> None:
    """Raises what went wrong in writing a checkpoint; ends if asked to.

    Args:
      writer: of the metrics.
      stop: whether this process was asked to end.

    Raises:
      CheckpointError: a checkpoint could not be written.
      SystemExit: a process was asked to end; the state is saved.
    """
    checkpoint.check(self._manager)
    if not hosts.any_process(stop):
      return
    self.settle(writer)
    self.save()
    checkpoint.check(self._manager, wait=True)
    if self.primary:
      command = commands.resume(self.config.name, self.workdir, sys.argv[1:])
      print(
        f'\nStopped at step {int(self.state.step)} after SIGTERM; the state is '
        f'saved. Resume with: {command}',
        flush=True,
      )
    raise SystemExit(0)

  def _wall(self) -> float:
    return self._elapsed_before + time.monotonic() - self._started

  def _memory(self) -> int | None:
    peak = system.peak_rss_bytes()
    return peak and max(peak, self._most_memory)

  def finish(
    self,
    base: Evaluations,
    trained: Evaluations,
    kl: float | None,
  ) -> dict[str, Any]:
    """Writes result.json and the report; returns what the first holds.

    Args:
      base: evaluations of the parameters a run began with.
      trained: of those it ends with.
      kl: of these from those.
    """
    end, others = trained[MAIN], self._evals.others(base, trained)
    environment = system.environment()
    speed = report.median_speed(self.workdir)
    rows = self.config.data.prompts_per_step * self.config.data.group_size
    history = report.read_history(self.workdir)
    result = results.of_run(
      self.config,
      base[MAIN].summary(),
      end.summary(),
      environment,
      steps=int(self.state.step),
      **(dict(evals=others) if others else {}),
      trained_on=self._evals.trained_on[MAIN],
      kl=kl,
      wall_seconds=self._wall(),
      seconds_to_first_metric=self._first_metric,
      samples_per_second=speed,
      speed=self._pace.summary(rows / speed if speed else None, self._measured),
      peak_rss_bytes=self._memory(),
      updates_skipped=int(self.state.skipped),
      hacked=hacking.since(history, end.gold.size, end.verdict),
    )
    if self.primary:
      path = report.write_report(
        self.workdir,
        result,
        history,
        {
          f'{self._evals.name(label).capitalize()} prompts, before and after': (
            report.comparison(base[label], trained[label], c.eval.shown)
          )
          for label, c in self._evals.configs.items()
        },
        self.config,
        environment,
        commands.rerun(self.config, self.workdir, sys.argv[1:]),
      )
      # Last: it says that the run has ended.
      results.write_json(self.workdir, result)
      print(results.table(result))
      print(f'Report: {path}')
    return result
