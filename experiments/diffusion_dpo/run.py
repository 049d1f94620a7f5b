"""Preferences without a chain, at a third of the main job.

python experiments/diffusion_dpo/run.py
python experiments/diffusion_dpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

ARMS = {
  'dpo': study.Arm(
    'configs/diffusion_dpo.py',
    'pairs of the frozen base, by the oracle',
    study.SHORT,
  ),
  'online': study.Arm(
    'configs/diffusion_dpo.py:online', 'pairs of the policy itself', study.SHORT
  ),
  'kto': study.Arm(
    'configs/diffusion_dpo.py:kto', 'labels in place of pairs', study.SHORT
  ),
  'rendered': study.Arm(
    'configs/diffusion_dpo.py:rendered',
    'pairs of renders, right and nearly right',
    study.SHORT,
  ),
  'sft': study.Arm(
    'configs/diffusion_dpo.py:sft',
    'matching loss on right renders',
    study.SHORT,
  ),
  'flow_grpo': study.FLOW_GRPO,
}
CLAIMS = (
  study.Claim(
    'preferences raise accuracy without a sampling chain',
    'held-out strict accuracy',
    'dpo.base_strict',
    'dpo.strict',
  ),
  study.Claim(
    'online pairs beat those of the base',
    'held-out strict accuracy',
    'dpo.strict',
    'online.strict',
  ),
  study.Claim(
    'online RL beats offline preferences at equal samples',
    'held-out strict accuracy',
    'dpo.strict',
    'flow_grpo.strict',
  ),
  study.Claim(
    'pairs beat supervised training on the preferred ones',
    'held-out strict accuracy',
    'sft.strict',
    'rendered.strict',
  ),
)

STUDY = study.Study(
  file=__file__,
  title='Diffusion-DPO: preferences without a chain',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'Diffusion-DPO': (
      'configs/diffusion_dpo.py',
      'gen_rl/objectives/preference.py:dpo',
      'gen_rl/advantages/group.py:best_worst',
    ),
    'Diffusion-KTO': ('gen_rl/objectives/preference.py:kto',),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
