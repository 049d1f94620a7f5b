"""Search at inference: pruning with noise-aware rewards against best of n.

  python experiments/ttsnap/run.py                 # three seeds
  python experiments/ttsnap/run.py --seeds=0
  python experiments/ttsnap/run.py --report        # tables and plot only

A seed draws the noise of the evaluation, the prompts and noise of the
distillation, and the subsets of candidates. Candidates are sampled and scored
once, into a table that all arms but zero-order search are simulated on; that
one is run. Prices are FLOPs, in units of one network call. The plot needs
matplotlib and scipy (extra "test").
"""

import datetime
import tempfile
import time
from typing import Any, NamedTuple

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import report
from report import ARMS, FEW, FIELDS, METRICS
from scipy import stats

from configs import flow_grpo
from gen_rl import (
  assemble,
  build,
  initial,
  models,
  rewards,
  rollout,
  search,
  selection,
  train,
)
from gen_rl.data import feeds, pipeline
from gen_rl.models.files import weights
from gen_rl.rewards import combine
from gen_rl.utils import system

STEPS, SHIFT, FEW_SHIFT = 20, 1.0, 2.0
# Steps cut at, and what they keep: TTSnap's, and those that were best at the
# price of 4 candidates on other prompts and noise, by the reward searched by.
SCHEDULES = {
  'early': ((2, 6, 11), (0.4, 0.4, 0.5)),
  'late': ((5, 8), (0.5, 0.5)),
}
LEVELS = 15  # noise-aware rewards read the estimates of steps 0..14
PROMPTS, POOL, REPEATS = 64, 64, 40
UPDATES, BATCH, LR = 64, 64, 1e-4  # of the distillation, of a level
BUDGETS = (1, 2, 4, 6, 8, 12)  # candidates best of n gets for it
NEIGHBOURS, PATIENCE, WALKS = 2, 3, 8  # of zero-order search
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Which seeds.')
_REPORT = flags.DEFINE_bool('report', False, 'Only tables and plot.')


class Lab(NamedTuple):
  """The shipped base, a reward to search by and one to judge by."""

  config: Any
  built: assemble.Setup
  params: Any
  reward: Any
  heldout: dict  # [P ...]
  sample: Any  # (params, rows) -> (latents [b ...], estimates [T b ...])
  score: Any  # (reward params, latents [b ...], rows) -> [b]
  judge: Any  # (latents [b ...], rows) -> [b], never seen by a search
  price: float  # of a reward call


def make_lab(steps: int, shift: float) -> Lab:
  config = flow_grpo.get_config('proxy')
  config.eval.update(steps=steps, num_prompts=PROMPTS)
  config.policy.shift = shift
  built = assemble.setup(config)
  params = initial.params(config, built.policy)
  (reward, _), segments = built.rewards['detector'], built.segments
  gold = combine.combine(
    {k: (r, 1.0) for k, r in build.build_all(rewards, config.eval.gold).items()}
  )
  source = feeds.evaluation_prompts(config)
  heldout = batch_of(config, built, source, PROMPTS, seed=0)

  def sample(params, rows):
    noise = segments.noise(rows)
    return segments.run(params, noise, rows.cond, 0, segments.steps)

  def score(reward_params, latents, rows):
    verify = search.verifier(built.policy, (), reward, reward_params)
    return verify(latents, rows)

  def judge(latents, rows):
    return search.verifier(built.policy, (), gold, gold.params)(latents, rows)

  net = build.build(
    models, config.model, vocab=built.tokenizer.size, length=config.data.length
  )
  rows = rollout.make_rows(heldout, 1, jax.random.key(0), jnp.int32(0))
  x, t = segments.noise(rows), jnp.ones(PROMPTS)
  flops = lambda f, *args: (
    jax.jit(f).lower(*args).compile().cost_analysis()['flops']
  )
  price = flops(score, reward.params, x, rows)
  price /= flops(net.apply, params, x, t, net.encode(params, rows.cond))
  return Lab(
    config, built, params, reward, heldout, jax.jit(sample), jax.jit(score),
    jax.jit(judge), price,
  )  # fmt: skip


def batch_of(config, built, source, count: int, seed: int) -> dict:
  batches = pipeline.prompt_batches(
    source, count, seed, built.tokenizer, config.data.length, balance=True
  )
  return next(batches)[0]


def chunks(batch: dict, size: int, n: int, key):
  """Rows of `size` prompts at a time, n samples of each."""
  for i in range(0, len(batch['prompt_id']), size):
    part = jax.tree.map(lambda x, i=i: x[i : i + size], batch)
    yield rollout.make_rows(part, n, key, jnp.int32(0))


def taught(
  folder: str, seed: int, level: int, of: int, updates: int, start: str
) -> str:
  """A run that teaches the detector to read estimates; where its weights are.

  Args:
    folder: it makes a folder in.
    seed: of the study.
    level: the first step whose estimates it reads.
    of: levels from there on, one of them drawn for each update.
    updates: of BATCH samples, that are new for each.
    start: weights it begins with.
  """
  c = flow_grpo.get_config('proxy')
  c.name = f'ttsnap level {level}'
  c.seed, c.steps = 1000 * (seed + 1) + level, updates
  c.policy.update(
    steps=STEPS, shift=SHIFT, deterministic=True, window=1, window_low=level,
    window_high=level + of, window_start=dict(name='random_window'),
  )  # fmt: skip
  c.objective = config_dict.ConfigDict()
  c.microbatches, c.ema = 1, 0.0
  c.data.update(prompts_per_step=BATCH // 8, group_size=8)
  c.learners.aware = config_dict.create(
    name='noise_aware',
    reward=dict(name='shapes_detector', weights=start),
    # TTSnap's AdamW, whose rate falls by half.
    optimizer=dict(
      name='adamw', lr=LR, decay='linear', decay_to=0.5, weight_decay=0.01,
      grad_clip=5.0,
    ),
    export='aware',
  )  # fmt: skip
  c.eval.update(every=updates, num_prompts=6, samples=2)
  c.checkpoint.every, c.log.tensorboard = updates, False
  workdir = f'{folder}/{level}_{of}'
  train.train_and_evaluate(c, workdir)
  return f'{workdir}/aware.safetensors'


def distil(lab: Lab, seed: int) -> tuple[list, list]:
  """Reward parameters of every level: by the curriculum, and all mixed.

  The curriculum goes from the cleanest level to the noisiest, with a new
  optimizer at each; the other draws levels at random and has one set of
  parameters for all of them, after as many updates.
  """
  clean = 'asset:shapes_detector'
  read = lambda path: weights.load(path, lab.reward.params)[0]
  aware, start = [], clean
  with tempfile.TemporaryDirectory(prefix='ttsnap_') as folder:
    for level in reversed(range(LEVELS)):
      start = taught(folder, seed, level, 1, UPDATES, start)
      aware.insert(0, read(start))
    every = UPDATES * LEVELS
    mixed = read(taught(folder, seed, 0, LEVELS, every, clean))
  return aware, [mixed] * LEVELS


def tables(lab: Lab, seed: int, readers: dict[str, list]) -> dict:
  """{metric: [P N], reader: [levels P N]} of the held-out prompts."""
  parts = []
  for rows in chunks(lab.heldout, 8, POOL, jax.random.key(seed)):
    x, foreseen = lab.sample(lab.params, rows)
    read = lambda levels, x=foreseen, rows=rows: np.stack(
      [lab.score(params, x[s], rows) for s, params in enumerate(levels)]
    )
    part = {name: read(levels) for name, levels in readers.items()}
    final, gold = lab.score(lab.reward.params, x, rows), lab.judge(x, rows)
    parts.append(part | dict(verifier=np.asarray(final), gold=np.asarray(gold)))
  out = {k: np.concatenate([p[k] for p in parts], -1) for k in parts[0]}
  return {k: v.reshape(*v.shape[:-1], PROMPTS, POOL) for k, v in out.items()}


def pruned(table: dict, arm: str, n: int, seed: int) -> list[float]:
  """Means of `METRICS` of what pruned searches over n of the pool find."""
  schedule, reader = arm.split('_')
  cuts, ratios = SCHEDULES[schedule]
  order = np.random.default_rng(seed).random((REPEATS, PROMPTS, POOL))
  pick = order.argsort(-1)[..., :n]  # the same for all arms
  of = lambda x: np.take_along_axis(x[None], pick, -1)
  best = selection.prune_table(
    [of(table[reader][s]) for s in cuts],
    selection.keep_counts(n, ratios),
    of(table['verifier']),
  )
  best = np.asarray(best)[..., None]
  return [np.take_along_axis(of(table[m]), best, -1).mean() for m in METRICS]


def zero_order(lab: Lab, seed: int) -> dict[int, list[float]]:
  """{candidates tried: means of `METRICS`}, of walks that are walked."""
  rows = rollout.make_rows(
    lab.heldout, NEIGHBOURS * WALKS, jax.random.key(seed), jnp.int32(0)
  )

  @jax.jit
  def run(params, reward_params, rows, walk):
    verify = search.verifier(lab.built.policy, (), lab.reward, reward_params)
    walker = search.zero_order(
      lab.built.segments, params, verify, rows, NEIGHBOURS, patience=PATIENCE
    )
    return walker.init() if walk is None else walker.update(walk)

  out, walk = {}, None
  one = jax.tree.map(lambda x: x[::NEIGHBOURS], rows.replace(key=None))
  for tried in range(NEIGHBOURS, max(BUDGETS) + 1, NEIGHBOURS):
    walk = run(lab.params, lab.reward.params, rows, walk)
    judged = lab.judge(walk.sample, one)
    out[tried] = [float(walk.score.mean()), float(judged.mean())]
  return out


def study(seed: int) -> list[dict]:
  """All rows of a seed."""
  lab, few = make_lab(STEPS, SHIFT), make_lab(FEW, FEW_SHIFT)
  start = time.time()
  aware, mixed = distil(lab, seed)
  rows = [('all', 'reward_price', '', lab.price),
          ('all', 'distil_seconds', '', time.time() - start)]  # fmt: skip
  clean = [lab.reward.params] * LEVELS
  readers = dict(clean=clean, mixed=mixed, aware=aware)
  table, quick = tables(lab, seed, readers), tables(few, seed, {})
  walked = zero_order(lab, seed)

  def cost(n: int, steps: int = STEPS, cuts=(), ratios=()) -> float:
    keep = selection.keep_counts(n, ratios)
    return selection.search_cost(steps, n, cuts, keep).total(1.0, lab.price)

  def most(budget: float, *how) -> int:
    """Candidates that are affordable."""
    return max(n for n in range(1, POOL + 1) if cost(n, *how) <= budget)

  def bon(table: dict) -> np.ndarray:
    """Best of 1..POOL: [METRICS POOL]."""
    score = table['verifier']
    curves = [selection.bon_curve(score, table[m]).mean(0) for m in METRICS]
    return np.stack(curves)

  budgets, curves = [cost(n) for n in BUDGETS], {arm: [] for arm in ARMS}
  full, short = bon(table), bon(quick)
  for n, budget in zip(BUDGETS, budgets, strict=True):
    curves['best_of_n'].append(full[:, n - 1])
    # Of one candidate there is nothing to search.
    curves['zero_order'].append(walked.get(n, full[:, 0]))
    tried = {'best_of_n_few': most(budget, FEW)}
    curves['best_of_n_few'].append(short[:, tried['best_of_n_few'] - 1])
    for arm in (a for a in ARMS if a.partition('_')[0] in SCHEDULES):
      tried[arm] = most(budget, STEPS, *SCHEDULES[arm.partition('_')[0]])
      curves[arm].append(pruned(table, arm, tried[arm], seed))
    rows += [(arm, 'candidates', budget, n) for arm, n in tried.items()]
  base = np.float64(curves['best_of_n'])
  for arm in ARMS:
    for i, metric in enumerate(METRICS):
      curve = np.float64(curves[arm])[:, i]
      rows += [(arm, metric, *point) for point in zip(budgets, curve)]
      gain = selection.budget_curve_gain(np.float64(budgets), curve, base[:, i])
      rows.append((arm, f'gain_{metric}', '', gain))
  for arm in readers:
    for s, scores in enumerate(table[arm]):
      pairs = zip(scores, table['verifier'], strict=True)
      tau = np.nanmean([stats.kendalltau(*pair).statistic for pair in pairs])
      rows.append((arm, 'tau', s, tau))
  when = datetime.date.today().isoformat(), (system.git_commit() or '')[:10]
  return [dict(zip(FIELDS, (seed, *row, *when))) for row in rows]


def main(argv: list[str]) -> None:
  del argv
  rows = report.read()
  if not _REPORT.value:
    for seed in _SEEDS.value:
      if any(row['seed'] == seed for row in rows):
        continue
      new = study(int(seed))
      report.write([*report.read(), *new])  # another runner may have written
      rows = report.read()
  print(report.summary(rows))
  report.plot(rows)


if __name__ == '__main__':
  app.run(main)
