"""Train the ShapesWorld detector: the learned proxy reward.

A small anchor-free detector (arXiv 1904.07850) learns from rendered pictures
what was drawn where. Words are left out: it has never seen one. It knows clean
pictures with a little pixel noise and nothing else, on purpose: the reward it
gives (`rewards.detector`) is to be one that training can fool.

  python -m gen_rl.main --config=configs/train_detector.py

Measured: 1,000 updates of 96 pictures, 60 s of CPU time, 93 s on a busy 2-core
machine. Renders of held-out prompts are labelled exactly (every object with its
shape and colour within 2 pixels, and no other) 0.967 of the time after 500
updates and 1.000 (of 1,920) at the end.

Variants, joined by commas:
  domains  evaluated on scenes of two objects and, as `ood`, of one and of many
  narrow   the same, and trained on those of two alone: a reward of which
           experiments/ar_dpo asks how far it holds beyond them (not measured)
  tiny     two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base

VARIANTS = ('domains', 'narrow', 'tiny')
IN_DOMAIN = ('two_object', 'position', 'color_attr')
OUT_OF_DOMAIN = ('single_object', 'counting', 'colors')


def domains(c: ml_collections.ConfigDict) -> None:
  """Evaluates the tasks of two objects and, as `ood`, the other ones.

  Combinations are those that no training saw, in both; words are in neither.
  """
  held_out = lambda tasks: config_dict.create(
    name='shapes', split='heldout', tasks=tasks
  )
  c.eval.prompts = held_out(IN_DOMAIN)
  c.evals.ood = config_dict.create(prompts=held_out(OUT_OF_DOMAIN))


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, (('domains', 'narrow'),))
  c = base.get_config()
  c.name = 'train_detector' + (f':{arg}' if arg else '')
  c.steps = 1000
  c.data.prompts.split = 'train+rl'
  c.data.prompts.tasks = (
    'single_object', 'two_object', 'counting', 'colors', 'position',
    'color_attr',
  )  # fmt: skip
  c.data.prompts_per_step = 24
  c.data.group_size = 4  # pictures of each prompt
  c.model = config_dict.create(name='shapes_detector', channels=(24, 32, 64))
  c.policy = config_dict.create(name='detector')
  c.rollout = config_dict.create(name='shapes_scenes', noise=0.05)
  c.objective.nll = config_dict.create(name='nll', weight=1.0)
  c.optimizer = config_dict.create(
    name='adamw', lr=3e-3, b1=0.9, b2=0.99, weight_decay=1e-4,
    grad_clip=10.0, warmup=50, decay='cosine',
  )  # fmt: skip
  c.ema = 0.99
  c.eval.name = 'labelled'
  c.eval.rollout = config_dict.create(noise=0.0)
  c.eval.every = 250
  c.eval.num_prompts = 120
  c.eval.samples = 16
  c.log.every = 50
  c.checkpoint.every = 500
  c.export = 'shapes_detector'
  if 'domains' in variants or 'narrow' in variants:
    domains(c)
  if 'narrow' in variants:
    c.data.prompts.tasks = IN_DOMAIN
  if 'tiny' in variants:
    c.steps = 2
    c.model.channels = (4, 4, 8)
    c.data.prompts_per_step = 6
    c.data.group_size = 2
    c.optimizer.warmup = 1
    c.eval.update(every=1, num_prompts=6, samples=2, shown=4)
    c.log.update(every=1, tensorboard=False)
    c.checkpoint.every = 1
  return c
