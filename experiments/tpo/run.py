"""One picture, two prompts, at a third of the main job.

python experiments/tpo/run.py
python experiments/tpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

ARMS = {
  'tdpo': study.Arm(
    'configs/tpo.py',
    'pairs of prompts, the loss of the false one bounded',
    study.SHORT,
  ),
  'uncapped': study.Arm(
    'configs/tpo.py:uncapped', 'without the bound', study.SHORT
  ),
  'tkto': study.Arm(
    'configs/tpo.py:tkto', 'labels in place of pairs', study.SHORT
  ),
  'color': study.Arm(
    'configs/tpo.py:color', 'false prompts differ in a colour only', study.SHORT
  ),
  'sft': study.Arm(
    'configs/tpo.py:sft', 'matching loss under the true prompt', study.SHORT
  ),
}
CLAIMS = (
  study.Claim(
    'false prompts beat supervised training on the same pictures',
    'held-out strict accuracy',
    'sft.strict',
    'tdpo.strict',
    'holds',
  ),
  study.Claim(
    'pairs beat labels',
    'held-out strict accuracy',
    'tkto.strict',
    'tdpo.strict',
    'holds',
  ),
  study.Claim(
    'the bound on the false prompt matters',
    'held-out strict accuracy',
    'uncapped.strict',
    'tdpo.strict',
    'does not hold here',
  ),
)

STUDY = study.Study(
  file=__file__,
  title='TPO: one picture, two prompts',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'TPO': (
      'configs/tpo.py',
      'gen_rl/data/prompts/worlds.py:shapes_contrasts',
      'gen_rl/data/pictures/worlds.py:prompt_pairs',
      'gen_rl/worlds/grammar.py:mutations',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
