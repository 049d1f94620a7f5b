"""PromptEcho: a frozen vision-language model rewards the flow model.

python experiments/promptecho/run.py
python experiments/promptecho/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/promptecho_flow_grpo.py'
CLAIMS = (
  study.Claim(
    'the likelihood of the prompt teaches what the oracle calls correct',
    'held-out strict accuracy', 'echo.base_strict', 'echo.strict',
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title="PromptEcho's reward: a frozen vision-language model judges",
  arms={
    'echo': study.Arm(CONFIG, 'log-likelihood of the prompt'),
  },
  claims=CLAIMS,
  code={'PromptEcho': (CONFIG, 'gen_rl/rewards/judge.py:echo')},
)

if __name__ == '__main__':
  study.main(STUDY)
