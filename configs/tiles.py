"""Flow-GRPO on tiles, the smallest world there is (gen_rl/worlds/tiles.py).

A transformer of 8x8 pixels that has never seen a picture learns from the
oracle's partial credit alone where the prompt wants which colour. What a new
world needs in a config is what stands here: prompts, words, pictures and
rewards of its name.

  python -m gen_rl.main --config=configs/tiles.py

Variants:
  data   learns from renders in place of rewards (flow matching)
  tiny   two quick steps, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base

VARIANTS = ('data', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'tiles' + (f':{arg}' if arg else '')
  c.tokenizer = config_dict.create(name='world_words', world='tiles')
  c.data.prompts = config_dict.create(
    name='world_prompts', world='tiles', split='train'
  )
  c.data.update(prompts_per_step=16, group_size=16, length=16)
  c.eval.prompts = config_dict.create(split='heldout')
  c.eval.gold.oracle = config_dict.create(name='world_verdict', world='tiles')
  c.model.update(
    image=(8, 8, 3), patch=4, width=64, layers=2, heads=4, text_width=32,
    text_layers=1,
  )  # fmt: skip
  c.policy.update(steps=4, shift=1.0, noise=0.7)
  c.policy.transition.name = 'flow_sde'
  c.optimizer.update(lr=1e-3, decay='linear')
  c.steps = 400
  c.ema = 0.95
  c.eval.update(every=100, num_prompts=40, samples=8, steps=4)
  c.checkpoint.every = 100
  if 'data' in variants:
    c.rollout = config_dict.create(name='world_pictures', world='tiles')
    c.objective.fm = config_dict.create(name='flow_matching', weight=1.0)
  else:
    c.rewards.oracle = config_dict.create(
      name='world_oracle', world='tiles', strict_weight=0.5, weight=1.0
    )
    c.objective.pg = config_dict.create(
      name='clipped_pg', clip=1e-2, weight=1.0
    )
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
