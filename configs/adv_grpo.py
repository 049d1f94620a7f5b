"""Adv-GRPO on ShapesWorld (arXiv 2511.20256): the reward is trained, too.

  python -m gen_rl.main --config=configs/adv_grpo.py

A copy of the detector with another head learns to tell renders of the prompts
from samples, one step on every rollout, and what it thinks of a sample
is its reward. All parameters are trained, and the detector is the reward of the
controls: it can be fooled (configs/flow_grpo.py:proxy). The oracle judges.

Variants, joined by commas:
  both    the detector's reward and the head's
  digits  the same, but real are scans of handwritten digits, for any prompt
  proxy   the detector's reward only
  frozen  the head on the detector's features as they are (not measured)
  preference  the detector itself is trained: its last layer learns to prefer
          renders while it likes samples better (not measured)
  kl      with a KL term to the base
  tiny    two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = (
  'both', 'digits', 'proxy', 'frozen', 'preference', 'kl', 'tiny',
)  # fmt: skip
EXCLUSIVE = (
  ('both', 'digits', 'proxy', 'preference'), ('proxy', 'frozen', 'preference'),
)  # fmt: skip


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flow_grpo.get_config('proxy,kl' if 'kl' in variants else 'proxy')
  c.name = 'adv_grpo' + (f':{arg}' if arg else '')
  if 'proxy' not in variants:
    c.rewards.real = config_dict.create(name='adversarial', weight=0.3)
  if 'frozen' in variants:
    c.rewards.real.frozen = True
  if 'preference' in variants:
    # Within a group its scores differ by a tenth or so.
    c.rewards.real = config_dict.create(
      name='adversarial_preference', reward=c.rewards.detector,
      trained='^head/', scale=10.0, weight=1.0,
    )  # fmt: skip
    del c.rewards.real.reward.weight
  if 'digits' in variants:
    c.critic.reals = dict(name='digit_scans')
  if not {'proxy', 'both', 'digits'} & set(variants):
    del c.rewards.detector
    c.rewards.real.weight = 1.0
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
