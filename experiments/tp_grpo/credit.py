r"""How well advantages say what a decision was worth.

  python -m experiments.tp_grpo.credit            # both rewards, three seeds
  python -m experiments.tp_grpo.credit --report   # table only

What the action a of a row's decision j was worth, in its state s, is measured
by drawing on, with noise as the policy takes it, m = 16 times:

  truth_j = mean R(s, a, then noise) - mean R(s, noise, then noise)        (1)

where the second draws the decision anew, too. `corr` is the correlation of an
advantage with it over all rows and decisions; `steps` the same after a row's
own means were taken away: whether an advantage tells the decisions of one row
from each other, which GRPO's cannot. (1) is itself drawn: no advantage can
correlate better than `ceiling`, the root of the truth's reliability, from two
halves of its draws (Spearman-Brown). The shipped base, untrained, on prompts of
training.
"""

import argparse
from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import tp_grpo
from experiments import rows as rows_lib
from experiments import tables
from gen_rl import (
  advantages,
  assemble,
  initial,
  rollout,
  search,
)
from gen_rl.data import feeds
from gen_rl.diffusion import schedules, transitions
from gen_rl.rewards import combine
from gen_rl.types import Array, Params, RewardOut, Rows, Trajectory
from gen_rl.utils import rng

FOLDER = pathlib.Path(__file__).parent
SEEDS = 0, 1, 2
REWARDS = {'oracle': '', 'detector': 'soft'}  # {arm: variant of the config}
PROMPTS, DRAWS = 21, 16
KEY = 'arm', 'way', 'seed'
WAYS = {
  'outcome': advantages.grpo(12),
  'incremental': advantages.turning_points(12, 'incremental'),
  'turning': advantages.turning_points(12),
  'balanced': advantages.turning_points(12, balanced=True),
  'bonus': advantages.turning_points(12, 'bonus'),
}


class Lab(NamedTuple):
  """What a reward's programs need."""

  built: assemble.Setup
  params: Params
  config: Any
  draw: Callable[..., tuple[Trajectory, Array]]  # rows -> (drawn, R_0 .. R_k)
  # (rows, decision, its states, the actions taken, kept, keys) -> scores of
  # what is drawn on, from these actions where `kept`, else from new ones
  on: Callable[..., Array]


def lab(variant: str, seed: int) -> Lab:
  """Of the base and a variant of configs/tp_grpo.py."""
  config = tp_grpo.get_config(variant)
  config.seed = seed
  config.data.prompts_per_step = PROMPTS
  built = assemble.setup(config)
  params = initial.params(config, built.policy)
  reward = combine.combine(built.rewards)
  score = search.verifier(built.policy, params, reward, reward.params)
  ops, p, net = built.policy.ops, config.policy, built.net
  times = schedules.linear(p.steps, p.shift)
  step = jnp.int32(0)

  @jax.jit
  def draw(rows: Rows) -> tuple[Trajectory, Array]:
    traj = built.policy.rollout(params, rows, step)
    done = ops['complete'](params, rows, step, traj)
    before = [score(done[:, j], rows) for j in range(done.shape[1])]
    return traj, jnp.stack([*before, score(traj.sample, rows)], 1)

  @jax.jit
  def on(
    rows: Rows, j: Array, x: Array, action: Array, kept: Array, keys: Array
  ) -> Array:
    prompt = net.encode(params, rows.cond)

    def body(i: Array, x: Array) -> Array:
      v = net.apply(params, x, jnp.full(len(x), times[i]), prompt)
      level = jnp.where(i < p.window, p.noise, 0.0)
      mean, std = transitions.cps()(x, v, times[i], times[i + 1], level)
      z = rng.normal(rng.step_keys(keys, i), net.shape)
      return jnp.where(kept & (i == j), action, mean + std * z)

    return score(jax.lax.fori_loop(j, p.steps, body, x), rows)

  return Lab(built, params, config, draw, on)


def truths(lab: Lab, rows: Rows, traj: Trajectory) -> np.ndarray:
  """(1) of every decision from either half of its draws, [2 b k]."""
  out = np.zeros((2, *traj.mask.shape))
  for j in range(traj.mask.shape[1]):
    for m in range(DRAWS):
      keys = rng.step_keys(rng.stream_keys(rows.keys, 'credit'), m)
      taken, anew = (
        lab.on(rows, j, traj.states[:, j], traj.actions[:, j], kept, keys)
        for kept in (True, False)
      )
      out[m % 2, :, j] += np.asarray(taken - anew) / (DRAWS / 2)
  return out


def corr(a: np.ndarray, b: np.ndarray) -> float:
  """Of all rows and decisions; 0 where one of them does not vary."""
  a, b = a - a.mean(), b - b.mean()
  size = np.sqrt((a**2).sum() * (b**2).sum())
  return float((a * b).sum() / size) if size > 1e-9 else 0.0


def within(x: np.ndarray) -> np.ndarray:
  """Without a row's own mean."""
  return x - x.mean(1, keepdims=True)


def ceiling(halves: np.ndarray) -> float:
  """The most that anything can correlate with the mean of the two."""
  r = max(corr(*halves), 0.0)
  return float(np.sqrt(2 * r / (1 + r)))


def measure(arm: str, seed: int) -> list[rows_lib.Row]:
  """A row a way to give advantages, and one of the ceiling."""
  this = lab(REWARDS[arm], seed)
  batch, _ = next(feeds.training(this.config, this.built))
  size = this.config.data.group_size
  key = rng.training_key(seed)
  rows = rollout.make_rows(batch, size, key, jnp.int32(0))
  traj, scores = this.draw(rows)
  halves = truths(this, rows, traj)
  truth, b = halves.mean(0), len(scores)
  out = RewardOut(
    score=scores[:, -1], parts={}, valid=jnp.ones(b, bool),
    before=scores[:, :-1],
  )  # fmt: skip
  found = []
  for way, advantage in WAYS.items():
    adv, *_ = advantage.update(out, rows.group, ())
    adv = np.broadcast_to(np.asarray(adv, np.float64), truth.shape)
    found.append((way, corr(adv, truth), corr(within(adv), within(truth))))
  best = ceiling(halves), ceiling(np.stack([within(x) for x in halves]))
  return [
    dict(arm=arm, way=way, seed=seed, corr=all_, steps=own, samples=b)
    for way, all_, own in [*found, ('ceiling', *best)]
  ]


def table(rows: list[rows_lib.Row], arm: str) -> str:
  """A line a way, over seeds."""
  lines = []
  for way in (*WAYS, 'ceiling'):
    found = [r for r in rows if (r['arm'], r['way']) == (arm, way)]
    cells = (tables.cell(found, c, '.3f') for c in ('corr', 'steps'))
    lines.append([way, *cells])
  heads = 'advantage', 'corr', 'corr within a row'
  return tables.markdown(heads, lines)


def main() -> None:
  """See the module docstring."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--report', action='store_true')
  args = parser.parse_args()
  when = rows_lib.stamp()
  folder = FOLDER / 'credit'
  folder.mkdir(exist_ok=True)
  done = {(r['arm'], int(r['seed'])) for r in rows_lib.read(folder)}
  for seed in () if args.report else SEEDS:
    for arm in REWARDS:
      if (arm, seed) not in done:
        for row in measure(arm, seed):
          rows_lib.append(folder, row | when, KEY)
        print(f'measured: {arm}, seed {seed}', flush=True)
  rows = rows_lib.read(folder)
  parts = {f'credit {arm}': table(rows, arm) for arm in REWARDS}
  for name, part in parts.items():
    print(f'{name}\n\n{part}\n')
  tables.fill_file(FOLDER / 'README.md', parts)


if __name__ == '__main__':
  main()
