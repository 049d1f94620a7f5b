"""Prompts of the embedded worlds."""

from collections.abc import Sequence
import random

import numpy as np

from gen_rl import build, worlds
from gen_rl.data.prompts.source import Prompts
from gen_rl.fields import Count, Spec
from gen_rl.worlds import grammar, questions
from gen_rl.worlds import world as world_lib


def world_prompts(
  world: Spec, split: str = 'train', tasks: Sequence[str] | None = None
) -> Prompts:
  """Every sentence of a split of a world.

  `info` is what the sentences say (`World.facts`); prompt ids are the world's,
  so a sentence keeps its id whichever tasks are chosen.

  Args:
    world: a function of gen_rl.worlds.
    split: of its splits, or several joined by "+": "train+rl".
    tasks: names out of its tasks; None is all of them.

  Raises:
    ValueError: unknown split or task, naming the valid ones.
  """
  of = build.build(worlds, world)
  chosen = world_lib.chosen(of, split, tasks or None)
  asked = max(len(s.checks) for s in chosen)
  answered = any(s.answer for s in chosen)
  return Prompts(
    f'{of.name}/{split}',
    tuple(s.text for s in chosen),
    np.array([s.prompt_id for s in chosen], np.int32),
    info=world_lib.columns(chosen),
    tasks=tuple(s.task for s in chosen),
    answers=tuple(s.answer for s in chosen) if answered else (),
    checks=tuple(
      s.checks + ('',) * (asked - len(s.checks)) for s in chosen if asked
    ),
  )


def shapes(split: str = 'rl', tasks: Sequence[str] | None = None) -> Prompts:
  """`world_prompts` of ShapesWorld."""
  return world_prompts('shapes', split, tasks)


def shapes_questions(
  split: str = 'rl', kinds: Sequence[str] | None = None
) -> Prompts:
  """Questions about ShapesWorld pictures (`world_pictures`), and answers.

  Args:
    split: see `world_prompts`.
    kinds: names out of questions.KINDS; None is all of them.

  Raises:
    ValueError: unknown split or kind, naming the valid ones.
  """
  return world_prompts('shapes_questions', split, kinds)


def shapes_contrasts(
  split: str = 'rl',
  tasks: Sequence[str] | None = None,
  kinds: Sequence[str] = grammar.KINDS,
  alternatives: Count = 4,
) -> Prompts:
  """`shapes`, each sentence with false ones that differ in one thing (TDPO).

  False sentences are worded like the true one (same prefix and order where it
  has them) and are combinations of the same splits. Sentences with none of the
  kinds of change are left out.

  Args:
    split: as `shapes`.
    tasks: as `shapes`.
    kinds: changes out of grammar.KINDS.
    alternatives: K false sentences each, drawn once, with repeats where there
      are fewer.

  Raises:
    ValueError: unknown split, task or kind, naming the valid ones.
  """
  unknown = sorted(set(kinds) - set(grammar.KINDS))
  if unknown or not kinds:
    raise ValueError(
      f'unknown kinds of change {unknown}; choose from '
      f'{", ".join(grammar.KINDS)}'
    )
  source = shapes(split, tasks)
  home = grammar.combinations()
  splits = split.split('+')
  keep, wrong = [], []
  for i, text in enumerate(source.texts):
    spec = grammar.parse(text)
    changed = [
      s
      for s in grammar.mutations(spec, tuple(kinds))
      if home.get(grammar.canonical(s)) in splits
    ]
    if not changed:
      continue
    draw = random.Random(int(source.ids[i]))
    same = grammar.wordings(spec)
    place = same.index(text) if text in same else 0
    keep.append(i)
    chosen = [draw.choice(changed) for _ in range(alternatives)]
    options = map(grammar.wordings, chosen)
    wrong.append(tuple(o[place % len(o)] for o in options))
  rows = np.array(keep)
  return Prompts(
    f'shapes_contrasts/{split}',
    tuple(source.texts[i] for i in keep),
    source.ids[rows],
    info={name: column[rows] for name, column in source.info.items()},
    tasks=tuple(source.tasks[i] for i in keep),
    wrong=tuple(wrong),
  )


def shapes_placed(split: str = 'heldout') -> Prompts:
  """Hard prompts of ShapesWorld: two objects, their colours and their places.

  "a red circle left of a blue square": the tasks `color_attr` and `position` at
  once, which no training of the project's bases saw. Their task is `placed`,
  and their ids go on where those of `shapes` end. To be answered by yes are a
  question about each object and one about the places.

  Args:
    split: of the coloured pairs, as `shapes`.

  Raises:
    ValueError: unknown split, naming the valid ones.
  """
  splits = set(split.split('+'))
  if splits - set(grammar.SPLITS):
    raise ValueError(
      f'unknown split {split!r}; choose from {", ".join(grammar.SPLITS)}, or '
      'several joined by "+"'
    )
  every = [
    (text, home)
    for pair, home in grammar.combinations().items()
    if grammar.TASKS[pair.task] == 'color_attr'
    for relation in range(len(grammar.RELATIONS))
    for text in grammar.wordings(pair._replace(relation=relation))
  ]
  rows = [i for i, (_, home) in enumerate(every) if home in splits]
  texts = tuple(every[i][0] for i in rows)
  asked = [grammar.parse(text) for text in texts]
  facts = [grammar.spec_arrays(spec) for spec in asked]
  return Prompts(
    f'shapes_placed/{split}',
    texts,
    np.array(rows, np.int32) + len(grammar.prompts()),
    info={name: np.stack([f[name] for f in facts]) for name in facts[0]},
    tasks=('placed',) * len(texts),
    checks=tuple(questions.checks(spec) for spec in asked),
  )


def mixture() -> Prompts:
  """The four prompts of the mixture world."""
  return world_prompts('mixture', 'all')
