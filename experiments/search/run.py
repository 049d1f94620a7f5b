"""All searches at equal calls, on the shipped base: results.csv.

  python -m experiments.search.run                 # all arms, three seeds
  python -m experiments.search.run --arms=pruned,best_of_n --seeds=0
  python -m experiments.search.run --report        # tables only

What has a row in results.csv is not measured again. A seed draws the noise of
the samples; prompts are the same. Prices are FLOPs of the compiled programs, in
units of one network call.
"""

import argparse
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from configs import search as search_config
from experiments import rows as rows_lib
from experiments import tables, verdicts
from gen_rl import assemble, initial, rewards, rollout, search
from gen_rl import build as build_lib
from gen_rl.data import feeds
from gen_rl.rewards import combine
from gen_rl.types import Array, Params, Rows

FOLDER = pathlib.Path(__file__).parent
SEEDS = 0, 1, 2
PROMPTS, SAMPLES = 60, 4
REWARD, BACK = 0.37, 2.0  # prices; a call back computes its step once more
BUDGETS = 33, 67, 135  # what best of 4, 8 and 16 cost
RATE = 20.0  # of the ascent, see README.md
KEY = 'arm', 'budget', 'seed'


class Arm(NamedTuple):
  """A search, as large as each of the budgets affords."""

  name: str  # in gen_rl/searches
  about: str
  sizes: tuple[dict[str, Any], ...]  # keywords, for each of BUDGETS
  keywords: dict[str, Any] = {}  # for all
  steps: int = 8
  pairs: bool = False  # a judge of pairs chooses
  placed: bool = False  # prompts are the harder ones


def _sizes(key: str, *values: int) -> tuple[dict[str, int], ...]:
  return tuple({key: value} for value in values)


HARDER = 'harder prompts'
ERRS = 'by a judge of pairs that errs'
ARMS = {
  'best_of_n': Arm('best_of_n', 'all finished', _sizes('n', 4, 8, 16)),
  'pruned': Arm(
    'pruned', 'half go on after steps 2 and 5', _sizes('n', 6, 12, 24),
    dict(steps=(2, 5), keep=(0.5, 0.5)),
  ),
  'zero_order': Arm(
    'zero_order', 'rounds of 2 neighbours', _sizes('rounds', 1, 3, 7),
    dict(n=2),
  ),
  'noise_gradient': Arm(
    'noise_gradient', 'updates of one noise', _sizes('updates', 1, 2, 5),
    dict(n=1, rate=RATE),
  ),
  'best_of_n_few': Arm(
    'best_of_n', 'all finished', _sizes('n', 8, 15, 30), steps=4
  ),
  'zero_order_few': Arm(
    'zero_order', 'rounds of 2 neighbours', _sizes('rounds', 3, 7, 14),
    dict(n=2), steps=4,
  ),
  'noise_gradient_few': Arm(
    'noise_gradient', 'updates of one noise', _sizes('updates', 2, 5, 10),
    dict(n=1, rate=RATE), steps=4,
  ),
  'noise_gradient_two': Arm(
    'noise_gradient', 'updates of two noises', _sizes('updates', 1, 2, 5),
    dict(n=2, rate=RATE), steps=4,
  ),
  'tournament': Arm(
    'tournament', f'knock-out {ERRS}', _sizes('n', 4, 8, 16), pairs=True
  ),
  'all_pairs': Arm(
    'best_of_n', f'all pairs {ERRS}', _sizes('n', 4, 8, 16), pairs=True
  ),
  'best_of_n_placed': Arm(
    'best_of_n', f'all finished, {HARDER}', _sizes('n', 4, 8, 16), placed=True
  ),
  'pruned_placed': Arm(
    'pruned', f'half go on after steps 2 and 5, {HARDER}',
    _sizes('n', 6, 12, 24), dict(steps=(2, 5), keep=(0.5, 0.5)), placed=True,
  ),
}  # fmt: skip


class Claim(NamedTuple):
  """Gold of `ours` is above that of `baseline`, less `margin`."""

  text: str
  baseline: str
  ours: str
  margin: float = 0.0


CLAIMS = (
  Claim('cuts make more of as many calls', 'best_of_n', 'pruned'),
  Claim('so do walks (2501.09732)', 'best_of_n', 'zero_order'),
  Claim('so does the gradient (ReNO)', 'best_of_n', 'noise_gradient'),
  Claim(
    'it does at 4 steps a sample', 'best_of_n_few', 'noise_gradient_few'
  ),
  Claim(
    'it does at 4 steps against best of n at 8', 'best_of_n',
    'noise_gradient_few',
  ),
  Claim(
    'two starts make more of it than one (CARINOX)', 'noise_gradient_few',
    'noise_gradient_two',
  ),
  Claim(
    'a knock-out is within a point of all pairs', 'all_pairs', 'tournament',
    margin=0.01,
  ),
  Claim(
    'cuts make more of as many calls on harder prompts', 'best_of_n_placed',
    'pruned_placed',
  ),
)  # fmt: skip


class Lab(NamedTuple):
  """What is searched, by what, and who judges."""

  config: config_dict.ConfigDict
  built: assemble.Setup
  params: Params
  batch: dict[str, Any]
  gold: Any  # (latents, rows) -> [b]


@functools.cache
def lab(steps: int, pairs: bool, placed: bool) -> Lab:
  variants = ['tournament'] * pairs + ['placed'] * placed
  config = search_config.get_config(','.join(variants))
  config.eval.update(num_prompts=PROMPTS, samples=SAMPLES, steps=steps)
  built = assemble.setup(config)
  batch, *_ = feeds.evaluation_and_asked(config, built)
  named = build_lib.build_all(rewards, config.eval.gold)
  gold = combine.combine({k: (r, 1.0) for k, r in named.items()})

  def judge(latents: Array, rows: Rows) -> Array:
    verify = search.verifier(built.policy, (), gold, gold.params)
    return verify(latents, rows) > 0.5

  params = initial.params(config, built.policy)
  return Lab(config, built, params, batch, jax.jit(judge))


def measure(name: str, place: int, seeds: list[int]) -> list[rows_lib.Row]:
  """A row a seed, of an arm at BUDGETS[place]; one program."""
  arm = ARMS[name]
  config, built, params, batch, gold = lab(arm.steps, arm.pairs, arm.placed)
  spec = dict(name=arm.name, **arm.keywords, **arm.sizes[place])
  _, find = assemble.searcher(
    config, built, built.segments, spec, built.rewards, 512
  )
  run, out = jax.jit(find), []
  judges = combine.params(built.rewards)
  for seed in seeds:
    rows = rollout.make_rows(
      batch, SAMPLES, jax.random.key(seed), jnp.zeros((), jnp.int32)
    )
    start = time.perf_counter()
    found = jax.block_until_ready(run(params, rows, judges))
    seconds, cost = time.perf_counter() - start, found.cost
    out.append(
      dict(
        arm=name, budget=BUDGETS[place], seed=seed,
        gold=float(np.mean(gold(found.sample, rows))),
        score=float(np.mean(found.score)),
        price=cost.total(1.0, REWARD, BACK),
        network_calls=cost.network_calls, backward_calls=cost.backward_calls,
        reward_calls=cost.reward_calls, seconds=seconds,
      )
    )  # fmt: skip
  return out


# --- the report


def values(rows: list[rows_lib.Row], arm: str, column: str) -> np.ndarray:
  """[budgets seeds]; NaN: not measured."""
  found = {
    (int(r['budget']), int(r['seed'])): float(r[column])
    for r in rows
    if r['arm'] == arm
  }
  return np.array([[found.get((b, s), np.nan) for s in SEEDS] for b in BUDGETS])


def verdict(rows: list[rows_lib.Row], claim: Claim) -> str:
  """By two standard errors: at every price, at some, or the other way.

  An error is that of the seeds' mean difference, or that of so many independent
  verdicts if that is larger: three seeds can agree by chance.
  """
  ours, other = (
    values(rows, arm, 'gold') for arm in (claim.ours, claim.baseline)
  )
  gain = ours - other + claim.margin
  if np.isnan(gain).any():
    return verdicts.NONE
  seeds = gain.shape[1]
  spread = (ours * (1 - ours) + other * (1 - other)).mean(1)
  spread /= PROMPTS * SAMPLES
  error = np.sqrt(np.maximum(gain.var(1, ddof=1), spread) / seeds)
  sure = gain.mean(1) / error
  if (sure > 2).all():
    return verdicts.HOLDS
  if (sure > 2).any():
    return 'holds partly'
  return verdicts.FAILS if (sure < -2).any() else verdicts.FEW


def table(rows: list[rows_lib.Row], column: str) -> str:
  """A line an arm, a column a budget."""
  lines = []
  for name, arm in ARMS.items():
    cells = []
    for budget in BUDGETS:
      found = [
        r for r in rows if r['arm'] == name and int(r['budget']) == budget
      ]
      cells.append(tables.cell(found, column))
    lines.append((f'{name}, {arm.steps} steps', *cells))
  return tables.markdown(('arm', *(f'price {b}' for b in BUDGETS)), lines)


def arms() -> str:
  """What each one is."""
  lines = [
    (name, f'{arm.about}, {arm.steps} steps',
     ', '.join(' '.join(f'{k}={v}' for k, v in size.items())
               for size in arm.sizes))
    for name, arm in ARMS.items()
  ]  # fmt: skip
  return tables.markdown(('arm', 'what', 'at the three prices'), lines)


def claims(rows: list[rows_lib.Row]) -> str:
  lines = []
  for claim in CLAIMS:
    gap = values(rows, claim.ours, 'gold') - values(
      rows, claim.baseline, 'gold'
    )
    gaps = ', '.join(
      f'{100 * x:+.1f}' if np.isfinite(x) else '–' for x in gap.mean(1)
    )
    lines.append((claim.text, claim.baseline, claim.ours, gaps,
                  verdict(rows, claim)))  # fmt: skip
  heads = 'claim', 'against', 'ours', 'points of gold', 'verdict'
  return tables.markdown(heads, lines)


def _numbers(values: np.ndarray, form: str) -> str:
  return ' / '.join('–' if np.isnan(x) else format(x, form) for x in values)


def overview_lines() -> list[tuple[str, ...]]:
  """What experiments/overview.py says of this study, without its name."""
  rows, lines = rows_lib.read(FOLDER), []
  for claim in CLAIMS:
    means = []
    for arm in (claim.baseline, claim.ours):
      gold = values(rows, arm, 'gold').mean(1)
      means.append(_numbers(gold, '.3f') + f', {arm}')
    gap = values(rows, claim.ours, 'gold') - values(
      rows, claim.baseline, 'gold'
    )
    gaps = _numbers(gap.mean(1), '+.3f')
    lines.append((
      claim.text, 'gold at three prices', *means, gaps, str(len(SEEDS)),
      verdict(rows, claim),
    ))  # fmt: skip
  return lines


def report(rows: list[rows_lib.Row]) -> None:
  """Tables into the README."""
  parts = dict(arms=arms())
  if rows:
    parts |= {c: table(rows, c) for c in ('gold', 'score', 'price')}
    parts['claims'] = claims(rows)
  for name, part in parts.items():
    print(f'{name}\n\n{part}\n')
  tables.fill_file(FOLDER / 'README.md', parts)


def main() -> None:
  """See the module docstring."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--arms', default=','.join(ARMS), help='which')
  parser.add_argument('--seeds', default=','.join(map(str, SEEDS)))
  parser.add_argument('--report', action='store_true')
  args = parser.parse_args()
  when = rows_lib.stamp()
  seeds = [int(seed) for seed in args.seeds.split(',')]
  for name in [] if args.report else args.arms.split(','):
    for place, budget in enumerate(BUDGETS):
      done = {tuple(r[k] for k in KEY) for r in rows_lib.read(FOLDER)}
      todo = [s for s in seeds if (name, str(budget), str(s)) not in done]
      for row in measure(name, place, todo) if todo else ():
        rows_lib.append(FOLDER, row | when, KEY)
      print(f'measured: {name} at {budget}', flush=True)
  report(rows_lib.read(FOLDER))


if __name__ == '__main__':
  main()
