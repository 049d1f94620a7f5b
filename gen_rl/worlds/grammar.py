"""ShapesWorld prompts: English sentences <-> what they ask for, and splits.

The tasks are GenEval's six (single object, two objects, counting, colours,
position, colour attribution; arXiv 2310.11513) and quoted text, the OCR task
of Flow-GRPO (arXiv 2505.05470). A *combination* is what is asked for, free of
wording: "a circle left of a square" and "a square to the right of a circle"
are one combination. Splits are by combination, so a held-out prompt is unseen
in every wording.
"""

from collections.abc import Sequence
import functools
import itertools
import random
import re
from typing import NamedTuple

import numpy as np

TASKS = (
  'single_object',
  'two_object',
  'counting',
  'colors',
  'position',
  'color_attr',
  'text',
)
SHAPES = ('circle', 'square', 'triangle', 'cross')
COLORS = ('red', 'green', 'blue', 'yellow', 'purple', 'cyan')
RELATIONS = ('left of', 'right of', 'above', 'below')
OPPOSITE = (1, 0, 3, 2)
NUMBERS = ('a', 'two', 'three', 'four')
TEXTS = ('CAT', 'DOG', 'SUN', 'OWL', 'BOX', 'JAX', 'ZEN', 'HUT', '247', '365')
PREFIXES = ('', 'a photo of ', 'a picture of ', 'an image of ')

# Every word of the grammar: the tokenizer's vocabulary.
WORDS = (
  *NUMBERS,
  *SHAPES,
  *(shape + 's' if shape != 'cross' else 'crosses' for shape in SHAPES),
  *COLORS,
  *'photo picture image of an and left right above below to the on in'.split(),
  *'word with'.split(),
  '"',
  *(text.lower() for text in TEXTS),
)
MAX_WORDS = 16  # the longest sentence has 15

SPLITS = ('train', 'rl', 'heldout')
_FRACTIONS = (0.5, 0.3, 0.2)


class Spec(NamedTuple):
  """What a prompt asks for: plain ints, -1 = not specified.

  Clause 0 stands in `relation` to clause 1. A prompt of the text task has no
  clauses; `word` indexes TEXTS.
  """

  task: int
  shape: tuple[int, int] = (-1, -1)
  color: tuple[int, int] = (-1, -1)
  count: tuple[int, int] = (0, 0)
  relation: int = -1
  word: int = -1
  word_color: int = -1


class Prompt(NamedTuple):
  """A sentence and what it asks for."""

  text: str
  spec: Spec
  split: str
  prompt_id: int  # unique per sentence of the grammar


def canonical(spec: Spec) -> Spec:
  """The representative of a spec's combination (clause order, mirror)."""
  if spec.count[1] == 0:
    return spec
  swapped = spec._replace(
    shape=spec.shape[::-1], color=spec.color[::-1], count=spec.count[::-1]
  )
  if spec.relation < 0:
    return min(spec, swapped)
  swapped = swapped._replace(relation=OPPOSITE[spec.relation])
  return spec if spec.relation in (0, 2) else swapped


@functools.cache
def combinations() -> dict[Spec, str]:
  """Every combination and the split it belongs to.

  Within each task the combinations are shuffled once (fixed seed) and cut
  50 / 30 / 20 % into train / rl / heldout.
  """
  shapes, colors = range(len(SHAPES)), range(len(COLORS))
  pairs = list(itertools.permutations(shapes, 2))
  one, both = (1, 0), (1, 1)
  by_task = [
    [Spec(0, (s, -1), count=one) for s in shapes],
    [Spec(1, pair, count=both) for pair in pairs],
    [
      Spec(2, (s, -1), (c, -1), (n, 0))
      for s in shapes
      for c in (-1, *colors)
      for n in (2, 3, 4)
    ],
    [Spec(3, (s, -1), (c, -1), one) for s in shapes for c in colors],
    [
      Spec(4, pair, count=both, relation=r)
      for pair in pairs
      for r in range(len(RELATIONS))
    ],
    [
      Spec(5, pair, cs, both)
      for pair in pairs
      for cs in itertools.permutations(colors, 2)
    ],
    [
      Spec(6, word=w, word_color=c)
      for w in range(len(TEXTS))
      for c in (-1, *colors)
    ],
  ]
  split = {}
  for task, specs in enumerate(by_task):
    unique = sorted({canonical(spec) for spec in specs})
    random.Random(task).shuffle(unique)
    split |= cut(unique)
  return split


def cut(shuffled: Sequence[Spec]) -> dict[Spec, str]:
  """The split of each: 50 / 30 / 20 % of them in this order."""
  train = round(_FRACTIONS[0] * len(shuffled))
  rl = train + round(_FRACTIONS[1] * len(shuffled))
  return {
    spec: SPLITS[(i >= train) + (i >= rl)] for i, spec in enumerate(shuffled)
  }


def _noun(shape: int, color: int, count: int) -> str:
  noun = SHAPES[shape]
  if count > 1:
    noun += 'es' if noun.endswith('s') else 's'
  adjective = '' if color < 0 else COLORS[color] + ' '
  return f'{NUMBERS[count - 1]} {adjective}{noun}'


def wordings(spec: Spec) -> list[str]:
  """Every sentence of the grammar for a combination."""
  if spec.word >= 0:
    word = f'the word "{TEXTS[spec.word].lower()}"'
    if spec.word_color >= 0:
      word += f' in {COLORS[spec.word_color]}'
    bodies = [word]
  elif spec.count[1] == 0:
    bodies = [_noun(spec.shape[0], spec.color[0], spec.count[0])]
  else:
    first, second = (
      _noun(*clause) for clause in zip(spec.shape, spec.color, spec.count)
    )
    if spec.relation < 0:
      bodies = [f'{first} and {second}', f'{second} and {first}']
    else:
      there, back = RELATIONS[spec.relation], RELATIONS[OPPOSITE[spec.relation]]
      bodies = [f'{first} {there} {second}', f'{second} {back} {first}']
      bodies += [
        body.replace(side, f'to the {side}')
        for body in bodies
        for side in ('left of', 'right of')
        if side in body
      ]
  return [prefix + body for body in bodies for prefix in PREFIXES]


KINDS = ('shape', 'color', 'count', 'relation', 'word')


def mutations(spec: Spec, kinds: tuple[str, ...] = KINDS) -> list[Spec]:
  """Every combination that differs in one attribute, count or relation.

  None of them is true of a picture of `spec`: a new shape or colour is one
  that no clause asks for.

  Args:
    spec: what a picture shows.
    kinds: which changes, out of KINDS; 'color' is also that of a word.
  """

  def replaced(pair: tuple[int, int], i: int, value: int) -> tuple[int, int]:
    return (value, pair[1]) if i == 0 else (pair[0], value)

  out = []
  clauses = [i for i in (0, 1) if spec.count[i]]
  for i in clauses:
    for shape in set(range(len(SHAPES))) - set(spec.shape):
      change = spec._replace(shape=replaced(spec.shape, i, shape))
      out.append(('shape', change))
    for color in set(range(len(COLORS))) - set(spec.color):
      if spec.color[i] >= 0:
        change = spec._replace(color=replaced(spec.color, i, color))
        out.append(('color', change))
  if len(clauses) == 1 and spec.count[0] > 1:
    for count in {2, 3, 4} - {spec.count[0]}:
      out.append(('count', spec._replace(count=(count, 0))))
  if spec.relation >= 0:
    out.append(('relation', spec._replace(relation=OPPOSITE[spec.relation])))
  if spec.word >= 0:
    for word in set(range(len(TEXTS))) - {spec.word}:
      out.append(('word', spec._replace(word=word)))
    if spec.word_color >= 0:
      for color in set(range(len(COLORS))) - {spec.word_color}:
        out.append(('color', spec._replace(word_color=color)))
  return [changed for kind, changed in out if kind in kinds]


@functools.cache
def prompts() -> tuple[Prompt, ...]:
  """All sentences, in a fixed order."""
  out = []
  for spec, split in combinations().items():
    for text in wordings(spec):
      out.append(Prompt(text, parse(text), split, len(out)))
  return tuple(out)


_NOUN = (
  r'(?P<n{i}>{numbers}|an|one) (?:(?P<c{i}>{colors}) )?'
  r'(?P<s{i}>{shapes})(?:e?s)?'
)


def _noun_pattern(i: int) -> str:
  return _NOUN.format(
    i=i,
    numbers='|'.join(NUMBERS),
    colors='|'.join(COLORS),
    shapes='|'.join(SHAPES),
  )


_OBJECTS = re.compile(
  _noun_pattern(0)
  + r'(?: (?:and|(?:(?:on |to )?the )?(?P<r>left of|right of|above|below)) '
  + _noun_pattern(1)
  + ')?'
)
_TEXT = re.compile(
  rf'the word "(?P<w>[a-z0-9]+)"(?: in (?P<c>{"|".join(COLORS)}))?'
)


def parse(text: str) -> Spec | None:
  """What a sentence asks for, or None if it is not of the grammar.

  Free wordings with the grammar's phrases are understood too ("one red
  circle"), so prompt files and the command line get an oracle where one
  exists.
  """
  body = ' '.join(text.lower().strip().rstrip('.').split())
  for prefix in PREFIXES[1:]:
    body = body.removeprefix(prefix)
  if match := _TEXT.fullmatch(body):
    word = match['w'].upper()
    if word not in TEXTS:
      return None
    color = COLORS.index(match['c']) if match['c'] else -1
    return Spec(6, word=TEXTS.index(word), word_color=color)
  match = _OBJECTS.fullmatch(body)
  if not match:
    return None
  shape, color, count = [-1, -1], [-1, -1], [0, 0]
  for i in (0, 1):
    if match[f's{i}']:
      number = match[f'n{i}']
      shape[i] = SHAPES.index(match[f's{i}'])
      color[i] = COLORS.index(match[f'c{i}']) if match[f'c{i}'] else -1
      count[i] = NUMBERS.index(number) + 1 if number in NUMBERS else 1
  relation = RELATIONS.index(match['r']) if match['r'] else -1
  if sum(count) > 4:
    return None  # the canvas has four cells
  if relation >= 0:
    task = 4
  elif count[1]:
    task = 5 if max(color) >= 0 else 1
  elif count[0] > 1:
    task = 2
  else:
    task = 3 if color[0] >= 0 else 0
  return Spec(
    task,
    tuple(shape),
    tuple(color),
    tuple(count),
    relation,  # type: ignore
  )


FIELDS = (
  'task', 'include_class', 'include_color', 'include_count', 'relation', 'word',
  'word_color',
)  # fmt: skip


def spec_arrays(spec: Spec) -> dict[str, np.ndarray]:
  """A spec as int32 arrays FIELDS, the `info` of a batch row.

  The names of the clause arrays are those of `scoring.geneval.Clauses`.
  """
  return {
    'task': np.int32(spec.task),
    'include_class': np.array(spec.shape, np.int32),
    'include_color': np.array(spec.color, np.int32),
    'include_count': np.array(spec.count, np.int32),
    'relation': np.int32(spec.relation),
    'word': np.int32(spec.word),
    'word_color': np.int32(spec.word_color),
  }
