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

The split `shown` has completions for a base model to learn from, of lists of 2
to 8 names of either half; those with a thought are of the kind `thoughts`. Its
`captions` describe pictures of all classes.
"""

from collections.abc import Iterator
import functools
import random
from typing import NamedTuple

from gen_rl.worlds import grammar
from gen_rl.worlds.grammar import COLORS, NUMBERS, SHAPES, TEXTS, Spec

SETS = ('things', 'numbers', 'words')
KINDS = (*SETS, 'thoughts', 'captions')
SPLITS = ('shown', 'base', 'new')
# Of a thought and of an answer: (open, close).
THOUGHT, ANSWER = ('{', '}'), ('[', ']')
WORDS = ('which', ',', 'think', *THOUGHT, *ANSWER)  # besides the questions'
MAX_QUESTION = 28  # words
MAX_ANSWER = 12  # words of a completion
MAX_NAME = 2  # words
LISTS, MOST = 6, 8  # lists of a class in `shown`, and names in one


class Question(NamedTuple):
  """One question, the scene it is about, and what is right."""

  text: str
  answer: str  # of `shown` a whole completion
  scene: Spec
  kind: str  # of KINDS
  split: str
  think: bool
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


def _shown(
  kind: str, halves: dict[str, list[tuple[str, Spec]]]
) -> Iterator[tuple[str, str, Spec, bool]]:
  for half in halves.values():
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
  """All questions, in a fixed order."""
  out = []
  for kind in SETS:
    halves = _halves(kind)
    for _, scene in (c for half in halves.values() for c in half):
      for said in grammar.wordings(scene):
        text, number = 'describe the picture .', len(out)
        out.append(
          Question(text, said, scene, 'captions', 'shown', False, number)
        )
    for text, said, scene, think in _shown(kind, halves):
      named = 'thoughts' if think else kind
      out.append(Question(text, said, scene, named, 'shown', think, len(out)))
    for split, half in halves.items():
      names = [name for name, _ in half]
      for name, scene in half:
        number = len(out)
        for think in (False, True):
          text = ask(names, think)
          out.append(Question(text, name, scene, kind, split, think, number))
  return tuple(out)
