"""Where noise goes: MixGRPO and DanceGRPO at a third of the main job.

python experiments/mix_grpo/run.py
python experiments/mix_grpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

ARMS = {
  'progressive': study.Arm(
    'configs/mix_grpo.py',
    'the window slides from the noise to the picture',
    dict(study.SHORT, **{'policy.window_start.tau': 12}),
  ),
  'flash': study.Arm(
    'configs/mix_grpo.py:flash',
    'the same; 40 % of the steps after it, second order',
    dict(study.SHORT, **{'policy.window_start.tau': 12}),
  ),
  'random': study.Arm(
    'configs/mix_grpo.py:random',
    'the place of the window is drawn',
    study.SHORT,
  ),
  'frozen': study.Arm(
    'configs/mix_grpo.py:frozen',
    'the window stays at the first steps',
    study.SHORT,
  ),
  'all': study.Arm(
    'configs/mix_grpo.py:all', 'all steps, no window', study.SHORT
  ),
  'dance': study.Arm(
    'configs/mix_grpo.py:dance',
    'DanceGRPO: all steps, one noise for a group',
    study.SHORT,
  ),
}
CLAIMS = (
  study.Claim(
    'a window does as well as all steps, for less',
    'held-out strict accuracy',
    'all.strict',
    'progressive.strict',
    margin=0.02,
  ),
  study.Claim(
    'sliding beats a random place',
    'held-out strict accuracy',
    'random.strict',
    'progressive.strict',
  ),
  study.Claim(
    'sliding beats a frozen place',
    'held-out strict accuracy',
    'frozen.strict',
    'progressive.strict',
  ),
  study.Claim(
    'flash gets there with fewer network calls',
    'held-out strict accuracy',
    'progressive.strict',
    'flash.strict',
    margin=0.02,
  ),
)

STUDY = study.Study(
  file=__file__,
  title='MixGRPO: a sliding window of noisy steps',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'MixGRPO': (
      'configs/mix_grpo.py',
      'gen_rl/diffusion/schedules.py:progressive_window',
      'gen_rl/diffusion/schedules.py:compressed_tail',
      'gen_rl/diffusion/solvers.py',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
