"""Win rates against scores of the same weak reward model.

  python experiments/pref_grpo/run.py
  python experiments/pref_grpo/run.py --report

Why the arms differ is in metrics.jsonl: `monitor/gold/advantage_corr`,
`monitor/gold/equal_share` and `monitor/saturation/advantage_corr` of every
update; their means over a run are columns of results.csv.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study
from gen_rl import metrics

CONFIG = 'configs/pref_grpo.py'
ARMS = {
  'pointwise': study.Arm(f'{CONFIG}:pointwise', 'GRPO on the scores'),
  'drgrpo': study.Arm(f'{CONFIG}:drgrpo', 'the same without the deviation'),
  'same_judge': study.Arm(
    f'{CONFIG}:same_judge', 'win rates by the same scores, with a tie zone'
  ),
  'no_ties': study.Arm(
    f'{CONFIG}:same_judge', 'the same without ties', {'rewards.wins.tie': 0.0}
  ),
  'better_judge': study.Arm(
    f'{CONFIG}:better_judge', 'win rates by a better judge'
  ),
  'mix': study.Arm(f'{CONFIG}:mix', '0.4 win rate and 0.6 score'),
}
CLAIMS = (
  study.Claim(
    'win rates beat the scores they come from', 'held-out strict accuracy',
    'pointwise.strict', 'same_judge.strict',
  ),
  study.Claim(
    'ties are what helps', 'held-out strict accuracy', 'no_ties.strict',
    'same_judge.strict',
  ),
  study.Claim(
    'a better judge helps most', 'held-out strict accuracy',
    'same_judge.strict', 'better_judge.strict',
  ),
)  # fmt: skip


def of_training(workdir: pathlib.Path, arm: str, seed: str) -> dict:
  """Means over the updates of what the monitors say of the advantages."""
  del arm, seed
  lines = metrics.read(workdir / 'metrics.jsonl')
  out = {}
  for column, name in (
    ('gold_corr', 'monitor/gold/advantage_corr'),
    ('equal_share', 'monitor/gold/equal_share'),
    ('saturation_corr', 'monitor/saturation/advantage_corr'),
  ):
    values = [line[name] for line in lines if line.get(name) is not None]
    out[column] = sum(values) / len(values)
  return out


STUDY = study.Study(
  file=__file__,
  title='Pref-GRPO: win rates within the group',
  arms=ARMS,
  extra=of_training,
  columns={
    'gold_corr': 'corr(A, gold)',
    'equal_share': 'A on equals',
    'saturation_corr': 'corr(A, saturation)',
  },
  claims=CLAIMS,
  code={
    'Pref-GRPO': (
      CONFIG,
      'gen_rl/rewards/pairwise.py:pairwise_matrix',
      'gen_rl/rewards/pairwise.py:pairwise_win_rate',
      'gen_rl/rewards/pairwise.py:win_rate',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
