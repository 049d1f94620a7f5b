"""DiffusionNFT and other matching losses at a third of the main job.

python experiments/diffusion_nft/run.py
python experiments/diffusion_nft/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

ARMS = {
  'nft': study.Arm(
    'configs/diffusion_nft.py',
    'both branches, a slow copy samples',
    study.SHORT,
  ),
  'positive': study.Arm(
    'configs/diffusion_nft.py:positive',
    'without the negative branch',
    study.SHORT,
  ),
  'on_policy': study.Arm(
    'configs/diffusion_nft.py:on_policy',
    'the policy itself samples',
    study.SHORT,
  ),
  'awm': study.Arm(
    'configs/diffusion_nft.py:awm', 'advantage-weighted matching', study.SHORT
  ),
  'flow_grpo': study.FLOW_GRPO,
}
CLAIMS = (
  study.Claim(
    'NFT learns faster than Flow-GRPO',
    'held-out strict accuracy',
    'flow_grpo.strict',
    'nft.strict',
  ),
  study.Claim(
    'the negative branch matters',
    'held-out strict accuracy',
    'positive.strict',
    'nft.strict',
  ),
  study.Claim(
    'a copy that lags keeps it stable',
    'held-out strict accuracy',
    'on_policy.strict',
    'nft.strict',
  ),
)

STUDY = study.Study(
  file=__file__,
  title='DiffusionNFT: RL on the forward process',
  arms=ARMS,
  claims=CLAIMS,
  code={
    'DiffusionNFT': (
      'configs/diffusion_nft.py',
      'gen_rl/objectives/matching.py:nft',
      'gen_rl/optim.py:ramp_decay',
      'gen_rl/diffusion/solvers.py',
    ),
    'AWM': ('gen_rl/objectives/matching.py:awm',),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
