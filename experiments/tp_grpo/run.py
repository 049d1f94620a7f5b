"""Every decision with a reward of its own, at a third of the main job.

python experiments/tp_grpo/run.py
python experiments/tp_grpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/tp_grpo.py'

SHORT = {**study.SHORT, 'data.prompts_per_step': 21}
# A row takes 8 network calls, and 5 decisions that are differentiated count as
# 15; finishing it from each of them takes 30 more, so that 60 updates with and
# 138 without that are as many calls.
LONGER = {'steps': 138, 'eval.every': 46, 'checkpoint.every': 138, 'ema': 0.96}
ARMS = {
  'turning': study.Arm(CONFIG, 'the rule of the paper', SHORT),
  'bonus': study.Arm(
    f'{CONFIG}:bonus', 'the rule of the published code', SHORT
  ),
  'incremental': study.Arm(
    f'{CONFIG}:incremental', 'the step of its own effect only', SHORT
  ),
  'outcome': study.Arm(
    f'{CONFIG}:outcome', 'the same reward for all steps', SHORT
  ),
  'soft_turning': study.Arm(
    f'{CONFIG}:soft', "the rule of the paper, a detector's scores", SHORT
  ),
  'soft_incremental': study.Arm(
    f'{CONFIG}:incremental,soft', 'the step of its own effect only', SHORT
  ),
  'soft_outcome': study.Arm(
    f'{CONFIG}:outcome,soft', 'the same reward for all steps', SHORT
  ),
  'soft_outcome_calls': study.Arm(
    f'{CONFIG}:outcome,soft',
    'the same for as many network calls as soft_turning',
    {**SHORT, **LONGER},
  ),
}
CLAIMS = (
  study.Claim(
    'rewards of single decisions beat the outcome',
    'held-out strict accuracy',
    'outcome.strict',
    'incremental.strict',
  ),
  study.Claim(
    'turning points add to them',
    'held-out strict accuracy',
    'incremental.strict',
    'turning.strict',
  ),
  study.Claim(
    "of a detector's scores rewards of single decisions beat the outcome",
    'trained reward',
    'soft_outcome.proxy',
    'soft_incremental.proxy',
  ),
  study.Claim(
    'turning points add to them',
    'trained reward',
    'soft_incremental.proxy',
    'soft_turning.proxy',
  ),
  study.Claim(
    'at equal network calls increments beat the outcome',
    'trained reward',
    'soft_outcome_calls.proxy',
    'soft_incremental.proxy',
  ),
  study.Claim(
    'and so they do by gold',
    'held-out strict accuracy',
    'soft_outcome_calls.strict',
    'soft_incremental.strict',
  ),
  study.Claim(
    'at equal network calls turning points beat the outcome',
    'trained reward',
    'soft_outcome_calls.proxy',
    'soft_turning.proxy',
  ),
  study.Claim(
    'and so they do by gold',
    'held-out strict accuracy',
    'soft_outcome_calls.strict',
    'soft_turning.strict',
  ),
)

STUDY = study.Study(
  file=__file__,
  title='TP-GRPO: rewards of single decisions',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'TP-GRPO': (
      CONFIG,
      'gen_rl/advantages/steps.py:turning_points',
      'gen_rl/advantages/steps.py:turning_rewards',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
