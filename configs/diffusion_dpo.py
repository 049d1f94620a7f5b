"""Diffusion-DPO on ShapesWorld (arXiv 2311.12908): preferences without a chain.

  python -m gen_rl.main --config=configs/diffusion_dpo.py

The frozen base draws groups, the oracle finds the best and the worst of each,
and the policy learns to denoise the one better than the base does and the
other one worse. Neither samples nor scores change while it learns, as in a
data set; `online` lets the policy itself draw. Settings of world and
evaluation are those of configs/flow_grpo.py.

Variants, joined by commas:
  online    pairs from the policy itself
  rendered  pairs of renders, one right and one nearly: data, no policy and no
            reward model (a file of pairs: --config.data.prompts.name=pairs
            --config.data.prompts.path=pairs.npz --config.rollout.name=given)
  sft       matching loss of the preferred ones of `rendered`
  kto       Diffusion-KTO (arXiv 2404.04465): labels instead of pairs
  tiny      two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = ('online', 'rendered', 'sft', 'kto', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(
    arg, VARIANTS, (('online', 'rendered', 'sft'), ('sft', 'kto'))
  )
  c = flow_grpo.get_config()
  c.name = 'diffusion_dpo' + (f':{arg}' if arg else '')
  c.policy.update(deterministic=True, window=1)
  c.policy.window_start = dict(name='fixed_window')
  c.behaviour = 'params' if 'online' in variants else 'ref'
  c.advantage = config_dict.create(name='best_worst')
  name = 'kto' if 'kto' in variants else 'dpo'
  c.objective = config_dict.ConfigDict()
  c.objective.preference = config_dict.create(
    name=name, beta=100.0, draws=2, weight=1.0
  )
  if 'rendered' in variants:
    c.behaviour = 'params'
    c.data.update(prompts_per_step=126, group_size=2)
    c.rollout = config_dict.create(name='shapes_preferences')
    c.rewards = config_dict.ConfigDict()
    c.rewards.order = config_dict.create(name='ranked', weight=1.0)
  if 'sft' in variants:
    c.behaviour = 'params'
    c.data.update(prompts_per_step=252, group_size=1)
    c.rollout = config_dict.create(name='shapes_pictures')
    c.rewards = config_dict.ConfigDict()
    c.objective = config_dict.ConfigDict()
    c.objective.fm = config_dict.create(name='flow_matching', weight=1.0)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
