"""RL on the few steps of a consistency model, distilled first.

python experiments/rlcm/run.py
python experiments/rlcm/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/rlcm.py'
ARMS = {
  'distil': study.Arm(f'{CONFIG}:distil', 'consistency distillation'),
  'two': study.Arm(
    f'{CONFIG}:two', 'two network calls', study.SHORT, after='distil:0'
  ),
  'four': study.Arm(CONFIG, 'four', study.SHORT, after='distil:0'),
  'eight': study.Arm(f'{CONFIG}:eight', 'eight', study.SHORT, after='distil:0'),
  'rebel': study.Arm(
    f'{CONFIG}:rebel', 'four, REBEL', study.SHORT, after='distil:0'
  ),
  'flow_grpo': study.FLOW_GRPO,
}
CLAIMS = (
  study.Claim(
    'two calls, trained, beat the base with eight',
    'held-out strict accuracy', 'flow_grpo.base_strict', 'two.strict',
  ),
  study.Claim(
    'four calls reach what Flow-GRPO reaches with eight',
    'held-out strict accuracy', 'flow_grpo.strict', 'four.strict',
  ),
  study.Claim(
    'REBEL does as well as clipped ratios',
    'held-out strict accuracy', 'four.strict', 'rebel.strict',
    margin=0.02,
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='RLCM: RL of a consistency model',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'RLCM': (CONFIG, 'gen_rl/objectives/consistency.py'),
    'REBEL': ('gen_rl/objectives/policy_gradient.py:rebel',),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
