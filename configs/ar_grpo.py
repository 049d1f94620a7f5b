"""GRPO of an autoregressive image model on the ShapesWorld oracle.

  python -m gen_rl.main --config=configs/ar_grpo.py

The base says the codes of a picture one after the other and knows what its
prompts ask for but, having seen wrong captions, does not always say it. Every
code is a decision (as in arXiv 2505.00703, without the text); the reward is the
oracle's partial credit and verdict on the decoded picture. It is evaluated as
it is trained, by sampling, on combinations that no training saw.

Variants, joined by commas:
  guided  samples and trains with classifier-free guidance
  cond    samples with guidance and trains the conditional log-probs, as
          T2I-R1 does
  gspo    one ratio per picture (arXiv 2507.18071) in place of one per code
  proxy   reward: a learned detector that can be fooled; the oracle only judges
  ood     trains on the tasks of two objects alone; is evaluated on them and,
          as `ood`, on tasks that it was not trained on (as arXiv 2505.17017)
  iter    in rounds of 60 updates, each beginning with a new reference of the KL
          term
  tiny    two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, pretrain_ar, train_detector
from gen_rl.worlds import shapes_world

VARIANTS = ('guided', 'cond', 'gspo', 'proxy', 'ood', 'iter', 'tiny')
EXCLUSIVE = (('guided', 'cond'),)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = base.get_config()
  c.name = 'ar_grpo' + (f':{arg}' if arg else '')
  pretrain_ar.parts(c)
  c.init = 'asset:shapes_ar'
  c.policy.codec_weights = ''  # they are in the base
  c.steps = 240
  c.data.prompts.split = 'train+rl'
  c.data.update(prompts_per_step=42, group_size=8)
  c.microbatches = 14  # of 24 rows: on a CPU twice as fast as all at once
  c.rewards.oracle = config_dict.create(
    name='shapes_geneval', strict_weight=0.5, weight=1.0
  )
  c.advantage = config_dict.create(name='grpo', std='global')
  c.objective.pg = config_dict.create(name='clipped_pg', clip=0.2, weight=1.0)
  c.objective.kl = config_dict.create(
    name='sampled_kl', ref='ref', estimator='k3', weight=0.01
  )
  c.optimizer.update(lr=3e-4, decay='linear')
  c.ema = 0.95
  c.eval.every = 60
  c.checkpoint.every = 60
  if 'guided' in variants or 'cond' in variants:
    c.policy.guidance_scale = 2.0
    c.policy.score = 'cond' if 'cond' in variants else 'guided'
  if 'gspo' in variants:
    c.objective.pg = config_dict.create(name='gspo', weight=1.0)
  if 'proxy' in variants:
    c.rewards.oracle.weight = 0.0
    c.rewards.detector = config_dict.create(name='shapes_detector', weight=1.0)
    # The detector has never seen a word.
    tasks = shapes_world.shapes().tasks
    c.data.prompts.tasks = tuple(t for t in tasks if t != 'text')
  if 'ood' in variants:
    train_detector.domains(c)
    c.data.prompts.tasks = train_detector.IN_DOMAIN
    c.eval.update(num_prompts=60, samples=8)
  if 'iter' in variants:
    c.copies.ref = config_dict.create(name='rounds', every=60)
  if 'tiny' in variants:
    pretrain_ar.make_tiny(c)
  return c
