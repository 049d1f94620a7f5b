"""Flow-GRPO of a denoiser of 2.5 billion parameters at 512 x 512, in pixels.

  python -m gen_rl.plan --config=configs/flow_grpo_2b.py --topology=v5e:4x4
  python -m gen_rl.main --config=configs/flow_grpo_2b.py

The shape of a step of a real size, to plan clusters with: 1024 tokens a
picture, 30 layers of width 2560, scanned and rematerialised, bfloat16
arithmetic, adapters of rank 32 (as Flow-GRPO trains SD3.5-M, arXiv
2505.05470), JPEG size as the reward. It starts from noise weights unless
`init` names a file.

Variants, joined by commas ("full,tiny"):
  full   trains all parameters, in place of adapters
  tiny   two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base
from gen_rl.models.parts import lora

VARIANTS = ('full', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'flow_grpo_2b' + (f':{arg}' if arg else '')
  c.model = config_dict.create(
    name='dit', image=(512, 512, 3), patch=16, width=2560, heads=20, layers=30,
    text_width=1024, text_layers=2, scan=True, remat='full', dtype='bfloat16',
  )  # fmt: skip
  c.lora.update(pattern='block|text', rank=32, alpha=64.0)
  c.trainable = lora.TRAINABLE
  c.rewards.jpeg = config_dict.create(name='jpeg_compressibility', weight=1.0)
  c.eval.gold = config_dict.create(jpeg=dict(name='jpeg_compressibility'))
  c.policy.transition.name = 'flow_sde'
  c.policy.update(
    steps=10, noise=0.7, window=2, window_high=5,
    window_start=dict(name='random_window'),
  )  # fmt: skip
  c.data.update(prompts_per_step=16, group_size=16)
  c.microbatches = 8
  c.rollout_chunks = 4
  c.mesh.update(data=1, fsdp=-1)
  c.eval.update(num_prompts=16, samples=1, steps=10, shown=8)
  c.objective.pg = config_dict.create(
    name='clipped_pg', clip=1e-4, ratio='guard', weight=1.0
  )
  c.objective.kl = config_dict.create(
    name='kl', ref='ref', scale='dt', weight=0.04
  )
  if 'full' in variants:
    c.lora.pattern = ''
    c.trainable = ''
    c.optimizer.lr = 1e-5
  if 'tiny' in variants:
    base.make_tiny(c)
    c.model.update(image=(32, 32, 3))
    c.rollout_chunks = 2
  return c
