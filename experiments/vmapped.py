"""Small runs, all seeds in one program: vmap over the step.

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
  train_state,
)
from gen_rl.data import feeds
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
  started = time.monotonic() if started is None else started
  clock = progress.Stopwatch()
  config, n = configs[0], len(configs)
  for other in configs[1:]:
    changes = build.diff(config.to_dict(), other.to_dict())
    if more := [c for c in changes if not c.startswith('seed:')]:
      raise build.ConfigError(
        f'runs in one program differ in their seed only, not in {more[0]}'
      )
  built = assemble.setup(config)
  if combine.split({**(built.rewards or {}), **built.monitors})[1]:
    raise build.ConfigError('a reward that needs the host cannot be vmapped')
  step, tx, advantage = assemble.make_step(config, built, sharding.one_device())
  evaluate, eval_batch = assemble.make_evaluator(config, built)
  bases = [jax.device_get(initial.params(c, built.policy)) for c in configs]
  states = stack([
    initial.state(c, built, base, tx, advantage)
    for c, base in zip(configs, bases)
  ])  # fmt: skip
  batches = [feeds.training(c, built) for c in configs]
  keys = jnp.stack([rng.training_key(c.seed) for c in configs])
  rows = config.data.prompts_per_step * config.data.group_size
  averaged = 'ema' if config.ema else 'params'
  kl_from_base = assemble.make_kl_from_base(config, built, eval_batch)

  def train_step(state, batch, key):
    state, experience, collected = step.collect(state, batch, key)
    state, updated = step.update(state, experience, key)
    return state, {**collected, **updated}

  train_all = jax.jit(jax.vmap(train_step), donate_argnums=0)  # eq. (1)

  def trained(i: int):
    one = jax.tree.map(lambda leaf: leaf[i], states)
    return train_state.full_params(one, averaged)

  with contextlib.ExitStack() as opened:
    writers = [
      opened.enter_context(metrics.Writer(workdir, tensorboard=False))
      for workdir in workdirs
    ]

    def run_eval(at: int, everyone) -> list:
      """(Evaluation, KL from the base) of each seed; logs them."""
      out = []
      for params, base, writer in zip(everyone, bases, writers):
        result, kl = evaluate(params), None
        if kl_from_base:
          kl = kl_from_base(params, base) if at else 0.0
        logged = {} if kl is None else {'kl/base': kl}
        writer.write_scalars(at, {**result.metrics(), **logged})
        out.append((result, kl))
      found = ', '.join(f'{result.strict:.3f}' for result, _ in out)
      line.note(f'step {at}: held-out accuracy {found}')
      return out

    line = progress.Progress(config.steps)
    before = run_eval(0, bases)
    first_metric = time.monotonic() - started
    for done in range(1, config.steps + 1):
      batch = stack([next(b)[0] for b in batches])
      with clock.stage('step'):
        states, logged = train_all(states, batch, keys)
        logged = jax.device_get(logged)
      score = logged.get('reward/score')
      line.update(
        done,
        reward=None if score is None else score.mean(),
        samples_per_step=n * rows,
      )
      if done % config.log.every == 0 or done == config.steps:
        times = clock.summary(n * rows)
        for i, writer in enumerate(writers):
          one = {name: x[i] for name, x in logged.items()}
          writer.write_scalars(done, {**one, **times}, samples=done * rows)
      in_a_row = logged['optim/skipped_in_a_row']
      if in_a_row.max() >= config.stop_after_skipped:
        raise FloatingPointError(
          f'the last {in_a_row.max()} updates of seed '
          f'{configs[in_a_row.argmax()].seed} (to step {done}) were not finite'
        )
      if done % config.eval.every == 0 and done < config.steps:
        run_eval(done, map(trained, range(n)))
    line.close()
    after = run_eval(config.steps, map(trained, range(n)))

  environment = system.environment()
  wall, out = time.monotonic() - started, []
  for i, (c, workdir) in enumerate(zip(configs, workdirs)):
    if c.export:
      export.write(
        c, workdir, built.policy, trained(i), c.steps, after[i][0].summary()
      )
    result = dict(
      schema_version=results.SCHEMA_VERSION,
      config_name=c.name,
      seed=c.seed,
      steps=int(states.step[i]),
      base=before[i][0].summary(),
      trained=after[i][0].summary(),
      kl=after[i][1],
      wall_seconds=wall,
      seconds_to_first_metric=first_metric,
      samples_per_second=report.median_speed(os.fspath(workdir)),
      peak_rss_bytes=system.peak_rss_bytes(),
      updates_skipped=int(states.skipped[i]),
      device=environment['device'],
      cpus=environment['cpus'],
      jax_version=environment['jax'],
      git_commit=environment['git_commit'],
      seeds_at_once=n,
    )
    results.write_json(workdir, result)
    print(f'seed {c.seed}\n{results.table(result)}')
    out.append(result)
  return out
