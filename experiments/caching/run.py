"""Steps that take the velocity of one before: what is saved, what is lost.

  python -m experiments.caching.run                # all arms, three seeds
  python -m experiments.caching.run --arms=world_8,sd3
  python -m experiments.caching.run --arms=times   # seconds
  python -m experiments.caching.run --report       # tables only

What has a row in results.csv is not measured again; rows say from which code.
An arm is a network and a sampler; beside each threshold stands a grid of fewer
steps, as many as the threshold left calls.
"""

import argparse
from collections.abc import Callable
import functools
import pathlib
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import flow_grpo
from experiments import rows as rows_lib
from experiments import tables
from gen_rl import assemble, build, initial, rewards, rollout, search
from gen_rl.data import feeds
from gen_rl.diffusion import schedules, solvers
from gen_rl.models import flux, mmdit
from gen_rl.models.parts.layers import Net
from gen_rl.policies import guidance, ode
from gen_rl.rewards import combine
from gen_rl.types import Array, Params, Rows
from gen_rl.utils import tree

FOLDER = pathlib.Path(__file__).parent
SEEDS = 0, 1, 2
PROMPTS, SAMPLES = 70, 4  # of the world, as its config evaluates
THRESHOLDS = 0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0
KEY = 'arm', 'threshold', 'seed'


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


ARMS = {
  'world_8': Arm('world', 8),
  'world_20': Arm('world', 20),
  'world_20_dpm2': Arm('world', 20, 'dpm2'),
  'world_40': Arm('world', 40),
  'sd3': Arm('sd3', 28),
  'flux': Arm('flux', 28),
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
    (16, 16, 16), layers=4, heads=4, head_dim=16, dual=1, text=32, pooled=16
  )  # fmt: skip
  return random_net(net, 3.0, 4.5)


def flux_dev() -> Lab:
  net = flux.flux(
    (16, 16, 16), double=2, single=2, heads=4, head_dim=16, turns=(4, 6, 6),
    text=32, pooled=16,
  )  # fmt: skip
  return random_net(net, float(schedules.flux_shift(64)), 1.0)


LABS = dict(world=functools.cache(world), sd3=functools.cache(sd3),
            flux=functools.cache(flux_dev))  # fmt: skip


@functools.cache
def cached(name: str) -> Callable[..., tuple[Array, Array]]:
  """(params, rows, threshold) -> (latents, share of calls saved)."""
  arm, lab = ARMS[name], LABS[ARMS[name].lab]()

  @jax.jit
  def run(params: Params, rows: Rows, threshold: Array):
    sample = ode.counted(
      lab.net, arm.steps, lab.shift, lab.guidance, arm.solver,
      cache_threshold=threshold,
    )  # fmt: skip
    latents, share = sample(params, rows)
    return latents, share[0]

  return run


@functools.cache
def even(name: str) -> Callable[..., Array]:
  """(params, rows, grid of any length, its steps) -> latents; one program."""
  arm, lab = ARMS[name], LABS[ARMS[name].lab]()
  net = guidance.cfg(lab.net, lab.guidance)

  @jax.jit
  def run(params: Params, rows: Rows, grid: Array, steps: Array):
    x = ode.segments(lab.net, 1).noise(rows)
    prompt = net.encode(params, rows.cond)

    def body(i: Array, carry: tuple) -> tuple:
      x, memory = carry
      v = net.apply(params, x, jnp.full(len(x), grid[i]), prompt)
      return solvers.step(arm.solver, x, v, grid[i], grid[i + 1], memory)

    return jax.lax.fori_loop(0, steps, body, (x, solvers.empty(x)))[0]

  def padded(params: Params, rows: Rows, steps: int) -> Array:
    grid = np.zeros(arm.steps + 1, np.float32)
    grid[: steps + 1] = schedules.linear(steps, lab.shift)
    return run(params, rows, grid, jnp.int32(steps))

  return padded


def measure(name: str, seed: int) -> list[rows_lib.Row]:
  """A row a threshold; fewer_*: an even grid of as many steps as its calls."""
  arm, lab = ARMS[name], LABS[ARMS[name].lab]()
  rows, out = lab.rows(seed), []
  whole = even(name)(lab.params, rows, arm.steps)
  for threshold in THRESHOLDS:
    latents, share = cached(name)(lab.params, rows, jnp.float32(threshold))
    calls = round(arm.steps * (1 - float(share)))
    row = dict(
      arm=name, threshold=threshold, seed=seed, steps=arm.steps, calls=calls
    )
    fewer = even(name)(lab.params, rows, calls)
    for kind, x in (('', latents), ('fewer_', fewer)):
      far, size = (
        np.linalg.norm(np.reshape(y, (len(y), -1)), axis=1)
        for y in (x - whole, whole)
      )
      row[f'{kind}error'] = float((far / size).mean())
      if lab.judge:
        row[f'{kind}strict'] = float(lab.judge(x, rows).mean())
    out.append(row)
  return out


def times(turns: int = 5) -> rows_lib.Row:
  """Seconds of forty steps: without the rule, with it, and with half of them.

  They take turns, so that what else the machine does slows all alike.
  """
  lab, run = LABS['world'](), cached('world_40')
  rows = lab.rows(0)
  off = jax.jit(ode.sampler(lab.net, 40, lab.shift, lab.guidance))
  shares = {x: float(run(lab.params, rows, x)[1]) for x in THRESHOLDS[1:]}
  half = min(shares, key=lambda x: abs(shares[x] - 0.5))
  kinds = dict(
    off=lambda: off(lab.params, rows),
    none=lambda: run(lab.params, rows, 0.0)[0],
    half=lambda: run(lab.params, rows, half)[0],
  )
  found = {kind: [] for kind in kinds}
  for _ in range(turns + 1):  # the first one compiles
    for kind, draw in kinds.items():
      start = time.perf_counter()
      jax.block_until_ready(draw())
      found[kind].append(time.perf_counter() - start)
  medians = {k: statistics.median(x[1:]) for k, x in found.items()}
  return dict(
    arm='times', threshold=half, seed=0, steps=40,
    calls=round(40 * (1 - shares[half])),
    **{f'{k}_s': x for k, x in medians.items()},
  )  # fmt: skip


# --- the report


def table(rows: list[rows_lib.Row], name: str) -> str:
  """A line a threshold, over seeds."""
  mine = [r for r in rows if r['arm'] == name]
  steps, lines = ARMS[name].steps, []
  for threshold in THRESHOLDS:
    found = [r for r in mine if float(r['threshold']) == threshold]
    calls = np.mean([float(r['calls']) for r in found])
    cells = [f'{threshold:g}', f'{calls:.1f}', f'{1 - calls / steps:.0%}']
    columns = 'strict', 'fewer_strict', 'error', 'fewer_error'
    lines.append([*cells, *(tables.cell(found, c, '.3f') for c in columns)])
  return tables.markdown(
    ('threshold', f'calls of {steps}', 'saved', 'gold', 'gold, even grid',
     'error', 'error, even grid'), lines,
  )  # fmt: skip


def times_table(rows: list[rows_lib.Row]) -> str:
  (row,) = [r for r in rows if r['arm'] == 'times']
  off, none, half = (float(row[f'{k}_s']) for k in ('off', 'none', 'half'))
  return tables.markdown(
    ('40 steps of the world', 'calls', 'seconds', 'of off'),
    [
      ('off', '40', f'{off:.2f}', '1'),
      ('on, nothing taken', '40', f'{none:.2f}', f'{none / off:.2f}'),
      ('on', row['calls'], f'{half:.2f}', f'{half / off:.2f}'),
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
  when = rows_lib.stamp()
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
