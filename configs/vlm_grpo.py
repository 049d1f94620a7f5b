"""GRPO of a vision-language model on questions about pictures.

  python -m gen_rl.main --config=configs/vlm_grpo.py

The base describes pictures well and has seen few questions about them. It is
asked to count, to name colours and shapes, to choose and to say yes or no, and
is rewarded where it says the answer and nothing else; it is evaluated on
questions about other scenes, saying what is likeliest. GRPO is that of
arXiv 2402.03300. The reward is the rule that No-Thinking-CLS-RL (arXiv
2503.16188) has for classes of pictures; nothing else of that paper is here, no
photographs, no classes and no thinking to leave out.

Variants, joined by commas:
  dr     Dr. GRPO (arXiv 2503.20783): no division by a group's deviation, and a
         constant length
  tiny   two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, pretrain_vlm

VARIANTS = ('dr', 'tiny')
QUESTIONS = ('count', 'color', 'shape', 'choice', 'exists', 'position', 'read')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'vlm_grpo' + (f':{arg}' if arg else '')
  c.init = 'asset:shapes_vlm'
  c.steps = 600
  c.tokenizer.name = 'shapes_language'
  c.data.prompts = config_dict.create(
    name='shapes_questions', split='train+rl', kinds=QUESTIONS
  )
  # About as often as the base fails.
  c.data.weights = dict(
    count=2.0, color=1.0, shape=0.2, choice=1.0, exists=2.0, position=1.0,
    read=0.2,
  )  # fmt: skip
  c.data.update(prompts_per_step=48, group_size=8, length=9, answer_length=3)
  c.data.view = config_dict.create(name='shapes_pictures', shared=True)
  c.model = pretrain_vlm.model()
  c.policy = config_dict.create(name='tokens', length=4, temperature=1.3)
  c.rewards.exact = config_dict.create(name='exact_match', weight=1.0)
  c.advantage = config_dict.create(
    name='grpo', std='group', ddof=1, clip=None, drop_zero=False
  )
  c.objective.pg = config_dict.create(name='clipped_pg', clip=0.2, weight=1.0)
  c.objective.kl = config_dict.create(
    name='sampled_kl', ref='ref', estimator='k3', weight=0.01
  )
  c.optimizer.update(lr=1e-3, decay='linear', warmup=10)
  c.updates = 2
  c.ema = 0.95
  c.eval.update(
    every=100, num_prompts=300, samples=1, sampler='greedy', shown=14
  )
  c.eval.prompts = config_dict.create(
    name='shapes_questions', split='heldout', kinds=QUESTIONS
  )
  c.eval.gold = config_dict.create(exact=dict(name='exact_match'))
  c.checkpoint.every = 100
  if 'dr' in variants:
    c.advantage = config_dict.create(name='dr_grpo')
    c.aggregate = 'const'
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
