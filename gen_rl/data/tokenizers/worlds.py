"""The words of the embedded worlds."""

from gen_rl import build, worlds
from gen_rl.data.tokenizers.words import END, Tokenizer, word_level
from gen_rl.fields import Spec


def world_words(world: Spec, end: bool = False) -> Tokenizer:
  """All words of a world's sentences and answers.

  Args:
    world: a function of gen_rl.worlds.
    end: with an end token after them, for policies that say something.
  """
  of = build.build(worlds, world)
  return word_level(of.words, END if end else None)


def shapes_words() -> Tokenizer:
  """The words of the ShapesWorld grammar."""
  return world_words('shapes')


def shapes_language() -> Tokenizer:
  """The same, the words of questions and answers, and an end token."""
  return world_words('shapes_questions', end=True)


def mixture_words() -> Tokenizer:
  """The words of the mixture world."""
  return world_words('mixture')
