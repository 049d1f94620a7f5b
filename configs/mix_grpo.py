"""MixGRPO on ShapesWorld (arXiv 2507.21802): a sliding window of noisy steps.

  python -m gen_rl.main --config=configs/mix_grpo.py
  python -m gen_rl.main --config=configs/mix_grpo.py:flash

Only the steps of a window are noisy and trained; it starts at the noise, where
what is drawn gets decided, and slides towards the picture as training goes on.
All other steps belong to the ODE. Settings of data, world and evaluation are
those of configs/flow_grpo.py, whose own window is drawn anew at every update.

This is the method, not its config for FLUX. There, and not here: 25 steps, a
window of 4 that moves every 25 updates, one noise for a group to start from,
advantages of several rewards added up (`per_reward`), deviations per group and
with n - 1, a learning rate of 1e-5.
  flash  there: floor(0.4 (n + 1)) - 1 of the n steps after the window, 7 of 21,
         and steps before it are of first order; here: ceil(0.4 n), 9 of 21, and
         all steps without noise are of second order
  dance  there: 16 steps of which 60 % are drawn and trained, several updates a
         rollout; here: all but the last, one update

Variants, joined by commas:
  flash   a second-order solver takes 40 % of the steps after the window
  random  the window's place is drawn
  frozen  the window stays at the first steps
  all     no window, as Flow-GRPO
  dance   DanceGRPO (arXiv 2505.07818): all steps noisy at a constant level,
          a group starts from the same noise, deviations per group, of n - 1
  decay   most of the noise in the first steps, as HiCoGen (CVPR 2026) has it,
          and no more of it in all; its theorem is about steps of constant
          diffusion and samples that start from one noise: dance,decay
  branch  a group starts from one noise and shares that of the first decisions
          of the window, none, one or two, drawn for each prompt; those behind
          them are trained
  tiny    two quick steps of all of it, for tests
"""

import ml_collections

from configs import base, flow_grpo

VARIANTS = (
  'flash',
  'random',
  'frozen',
  'all',
  'dance',
  'decay',
  'branch',
  'tiny',
)
PLACES = ('random', 'frozen', 'all', 'dance')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, (PLACES, ('flash', 'all')))
  c = flow_grpo.get_config()
  c.name = 'mix_grpo' + (f':{arg}' if arg else '')
  c.objective.kl.weight = 0.0  # as published
  c.policy.update(window=3, window_high=0)
  c.policy.window_start = dict(
    name='progressive_window', tau=max(1, c.steps // 5)
  )
  c.objective.pg.ratio = 'plain'
  if 'random' in variants:
    c.policy.window_start = dict(name='random_window')
  if 'frozen' in variants:
    c.policy.window_start = dict(name='fixed_window')
  if 'all' in variants or 'dance' in variants:
    c.policy.window = 0
    c.policy.window_start = dict(name='fixed_window')
  if 'dance' in variants:
    c.policy.transition = dict(name='dance_sde')
    c.policy.update(noise=0.3, shared_noise=True)
    c.advantage.update(std='group', ddof=1, eps=1e-8)
  if 'decay' in variants:
    c.policy.noise_schedule = dict(name='budget_match', shape='cosine_decay')
  if 'branch' in variants:
    c.policy.branch = dict(name='random_branch')
  if 'flash' in variants:
    c.policy.update(solver='dpm2', tail=0.4)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
