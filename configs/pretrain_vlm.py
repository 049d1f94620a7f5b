"""Pretrain the ShapesWorld vision-language model: captions, a few questions.

It learns to describe pictures in the sentences of the grammar, and, from far
fewer examples, to answer questions about them; that is what leaves RL something
to do (configs/vlm_grpo.py).

  python -m gen_rl.main --config=configs/pretrain_vlm.py

Variants, joined by commas; of the first two experiments/promptecho asks what
they are worth as judges (not measured):
  questions  a question with every other picture: a model that answers, too
  small      half as wide: a quarter of the parameters
  classes    it learns to describe pictures, and, from few examples, which of
             several names is that of a picture, with a thought before the
             answer or without (configs/cls_rl.py)
  tiny       two quick steps of all of it, for tests
"""

from collections.abc import Sequence

import ml_collections
from ml_collections import config_dict

from configs import base
from gen_rl.data import tokenizers
from gen_rl.worlds import classes

VARIANTS = ('questions', 'small', 'classes', 'tiny')
EXCLUSIVE = (('questions', 'classes'),)
QUESTIONS = ('count', 'color', 'shape', 'choice', 'exists', 'position', 'read')
SMALL = dict(width=48, vision_width=48)  # of the network of that variant


def model() -> config_dict.ConfigDict:
  """The network, for all configs that use it."""
  return config_dict.create(name='vlm', patch=6, width=96, layers=3)


def of_classes(c: ml_collections.ConfigDict, think: bool = False) -> None:
  """What a model reads of questions about classes, and what it is judged by."""
  world = dict(name='shapes_classes', think=think)
  c.tokenizer = config_dict.create(
    name='world_words', world='shapes_classes', end=True
  )
  c.data.length = classes.MAX_QUESTION
  c.model = model()
  asked = dict(name='world_prompts', world=world, tasks=classes.SETS)
  c.eval.prompts = config_dict.create(**asked, split='base')
  c.evals.new = dict(prompts=dict(**asked, split='new'))
  c.eval.update(num_prompts=19, samples=16, sampler='greedy')
  c.eval.gold = config_dict.create(exact=dict(name='exact_match'))
  if think:
    begin, close = token_ids(classes.ANSWER)
    c.eval.gold = config_dict.create(
      exact=dict(name='tagged_answer', begin=begin, close=close)
    )


def token_ids(words: Sequence[str]) -> list[int]:
  """Their ids in the vocabulary of questions about classes."""
  tokenizer = tokenizers.world_words('shapes_classes', end=True)
  return [tokenizer.token_id(word) for word in words]


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = base.get_config()
  c.name = 'pretrain_vlm' + (f':{arg}' if arg else '')
  c.steps = 3000
  c.tokenizer.name = 'shapes_language'
  c.data.prompts = config_dict.create(
    name='shapes_questions', split='train+rl', kinds=None
  )
  # One picture of 160 comes with a question.
  c.data.weights = {kind: 1e-3 for kind in QUESTIONS} | dict(caption=1.1)
  c.data.update(prompts_per_step=192, group_size=1, length=9, answer_length=16)
  c.data.view = config_dict.create(name='shapes_pictures')
  c.model = model()
  c.policy = config_dict.create(name='tokens', length=17)
  c.rollout = config_dict.create(name='answers')
  c.objective.nll = config_dict.create(name='nll', weight=1.0)
  c.optimizer = config_dict.create(
    name='muon', lr=2e-2, adam_lr=4e-3, grad_clip=1.0, warmup=100,
    decay='linear',
  )  # fmt: skip
  c.ema = 0.998
  c.eval.update(
    every=500, num_prompts=280, samples=2, sampler='greedy', shown=14
  )
  c.eval.prompts = config_dict.create(
    name='shapes_questions', split='heldout', kinds=QUESTIONS
  )
  c.eval.gold = config_dict.create(exact=dict(name='exact_match'))
  c.log.every = 50
  c.checkpoint.every = 1000
  c.export = 'shapes_vlm'
  if 'questions' in variants:
    c.data.weights = dict.fromkeys(QUESTIONS, 1.0) | dict(
      caption=float(len(QUESTIONS))
    )
  if 'classes' in variants:
    c.data.prompts = config_dict.create(
      name='world_prompts', world='shapes_lessons', split='base+new'
    )
    # One picture of 500 comes with a question, of 250 with a thought as well.
    c.data.weights = dict(
      captions=1.0, things=7e-4, numbers=7e-4, words=7e-4, thoughts=4e-3
    )
    c.steps = 420
    c.data.prompts_per_step = 96
    of_classes(c)
    c.evals.think = dict(
      prompts=dict(
        name='world_prompts', split='base+new', tasks=classes.SETS,
        world=dict(name='shapes_classes', think=True),
      ),
      num_prompts=38,
      gold=dict(
        exact=dict(
          name='tagged_answer', begin=token_ids('[')[0], close=token_ids(']')[0]
        )
      ),
    )  # fmt: skip
    c.export = 'shapes_classes'
  if 'small' in variants:
    c.model.update(SMALL)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
