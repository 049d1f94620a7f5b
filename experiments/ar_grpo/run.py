"""GRPO of an autoregressive image model.

python experiments/ar_grpo/run.py
python experiments/ar_grpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/ar_grpo.py'
CLAIMS = (
  study.Claim(
    'RL on the oracle teaches combinations that no training saw',
    'held-out strict accuracy', 'main.base_strict', 'main.strict',
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='GRPO of an autoregressive image model',
  arms={'main': study.Arm(CONFIG, 'a ratio for every code')},
  claims=CLAIMS,
  code={
    'AR GRPO': (
      CONFIG,
      'gen_rl/policies/tokens.py:image_tokens',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
