"""Answers of a vision-language model: GRPO with rules as rewards.

python experiments/vlm_grpo/run.py
python experiments/vlm_grpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/vlm_grpo.py'
CLAIMS = (
  study.Claim(
    'RL teaches answers to questions about scenes that no training saw',
    'held-out accuracy', 'main.base_strict', 'main.strict',
  ),
  study.Claim(
    'no division by the deviation of a group does as well',
    'held-out accuracy', 'main.strict', 'dr.strict',
    margin=0.02,
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='GRPO on visual questions: rules as rewards',
  arms={
    'main': study.Arm(CONFIG, 'GRPO'),
    'dr': study.Arm(f'{CONFIG}:dr', 'Dr. GRPO'),
  },
  claims=CLAIMS,
  code={
    'VQA-GRPO': (
      CONFIG,
      'gen_rl/rewards/rules.py:exact_match',
    ),
    'Dr. GRPO': ('gen_rl/advantages/group.py:dr_grpo',),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
