"""Questions about ShapesWorld pictures, with answers of a word or a sentence.

A question belongs to a *scene*, the `grammar.Spec` its picture is drawn from,
which says all that the answer depends on. Kinds:

  count     "how many circles are there ?", also
            "how many red circles ..." among others    one, two, three, four
  color     "what color is the circle ?"             a colour
  shape     "what shape is red ?"                    a shape
  choice    "is the circle red or blue ?"            one of the two
  exists    "is there a red circle ?"                yes, no
  position  "is the circle left of the square ?"     yes, no
  read      "what word is written ?"                 the word
  caption   "describe the picture ."                 a sentence of the grammar

Yes and no are equally frequent for every scene; a false question names what is
there in another combination, so that half a look does not do. Scenes are cut
50 / 30 / 20 % into train / rl / heldout, as the grammar's combinations are, and
most are such combinations: a question of a split is about scenes of that split
only.
"""

from collections.abc import Iterator
import functools
import itertools
import random
from typing import NamedTuple

from gen_rl.worlds import grammar
from gen_rl.worlds.grammar import COLORS, RELATIONS, SHAPES, Spec

KINDS = (
  'count', 'color', 'shape', 'choice', 'exists', 'position', 'read', 'caption',
)  # fmt: skip
COUNTS = ('one', 'two', 'three', 'four')
# Words that questions and answers have besides those of the grammar.
WORDS = (
  *'how many are there what color is shape or word written describe'.split(),
  *('one', 'yes', 'no', '?', '.'),
)
WORDS = tuple(dict.fromkeys(w for w in WORDS if w not in grammar.WORDS))
MAX_QUESTION = 9  # words
MAX_ANSWER = grammar.MAX_WORDS  # words


class Question(NamedTuple):
  """One question, the scene it is about, and what is right."""

  text: str
  answer: str
  scene: Spec
  kind: str
  split: str
  question_id: int  # unique


def _plural(shape: int) -> str:
  return SHAPES[shape] + ('es' if SHAPES[shape].endswith('s') else 's')


def _pairs() -> Iterator[Spec]:
  """Two shapes in two colours."""
  for shapes in itertools.combinations(range(len(SHAPES)), 2):
    for colors in itertools.permutations(range(len(COLORS)), 2):
      yield Spec(5, shapes, colors, (1, 1))


def _scenes(kind: str) -> list[Spec]:
  shapes = range(len(SHAPES))
  if kind == 'count':
    alone = [s for s in grammar.combinations() if s.word < 0 and not s.count[1]]
    some = [(n, m) for n in range(1, 4) for m in range(1, 5 - n)]
    unlike = [
      Spec(2, (a, b), (c, -1), (n, m))
      for a, b in itertools.permutations(shapes, 2)
      for c in (-1, *range(len(COLORS)))
      for n, m in some
      if (n, m) != (1, 1) and (a < b or c >= 0)  # not both of two mirrored ones
    ]
    alike = [
      Spec(2, (a, a), colors, (n, m))
      for a in shapes
      for colors in itertools.combinations(range(len(COLORS)), 2)
      for n, m in some
    ]
    return alone + unlike + alike
  if kind == 'position':
    return [s for s in grammar.combinations() if s.relation >= 0]
  if kind == 'read':
    return [s for s in grammar.combinations() if s.word >= 0]
  if kind == 'caption':
    return list(grammar.combinations())
  return list(_pairs())


def _ask(kind: str, scene: Spec) -> Iterator[tuple[str, str]]:
  """(question, answer) pairs of a scene."""
  shape, color = scene.shape, scene.color
  if kind == 'count':
    for i in (0, 1):
      if scene.count[i]:
        like = shape[0] == shape[1]
        noun = (f'{COLORS[color[i]]} ' if like else '') + _plural(shape[i])
        yield f'how many {noun} are there ?', COUNTS[scene.count[i] - 1]
  elif kind == 'color':
    for i in (0, 1):
      yield f'what color is the {SHAPES[shape[i]]} ?', COLORS[color[i]]
  elif kind == 'shape':
    for i in (0, 1):
      yield f'what shape is {COLORS[color[i]]} ?', SHAPES[shape[i]]
  elif kind == 'choice':
    for i in (0, 1):
      right, wrong = COLORS[color[i]], COLORS[color[1 - i]]
      for a, b in ((right, wrong), (wrong, right)):
        yield f'is the {SHAPES[shape[i]]} {a} or {b} ?', right
  elif kind == 'exists':
    for i in (0, 1):
      for c, answer in ((color[i], 'yes'), (color[1 - i], 'no')):
        yield f'is there a {COLORS[c]} {SHAPES[shape[i]]} ?', answer
  elif kind == 'position':
    true, false = scene.relation, grammar.OPPOSITE[scene.relation]
    first, second = (SHAPES[s] for s in shape)
    for a, b, r, answer in (
      (first, second, true, 'yes'),
      (first, second, false, 'no'),
      (second, first, false, 'yes'),
      (second, first, true, 'no'),
    ):
      yield f'is the {a} {RELATIONS[r]} the {b} ?', answer
  elif kind == 'read':
    yield 'what word is written ?', grammar.TEXTS[scene.word].lower()
  else:
    for sentence in grammar.wordings(scene):
      yield 'describe the picture .', sentence


def checks(spec: Spec) -> tuple[str, ...]:
  """Questions that are answered by yes where a picture is what a spec asks for.

  Of coloured single objects ("is there a red circle ?") and of relations;
  there are none of what yes and no cannot tell, such as counts.
  """
  out = [
    f'is there a {COLORS[c]} {SHAPES[s]} ?'
    for s, c, n in zip(spec.shape, spec.color, spec.count, strict=True)
    if n == 1 and c >= 0
  ]
  if spec.relation >= 0:
    first, second = (SHAPES[s] for s in spec.shape)
    out.append(f'is the {first} {RELATIONS[spec.relation]} the {second} ?')
  return tuple(out)


@functools.cache
def questions() -> tuple[Question, ...]:
  """All questions, in a fixed order."""
  out = []
  home = dict(grammar.combinations())
  own = [scene for scene in _scenes('count') if scene not in home]
  random.Random('count').shuffle(own)
  home |= grammar.cut(own)
  for kind in KINDS:
    for scene in _scenes(kind):
      for text, answer in _ask(kind, scene):
        where = home[scene]
        out.append(Question(text, answer, scene, kind, where, len(out)))
  return tuple(out)
