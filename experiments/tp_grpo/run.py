"""Every decision with a reward of its own, at a third of the main job.

python experiments/tp_grpo/run.py
python experiments/tp_grpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

ARMS = {
  'turning': study.Arm(
    'configs/tp_grpo.py',
    'the rule of the paper',
    dict(study.SHORT, **{'data.prompts_per_step': 21}),
  ),
  'bonus': study.Arm(
    'configs/tp_grpo.py:bonus',
    'the rule of the published code',
    dict(study.SHORT, **{'data.prompts_per_step': 21}),
  ),
  'incremental': study.Arm(
    'configs/tp_grpo.py:incremental',
    'the step of its own effect only',
    dict(study.SHORT, **{'data.prompts_per_step': 21}),
  ),
  'outcome': study.Arm(
    'configs/tp_grpo.py:outcome',
    'the same reward for all steps',
    dict(study.SHORT, **{'data.prompts_per_step': 21}),
  ),
}
CLAIMS = (
  study.Claim(
    'rewards of single decisions beat the outcome',
    'held-out strict accuracy',
    'outcome.strict',
    'incremental.strict',
    'too few seeds',
  ),
  study.Claim(
    'turning points add to them',
    'held-out strict accuracy',
    'incremental.strict',
    'turning.strict',
    'does not hold here',
  ),
)

STUDY = study.Study(
  file=__file__,
  title='TP-GRPO: rewards of single decisions',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'TP-GRPO': (
      'configs/tp_grpo.py',
      'gen_rl/advantages/steps.py:turning_points',
      'gen_rl/advantages/steps.py:turning_rewards',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
