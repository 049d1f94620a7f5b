"""Prompts of the embedded worlds."""

from collections.abc import Sequence
import random

import numpy as np

from gen_rl.data.prompts.source import Prompts
from gen_rl.fields import Count
from gen_rl.worlds import grammar, questions
from gen_rl.worlds import mixture as mixture_world


def shapes(split: str = 'rl', tasks: Sequence[str] | None = None) -> Prompts:
  """Every sentence of a split of the ShapesWorld grammar.

  `info` is `grammar.spec_arrays`, stacked; prompt ids are those of the
  grammar, so a sentence keeps its id whichever tasks are chosen; `checks` are
  `questions.checks`.

  Args:
    split: "train", "rl", "heldout", or several joined by "+".
    tasks: names out of grammar.TASKS; None is all of them.

  Raises:
    ValueError: unknown split or task, naming the valid ones.
  """
  chosen = grammar.enumerate_prompts(split, tuple(tasks) if tasks else None)
  if not chosen:
    raise ValueError(f'ShapesWorld split {split!r} has no prompt of {tasks}')
  specs = [grammar.spec_arrays(prompt.spec) for prompt in chosen]
  checks = [questions.checks(prompt.spec) for prompt in chosen]
  most = max(map(len, checks))
  return Prompts(
    f'shapes/{split}',
    tuple(prompt.text for prompt in chosen),
    np.array([prompt.prompt_id for prompt in chosen], np.int32),
    info={name: np.stack([s[name] for s in specs]) for name in specs[0]},
    tasks=tuple(grammar.TASKS[prompt.spec.task] for prompt in chosen),
    checks=tuple(c + ('',) * (most - len(c)) for c in checks) if most else (),
  )


def shapes_questions(
  split: str = 'rl', kinds: Sequence[str] | None = None
) -> Prompts:
  """Questions about ShapesWorld pictures, and their answers.

  `info` says what the picture shows (`grammar.spec_arrays`, for
  `pictures.shapes_pictures`), "tasks" are the kinds of questions.

  Args:
    split: "train", "rl", "heldout", or several joined by "+".
    kinds: names out of questions.KINDS; None is all of them.

  Raises:
    ValueError: unknown split or kind, naming the valid ones.
  """
  chosen = questions.enumerate_questions(split, tuple(kinds) if kinds else None)
  scenes = [grammar.spec_arrays(question.scene) for question in chosen]
  return Prompts(
    f'shapes_questions/{split}',
    tuple(question.text for question in chosen),
    np.array([question.question_id for question in chosen], np.int32),
    info={name: np.stack([s[name] for s in scenes]) for name in scenes[0]},
    tasks=tuple(question.kind for question in chosen),
    answers=tuple(question.answer for question in chosen),
  )


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


def mixture() -> Prompts:
  """The four prompts of the mixture world.

  `info` has `named`, the index of the word, and `target` [2], its centre.
  """
  words = mixture_world.WORDS
  named = np.arange(len(words), dtype=np.int32)
  target = np.array(mixture_world.CENTERS, np.float32)
  return Prompts(
    'mixture', words, named, info=dict(named=named, target=target), tasks=words
  )
