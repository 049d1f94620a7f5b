"""Which halves of a guided policy to differentiate: results.csv, results.png.

python experiments/guidance/run.py
python experiments/guidance/run.py --report  # tables and plot only
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

SAID = {
  'both': 'both halves, the gradient of the policy that samples',
  'conditional': 'the conditional half alone',
}
ARMS = {
  f'{gradient}_{scale:g}'.replace('.', '_'): study.Arm(
    'configs/flow_grpo.py',
    f'guidance at {scale:g}: {said}',
    study.SHORT
    | {
      'policy.guidance_scale': scale,
      'policy.guidance_gradient': gradient,
    },
  )
  for scale in (2.0, 4.5)
  for gradient, said in SAID.items()
}
CLAIMS = (
  study.Claim(
    'at scale 2 the gradient of both halves learns more in as many updates',
    'held-out strict accuracy', 'conditional_2.strict', 'both_2.strict',
  ),
  study.Claim(
    'at scale 4.5 it does, too',
    'held-out strict accuracy', 'conditional_4_5.strict', 'both_4_5.strict',
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='The gradient of a guided policy',
  arms=ARMS,
  claims=CLAIMS,
)

if __name__ == '__main__':
  study.main(STUDY)
