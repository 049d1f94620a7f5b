"""What a world is: sentences, what they mean, what shows it and who judges it.

A world is a function of this package that returns a `World`, `shapes` or
`tiles`; a config names it as `world` of the functions that draw from it:
`data.prompts.world_prompts`, `data.tokenizers.world_words`,
`data.pictures.world_pictures`, `rewards.world_oracle`. Whoever reads texts of
people asks `understood`, and knows no world by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from gen_rl import build, worlds
from gen_rl.types import Array

# {name: [...]} numbers that say what a picture is to show, of one row; the
# `info` of a batch holds them as [b ...].
Facts = Mapping[str, Any]


class Sentence(NamedTuple):
  """A text, and what it means."""

  text: str
  facts: Facts
  task: str  # of World.tasks
  split: str = ''  # of World.splits; '': a person said it
  prompt_id: int = -1  # of its own in the world, whatever the split
  answer: str = ''  # what is right to say, of a question about a picture
  # Questions to be answered by yes where a picture shows the facts.
  checks: tuple[str, ...] = ()


class World(NamedTuple):
  """Pure functions; those of pictures are jittable."""

  name: str  # as a config names it
  tasks: tuple[str, ...]  # kinds of sentences, in the order of tables
  splits: tuple[str, ...]  # no facts are in two of them
  words: tuple[str, ...]  # of sentences and answers; their order is the ids'
  facts: tuple[str, ...]  # names of what Sentence.facts holds
  shape: tuple[int, ...]  # of a picture [h w c], or of a point
  sentences: Callable[[], Sequence[Sentence]]  # all, in a fixed order
  # A text of a person. Raises ValueError, in one sentence, where it is none of
  # the world's, or does not say by itself what a picture is to show.
  parse: Callable[[str], Sentence]
  # (key, facts of one row) -> a picture that shows them, in [0, 1]
  render: Callable[[Array, Facts], Array]
  # (key, facts of one row) -> others, that it does not show
  mutate: Callable[[Array, Facts], Facts]
  # (pictures [b ...], facts [b ...]) -> (partial credit in [0, 1] [b], whether
  # they show just that, bool [b])
  judge: Callable[[Array, Facts], tuple[Array, Array]]

  def facts_of(self, info: Mapping[str, Any]) -> Facts:
    """Of rows of prompts, [b ...].

    Raises:
      ConfigError: the prompts do not say what the world has to know.
    """
    missing = [name for name in self.facts if name not in info]
    if missing:
      raise build.ConfigError(
        f'the world {self.name!r} shows and judges what its sentences ask for, '
        f'and some of these prompts are none ({", ".join(missing)} missing); '
        f'use data.prompts.name="world_prompts" with world="{self.name}", a '
        'file whose every line is a sentence of it, or other pictures and '
        'rewards'
      )
    return {name: info[name] for name in self.facts}


def chosen(
  world: World, split: str, tasks: Sequence[str] | None = None
) -> list[Sentence]:
  """Sentences of splits and tasks, in the world's order.

  Args:
    world: whose.
    split: one of its splits, or several joined by "+": "train+rl".
    tasks: names out of its tasks; None is all of them.

  Raises:
    ValueError: unknown split or task, naming the valid ones; or none is left.
  """
  splits = split.split('+')
  for what, names, known in (
    ('split', splits, world.splits),
    ('task', tasks or (), world.tasks),
  ):
    for name in names:
      if name not in known:
        raise ValueError(
          f'the world {world.name!r} has no {what} {name!r}; choose from '
          f'{", ".join(known)}'
        )
  tasks = world.tasks if tasks is None else tasks
  every = world.sentences()
  found = [s for s in every if s.split in splits and s.task in tasks]
  if not found:
    raise ValueError(
      f'the world {world.name!r} has no sentence of split {split!r} and tasks '
      f'{", ".join(tasks) or "()"}'
    )
  return found


def columns(sentences: Sequence[Sentence]) -> dict[str, np.ndarray]:
  """{name of a fact: [n ...]}."""
  names = sentences[0].facts
  return {name: np.stack([s.facts[name] for s in sentences]) for name in names}


def ordered(tasks: Sequence[str]) -> list[str]:
  """Labels, each once: in the order of the world that has them, or sorted."""
  found = set(tasks)
  for name in build.names(worlds) if found else ():
    world = build.build(worlds, name)
    if found <= set(world.tasks):
      return [task for task in world.tasks if task in found]
  return sorted(found)


def understood(texts: Sequence[str]) -> tuple[World, list[Sentence]] | None:
  """The world whose sentences all texts are, and what they mean; None: of none.

  A world that understands some and not all of them is named in a warning, with
  the first text that it does not.
  """
  for name in build.names(worlds):
    world, found = build.build(worlds, name), []
    try:
      for text in texts:
        found.append(world.parse(text))
      return world, found
    except ValueError as error:
      if found:
        logging.warning(
          'text %d of %d is no sentence of the world %r, so that it judges '
          'none of them: %s',
          len(found) + 1,
          len(texts),
          name,
          error,
        )
  return None
