"""Small runs, all seeds in one program: vmap over the step, the same loop.

  step(states [s ...], batches [s ...], keys [s]) = vmap(train_step)       (1)

A seed gets the prompts, noise and initial parameters of its single run, so its
numbers are those of the single run, but for the order of sums. What is left is
the same, too, metrics.jsonl and result.json in a folder a seed, without
checkpoints: a run that was interrupted starts again. The times are those of
the whole program, `seeds_at_once` says of how many seeds.
"""

from collections.abc import Sequence
import contextlib
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from gen_rl import (
  assemble,
  build,
  export,
  initial,
  metrics,
  report,
  results,
  sharding,
  train,
  train_state,
)
from gen_rl.data import feeds
from gen_rl.evals import MAIN
from gen_rl.rewards import combine
from gen_rl.utils import progress, rng, system


def stack(trees: Sequence[Any]) -> Any:
  """Pytrees of one structure, leaves [...] -> [s ...]."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def vmapped_runs(
  configs: Sequence[ml_collections.ConfigDict],
  workdirs: Sequence[str | os.PathLike],
  started: float | None = None,
) -> list[dict[str, Any]]:
  """Trains all configs at once, on one device.

  Args:
    configs: of the runs; they differ in `seed` only.
    workdirs: folder of each, for metrics.jsonl, result.json and what
      `config.export` asks for.
    started: `time.monotonic()` from which wall time counts; default now.

  Returns:
    What each result.json holds.

  Raises:
    ConfigError: the configs differ in more, or a reward needs the host.
    FloatingPointError: too many updates of a seed in a row were not finite.
  """
  seeds = Seeds(configs, workdirs, started or time.monotonic())
  return seeds.finish(*train.loop(seeds))


class Writers(contextlib.ExitStack):
  """A `metrics.Writer` a seed."""

  def __init__(self, workdirs: Sequence[str | os.PathLike]):
    super().__init__()
    self.each = [
      self.enter_context(metrics.Writer(workdir, tensorboard=False))
      for workdir in workdirs
    ]


class Seeds:
  """What `train.loop` asks of a run, of all seeds: lists, one for each."""

  start, resumed = 0, False

  def __init__(
    self,
    configs: Sequence[ml_collections.ConfigDict],
    workdirs: Sequence[str | os.PathLike],
    started: float,
  ):
    self.config, self.configs = configs[0], configs
    self.workdirs, self._started = workdirs, started
    for other in configs[1:]:
      changes = build.diff(self.config.to_dict(), other.to_dict())
      if more := [c for c in changes if not c.startswith('seed:')]:
        raise build.ConfigError(
          f'runs in one program differ in their seed only, not in {more[0]}'
        )
    config, self.built = self.config, assemble.setup(self.config)
    built = self.built
    if combine.split({**(built.rewards or {}), **built.monitors})[1]:
      raise build.ConfigError('a reward that needs the host cannot be vmapped')
    if config.evals or any(s.get('export') for s in config.learners.values()):
      raise build.ConfigError(
        'runs in one program have one evaluation, and write no learners'
      )
    step, tx, advantage = assemble.make_step(
      config, built, sharding.one_device()
    )
    self._evaluate, batch = assemble.make_evaluator(config, built)
    self._kl = assemble.make_kl_from_base(config, built, batch)
    self._bases = [
      jax.device_get(initial.params(c, built.policy)) for c in configs
    ]
    self._states = stack([
      initial.state(c, built, base, tx, advantage)
      for c, base in zip(configs, self._bases)
    ])  # fmt: skip
    self._batches = [feeds.training(c, built) for c in configs]
    self._keys = jnp.stack([rng.training_key(c.seed) for c in configs])
    self._first_metric, self._clock = None, progress.Stopwatch()
    self.line = progress.Progress(config.steps)

    def train_step(state, batch, key):
      state, experience, collected = step.collect(state, batch, key)
      state, updated = step.update(state, experience, key)
      return state, {**collected, **updated}

    self._step = jax.jit(jax.vmap(train_step), donate_argnums=0)  # eq. (1)

  def writer(self) -> Writers:
    return Writers(self.workdirs)

  def trained(self) -> list[Any]:
    averaged = 'ema' if self.config.ema else 'params'
    states = [
      jax.tree.map(lambda leaf, i=i: leaf[i], self._states)
      for i in range(len(self.configs))
    ]
    return [train_state.full_params(one, averaged) for one in states]

  def due(self, done: int) -> list[str]:
    return [MAIN] if done % self.config.eval.every == 0 else []

  def evaluate(
    self,
    writer: Writers,
    at: int,
    params: list[Any] | None = None,
    labels: Sequence[str] | None = None,
  ) -> tuple[list[Any], list[float | None]]:
    """(Evaluations, KLs from the base); logs them."""
    del labels
    found, kls = [], []
    everyone = self._bases if params is None else params
    for one, base, out in zip(everyone, self._bases, writer.each):
      result, kl = self._evaluate(one), None
      if self._kl:
        kl = self._kl(one, base) if at else 0.0
      logged = {} if kl is None else {'kl/base': kl}
      out.write_scalars(at, {**result.metrics(), **logged})
      found.append(result)
      kls.append(kl)
    said = ', '.join(f'{result.strict:.3f}' for result in found)
    self.line.note(f'step {at}: held-out accuracy {said}')
    self._first_metric = self._first_metric or self._wall()
    return found, kls

  def update(self, writer: Writers, done: int) -> None:
    config, n = self.config, len(self.configs)
    rows = config.data.prompts_per_step * config.data.group_size
    batch = stack([next(b)[0] for b in self._batches])
    with self._clock.stage('step'):
      self._states, logged = self._step(self._states, batch, self._keys)
      logged = jax.device_get(logged)
    score = logged.get('reward/score')
    score = None if score is None else score.mean()
    self.line.update(done, reward=score, samples_per_step=n * rows)
    if done % config.log.every == 0 or done == config.steps:
      times = self._clock.summary(n * rows)
      for i, out in enumerate(writer.each):
        one = {name: x[i] for name, x in logged.items()}
        out.write_scalars(done, {**one, **times}, samples=done * rows)
    in_a_row = logged['optim/skipped_in_a_row']
    if in_a_row.max() >= config.stop_after_skipped:
      raise FloatingPointError(
        f'the last {in_a_row.max()} updates of seed '
        f'{self.configs[in_a_row.argmax()].seed} (to step {done}) were not '
        'finite'
      )

  def settle(self, writer: Writers) -> None:
    """Every step is waited for."""

  def save(self) -> None:
    """There are no checkpoints."""

  def check(self, writer: Writers, stop: bool) -> None:
    if stop:
      raise SystemExit(143)  # as the signal would; nothing is kept

  def close(self) -> None:
    """Nothing is in writing."""

  def export(self, params: list[Any], trained: list[Any]) -> None:
    policy = self.built.policy
    for c, workdir, one, result in zip(
      self.configs, self.workdirs, params, trained
    ):
      if c.export:
        export.write(c, workdir, policy, one, c.steps, result.summary())

  def _wall(self) -> float:
    return time.monotonic() - self._started

  def finish(
    self, base: list[Any], trained: list[Any], kls: list[float | None]
  ) -> list[dict[str, Any]]:
    """Writes result.json of each."""
    environment, wall, out = system.environment(), self._wall(), []
    for i, (c, workdir) in enumerate(zip(self.configs, self.workdirs)):
      result = results.of_run(
        c,
        base[i].summary(),
        trained[i].summary(),
        environment,
        steps=int(self._states.step[i]),
        kl=kls[i],
        wall_seconds=wall,
        seconds_to_first_metric=self._first_metric,
        samples_per_second=report.median_speed(os.fspath(workdir)),
        peak_rss_bytes=system.peak_rss_bytes(),
        updates_skipped=int(self._states.skipped[i]),
        seeds_at_once=len(self.configs),
      )
      results.write_json(workdir, result)
      print(f'seed {c.seed}\n{results.table(result)}')
      out.append(result)
    return out
