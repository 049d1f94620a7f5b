"""Steps that take the velocity of one before: what is saved, what is lost.

  python -m experiments.caching.run                # all arms, three seeds
  python -m experiments.caching.run --arms=world_8,sd3
  python -m experiments.caching.run --arms=times   # seconds
  python -m experiments.caching.run --report       # tables only

What has a row in results.csv is not measured again; rows say from which code.
An arm is a network and a sampler; beside each threshold stand grids of fewer
steps, as many as the threshold left calls.
"""

import argparse
from collections.abc import Callable
import datetime
import functools
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import flow_grpo
from experiments import rows as rows_lib
from experiments import tables
from gen_rl import assemble, build, initial, rewards, rollout, search
from gen_rl.data import feeds
from gen_rl.diffusion import schedules
from gen_rl.models import flux, mmdit
from gen_rl.models.parts.layers import Net
from gen_rl.policies import ode
from gen_rl.rewards import combine
from gen_rl.types import Array, Params, Rows
from gen_rl.utils import system, tree

FOLDER = pathlib.Path(__file__).parent
SEEDS = 0, 1, 2
PROMPTS, SAMPLES = 70, 4  # of the world, as its config evaluates
THRESHOLDS = 0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0
KEY = 'arm', 'threshold', 'steps', 'seed'


class Lab(NamedTuple):
  """A network and what it is to draw."""

  net: Net
  params: Params
  shift: float
  guidance: float
  rows: Callable[[int], Rows]  # of a seed
  judge: Callable[[Array, Rows], Array] | None  # latents -> [b] correct


class Arm(NamedTuple):
  """A sampler of a lab."""

  lab: str  # a name of LABS
  steps: int
  solver: str = 'euler'
  fewer: tuple[int, ...] = ()  # steps of the grids beside it


ARMS = {
  'world_8': Arm('world', 8, fewer=(7, 6, 5, 4)),
  'world_20': Arm('world', 20, fewer=(17, 14, 12, 10, 8, 6)),
  'world_20_dpm2': Arm('world', 20, 'dpm2', fewer=(17, 14, 12, 10, 8, 6)),
  'world_40': Arm('world', 40, fewer=(30, 20, 16, 12, 10, 8)),
  'sd3': Arm('sd3', 28, fewer=(24, 20, 16, 12, 10, 8, 6)),
  'flux': Arm('flux', 28, fewer=(24, 20, 16, 12, 10, 8, 6)),
}


def world() -> Lab:
  """The shipped base on held-out prompts, judged by the oracle."""
  config = flow_grpo.get_config()
  config.eval.update(num_prompts=PROMPTS, samples=SAMPLES)
  built = assemble.setup(config)
  params = initial.params(config, built.policy)
  gold = combine.combine(
    {k: (r, 1.0) for k, r in build.build_all(rewards, config.eval.gold).items()}
  )
  batch, *_ = feeds.evaluation_and_asked(config, built)

  def judge(latents: Array, rows: Rows) -> Array:
    verify = search.verifier(built.policy, (), gold, gold.params)
    return verify(latents, rows) > 0.5

  def rows(seed: int) -> Rows:
    key = jax.random.key(seed)
    return rollout.make_rows(batch, SAMPLES, key, jnp.int32(0))

  return Lab(built.net, params, config.policy.shift, 1.0, rows, jax.jit(judge))


def random_net(net: Net, shift: float, guidance: float) -> Lab:
  """Random weights whose every layer says something, and random texts."""
  shapes = tree.named(jax.eval_shape(net.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  leaves = {}
  for name, x in shapes.items():
    fan = np.prod(x.shape[:-1][-1:]) if name.endswith('kernel') else 25
    noise = rng.normal(size=x.shape) / np.sqrt(fan)
    leaves[name] = jnp.float32(noise + name.endswith('scale'))

  def rows(seed: int) -> Rows:
    rng, b = np.random.default_rng(seed), 8
    cond = dict(
      text=jnp.float32(rng.normal(size=(b, 16, 32))),
      pooled=jnp.float32(rng.normal(size=(b, 16))),
      null_text=jnp.zeros((b, 16, 32)), null_pooled=jnp.zeros((b, 16)),
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(seed), b)
    return Rows(cond, {}, jnp.arange(b), keys, keys, keys[0])

  return Lab(net, tree.nest(leaves), shift, guidance, rows, None)


def sd3() -> Lab:
  net = mmdit.mmdit(
    (16, 16, 16), layers=6, heads=4, head_dim=16, dual=2, text=32, pooled=16,
    scan=True,
  )  # fmt: skip
  return random_net(net, 3.0, 4.5)


def flux_dev() -> Lab:
  net = flux.flux(
    (16, 16, 16), double=3, single=6, heads=4, head_dim=16, turns=(4, 6, 6),
    text=32, pooled=16, scan=True,
  )  # fmt: skip
  return random_net(net, float(schedules.flux_shift(64)), 1.0)


LABS = dict(world=functools.cache(world), sd3=functools.cache(sd3),
            flux=functools.cache(flux_dev))  # fmt: skip


@functools.cache
def sampler(name: str, steps: int, cached: bool) -> Callable[..., Any]:
  """(params, rows, threshold) -> (latents, share of calls saved)."""
  arm, lab = ARMS[name], LABS[ARMS[name].lab]()

  @jax.jit
  def run(params: Params, rows: Rows, threshold: Array):
    sample = ode.counted(
      lab.net, steps, lab.shift, lab.guidance, arm.solver,
      cache_threshold=threshold if cached else 0.0,
    )  # fmt: skip
    latents, share = sample(params, rows)
    return latents, share[0] if cached else jnp.zeros(())

  return run


def measure(name: str, seed: int) -> list[rows_lib.Row]:
  """Rows of all thresholds, and of grids of fewer steps."""
  arm, lab = ARMS[name], LABS[ARMS[name].lab]()
  rows = lab.rows(seed)
  out, whole = [], None
  plans = [(arm.steps, threshold) for threshold in THRESHOLDS]
  plans += [(steps, 0.0) for steps in arm.fewer]
  for steps, threshold in plans:
    run = sampler(name, steps, steps == arm.steps)
    latents, share = run(lab.params, rows, jnp.float32(threshold))
    whole = latents if whole is None else whole
    far = jnp.linalg.norm((latents - whole).reshape(len(whole), -1), axis=1)
    size = jnp.linalg.norm(whole.reshape(len(whole), -1), axis=1)
    row = dict(
      arm=name, threshold=threshold, steps=steps, seed=seed,
      calls=round(steps * (1 - float(share))), saved=float(share),
      error=float((far / size).mean()),
    )  # fmt: skip
    if lab.judge:
      row['strict'] = float(lab.judge(latents, rows).mean())
    out.append(row)
  return out


def times(turns: int = 7) -> rows_lib.Row:
  """Seconds of forty steps: without the rule, with it, and with half of them.

  They take turns, so that what else the machine does slows all alike.
  """
  name = 'world_40'
  lab = LABS['world']()
  rows = lab.rows(0)
  plain, cached = sampler(name, 40, False), sampler(name, 40, True)

  def seconds(run: Callable, threshold: float) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(lab.params, rows, jnp.float32(threshold)))
    return time.perf_counter() - start

  shares = {x: float(cached(lab.params, rows, x)[1]) for x in THRESHOLDS[1:]}
  half = min(shares, key=lambda x: abs(shares[x] - 0.5))
  kinds = dict(off=(plain, 0.0), none=(cached, 0.0), half=(cached, half))
  found = {kind: [] for kind in kinds}
  for _ in range(turns + 1):  # the first one compiles
    for kind, (run, threshold) in kinds.items():
      found[kind].append(seconds(run, threshold))
  medians = {k: statistics.median(x[1:]) for k, x in found.items()}
  return dict(
    arm='times', threshold=half, steps=40, seed=0, saved=shares[half],
    calls=round(40 * (1 - shares[half])),
    **{f'{k}_s': x for k, x in medians.items()},
  )  # fmt: skip


# --- the report


def table(rows: list[rows_lib.Row], name: str) -> str:
  """A line a threshold; beside it, the grid of as many steps as calls."""
  mine = [r for r in rows if r['arm'] == name]
  judged = any(r.get('strict') for r in mine)
  full = ARMS[name].steps

  def of(**want) -> list[rows_lib.Row]:
    return [r for r in mine if all(float(r[k]) == want[k] for k in want)]

  lines = []
  for threshold in THRESHOLDS:
    found = of(steps=full, threshold=threshold)
    if not found:
      continue
    calls = np.mean([float(r['calls']) for r in found])
    steps = min([full, *ARMS[name].fewer], key=lambda n: (n < calls - 0.5, n))
    other = of(steps=steps, threshold=0.0)
    cells = [
      f'{threshold:g}',
      f'{calls:.1f}',
      tables.cell(found, 'saved', '.0%'),
    ]
    if judged:
      cells.append(tables.cell(found, 'strict', '.3f'))
    cells += [tables.cell(found, 'error', '.3f'), str(steps)]
    if judged:
      cells.append(tables.cell(other, 'strict', '.3f'))
    lines.append([*cells, tables.cell(other, 'error', '.3f')])
  gold = ['gold'] if judged else []
  return tables.markdown(
    ['threshold', f'calls of {full}', 'saved', *gold, 'error',
     'fewer steps', *(f'{x}, fewer steps' for x in gold), 'error, fewer steps'],
    lines,
  )  # fmt: skip


def times_table(rows: list[rows_lib.Row]) -> str:
  (row,) = [r for r in rows if r['arm'] == 'times']
  off, none, half = (float(row[f'{k}_s']) for k in ('off', 'none', 'half'))
  saved = float(row['saved'])
  return tables.markdown(
    ('40 steps of the world', 'seconds', 'of off'),
    [
      ('off (no conditional)', f'{off:.2f}', '1'),
      ('on, nothing taken', f'{none:.2f}', f'{none / off:.2f}'),
      (f'on, {saved:.0%} taken', f'{half:.2f}', f'{half / off:.2f}'),
    ],
  )


def report(rows: list[rows_lib.Row]) -> None:
  """Tables into the README."""
  parts = {n: table(rows, n) for n in ARMS if any(r['arm'] == n for r in rows)}
  if any(r['arm'] == 'times' for r in rows):
    parts['times'] = times_table(rows)
  for name, part in parts.items():
    print(f'{name}\n\n{part}\n')
  tables.fill_file(FOLDER / 'README.md', parts)


def main() -> None:
  """See the module docstring."""
  parser = argparse.ArgumentParser(description=__doc__)
  every = ','.join([*ARMS, 'times'])
  parser.add_argument('--arms', default=every, help='which, of ' + every)
  parser.add_argument('--report', action='store_true')
  args = parser.parse_args()
  when = dict(
    date=datetime.date.today().isoformat(), git_commit=system.git_commit()
  )
  done = {(r['arm'], int(r['seed'])) for r in rows_lib.read(FOLDER)}

  def write(rows: list[rows_lib.Row]) -> None:
    for row in rows:
      rows_lib.append(FOLDER, row | when, KEY)

  arms = [] if args.report else args.arms.split(',')
  for name in (n for n in arms if n != 'times'):
    for seed in SEEDS:
      if (name, seed) not in done:
        write(measure(name, seed))
        print(f'measured: {name}, seed {seed}', flush=True)
  if 'times' in arms and ('times', 0) not in done:
    write([times()])
  report(rows_lib.read(FOLDER))


if __name__ == '__main__':
  main()
