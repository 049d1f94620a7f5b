"""Objectives of other systems beside Flow-GRPO, at equal updates.

python experiments/peers/run.py
python experiments/peers/run.py --report
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

FORWARD = 'configs/diffusion_nft.py'


def arm(config: str, about: str, shared: str = '') -> study.Arm:
  return study.Arm(config, about, study.SHORT, shared=shared)


ARMS = {
  'flow_grpo': study.FLOW_GRPO,
  'plain': arm('configs/flow_grpo.py:plain', 'with its published ratio'),
  'dppo': arm(
    'configs/flow_grpo.py:dppo', 'Flow-DPPO: a trust region by divergence'
  ),
  'nft': arm(FORWARD, 'DiffusionNFT', 'diffusion_nft/nft'),
  'awm': arm(
    f'{FORWARD}:awm', 'advantage-weighted matching', 'diffusion_nft/awm'
  ),
  'dgpo': arm(f'{FORWARD}:dgpo', 'direct group preference optimisation'),
  'crd': arm(f'{FORWARD}:crd', 'centred reward distillation'),
  'crd_guided': arm(
    f'{FORWARD}:crd,guided', 'the same, kept near the guided base'
  ),
}
# Network calls of a sample, in forward passes: those that draw it, and those of
# its update, backward passes counted as two.
DRAWN = 8
TRAINED = dict(
  flow_grpo=3 * 4,  # a window of 3: forward, backward, reference
  plain=3 * 4,
  dppo=3 * (4 + 1),  # and what the policy was
  nft=2 * 5,  # 2 draws: forward, backward, old, reference
  awm=2 * 5,
  dgpo=2 * 4,
  crd=2 * 5,
  crd_guided=2 * 6,
)
GOLD, DIVERSITY = 'held-out strict accuracy', 'diversity of samples'
CLAIMS = (
  study.Claim('DGPO learns faster than Flow-GRPO', GOLD, 'flow_grpo.strict',
              'dgpo.strict'),
  study.Claim('CRD learns faster than Flow-GRPO', GOLD, 'flow_grpo.strict',
              'crd.strict'),
  study.Claim('CRD does as well as NFT', GOLD, 'nft.strict', 'crd.strict',
              margin=0.02),
  study.Claim('DGPO does as well as NFT', GOLD, 'nft.strict', 'dgpo.strict',
              margin=0.02),
  study.Claim('a guided base to stay near helps', GOLD, 'crd.strict',
              'crd_guided.strict'),
  study.Claim('a trust region by divergence beats clipped ratios', GOLD,
              'plain.strict', 'dppo.strict'),
)  # fmt: skip


def columns(workdir: pathlib.Path, arm: str, seed: str) -> dict[str, Any]:
  """Network calls of a run, of all its samples."""
  del seed
  c = study.load_config(workdir)
  rows = c.steps * c.data.prompts_per_step * c.data.group_size
  return dict(calls=rows * (DRAWN + TRAINED[arm]))


STUDY = study.Study(
  file=__file__,
  title='Objectives of other systems',
  arms=ARMS,
  extra=columns,
  columns=dict(calls='network calls'),
  claims=CLAIMS,
  code={
    'Flow-DPPO': ('gen_rl/objectives/divergence.py',),
    'DGPO': ('gen_rl/objectives/whole_groups.py:dgpo',),
    'CRD': ('gen_rl/objectives/whole_groups.py:crd',),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
