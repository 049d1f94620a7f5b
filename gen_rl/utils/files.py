"""Files that are whole or not there, locks, and values that JSON can hold."""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import math
import os
import pathlib
from typing import IO, Any


def plain(x: Any) -> Any:
  """Python's own types all the way down; NaN and infinities to None."""
  if isinstance(x, Mapping):
    return {str(k): plain(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [plain(v) for v in x]
  if isinstance(x, (str, bool, int, type(None))):
    return x
  if isinstance(x, float):
    return x if math.isfinite(x) else None
  if hasattr(x, 'tolist'):
    return plain(x.tolist())
  return str(x)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8; a process killed meanwhile leaves the old file as it was."""
  part = path.with_name(path.name + '.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool = True) -> Iterator[IO | None]:
  """Holds the lock file, or yields None where another process does.

  The lock lasts as long as anybody has the file open: a child that is given
  it keeps the lock when its parent is killed.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield None
      return
    yield file
