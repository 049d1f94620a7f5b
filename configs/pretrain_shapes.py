"""Pretrain the ShapesWorld base: flow matching on rendered pictures.

Rectified flow, logit-normal times with shift 3 (arXiv 2403.03206). Like web
captions, a share of the captions is wrong in one attribute, count or
relation; that is what leaves RL something to do.

  python -m gen_rl.main --config=configs/pretrain_shapes.py
"""

import ml_collections
from ml_collections import config_dict

from configs import base

VARIANTS = ('tiny',)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Variant: tiny (two quick steps, for tests)."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'pretrain_shapes' + (f':{arg}' if arg else '')
  c.steps = 9000
  c.data.prompts.split = 'train+rl'
  c.data.prompts_per_step = 192
  c.data.group_size = 1
  c.rollout = config_dict.create(name='shapes_pictures', caption_noise=0.1)
  c.objective.fm = dict(name='flow_matching', weight=1.0)
  c.policy.time_mean = 0.7
  c.policy.time_std = 1.1
  c.policy.null_prob = 0.1
  c.optimizer = config_dict.create(
    name='muon', lr=2e-2, adam_lr=4e-3, grad_clip=1.0, warmup=100,
    decay='linear',
  )  # fmt: skip
  c.ema = 0.998
  c.eval.every = 1000
  c.log.every = 50
  c.checkpoint.every = 1000
  c.export = 'shapes_base'
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
