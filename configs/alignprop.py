"""AlignProp on ShapesWorld (arXiv 2310.03739): the reward's own gradient.

  python -m gen_rl.main --config=configs/alignprop.py
  python -m gen_rl.main --config=configs/alignprop.py:draft

The learned detector is differentiable, and so is the chain of denoising steps:
its gradient replaces the policy gradient. Which of the last network calls it
goes through is drawn for every sample. The reward is that of
configs/flow_grpo.py:proxy, whose detector can be fooled; the oracle judges.

Variants, joined by commas:
  draft  only the last call (DRaFT-1, arXiv 2309.17400)
  full   all calls: the whole chain
  margin the last call, and no more where the reward is high enough: ReFL's loss
         (arXiv 2304.05977), not its step, which it draws, nor its pictures of
         pretraining
  grpo   the policy gradient in its place, on as many samples
  kl     with a KL term to the base, at the samples noised anew
  tiny   two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = ('draft', 'full', 'margin', 'grpo', 'kl', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(
    arg, VARIANTS, (('draft', 'full', 'margin', 'grpo'),)
  )
  c = flow_grpo.get_config('proxy')
  c.name = 'alignprop' + (f':{arg}' if arg else '')
  c.steps = 60
  c.data.update(prompts_per_step=21, group_size=6)
  c.microbatches = 1
  if 'grpo' not in variants:
    c.policy.update(deterministic=True, window=7, window_high=0)
    c.policy.window_start = dict(name='fixed_window')
    c.objective = config_dict.ConfigDict()
    c.objective.reward = config_dict.create(
      name='reward_backprop', cut='uniform', weight=1.0
    )
  if 'full' in variants:
    c.objective.reward.update(cut='fixed', last=8)
  if 'draft' in variants or 'margin' in variants:
    c.policy.update(window=1, window_low=6)
    c.objective.reward.update(cut='fixed', last=1)
  if 'margin' in variants:
    c.objective.reward.update(loss='relu_margin', target=0.95)
  if 'kl' in variants:
    c.objective.kl = config_dict.create(name='velocity_kl', draws=1, weight=1.0)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
