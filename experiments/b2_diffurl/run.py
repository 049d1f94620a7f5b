"""B2-DiffuRL: the last decisions first, and rows that share the others.

python experiments/b2_diffurl/run.py
python experiments/b2_diffurl/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

# As many stages as there are updates.
STAGES = study.SHORT['steps']
BRANCH = {'policy.branch.stages': STAGES}
INTERVAL = {'policy.noise_schedule.stages': STAGES}


def arm(variants: str, about: str, *more: dict) -> study.Arm:
  overrides = dict(study.SHORT)
  for part in more:
    overrides |= part
  return study.Arm(f'configs/ddpo.py:sparse{variants}', about, overrides)


ARMS = {
  'ddpo': arm('', 'DDPO'),
  'bpt': arm(
    ',bpt', 'the last decisions alone, more as training goes on', INTERVAL
  ),
  'branches': arm(
    ',b2', 'the same, noise before them shared by a prompt', BRANCH
  ),
  'select': arm(',select', 'of each prompt its best and worst row at most'),
  'both': arm(',b2,select', 'branches and choice: B2-DiffuRL', BRANCH),
}
GOLD, DIVERSITY = 'held-out strict accuracy', 'diversity of samples'
CLAIMS = (
  study.Claim('B2-DiffuRL beats DDPO', GOLD, 'ddpo.strict', 'both.strict'),
  study.Claim(
    'the last decisions first beat all at once', GOLD, 'ddpo.strict',
    'bpt.strict',
  ),
  study.Claim(
    'shared noise before them adds to that', GOLD, 'bpt.strict',
    'branches.strict',
  ),
  study.Claim(
    'the choice of rows adds to branches', GOLD, 'branches.strict',
    'both.strict',
  ),
  study.Claim(
    'branches keep more diversity than DDPO', DIVERSITY, 'ddpo.diversity',
    'both.diversity',
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='B2-DiffuRL: the last decisions first',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'B2-DiffuRL': (
      'configs/ddpo.py',
      'gen_rl/policies/branches.py:backward_branch',
      'gen_rl/advantages/select.py:extremes',
      'gen_rl/advantages/select.py:top_bottom',
    ),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
