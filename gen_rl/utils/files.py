"""Files that are whole or not there, locks, and values that JSON can hold."""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import json
import math
import os
import pathlib
import stat
import tempfile
from typing import IO, Any

ABSENT = 'it is not there'


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


def write_json(path: pathlib.Path, x: Any) -> None:
  """`plain(x)` by `write_text`, for people to read as well."""
  write_text(path, json.dumps(plain(x), indent=2, allow_nan=False) + '\n')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8; a process killed meanwhile leaves the old file as it was."""
  part = path.with_name(path.name + '.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """The same of bytes, which several processes may write."""
  handle, part = tempfile.mkstemp(dir=path.parent, prefix='.part-')
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(data)
    os.replace(part, path)
  except BaseException:
    os.unlink(part)
    raise


def trouble(path: str | os.PathLike[str]) -> str:
  """Why a path is no file that can be read, or ''.

  What never ends or waits for a writer (pipes, devices, sockets) is none: it is
  said before anything is opened.
  """
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError:
    return ABSENT
  except OSError as error:
    return str(error.strerror).lower()
  except ValueError as error:  # what no path can hold
    return str(error)
  if stat.S_ISDIR(mode):
    return 'it is a folder'
  if not stat.S_ISREG(mode):
    return 'it is a pipe or a device, not a regular file'
  return '' if os.access(path, os.R_OK) else 'permission denied'


def outside(folder: str | os.PathLike[str], name: str) -> str:
  """Why a file that is named inside of a folder is not in it, or ''.

  A link of a hub's cache, snapshots/<revision>/... -> blobs/<hash>, is in it.
  """
  if '\0' in name:
    return 'no name of a file'
  root = os.path.realpath(folder)
  target = os.path.realpath(os.path.join(root, name))
  if os.path.commonpath([root, target]) == root and target != root:
    return ''
  above, cut, _ = root.rpartition(f'{os.sep}snapshots{os.sep}')
  if cut and os.path.dirname(target) == os.path.join(above, 'blobs'):
    return ''
  return f'{target}, outside of that folder'


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
