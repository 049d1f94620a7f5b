"""TPO on ShapesWorld (arXiv 2509.25771): one picture, two prompts.

  python -m gen_rl.main --config=configs/tpo.py
  python -m gen_rl.main --config=configs/tpo.py:tkto

No reward, no samples, no pairs of pictures: of a true prompt and a false one
that differs in one thing, the policy learns to denoise a render better than
the base under the first and worse under the second. Settings of world and
evaluation are those of configs/flow_grpo.py; configs/sd15_tpo.py has the scale
of the paper, and captioned pictures of your own.

Variants, joined by commas:
  uncapped  without the bound on how much worse
  tkto      labels instead of pairs
  color, position   false prompts of one kind only
  sft       matching loss under the true prompt
  tiny      two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = ('uncapped', 'tkto', 'color', 'position', 'sft', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(
    arg, VARIANTS, (('uncapped', 'tkto', 'sft'), ('color', 'position'))
  )
  c = flow_grpo.get_config()
  c.name = 'tpo' + (f':{arg}' if arg else '')
  c.data.update(prompts_per_step=126, group_size=2)
  c.data.prompts = config_dict.create(name='shapes_contrasts', split='train+rl')
  c.rollout = config_dict.create(name='prompt_pairs', caption_noise=0.1)
  c.rewards = config_dict.ConfigDict()
  c.rewards.order = config_dict.create(name='ranked', weight=1.0)
  c.advantage = config_dict.create(name='best_worst')
  c.policy.time_mean = 1.0  # what is drawn gets decided near the noise
  c.objective = config_dict.ConfigDict()
  c.objective.preference = config_dict.create(
    name='dpo', beta=100.0, draws=2, loser_cap=0.2, weight=1.0
  )
  if 'uncapped' in variants:
    c.objective.preference.loser_cap = None
  if 'tkto' in variants:
    c.objective.preference = config_dict.create(
      name='kto', beta=100.0, draws=2, weight=1.0
    )
  if 'color' in variants or 'position' in variants:
    kind = 'color' if 'color' in variants else 'relation'
    c.data.prompts.kinds = (kind,)
    c.data.weights = {}
  if 'sft' in variants:
    c.data.group_size = 1
    c.data.prompts = config_dict.create(name='shapes', split='train+rl')
    c.rollout = config_dict.create(name='shapes_pictures', caption_noise=0.1)
    c.rewards = config_dict.ConfigDict()
    c.objective = config_dict.ConfigDict()
    c.objective.fm = config_dict.create(name='flow_matching', weight=1.0)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
