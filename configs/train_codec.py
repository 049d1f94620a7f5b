"""Train the ShapesWorld codec: pictures as 36 codes out of 512, and back.

  python -m gen_rl.main --config=configs/train_codec.py

Variant: tiny (two quick steps, for tests).
"""

import ml_collections
from ml_collections import config_dict

from configs import base

VARIANTS = ('tiny',)


def codec() -> config_dict.ConfigDict:
  """The codec, for all configs that use it."""
  return config_dict.create(
    name='fsq_codec', patch=4, levels=(8, 8, 8), width=96, layers=2
  )


def tiny_codec() -> config_dict.ConfigDict:
  """One of four codes out of four, for tests."""
  return config_dict.create(
    name='fsq_codec', patch=12, levels=(2, 2), width=8, layers=1, heads=2
  )


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = base.get_config()
  c.name = 'train_codec' + (f':{arg}' if arg else '')
  c.steps = 3000
  c.data.prompts.split = 'train+rl'
  c.data.prompts_per_step = 192
  c.data.group_size = 1
  c.data.view = config_dict.create(name='shapes_pictures')
  c.model = codec()
  c.policy = config_dict.create(name='codec')
  c.rollout = config_dict.create(name='shapes_pictures')
  c.objective.nll = config_dict.create(name='nll', weight=1.0)
  c.optimizer = config_dict.create(
    name='muon', lr=2e-2, adam_lr=4e-3, grad_clip=1.0, warmup=100,
    decay='linear',
  )  # fmt: skip
  c.ema = 0.998
  c.eval.update(every=500, num_prompts=280, samples=2, sampler='greedy')
  c.log.every = 50
  c.checkpoint.every = 1000
  c.export = 'shapes_codec'
  if 'tiny' in base.split_variants(arg, VARIANTS):
    base.make_tiny(c)
    c.model = tiny_codec()
  return c
