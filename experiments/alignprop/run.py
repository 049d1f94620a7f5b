"""The reward's own gradient against the policy gradient, at equal samples.

python experiments/alignprop/run.py
python experiments/alignprop/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/alignprop.py'
SHORT = {'eval.every': 15, 'checkpoint.every': 60, 'ema': 0.9}
ARMS = {
  'alignprop': study.Arm(CONFIG, 'a cut drawn for every sample', SHORT),
  'draft': study.Arm(f'{CONFIG}:draft', 'the last network call', SHORT),
  'margin': study.Arm(f'{CONFIG}:margin', 'the same up to a margin', SHORT),
  'gaussian': study.Arm(
    f'{CONFIG}:gaussian', 'cuts as in the released code', SHORT
  ),
  'lv': study.Arm(
    f'{CONFIG}:lv', 'the last call, twice again from new noise', SHORT
  ),
  'refl': study.Arm(
    f'{CONFIG}:refl', 'what one of the last two calls foresees', SHORT
  ),
  'drtune': study.Arm(
    f'{CONFIG}:drtune', 'three calls apart, inputs detached', SHORT
  ),
  'full': study.Arm(f'{CONFIG}:full', 'the whole chain', SHORT),
  'grpo': study.Arm(f'{CONFIG}:grpo', 'the policy gradient', SHORT),
}
CLAIMS = (
  study.Claim(
    'the reward itself rises faster than by policy gradients',
    'trained reward', 'grpo.proxy', 'alignprop.proxy',
  ),
  study.Claim(
    'a random cut keeps gold accuracy better than the whole chain',
    'held-out strict accuracy', 'full.strict', 'alignprop.strict',
  ),
  study.Claim(
    'it teaches more than the last call alone',
    'held-out strict accuracy', 'draft.strict', 'alignprop.strict',
  ),
  study.Claim(
    'cuts as in the released code keep more gold than uniform ones',
    'held-out strict accuracy', 'alignprop.strict', 'gaussian.strict',
  ),
  study.Claim(
    'more noise for the last call makes it learn faster (DRaFT-LV)',
    'trained reward', 'draft.proxy', 'lv.proxy',
  ),
  study.Claim(
    'a reward of the sample teaches more than one of what is foreseen (ReFL)',
    'held-out strict accuracy', 'refl.strict', 'margin.strict',
  ),
  study.Claim(
    'detached inputs reach early calls without the harm of the whole chain',
    'held-out strict accuracy', 'full.strict', 'drtune.strict',
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='AlignProp: the gradient of the reward',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'AlignProp, DRaFT, ReFL, DRTune': (
      CONFIG,
      'gen_rl/objectives/pathwise.py:reward_backprop',
      'gen_rl/objectives/pathwise.py:_seen',
      'gen_rl/objectives/pathwise.py:_trained',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
