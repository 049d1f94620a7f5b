"""One picture, two prompts, at a third of the main job.

python experiments/tpo/run.py
python experiments/tpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

# Pairs an update and their times are those of configs/diffusion_dpo.py.
EQUAL = study.SHORT | {'data.prompts_per_step': 42, 'policy.time_mean': 0.0}
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
  'position': study.Arm(
    'configs/tpo.py:position',
    'false prompts differ in a place only',
    study.SHORT,
  ),
  'sft': study.Arm(
    'configs/tpo.py:sft', 'matching loss under the true prompt', study.SHORT
  ),
  'dpo': study.Arm(
    'configs/diffusion_dpo.py',
    'Diffusion-DPO: 42 pairs of pictures an update, by the oracle',
    study.SHORT,
    shared='diffusion_dpo/dpo',
  ),
  'kto': study.Arm(
    'configs/diffusion_dpo.py:kto',
    'Diffusion-KTO: labels of the same',
    study.SHORT,
    shared='diffusion_dpo/kto',
  ),
  'equal_tdpo': study.Arm(
    'configs/tpo.py', 'as many pairs as **dpo**, at times drawn as there', EQUAL
  ),
  'equal_tkto': study.Arm(
    'configs/tpo.py:tkto', 'likewise, to compare with **kto**', EQUAL
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
  study.Claim(
    'TDPO beats Diffusion-DPO in as many updates, of three times the pairs',
    'held-out strict accuracy',
    'dpo.strict',
    'tdpo.strict',
    'holds',
  ),
  study.Claim(
    'TKTO beats Diffusion-KTO in as many updates, of three times the pairs',
    'held-out strict accuracy',
    'kto.strict',
    'tkto.strict',
    'holds',
  ),
  study.Claim(
    'TDPO beats Diffusion-DPO in as many updates, of as many pairs',
    'held-out strict accuracy',
    'dpo.strict',
    'equal_tdpo.strict',
  ),
  study.Claim(
    'TKTO beats Diffusion-KTO in as many updates, of as many pairs',
    'held-out strict accuracy',
    'kto.strict',
    'equal_tkto.strict',
  ),
  study.Claim(
    'false prompts of all kinds teach more than false places alone',
    'held-out strict accuracy',
    'position.strict',
    'tdpo.strict',
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
