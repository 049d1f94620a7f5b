"""Pretrain the autoregressive image model of ShapesWorld on codes of pictures.

Some captions are wrong, as those of the web are: that is what leaves RL
something to do (configs/ar_grpo.py).

  python -m gen_rl.main --config=configs/pretrain_ar.py

Variant: tiny (two quick steps, for tests).
"""

import ml_collections
from ml_collections import config_dict

from configs import base, train_codec

VARIANTS = ('tiny',)


def parts(c: ml_collections.ConfigDict) -> None:
  """The network, the codec and the policy, for all configs that use them."""
  c.model = config_dict.create(
    name='ar_image', codes=512, grid=(6, 6), width=128, layers=3, heads=4
  )
  c.policy = config_dict.create(
    name='image_tokens', codec=train_codec.codec(),
    codec_weights='asset:shapes_codec',
  )  # fmt: skip
  c.trainable = '^net/'
  c.eval.update(num_prompts=140, samples=4, sampler='policy')


def make_tiny(c: ml_collections.ConfigDict) -> None:
  """As that of base, with a small codec of its own."""
  base.make_tiny(c)
  c.model.update(codes=4, grid=(2, 2), kv_heads=2)
  c.policy.codec = train_codec.tiny_codec()
  c.policy.codec_weights = ''


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'pretrain_ar' + (f':{arg}' if arg else '')
  parts(c)
  c.steps = 4000
  c.data.prompts.split = 'train+rl'
  c.data.prompts_per_step = 96
  c.data.group_size = 1
  c.policy.null_prob = 0.1
  c.rollout = config_dict.create(name='shapes_pictures', caption_noise=0.1)
  c.objective.nll = config_dict.create(name='nll', weight=1.0)
  c.optimizer = config_dict.create(
    name='muon', lr=2e-2, adam_lr=4e-3, grad_clip=1.0, warmup=100,
    decay='linear',
  )  # fmt: skip
  c.ema = 0.998
  c.eval.every = 500
  c.log.every = 50
  c.checkpoint.every = 1000
  c.export = 'shapes_ar'
  if 'tiny' in variants:
    make_tiny(c)
  return c
