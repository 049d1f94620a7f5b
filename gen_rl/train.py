"""Training, top to bottom: config in, checkpoints, metrics and a report out."""

from collections.abc import Callable, Sequence
import contextlib
import functools
import io
import pathlib
import shlex
import signal
import statistics
import sys
import time
from typing import Any

import jax
import ml_collections

from gen_rl import (
  assemble,
  build,
  checkpoint,
  checks,
  export,
  metrics,
  report,
  results,
  run_folder,
  sharding,
  train_state,
  train_step,
)
from gen_rl import evaluate as evaluate_lib
from gen_rl.data import feeds
from gen_rl.rewards import combine, evaluate, outcomes
from gen_rl.types import Params
from gen_rl.utils import hosts, image, progress, rng, system, tree, words


def resume_command(name: str, workdir: str, flags: Sequence[str]) -> str:
  """The command line that continues a run.

  Args:
    name: of the config.
    workdir: of the run.
    flags: those the run was started with; without a --config among them (a
      notebook) the config of that name is assumed.
  """
  names = [flag.lstrip('-').partition('=')[0] for flag in flags]
  if 'config' not in names:
    file, colon, variant = name.partition(':')
    flags, names = [f'--config=configs/{file}.py{colon}{variant}'], []
  if 'workdir' not in names:
    flags = [*flags, f'--workdir={workdir}']
  return f'{_python()} -m gen_rl.main {shlex.join(flags)}'


def _python() -> str:
  """This interpreter, as a person in this folder would call it."""
  path = pathlib.Path(sys.executable)
  if path.is_relative_to(pathlib.Path.cwd()):
    return str(path.relative_to(pathlib.Path.cwd()))
  return 'python'


def rerun_commands(
  config: ml_collections.ConfigDict, workdir: str, flags: Sequence[str]
) -> dict[str, str]:
  """{what it does: command line} for the report; arguments as above."""
  resume = resume_command(config.name, workdir, flags)
  elsewhere = [*flags, '--workdir=runs/again']  # of two, the last one counts
  return {
    'Reproduce (an empty workdir)': resume_command(
      config.name, 'runs/again', elsewhere
    ),
    'Resume': resume,
    'Train on': f'{resume} --config.steps={2 * config.steps}',
    'Evaluate the last checkpoint': f'{resume} --mode=eval',
  }


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str,
  own_rewards: combine.Weighted | None = None,
  started: float | None = None,
) -> dict[str, Any]:
  """Trains from the newest checkpoint of `workdir`, or from the start.

  Args:
    config: see configs/base.py.
    own_rewards: {label: (Reward, weight)} besides those the config names, for
      rewards that live in a notebook.
    workdir: folder for checkpoints, metrics.jsonl, TensorBoard files,
      result.json and report.html.
    started: `time.monotonic()` from which wall time counts; default now.

  Returns:
    What result.json holds.

  Raises:
    ConfigError, CheckpointError: one sentence each.
    FloatingPointError: too many updates in a row were not finite.
    RewardError: a reward that is none, or that scored no row for too long.
    SystemExit: code 0 after SIGTERM, with the state saved.
  """
  if '://' in workdir:
    raise build.ConfigError(
      f'--workdir={workdir} is no folder of a file system; mount the bucket '
      '(experiments/launch/mount.sh does) and give the path it has there'
    )
  started = time.monotonic() if started is None else started
  try:
    built = assemble.setup(config, own_rewards)
    layout = assemble.make_layout(config, built)
    step, tx, advantage = assemble.make_step(config, built, layout)
  except build.ConfigError as error:
    raise checks.explain(error, config) from None
  init = functools.partial(
    assemble.initial_state, config, built, tx=tx, advantage=advantage
  )
  with checks.together():
    shapes = assemble.param_shapes(config, built.policy)
  checks.memory(jax.eval_shape(init, shapes), layout)
  with run_folder.owned(workdir):
    return _run(config, workdir, built, layout, step, init, started)


def _run(
  config: ml_collections.ConfigDict,
  workdir: str,
  built: assemble.Setup,
  layout: sharding.Layout,
  step: train_step.Step,
  init: Callable[[Params], train_state.TrainState],
  started: float,
) -> dict[str, Any]:
  """`train_and_evaluate` with everything built, in a folder that is ours."""
  clock = progress.Stopwatch()
  batches = feeds.training(config, built)
  manager = checkpoint.open_manager(
    f'{workdir}/checkpoints', config.checkpoint.keep
  )

  # On the host: the state's own copy is donated to the step.
  base = jax.device_get(assemble.initial_params(config, built.policy))
  _, on_host = combine.split({**(built.rewards or {}), **built.monitors})
  state = init(base)
  models = state.frozen['rewards']
  judges = {k: v for k, v in models.items() if k not in built.monitors}
  origin = tree.checksum((base, judges))
  origins = origin, tree.checksum((base, models))  # as releases before had it
  frozen = tree.checksum(state.frozen['policy'])
  state = layout.put(state)
  # What never moves was made here, and is the run's if its origin is.
  given = [
    'frozen',
    *(f'refs/{name}' for name in assemble.still_copies(config)),
  ]
  restored = checkpoint.restore_latest(manager, state, config.to_dict(), given)
  elapsed_before, first_metric, most_memory = 0.0, None, 0
  labels, silence, idle = combine.weights(built.rewards or {}), {}, {}
  if restored:
    if restored.extra['origin'] not in origins:
      raise checkpoint.CheckpointError(
        f'the run in {workdir} began from other parameters than '
        f'{config.init or config.released!r} holds now, or with other reward '
        'models; use a new workdir'
      )
    state = restored.state
    batches.set_state(restored.extra['data'])
    elapsed_before = restored.extra['wall_seconds']
    first_metric = restored.extra['seconds_to_first_metric']
    most_memory = restored.extra.get('peak_rss_bytes', 0)
    silence = restored.extra.get('silence', {})
  start = int(state.step)
  primary = jax.process_index() == 0
  line = progress.Progress(
    config.steps, start, stream=None if primary else io.StringIO()
  )
  line.note(f'{config.name} in {workdir}, ' + (
    f'from step {start} on' if restored else f'{config.steps} updates'
  ))  # fmt: skip
  before = None
  if start >= config.steps:
    before = hosts.from_first(lambda: run_folder.finished(workdir, start))
  averaged = 'ema' if config.ema else 'params'
  if before:
    checkpoint.close(manager)
    if config.export and hosts.from_first(
      lambda: not export.target(config, workdir, built.policy).exists()
    ):
      params = train_state.full_params(layout.near(state), averaged)
      path = export.write(
        config, workdir, built.policy, params, start, before['trained']
      )
      line.note(f'Exported: {path}')
    if primary:
      print(results.table(before))
      print(
        f'This run had ended after {start} updates; to train on, '
        f'--config.steps={start + config.steps}, else a new --workdir.'
      )
    return before

  evaluate_params, eval_batch = assemble.make_evaluator(config, built, layout)
  key = rng.training_key(config.seed)
  if not on_host:
    with layout.scope():
      batch, _ = next(feeds.training(config, built))
      checks.step(step.train_step, state, batch, key)
  rows = config.data.prompts_per_step * config.data.group_size
  stop_asked = []
  old_handler = signal.signal(signal.SIGTERM, lambda *_: stop_asked.append(1))

  def placed(params: Params) -> Params:
    """Parameters from the host on all devices; others are there."""
    if layout.mesh.size == 1:
      return params
    return sharding.put(params, layout.params(params))

  def wall() -> float:
    return elapsed_before + time.monotonic() - started

  def memory() -> int | None:
    peak = system.peak_rss_bytes()
    return peak and max(peak, most_memory)

  def save() -> None:
    extra = dict(
      data=batches.get_state(),
      origin=origin,
      frozen=frozen,
      wall_seconds=wall(),
      seconds_to_first_metric=first_metric,
      peak_rss_bytes=memory(),
      silence=silence,
    )
    checkpoint.save(
      manager, int(state.step), state, config.to_dict(), extra, given=given
    )

  trained_on = feeds.trained_on(config, built.source)
  where = results.evaluated_on(trained_on)
  if trained_on:
    line.note(
      f'{words.percent(trained_on)} of the prompts of the evaluation are '
      'trained on'
    )
  kl_from_base = assemble.make_kl_from_base(config, built, eval_batch, layout)

  def run_eval(
    at: int, params: Params
  ) -> tuple[evaluate_lib.Evaluation, float | None]:
    """Evaluates and logs; also returns the KL from the base, if defined."""
    kl = None
    with clock.stage('eval'):
      result = evaluate_params(placed(params))
      if kl_from_base:
        kl = 0.0 if at == 0 else kl_from_base(params, placed(base))
    kl_metrics = {} if kl is None else {'kl/base': kl}
    writer.write_scalars(at, {**result.metrics(), **kl_metrics})
    name, value = results.gold(result.summary()), result.strict
    if name is None:
      name, value = 'proxy', result.proxy
    line.note(f'step {at}: {where} {name} {words.fixed(value)}')
    nonlocal first_metric
    first_metric = first_metric or wall()
    shown = result.shown(config.eval.shown)
    writer.write_images(
      at,
      {
        'samples': image.grid(
          shown.pictures[:, 0],
          captions=result.texts[: config.eval.shown],
          rewards=shown.reward[:, 0],
          correct=None if shown.correct is None else shown.correct[:, 0],
        )
      },
    )
    return result, kl

  def host_scored_step(state, batch):
    traj, inputs, outs = step.sample(state, batch, key)
    with clock.stage('host rewards'):
      asked = built.source.asked(batch['prompt_id'], config.data.group_size)
      seen = hosts.fetch(inputs)._replace(**asked)
      host_outs, _ = hosts.from_first(
        lambda: evaluate.evaluate_host(
          on_host,
          seen,
          jax.random.fold_in(key, int(state.step)),
          **config.host_rewards,
        )
      )
    outs = {**outs, **host_outs}
    state, logged = step.learn(state, traj, inputs.info, outs, key)
    return state, logged

  def stop_if_asked(done: int) -> None:
    if not hosts.any_process(bool(stop_asked)):
      return
    save()
    checkpoint.check(manager, wait=True)
    if primary:
      print(
        f'\nStopped at step {done} after SIGTERM; the state is saved. '
        f'Resume with: {resume_command(config.name, workdir, sys.argv[1:])}',
        flush=True,
      )
    raise SystemExit(0)

  with contextlib.ExitStack() as stack:
    stack.callback(signal.signal, signal.SIGTERM, old_handler)
    stack.callback(checkpoint.close, manager)
    # Not before: a writer forgets what came after the checkpoint.
    writer = stack.enter_context(
      metrics.Writer(
        workdir,
        resume_step=start if restored else None,
        tensorboard=config.log.tensorboard,
      )
    )

    stack.enter_context(layout.scope())
    base_result = None
    if start == 0:
      base_result, _ = run_eval(0, base)
      stop_if_asked(0)
    line.note('compiling the update, and running the first')

    for i in range(start, config.steps):
      batch, texts = next(batches)
      with clock.stage('step'):
        if on_host:
          state, logged = host_scored_step(state, batch)
        else:
          state, logged = step.train_step(state, batch, key)
        logged = jax.device_get(logged)
      done = i + 1
      line.update(
        done,
        reward=logged.get('reward/score'),
        samples_per_step=rows,
      )
      diverged = logged['optim/skipped_in_a_row'] >= config.stop_after_skipped
      # A run in which a reward scored no row at all has not succeeded either.
      limit = config.stop_after_skipped
      limit = min(limit, done) if done == config.steps else limit
      silence = outcomes.silent(silence, logged, labels)
      idle = checks.idle(idle, logged)
      ended = diverged or max([0, *silence.values(), *idle.values()]) >= limit
      if done % config.log.every == 0 or done == config.steps or ended:
        writer.write_scalars(
          done, {**logged, **clock.summary(rows)}, samples=done * rows
        )
      if diverged:
        raise FloatingPointError(
          f'the last {int(logged["optim/skipped_in_a_row"])} updates (to step '
          f'{done}) were not finite and were skipped; the newest checkpoint '
          f'holds the parameters from before; see {workdir}/metrics.jsonl, and '
          'try a lower optimizer.lr in a new workdir'
        )
      reasons = {label: evaluate.failure(label) for label in on_host}
      outcomes.check_heard(silence, limit, done, reasons)
      checks.decided(idle, limit, done)
      if done % config.eval.every == 0 and done < config.steps:
        run_eval(done, train_state.full_params(layout.near(state), averaged))
      if done % config.checkpoint.every == 0 or done == config.steps:
        with clock.stage('checkpoint'):
          save()
      checkpoint.check(manager)
      stop_if_asked(done)
    line.close()

    trained = train_state.full_params(layout.near(state), averaged)
    trained_result, kl = run_eval(config.steps, trained)
    if base_result is None:
      base_result = evaluate_params(placed(base))
    stop_if_asked(config.steps)
    if config.export:
      export.write(
        config,
        workdir,
        built.policy,
        trained,
        config.steps,
        trained_result.summary(),
      )

  environment = system.environment()
  result = dict(
    schema_version=results.SCHEMA_VERSION,
    config_name=config.name,
    seed=config.seed,
    steps=int(state.step),
    base=base_result.summary(),
    trained=trained_result.summary(),
    trained_on=trained_on,
    kl=kl,
    wall_seconds=wall(),
    seconds_to_first_metric=first_metric,
    samples_per_second=median_speed(workdir),
    peak_rss_bytes=memory(),
    updates_skipped=int(state.skipped),
    device=environment['device'],
    cpus=environment['cpus'],
    jax_version=environment['jax'],
    git_commit=environment['git_commit'],
  )
  if primary:
    before = base_result.shown(config.eval.shown)
    after = trained_result.shown(config.eval.shown)
    comparison = report.Comparison(
      prompts=trained_result.texts[: config.eval.shown],
      before=before.pictures,
      after=after.pictures,
      correct_before=before.correct,
      correct_after=after.correct,
      reward_before=before.reward,
      reward_after=after.reward,
    )
    path = report.write_report(
      workdir,
      result,
      report.read_history(workdir),
      {f'{where.capitalize()} prompts, before and after': comparison},
      config,
      environment,
      rerun_commands(config, workdir, sys.argv[1:]),
    )
    results.write_json(workdir, result)  # last: it says that the run has ended
    print(results.table(result))
    print(f'Report: {path}')
  return result


def median_speed(workdir: str) -> float | None:
  """Samples a second of an update, over all processes of a run."""
  name = 'speed/samples_per_second'
  history = report.read_history(workdir)
  speeds = [line[name] for line in history if line.get(name)]
  return statistics.median(speeds) if speeds else None
