"""Pref-GRPO on ShapesWorld (arXiv 2508.20751): win rates in place of scores.

  python -m gen_rl.main --config=configs/pref_grpo.py
  python -m gen_rl.main --config=configs/pref_grpo.py:pointwise

The reward model here is weak, as learned ones are: all its scores lie within
0.05, a few hundredths of which are noise and a liking for colourful pictures.
GRPO on its scores divides by the deviation of a group, so that a group whose
pictures are equally good still gets advantages of full size, made of noise and
taste ("illusory advantage"). Pref-GRPO asks a judge which of two pictures is
better, or neither, and rewards the share of comparisons won in the group.

Settings are those of configs/flow_grpo.py, for 60 updates: about 2 minutes on
two CPU cores. What the advantages are about is logged: their correlation with
gold and with saturation (`monitor/gold/advantage_corr`), and their share that
falls on pictures that are all equally good (`monitor/gold/equal_share`).
Results: experiments/pref_grpo.

Variants, joined by commas ("mix,tiny"):
  pointwise     GRPO on the weak model's scores: what the paper argues against
  drgrpo        the same, not divided by the deviation of the group
  same_judge    win rates by a judge that sees the weak model's scores and calls
                small differences ties: what comparing alone changes
  better_judge  win rates by a judge that sees the gold score and errs: the
                default, as the paper's judge is a stronger model
  mix           0.4 of the win rate's advantage and 0.6 of the pointwise one,
                each normalised by itself
  tiny          two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = (
  'pointwise', 'drgrpo', 'same_judge', 'better_judge', 'mix', 'tiny',
)  # fmt: skip
EXCLUSIVE = (
  ('pointwise', 'drgrpo', 'same_judge', 'better_judge'),
  ('pointwise', 'drgrpo', 'mix'),
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flow_grpo.get_config()
  c.name = 'pref_grpo' + (f':{arg}' if arg else '')
  c.objective.kl.weight = 0.0  # as published
  c.steps = 60
  c.ema = 0.9
  c.eval.every = 20
  c.checkpoint.every = 60
  c.rewards = config_dict.ConfigDict()
  c.monitors.gold = dict(name='shapes_geneval', strict_weight=0.5)
  c.monitors.saturation = dict(name='saturation')
  c.advantage = config_dict.create(name='grpo', std='group', eps=1e-8)

  weak = dict(name='shapes_compressed', scale=0.05, bias=0.3, noise=0.01)
  alone = 'pointwise' in variants or 'drgrpo' in variants
  if alone or 'mix' in variants:
    c.rewards.pointwise = config_dict.create(**weak, weight=1.0)
  if not alone:
    c.rewards.wins = config_dict.create(name='win_rate', weight=1.0)
    if 'same_judge' in variants:  # ties: two deviations of noise
      c.rewards.wins.update(reward=weak, tie=0.03, temperature=0.0)
    else:
      c.rewards.wins.update(
        reward=dict(name='shapes_geneval', strict_weight=0.5),
        tie=0.1,
        temperature=0.1,
      )
  if 'drgrpo' in variants:
    c.advantage = config_dict.create(name='dr_grpo')
  if 'mix' in variants:
    c.rewards.wins.weight, c.rewards.pointwise.weight = 0.4, 0.6
    c.advantage = config_dict.create(name='per_reward', each=c.advantage)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
