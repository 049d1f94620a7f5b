r"""Tiles, the smallest world there is (gen_rl/worlds/tiles.py).

A transformer of 8x8 pixels learns from renders (flow matching), of which a
share shows something else than its caption says; `rl` then teaches it by the
oracle to keep to the prompt (Flow-GRPO, arXiv 2505.05470). What a new world
needs in a config is what stands here: prompts, words, pictures and rewards of
its name.

  python -m gen_rl.main --config=configs/tiles.py
  python -m gen_rl.main --config=configs/tiles.py:rl \
    --config.init=runs/tiles/base.safetensors

Two to three CPU minutes each. Seed 0, one run, 128 samples of 32 held-out
prompts: 0.852 of the pictures are right after the first command, and all of
them after 30 and 60 updates of the second.

Variants:
  rl     rewards in place of renders
  tiny   two quick steps, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base

VARIANTS = ('rl', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'tiles' + (f':{arg}' if arg else '')
  c.tokenizer = config_dict.create(name='world_words', world='tiles')
  c.data.prompts = config_dict.create(
    name='world_prompts', world='tiles', split='train'
  )
  c.eval.prompts = config_dict.create(split='heldout')
  c.eval.gold.oracle = config_dict.create(name='world_verdict', world='tiles')
  c.model.update(
    image=(8, 8, 3), patch=4, width=48, layers=2, heads=4, text_width=32,
    text_layers=1,
  )  # fmt: skip
  c.policy.time_mean = 0.5
  c.ema = 0.95
  c.eval.update(num_prompts=32, samples=4)
  if 'rl' in variants:
    c.steps = 60
    c.data.update(prompts_per_step=16, group_size=12)
    c.policy.transition.name = 'flow_sde'
    c.policy.noise = 0.7
    c.rewards.oracle = config_dict.create(
      name='world_oracle', world='tiles', strict_weight=0.5, weight=1.0
    )
    c.objective.pg = config_dict.create(
      name='clipped_pg', clip=1e-2, ratio='guard', weight=1.0
    )
    c.optimizer.update(lr=5e-4, decay='linear')
    c.eval.every = 30
  else:
    c.steps = 300
    c.data.update(prompts_per_step=128, group_size=1)
    c.rollout = config_dict.create(
      name='world_pictures', world='tiles', caption_noise=0.3
    )
    c.objective.fm = config_dict.create(name='flow_matching', weight=1.0)
    c.optimizer = config_dict.create(
      name='muon', lr=2e-2, adam_lr=4e-3, grad_clip=1.0, warmup=20,
      decay='linear',
    )  # fmt: skip
    c.eval.every = 150
    c.export = 'base'
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
