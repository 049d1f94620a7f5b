"""DiffusionNFT on ShapesWorld (arXiv 2509.16117): RL on the forward process.

  python -m gen_rl.main --config=configs/diffusion_nft.py

Samples come from a copy of the policy that follows it slowly, by a
second-order ODE solver without noise; what is trained is the matching loss of
those samples, once with the velocity bent towards them and once away from
them, weighed by how good they are. No log-probabilities, no trajectories, no
guidance. Settings of data, world and evaluation are those of
configs/flow_grpo.py; beta and the KL term are those of DiffusionNFT's code
(config/nft.py). There, the copy follows at a rate of 1e-3, and what is trained
are the times of the sampler's grid; here 1e-2, and two times drawn a sample.

Variants, joined by commas:
  positive  without the negative branch
  on_policy  the policy itself samples
  awm    advantage-weighted matching (arXiv 2509.25050) in its place, errors
         weighing alike; its code weighs them by
         --config.objective.awm.weighting=ghuber, clips advantages at 1 and has
         a KL term to a copy that follows, beside that to the base
  rwr    reward-weighted regression (arXiv 2305.13301) in its place
  dgpo   direct group preference optimisation (arXiv 2510.08425) in its place
  crd    centred reward distillation (arXiv 2603.14128) in its place
  guided  the KL term's base is guided, at scale 2, as there
  tiny   two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = (
  'positive', 'on_policy', 'awm', 'rwr', 'dgpo', 'crd', 'guided', 'tiny',
)  # fmt: skip
EXCLUSIVE = (('positive', 'awm', 'rwr', 'dgpo', 'crd'),)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flow_grpo.get_config()
  c.name = 'diffusion_nft' + (f':{arg}' if arg else '')
  c.policy.update(deterministic=True, solver='dpm2', window=1)
  c.policy.window_start = dict(name='fixed_window')
  c.behaviour = 'slow'
  c.copies.slow = config_dict.create(name='ramp_decay', rate=1e-2, limit=0.5)
  c.objective = config_dict.ConfigDict()
  c.objective.nft = config_dict.create(
    name='nft', beta=1.0, draws=2, weight=1.0
  )
  c.objective.kl = config_dict.create(name='velocity_kl', draws=2, weight=1e-4)
  if 'positive' in variants:
    c.objective.nft.mode = 'positive'
  if {'on_policy', 'awm', 'rwr', 'dgpo'} & {*variants}:
    c.behaviour = 'params'
    c.copies = config_dict.ConfigDict()
  if 'awm' in variants:
    del c.objective.nft
    c.objective.awm = config_dict.create(
      name='awm', draws=2, weighting='uniform', weight=1.0
    )
  if 'rwr' in variants:
    del c.objective.nft
    c.objective.rwr = config_dict.create(name='rwr', weight=1.0)
  if 'dgpo' in variants:
    del c.objective.nft
    c.objective.dgpo = config_dict.create(
      name='dgpo', beta=100.0, draws=2, weight=1.0
    )
  if 'crd' in variants:
    del c.objective.nft
    c.objective.crd = config_dict.create(
      name='crd', beta=1.0, draws=2, weight=1.0
    )
  if 'dgpo' in variants or 'crd' in variants:
    c.objective.kl.paired = True
  if 'guided' in variants:
    c.objective.kl.update(guidance_scale=2.0, weight=1e-2)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
