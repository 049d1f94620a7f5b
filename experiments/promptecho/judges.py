r"""Which judges order the pictures of a prompt as the oracle does.

  python -m experiments.promptecho.judges            # three seeds
  python -m experiments.promptecho.judges --report   # table only

Groups of 12 pictures as training draws them, of the shipped base, for prompts
of training. `tau` is Kendall's tau-b of a judge and the oracle (partial credit
and verdict, what the main job is trained on) within a group, the mean over
groups in which the oracle tells pictures apart; `ties` is the share of pairs
within a group that a judge does not tell apart. The detector has never seen a
word: it judges no prompt with one.
"""

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from configs import pretrain_vlm, promptecho_flow_grpo
from experiments import rows as rows_lib
from experiments import tables
from gen_rl import assemble, initial, rollout, search
from gen_rl.data import feeds
from gen_rl.types import Array, Rows
from gen_rl.utils import rng

FOLDER = pathlib.Path(__file__).parent
SEEDS = 0, 1, 2
KEY = 'judge', 'seed'
JUDGES = {
  'echo': dict(name='echo'),
  'checklist': dict(name='checklist'),
  'checklist_hard': dict(name='checklist', hard=True),
  'detector': dict(name='shapes_detector'),
}
ABOUT = {
  'echo': 'likelihood of the prompt, its mean over tokens',
  'echo_worst': 'likelihood of its least likely token',
  'checklist': 'probability of yes to questions about it',
  'checklist_hard': 'share of its questions that are answered by yes',
  'detector': 'what a detector finds of it',
}


def setup(seed: int) -> tuple[Any, Any]:
  """(config, what it names), with all judges as rewards."""
  config = promptecho_flow_grpo.get_config()
  config.seed = seed
  for label, spec in JUDGES.items():
    vlm = spec['name'] != 'shapes_detector'
    model = dict(model=pretrain_vlm.model()) if vlm else {}
    config.rewards[label] = dict(spec, weight=1.0, **model)
  config.rewards.oracle.weight = 1.0
  return config, assemble.setup(config)


def agreement(judged: np.ndarray, gold: np.ndarray) -> dict[str, float]:
  """tau and ties of scores [groups members]; NaN: not judged.

  Args:
    judged: by the judge.
    gold: by the oracle.
  """
  taus, ties = [], []
  for ours, wanted in zip(judged, gold, strict=True):
    if not np.isfinite(ours).all():
      continue
    pairs = np.triu_indices(len(ours), 1)
    ties.append(np.mean(ours[pairs[0]] == ours[pairs[1]]))
    if np.ptp(wanted):
      tau = scipy.stats.kendalltau(ours, wanted).statistic
      taus.append(np.nan_to_num(tau))  # of equal scores it is undefined
  return dict(tau=np.mean(taus), ties=np.mean(ties), groups=len(taus))


def measure(seed: int) -> list[rows_lib.Row]:
  """A row a judge."""
  config, built = setup(seed)
  params = initial.params(config, built.policy)
  batch, _ = next(feeds.training(config, built))
  size = config.data.group_size
  step = jnp.int32(0)
  rows = rollout.make_rows(batch, size, rng.training_key(seed), step)

  @jax.jit
  def scores(rows: Rows) -> dict[str, Array]:
    latents = built.policy.rollout(params, rows, step).sample
    out = {}
    for label, (reward, _) in built.rewards.items():
      ask = search.judge(built.policy, params, reward, reward.params)
      said = ask(latents, rows, size)
      out[label] = jnp.where(said.valid, said.score, jnp.nan)
      if label == 'echo':
        out['echo_worst'] = jnp.where(said.valid, said.parts['worst'], jnp.nan)
    return out

  found = {k: np.asarray(x).reshape(-1, size) for k, x in scores(rows).items()}
  gold = found.pop('oracle')
  return [
    dict(judge=label, seed=seed, **agreement(found[label], gold))
    for label in ABOUT
  ]


def table(rows: list[rows_lib.Row]) -> str:
  """A line a judge, over seeds."""
  lines = []
  for label in ABOUT:
    found = [r for r in rows if r['judge'] == label]
    cells = (tables.cell(found, c, '.3f') for c in ('tau', 'ties'))
    lines.append((label, ABOUT[label], *cells))
  return tables.markdown(('judge', 'score', 'tau', 'ties'), lines)


def main() -> None:
  """See the module docstring."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--report', action='store_true')
  args = parser.parse_args()
  when = rows_lib.stamp()
  folder = FOLDER / 'judges'
  folder.mkdir(exist_ok=True)
  done = {int(r['seed']) for r in rows_lib.read(folder)}
  for seed in SEEDS:
    if seed not in done and not args.report:
      for row in measure(seed):
        rows_lib.append(folder, row | when, KEY)
      print(f'measured: seed {seed}', flush=True)
  part = table(rows_lib.read(folder))
  print(part)
  tables.fill_file(FOLDER / 'README.md', dict(judges=part))


if __name__ == '__main__':
  main()
