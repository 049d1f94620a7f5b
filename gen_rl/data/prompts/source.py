"""What every source of prompts gives."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prompts:
  """N prompts. Immutable; columns are parallel to `texts`."""

  name: str  # for messages and for the fingerprint of unread sources
  texts: Any  # [N] of str; a tuple where everything is in memory
  ids: np.ndarray  # [N] int32, unique: the prompt_id of each
  info: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # [N ...]
  extra: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
  tasks: Sequence[str] = ()  # [N] task labels, or empty
  media: Any = None  # [N h w c] or [N m h w c] float32 in [0, 1], or None
  # [N] of one or more texts each that are false where the text is true, of
  # which a step takes one; or empty
  wrong: Sequence[Sequence[str]] = ()
  answers: Sequence[str] = ()  # [N] what is right to say, or empty
  # [N] of K questions each that are to be answered by yes ('': none), or empty
  checks: Sequence[Sequence[str]] = ()
  # A mixture that is meant, such as a file: prompts are drawn as they stand,
  # not every task equally often.
  as_listed: bool = False
  # {task: relative frequency} of a mixture, unless the config has weights
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.texts)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Record {"text": str, "prompt_id": int, "info": {...}}.

    `info` has the numeric columns as numpy arrays and the Python ones as they
    were read.
    """
    columns = {**self.info, **self.extra}
    return {
      'text': self.texts[i],
      'prompt_id': int(self.ids[i]),
      'info': {name: column[i] for name, column in columns.items()},
    }

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[i] for i in range(len(self)))

  def by_id(self, prompt_id: int) -> dict[str, Any]:
    """The record of a prompt id, for rewards scored on the host."""
    return self[self._index_of[int(prompt_id)]]

  def asked(
    self, prompt_ids: Sequence[int], group_size: int = 1
  ) -> dict[str, Any]:
    """What rewards on the host read of rows, `group_size` of every prompt.

    Returns:
      Fields of `types.RewardInputs`: texts [b], ids [b], and columns {name:
      [b]}, all of `extra` and, where the source has them, "task" and "answer";
      arrays of Python objects, or of numbers where all are.
    """
    rows = [self._index_of[int(i)] for i in prompt_ids]
    rows = np.repeat(np.array(rows, np.int64), group_size)
    columns = {'task': self.tasks, 'answer': self.answers, **self.extra}
    return dict(
      texts=_objects([str(self.texts[i]) for i in rows]),
      ids=self.ids[rows],
      columns={
        name: _values([column[i] for i in rows])
        for name, column in columns.items()
        if len(column)
      },
    )

  @functools.cached_property
  def _index_of(self) -> dict[int, int]:
    return {int(p): i for i, p in enumerate(self.ids)}

  @functools.cached_property
  def fingerprint(self) -> str:
    """Changes when a prompt, its order or its numeric info changes.

    A source that is not in memory is identified by its name and size.
    """
    digest = hashlib.sha256()
    texts = self.texts if isinstance(self.texts, tuple) else [self.name]
    digest.update(json.dumps([len(self), *texts]).encode())
    digest.update(json.dumps(list(self.tasks)).encode())
    if self.answers:
      digest.update(json.dumps(list(self.answers)).encode())
    if self.wrong:
      digest.update(json.dumps(list(map(list, self.wrong))).encode())
    digest.update(np.ascontiguousarray(self.ids).tobytes())
    for name, column in sorted(self.info.items()):
      digest.update(name.encode())
      if isinstance(column, np.ndarray):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def _objects(values: Sequence[Any]) -> np.ndarray:
  """[b] of Python objects, lists among them."""
  out = np.empty(len(values), object)
  for i, value in enumerate(values):
    out[i] = value
  return out


def _values(values: Sequence[Any]) -> np.ndarray:
  kinds = {type(value) for value in values}
  if kinds <= {int, float} and max(map(abs, values)) < 2**53:
    return np.array(values)
  return _objects(values)
