"""DPO against GRPO of an autoregressive image model, in and out of domain.

python experiments/ar_dpo/run.py
python experiments/ar_dpo/run.py --report
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

GRPO, DPO = 'configs/ar_grpo.py', 'configs/ar_dpo.py'
DETECTOR = 'configs/train_detector.py'
# Candidates of a prompt that a reward chooses of, and how many are drawn for
# the mean over all choices of so many.
BEST_OF, POOL, PART = 4, 16, 12
ROUNDS = {'copies.ref.every': 20}
# Half the pictures of as many prompts; half the combinations, or fewer.
FOUR = {'data.group_size': 4}
FEW = {'data.prompts.split': 'rl'}


def arm(config: str, about: str, *changes: dict, **more: Any) -> study.Arm:
  overrides = dict(study.SHORT)
  for change in changes:
    overrides |= change
  return study.Arm(config, about, overrides, **more)


def by(detector: str) -> dict[str, Any]:
  """Whose weights the reward has."""
  return dict(uses={'rewards.detector.weights': detector})


ARMS = {
  'narrow': study.Arm(
    f'{DETECTOR}:narrow', 'a reward that learned from scenes of two objects'
  ),
  'broad': study.Arm(
    f'{DETECTOR}:domains', 'a reward that learned from all but words'
  ),
  'grpo': arm(f'{GRPO}:ood', 'GRPO by the oracle'),
  'dpo': arm(f'{DPO}:ood', 'DPO: pairs of the base, by the oracle'),
  'iter': arm(f'{DPO}:ood,iter', 'the same in three rounds', ROUNDS),
  'online': arm(f'{DPO}:ood,online', 'pairs of the policy itself'),
  'grpo_narrow': arm(f'{GRPO}:ood,proxy', 'GRPO by a detector', **by('narrow')),
  'grpo_broad': arm(f'{GRPO}:ood,proxy', 'GRPO by a detector', **by('broad')),
  'dpo_narrow': arm(f'{DPO}:ood,proxy', 'DPO by a detector', **by('narrow')),
  'dpo_broad': arm(f'{DPO}:ood,proxy', 'DPO by a detector', **by('broad')),
  'grpo_four': arm(
    f'{GRPO}:ood', '4 pictures a prompt, not 8', FOUR, {'microbatches': 7}
  ),
  'dpo_four': arm(f'{DPO}:ood', '4 pictures a prompt, not 8', FOUR),
  'grpo_few': arm(f'{GRPO}:ood', 'three of eight combinations', FEW),
  'dpo_few': arm(f'{DPO}:ood', 'three of eight combinations', FEW),
  'grpo_iter': arm(f'{GRPO}:ood,iter', 'a new reference twice', ROUNDS),
}
GOLD = 'held-out strict accuracy'
ID, OOD = f'{GOLD}, in domain', f'{GOLD}, out of domain'
CLAIMS = (
  study.Claim(
    'a detector of two objects reads other scenes worse',
    'scenes read without an error, out of domain', 'narrow.ood', 'broad.ood',
  ),
  study.Claim(
    f'and chooses worse among {BEST_OF} pictures of their prompts',
    OOD, 'narrow.best4_ood', 'broad.best4_ood',
  ),
  study.Claim(
    'DPO is better in domain, by the oracle', ID, 'grpo.strict', 'dpo.strict'
  ),
  study.Claim(
    'GRPO is better out of domain, by the oracle', OOD, 'dpo.ood', 'grpo.ood'
  ),
  study.Claim(
    'DPO is better in domain, by the broad detector',
    ID, 'grpo_broad.strict', 'dpo_broad.strict',
  ),
  study.Claim(
    'GRPO is better out of domain, by the broad detector',
    OOD, 'dpo_broad.ood', 'grpo_broad.ood',
  ),
  study.Claim(
    'the reward that chooses better out of domain is better there for GRPO',
    OOD, 'grpo_narrow.ood', 'grpo_broad.ood',
  ),
  study.Claim(
    'and for DPO', OOD, 'dpo_narrow.ood', 'dpo_broad.ood'
  ),
  study.Claim('rounds help DPO out of domain', OOD, 'dpo.ood', 'iter.ood'),
  study.Claim('and in domain', ID, 'dpo.strict', 'iter.strict'),
  study.Claim(
    'pairs of the policy help more than rounds', ID, 'iter.strict',
    'online.strict',
  ),
  study.Claim(
    'rounds help GRPO out of domain', OOD, 'grpo.ood', 'grpo_iter.ood'
  ),
  study.Claim(
    'more pictures of a prompt help GRPO', ID, 'grpo_four.strict', 'grpo.strict'
  ),
  study.Claim(
    'and DPO', ID, 'dpo_four.strict', 'dpo.strict'
  ),
  study.Claim(
    'more combinations help GRPO out of domain', OOD, 'grpo_few.ood',
    'grpo.ood',
  ),
  study.Claim('and DPO', OOD, 'dpo_few.ood', 'dpo.ood'),
)  # fmt: skip


def columns(workdir: pathlib.Path, name: str, seed: str) -> dict[str, Any]:
  """Accuracies out of domain; of a detector, what it is worth as a reward."""
  import json

  found = json.loads((workdir / 'result.json').read_text('utf-8'))
  out = {}
  for prefix, key in (('base_', 'base'), ('', 'trained')):
    part = found['evals']['ood'][key]
    out[f'{prefix}ood'] = part['strict']
    for task, strict in part['strict_per_task'].items():
      out[f'{prefix}{task}'] = strict
  if name in ('narrow', 'broad'):
    out |= best_of(workdir / f'{study.EXPORT}.safetensors', int(seed))
  return out


def best_of(weights: pathlib.Path, seed: int) -> dict[str, float]:
  """Gold of the base's pictures that a detector chooses, in either domain.

  Columns best1 and best1_ood, best4 and best4_ood: of one, and of four, a mean
  over all choices of so many out of POOL (`selection.bon_curve`).
  """
  import jax
  import numpy as np

  from configs import ar_grpo
  from gen_rl import assemble, evals, initial, rollout, search, selection
  from gen_rl.data import feeds
  from gen_rl.rewards import combine, configured

  config = ar_grpo.get_config('ood,proxy')
  config.rewards.detector.weights = str(weights)
  built = assemble.setup(config)
  reward, _ = built.rewards['detector']
  gold = combine.combine(
    {k: (r, 1.0) for k, r in configured.build_all(config.eval.gold).items()}
  )
  params = initial.params(config, built.policy)

  @jax.jit
  def scored(params, rows):
    """[score, gold] of POOL pictures a prompt, [2 b]."""
    x = built.sampler(params, rows)
    judged = (reward, reward.params), (gold, gold.params)
    verify = [search.verifier(built.policy, params, *j) for j in judged]
    return [v(x, rows) for v in verify]

  out = {}
  for label, c in evals.configs(config).items():
    batch, *_ = feeds.evaluation_and_asked(c, built)
    parts = []
    for first in range(0, len(batch['prompt_id']), PART):
      part = jax.tree.map(lambda x, i=first: x[i : i + PART], batch)
      rows = rollout.make_rows(
        part, POOL, jax.random.key(1000 + seed), np.int32(first)
      )
      parts.append(np.asarray(scored(params, rows)).reshape(2, -1, POOL))
    score, verdict = np.concatenate(parts, axis=1)
    curve = selection.bon_curve(score, verdict).mean(0)
    end = f'_{label}' if label else ''
    out[f'best1{end}'] = float(curve[0])
    out[f'best{BEST_OF}{end}'] = float(curve[BEST_OF - 1])
  return out


STUDY = study.Study(
  file=__file__,
  title='DPO against GRPO of an autoregressive image model',
  arms=ARMS,
  extra=columns,
  columns=dict(
    base_ood='out of domain: base',
    ood='out of domain: trained',
    best4='best of 4 by it',
    best4_ood='best of 4 by it, out of domain',
  ),
  gold='held-out strict accuracy in domain (gold oracle)',
  claims=CLAIMS,
  code={
    'AR DPO': (
      DPO,
      'gen_rl/objectives/preference.py:dpo',
      'gen_rl/advantages/group.py:best_worst',
      'gen_rl/optim.py:rounds',
    ),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
