"""TP-GRPO on ShapesWorld (arXiv 2602.06422): every decision has its own reward.

  python -m gen_rl.main --config=configs/tp_grpo.py

Before and after each noisy step the sample is finished without noise and
scored; the difference is the step's credit. Steps that turn the trend of a
trajectory get the whole effect from there to the end. Costs about half the
window's length times the network calls of a rollout on top. Settings of data,
world and evaluation are those of configs/flow_grpo.py, and so is the whole
log-prob of a step: the published code has Flow-CPS's (policy.unit_log_prob).

Variants, joined by commas:
  bonus        the rule of the published code: the total effect, plus the
               step's own at turning points
  incremental  the step's own effect only
  outcome      the same reward for all steps: GRPO, whose samples are finished
               once
  soft         reward: a learned detector, of any value between 0 and 1, of
               prompts without words
  balanced     of turning points as many that raise the score as lower it
  tiny         two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = ('bonus', 'incremental', 'outcome', 'soft', 'balanced', 'tiny')
EXCLUSIVE = VARIANTS[:3], ('outcome', 'balanced'), ('incremental', 'balanced')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flow_grpo.get_config()
  c.name = 'tp_grpo' + (f':{arg}' if arg else '')
  c.objective.kl.weight = 0.0  # as published
  c.policy.transition = dict(name='cps')
  c.policy.update(noise=0.7, window=5, window_high=0)
  c.policy.window_start = dict(name='fixed_window')
  mode = [v for v in variants if v in VARIANTS[:3]] or ['turning']
  c.advantage = config_dict.create(
    name='turning_points', mode=mode[0], balanced='balanced' in variants
  )
  if 'outcome' in variants:
    c.advantage = config_dict.create(name='grpo', std='group')
  if 'soft' in variants:
    proxy = flow_grpo.get_config('proxy')
    c.rewards, c.data = proxy.rewards, proxy.data  # it has never seen a word
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
