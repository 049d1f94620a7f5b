r"""RLCM on ShapesWorld (arXiv 2404.03673): RL of a consistency model.

  python -m gen_rl.main --config=configs/rlcm.py

A consistency model answers from any noise with a picture; to refine it, part of
the noise is put back and it answers again. That noise is the decision: x' =
(1 - t') f(x, t) + t' z, which is the transition `cps` at level 1. Four network
calls a sample, three of them decisions.

`distil` made the model, which is shipped: the base was teacher and start.
Settings of data, world and evaluation are those of configs/flow_grpo.py;
evaluation samples as the policy does.

Variants, joined by commas:
  distil  consistency distillation of the base
  two     two network calls
  eight   eight
  rebel   regression of relative rewards (arXiv 2404.16767)
  jpeg    reward: small JPEG files, exact size on the device
  saturation  reward: colourful pictures, for the paper's aesthetic score
  sweep   evaluated with 1, 2, 4, 8 and 16 network calls as well, at the ends
  tiny    two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = (
  'distil', 'two', 'eight', 'rebel', 'jpeg', 'saturation', 'sweep', 'tiny',
)  # fmt: skip
EXCLUSIVE = (
  ('distil', 'two', 'eight'), ('distil', 'rebel'),
  ('distil', 'jpeg', 'saturation'), ('distil', 'sweep'),
)  # fmt: skip
CALLS = 1, 2, 4, 8, 16


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flow_grpo.get_config()
  c.name = 'rlcm' + (f':{arg}' if arg else '')
  c.init = 'asset:shapes_consistency'
  c.objective.kl.weight = 0.0  # as published
  c.eval.sampler = 'policy'
  c.policy.transition = dict(name='cps')
  c.policy.update(steps=4, noise=1.0, window=0, window_high=0)
  c.policy.window_start = dict(name='fixed_window')
  c.objective.pg.ratio = 'plain'
  if 'two' in variants:
    c.policy.steps = 2
  if 'eight' in variants:
    c.policy.steps = 8
  if 'rebel' in variants:
    c.objective.pg = config_dict.create(name='rebel', eta=1.0, weight=1.0)
  if 'jpeg' in variants:
    c.rewards = flow_grpo.get_config('jpeg').rewards
  if 'saturation' in variants:
    c.rewards.oracle.weight = 0.0
    c.rewards.saturation = config_dict.create(name='saturation', weight=1.0)
  if 'sweep' in variants:
    for calls in CALLS:
      # The last call takes no noise; one call is a step of the ode.
      c.evals[f'calls_{calls}'] = (
        dict(sampler='policy', policy=dict(steps=calls))
        if calls > 1
        else dict(sampler='ode', steps=1)
      )
  if 'distil' in variants:
    c.init = 'asset:shapes_base'
    c.steps = 3000
    c.trainable = ''
    c.data.update(prompts_per_step=192, group_size=1)
    c.microbatches = 1
    c.rollout = config_dict.create(name='shapes_pictures', caption_noise=0.1)
    c.rewards = config_dict.ConfigDict()
    c.objective = config_dict.ConfigDict()
    c.objective.cd = config_dict.create(
      name='consistency_distillation', steps=16, weight=1.0
    )
    c.optimizer.update(lr=5e-4, warmup=20)
    c.ema = 0.95
    c.eval.every = 500
    c.checkpoint.every = 500
    c.export = 'shapes_consistency'
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
