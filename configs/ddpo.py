"""DDPO on ShapesWorld (arXiv 2305.13301): denoising as a decision process.

  python -m gen_rl.main --config=configs/ddpo.py
  python -m gen_rl.main --config=configs/ddpo.py:dpok

Every denoising step but the last is ancestral (DDIM at eta = 1: on the straight
path of the flow it is, up to a scale that leaves all ratios as they are, the
step of the variance-preserving process with the same ratio of signal to
noise). A row is compared with the past scores of its own prompt, not with a
group. Settings of data, world and evaluation are those of
configs/flow_grpo.py, but for more prompts with fewer samples each.

Variants, joined by commas:
  sf    score function (DDPO-SF): one update per rollout
  dpok  with the step-wise KL term of DPOK's text (arXiv 2305.16381); its code
        takes the squared difference of predicted noises in its place
  rwr   reward-weighted regression, the paper's baseline
  b2    the sampling of B2-DiffuRL (arXiv 2503.11240): the rows of a prompt have
        all noise in common up to the last decisions, 5 of 7 at first and all of
        them in the end (there 14 and 20 of 20), and these alone are trained.
        There the best and the worst row of a prompt are, here with `select`
  bpt   without the branches: the decisions before them belong to the ODE
  select  rows that are trained are the best of a prompt if it is above its past
        by half a deviation, and the worst if it is below by that (B2-DiffuRL)
  sparse  reward: the verdict alone, no partial credit
  jpeg  reward: small JPEG files, exact size on the device
  saturation  reward: colourful pictures, for the paper's aesthetic score
  tiny  two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = (
  'sf', 'dpok', 'rwr', 'b2', 'bpt', 'select', 'sparse', 'jpeg', 'saturation',
  'tiny',
)  # fmt: skip
EXCLUSIVE = (
  ('sf', 'rwr'),
  ('b2', 'bpt'),
  ('rwr', 'select'),
  ('sparse', 'jpeg', 'saturation'),
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flow_grpo.get_config()
  c.name = 'ddpo' + (f':{arg}' if arg else '')
  c.objective.kl.weight = 0.0  # as published
  c.policy.transition = dict(name='ddim')
  c.policy.noise = 1.0
  c.policy.update(window=0, window_high=0)
  c.policy.window_start = dict(name='fixed_window')
  c.data.update(prompts_per_step=126, group_size=4)
  c.advantage = config_dict.create(
    name='history', num_prompts=4096, buffer=32, min_count=8
  )
  c.objective.pg.ratio = 'plain'
  c.updates = 2
  if 'sf' in variants:
    c.updates = 1
    c.objective.pg = config_dict.create(name='reinforce', weight=1.0)
  if 'rwr' in variants:
    c.updates = 1
    c.objective.pg = config_dict.create(name='rwr', weight=1.0)
  if 'dpok' in variants:
    c.objective.kl.weight = 0.01
  if 'b2' in variants:
    c.policy.branch = dict(name='backward_branch', initial=5, stages=c.steps)
  if 'bpt' in variants:
    c.policy.noise_schedule = dict(
      name='backward_interval', initial=5, stages=c.steps
    )
  if 'select' in variants:
    history = c.advantage.to_dict()
    c.advantage = config_dict.create(
      name='extremes', high=0.5, low=-0.5,
      each=dict(name='top_bottom', n=1, each=history),
    )  # fmt: skip
  if 'sparse' in variants:
    c.rewards.oracle = config_dict.create(name='shapes_strict', weight=1.0)
  if 'jpeg' in variants:
    c.rewards = flow_grpo.get_config('jpeg').rewards
  if 'saturation' in variants:
    c.rewards.oracle.weight = 0.0
    c.rewards.saturation = config_dict.create(name='saturation', weight=1.0)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
