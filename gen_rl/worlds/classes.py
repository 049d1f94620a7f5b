"""Classes of ShapesWorld pictures: which of the names in a list is it?

Three sets of classes, each of which is cut into halves, `base` and `new`, as in
generalisation from base to new classes (CoOp, arXiv 2203.05557; CLS-RL, arXiv
2503.16188):

  things   "red circle", a shape in one of 4 colours     16 classes
  numbers  "three circles"                               12
  words    "cat", a word that is written                 10

A question lists the names of all classes of a half, in an order of its own, and
the answer is one of them. It asks for the answer and nothing else, or, where it
ends with "think .", for a thought and an answer between tags:

  which of red circle , blue square ?          blue square
  which of red circle , blue square ? think .  { a blue square } [ blue square ]

Beside questions there are lessons, for a base model to learn from: completions,
of lists of 2 to 8 names, those with a thought of a kind of their own, and
captions that describe pictures of all classes.
"""

from collections.abc import Iterator
import functools
import random
from typing import NamedTuple

from gen_rl.worlds import grammar
from gen_rl.worlds.grammar import COLORS, NUMBERS, SHAPES, TEXTS, Spec

SETS = ('things', 'numbers', 'words')
LESSONS = (*SETS, 'thoughts', 'captions')
SPLITS = ('base', 'new')
# Of a thought and of an answer: (open, close).
THOUGHT, ANSWER = ('{', '}'), ('[', ']')
WORDS = ('which', ',', 'think', *THOUGHT, *ANSWER)  # besides the questions'
MAX_QUESTION = 28  # words
MAX_ANSWER = 12  # words of a completion
MAX_NAME = 2  # words
LISTS, MOST = 6, 8  # of a class in lessons, and names in one


class Question(NamedTuple):
  """One question, the scene it is about, and what is right."""

  text: str
  answer: str  # of a lesson a whole completion
  scene: Spec
  kind: str  # of SETS, or of LESSONS
  split: str
  think: bool
  lesson: bool
  question_id: int  # of the scene, with and without a thought


def _things() -> Iterator[tuple[str, Spec]]:
  for color, name in enumerate(COLORS[:4]):
    for shape, what in enumerate(SHAPES):
      yield f'{name} {what}', Spec(3, (shape, -1), (color, -1), (1, 0))


def _numbers() -> Iterator[tuple[str, Spec]]:
  for count in (2, 3, 4):
    for shape, what in enumerate(SHAPES):
      several = what + ('es' if what.endswith('s') else 's')
      name = f'{NUMBERS[count - 1]} {several}'
      yield name, Spec(2, (shape, -1), count=(count, 0))


def _words() -> Iterator[tuple[str, Spec]]:
  for word, name in enumerate(TEXTS):
    yield name.lower(), Spec(6, word=word)


def _halves(kind: str) -> dict[str, list[tuple[str, Spec]]]:
  classes = list(dict(things=_things, numbers=_numbers, words=_words)[kind]())
  random.Random(f'classes {kind}').shuffle(classes)
  half = len(classes) // 2
  return dict(base=classes[:half], new=classes[half:])


def ask(names: list[str], think: bool) -> str:
  """The question about a list of names."""
  return f'which of {" , ".join(names)} ?' + (' think .' if think else '')


def completion(name: str, scene: Spec, think: bool) -> str:
  """What is right to say, with the thought that describes the picture."""
  if not think:
    return name
  thought = grammar.wordings(scene)[0]
  return ' '.join((THOUGHT[0], thought, THOUGHT[1], ANSWER[0], name, ANSWER[1]))


def _completions(
  kind: str, half: list[tuple[str, Spec]]
) -> Iterator[tuple[str, str, Spec, bool]]:
  for name, scene in half:
    draw = random.Random(f'{kind} {name}')
    others = [other for other, _ in half if other != name]
    for _ in range(LISTS):
      size = draw.randint(1, min(MOST - 1, len(others)))
      names = [*draw.sample(others, size), name]
      draw.shuffle(names)
      for think in (False, True):
        said = completion(name, scene, think)
        yield ask(names, think), said, scene, think


@functools.cache
def questions() -> tuple[Question, ...]:
  """All questions and lessons, in a fixed order."""
  out = []

  def add(text, answer, scene, kind, split, think, lesson, number=None):
    number = len(out) if number is None else number
    out.append(
      Question(text, answer, scene, kind, split, think, lesson, number)
    )

  for kind in SETS:
    halves = _halves(kind)
    for split, half in halves.items():
      for _, scene in half:
        for said in grammar.wordings(scene):
          text = 'describe the picture .'
          add(text, said, scene, 'captions', split, False, True)
    for split, half in halves.items():
      for text, said, scene, think in _completions(kind, half):
        named = 'thoughts' if think else kind
        add(text, said, scene, named, split, think, True)
    for split, half in halves.items():
      names = [name for name, _ in half]
      for name, scene in half:
        number = len(out)
        for think in (False, True):
          text = ask(names, think)
          add(text, name, scene, kind, split, think, False, number)
  return tuple(out)
