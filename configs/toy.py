"""Flow-GRPO on points: a 2-D Gaussian mixture in which everything is exact.

The prompt names one of four blobs; the base model, exact by construction,
hits it 40% of the time. The reward is -|x - named centre|^2, and a KL penalty
of weight beta keeps the policy near the base (Flow-GRPO, arXiv 2505.05470).
The best a policy can do is then known in closed form (gen_rl/worlds/
mixture.py), and the run reports how far from it the trained samples are.
beta has the unit of the reward here: advantages are not divided by their
deviation, log-probs are summed over the event, and ancestral sampling forgets
the initial noise, so that the ODE of the trained flow samples the optimum.
`path=True` charges an action for the divergence that follows from it.

  python -m gen_rl.main --config=configs/toy.py

19 s on two cores, with compilation. Seed 0: within 0.3 of the centre 0.387 ->
0.797 (optimum: 0.868), distance of the mean to the optimum's 0.349 -> 0.025,
of the second moments 0.109 -> 0.012, about 0.01 of each being sampling error.
Gaussian steps of finite length cannot be tilted exactly, which probably is
most of the rest: 16 steps with 128 samples a prompt got to 0.047 and 0.025.

  python -m gen_rl.main --config=configs/toy.py:ppo

has a value network beside the policy and generalized advantages in place of
groups: 0.387 -> 0.679 (seed 0 alone, 29 Nov 2026), behind the group's mean.
"""

import ml_collections
from ml_collections import config_dict

from configs import base

VARIANTS = ('tiny', 'nokl', 'ppo')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Variants: nokl (the blobs collapse to points), ppo (values), tiny."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'toy' + (f':{arg}' if arg else '')
  c.steps = 300
  c.tokenizer = config_dict.create(name='mixture_words')
  c.data.update(prompts_per_step=4, group_size=64, length=1)
  c.data.prompts = config_dict.create(name='mixture')
  c.model = config_dict.create(name='mixture_net', width=64, layers=2)
  c.policy.update(steps=40, shift=1.0, noise=1.0, event='sum')
  c.policy.transition.name = 'ddim'
  c.rewards.distance = config_dict.create(name='mixture_distance', weight=1.0)
  c.advantage = config_dict.create(name='dr_grpo')
  if 'ppo' in variants:
    c.learners.value = config_dict.create(
      name='value', model=c.model.to_dict(), lam=0.95
    )
    c.advantage = config_dict.create(name='gae', lam=0.95, whiten=False)
  beta = config_dict.FieldReference(0.0 if 'nokl' in variants else 0.2)
  c.objective.pg = config_dict.create(name='clipped_pg', clip=0.2, weight=1.0)
  c.objective.kl = config_dict.create(name='kl', weight=beta, path=True)
  c.optimizer.update(lr=3e-3, b2=0.99, warmup=5, decay='linear')
  c.ema = 0.95
  c.eval.prompts = config_dict.ConfigDict()
  c.eval.gold = config_dict.create(
    oracle=dict(name='mixture_near', radius=0.3, beta=beta)
  )
  c.eval.update(every=100, num_prompts=4, samples=512, steps=64, shown=4)
  c.checkpoint.every = 100
  if 'tiny' in variants:
    c.steps = 2
    c.data.group_size = 4
    c.model.width = 8
    c.policy.steps = 4
    c.optimizer.warmup = 1
    c.eval.update(every=1, samples=8, steps=4)
    c.log.tensorboard = False
    c.checkpoint.every = 1
  return c
