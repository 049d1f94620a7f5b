"""DDPO and its relatives at a third of the main job.

python experiments/ddpo/run.py
python experiments/ddpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

ARMS = {
  'ddpo': study.Arm(
    'configs/ddpo.py',
    'clipped ratios, two updates per rollout, per-prompt history',
    study.SHORT,
  ),
  'sf': study.Arm(
    'configs/ddpo.py:sf', 'score function, one update per rollout', study.SHORT
  ),
  'rwr': study.Arm(
    'configs/ddpo.py:rwr', 'reward-weighted regression', study.SHORT
  ),
  'dpok': study.Arm(
    'configs/ddpo.py:dpok',
    'ddpo with a step-wise KL term of weight 0.01',
    study.SHORT,
  ),
  'flow_grpo': study.FLOW_GRPO,
}
CLAIMS = (
  study.Claim(
    'importance sampling beats the score function at equal samples',
    'held-out strict accuracy',
    'sf.strict',
    'ddpo.strict',
  ),
  study.Claim(
    'reward-weighted regression is slower',
    'held-out strict accuracy',
    'rwr.strict',
    'ddpo.strict',
  ),
  study.Claim(
    'groups and a window beat per-prompt histories on all steps',
    'held-out strict accuracy',
    'ddpo.strict',
    'flow_grpo.strict',
  ),
)

STUDY = study.Study(
  file=__file__,
  title='DDPO: a prompt against its own past',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'DDPO': (
      'configs/ddpo.py',
      'gen_rl/advantages/history.py:history',
      'gen_rl/diffusion/transitions.py:ddim',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
