"""Several sources of prompts as one, each with its share of a step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gen_rl import build
from gen_rl.build import ConfigError
from gen_rl.data import prompts
from gen_rl.data.prompts.source import Prompts


def mixed(of: Mapping[str, Mapping[str, Any]]) -> Prompts:
  """A mixture: dict(name='mixed', of={label: dict(name, weight, ...)}).

  A step draws from a source as often as its weight says (1 by default), all
  sources together as often as `data.prompts_per_step`; `data.weights`, by task,
  may say otherwise. A source without tasks is a task of that label; those of
  one that has some are label/task, equally often, or as they stand in a file
  that is a mixture itself. Rewards are for some of them by their `tasks`.

  A numeric column that a source lacks is 0 in its rows and another one None;
  ids of prompts count on from one source to the next.

  Args:
    of: the sources.

  Raises:
    ConfigError: no source, a negative weight, sources that are not held in
      memory or do not go together, or what building one says.
  """
  if not of:
    raise ConfigError('mixed: `of` names no source, {label: dict(name=...)}')
  weights = {label: build.weight(spec) for label, spec in of.items()}
  if bad := [k for k, w in weights.items() if not 0 <= w < float('inf')]:
    raise ConfigError(
      f'mixed: the weight of {bad[0]} is {weights[bad[0]]}; it is at least 0'
    )
  specs = {
    label: {k: v for k, v in spec.items() if k != 'weight'}
    for label, spec in of.items()
    if weights[label]
  }
  sources = build.build_all(prompts, specs)
  if not sources:
    raise ConfigError('mixed: no source of `of` has a weight above 0')
  for label, source in sources.items():
    if not isinstance(source.texts, tuple):
      raise ConfigError(
        f'mixed: the source {label} is read as it goes; a mixture is of those '
        'that are held in memory'
      )
  tasks = {label: _tasks(label, source) for label, source in sources.items()}
  parts = list(sources.values())
  return Prompts(
    name=' + '.join(source.name for source in parts),
    texts=tuple(text for source in parts for text in source.texts),
    ids=_ids(parts),
    info=_info(sources),
    extra=_extra(parts),
    tasks=tuple(task for label in sources for task in tasks[label]),
    media=_media(sources),
    wrong=_wrong(sources),
    answers=_padded(parts, 'answers', ''),
    checks=_checks(parts),
    weights={
      task: weights[label] * share
      for label, source in sources.items()
      for task, share in _shares(tasks[label], source.as_listed).items()
    },
  )


def _tasks(label: str, source: Prompts) -> list[str]:
  if not len(source.tasks):
    return [label] * len(source)
  return [f'{label}/{task}' for task in source.tasks]


def _shares(tasks: Sequence[str], as_listed: bool) -> dict[str, float]:
  """{task: its share of a source}."""
  names = list(dict.fromkeys(tasks))
  if as_listed:
    return {name: tasks.count(name) / len(tasks) for name in names}
  return dict.fromkeys(names, 1 / len(names))


def _ids(parts: Sequence[Prompts]) -> np.ndarray:
  """Each source's own ids, behind the largest of the one before."""
  out, after = [], 0
  for source in parts:
    ids = source.ids.astype(np.int64)
    out.append(ids - ids.min() + after)
    after = int(out[-1].max()) + 1
  if after > 2**31:
    raise ConfigError(
      f'mixed: ids of prompts go up to {after - 1}; they are below 2^31'
    )
  return np.concatenate(out).astype(np.int32)


def _info(sources: Mapping[str, Prompts]) -> dict[str, np.ndarray]:
  columns: dict[str, np.ndarray] = {}
  for label, source in sources.items():
    for name, column in source.info.items():
      like = columns.setdefault(name, np.asarray(column))
      if np.shape(column)[1:] != like.shape[1:]:
        raise ConfigError(
          f'mixed: the column {name} of {label} has the shape '
          f'{list(np.shape(column)[1:])}, and that of a source before it '
          f'{list(like.shape[1:])}'
        )

  def rows(source: Prompts, name: str) -> np.ndarray:
    if name in source.info:
      return np.asarray(source.info[name])
    like = columns[name]
    return np.zeros((len(source), *like.shape[1:]), like.dtype)

  return {
    name: np.concatenate([rows(source, name) for source in sources.values()])
    for name in columns
  }


def _extra(parts: Sequence[Prompts]) -> dict[str, list]:
  names = dict.fromkeys(name for source in parts for name in source.extra)
  return {
    name: [
      x for s in parts for x in s.extra.get(name, [None] * len(s))
    ]
    for name in names
  }  # fmt: skip


def _media(sources: Mapping[str, Prompts]) -> np.ndarray | None:
  found = {k: s.media for k, s in sources.items() if s.media is not None}
  shapes = {np.shape(m)[1:] for m in found.values()}
  if not found:
    return None
  if len(found) < len(sources) or len(shapes) > 1:
    raise ConfigError(
      f'mixed: {", ".join(found)} come with pictures; all sources do, of one '
      'shape, or none'
    )
  return np.concatenate([np.asarray(m) for m in found.values()])


def _wrong(sources: Mapping[str, Prompts]) -> tuple:
  """False texts, which all sources have or none."""
  if len({bool(s.wrong) for s in sources.values()}) > 1:
    said = (
      f'{k} has {"some" if s.wrong else "none"}' for k, s in sources.items()
    )
    raise ConfigError(
      f'mixed: sources differ in their `wrong` texts: {", ".join(said)}'
    )
  return tuple(row for s in sources.values() for row in s.wrong)


def _padded(parts: Sequence[Prompts], name: str, blank: Any) -> tuple:
  """A column, `blank` where a source has none; () where none has it."""
  if not any(len(getattr(s, name)) for s in parts):
    return ()
  return tuple(
    x for s in parts for x in (getattr(s, name) or [blank] * len(s))
  )  # fmt: skip


def _checks(parts: Sequence[Prompts]) -> tuple:
  rows = _padded(parts, 'checks', ())
  most = max(map(len, rows), default=0)
  return tuple((*row, *[''] * (most - len(row))) for row in rows)
