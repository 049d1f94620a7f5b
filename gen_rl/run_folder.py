"""The folder of a run: one process writes there, and only over its own files.

`.lock` marks a folder that a run of ours has written to. It is locked for as
long as a run goes on, and says which process that is.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import socket

from gen_rl import checkpoint, results
from gen_rl.build import ConfigError
from gen_rl.utils import files, hosts

LOCK = '.lock'
# What a fresh run would replace or remove.
WRITTEN = (
  'metrics.jsonl',
  'metrics.old.jsonl',
  'images',
  'tensorboard',
  'report.html',
  'result.json',
)


@contextlib.contextmanager
def owned(workdir: str | os.PathLike[str]) -> Iterator[None]:
  """Holds the folder; enter before anything in it is read or changed.

  All processes of a run enter; the first one holds it for them.

  Args:
    workdir: made if it does not exist.

  Raises:
    ConfigError: another run holds it; or there is no checkpoint, but files
      that a run would replace and that no run of ours wrote; or it cannot be
      written. Nothing has been changed then.
  """
  path = pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    if refusal := hosts.from_first(lambda: _take(path, stack)):
      raise ConfigError(refusal)
    yield


def finished(workdir: str | os.PathLike[str], steps: int) -> dict | None:
  """What a run of so many updates found, if it left nothing undone.

  The report is written first and result.json last, each whole or not at all:
  a run that was killed in between ends once more, from its last checkpoint.
  """
  if not (pathlib.Path(workdir) / 'report.html').is_file():
    return None
  result = results.read_json(workdir)
  return result if result and result['steps'] == steps else None


def _take(path: pathlib.Path, stack: contextlib.ExitStack) -> str | None:
  """Locks the folder; else says in a sentence why not."""
  if any(0xD800 <= ord(c) < 0xE000 for c in str(path)):  # bytes of no text
    return (
      f'the name of --workdir={str(path)!r} is not UTF-8, in which checkpoints '
      'are written; use another'
    )
  try:
    foreign = _foreign(path)
    if foreign:
      return (
        f'{path} holds {", ".join(foreign)} and no checkpoint, and no run of '
        'gen_rl wrote that; a run would replace it: use another --workdir, or '
        'move it away'
      )
    lock = stack.enter_context(files.locked(path / LOCK, wait=False))
    if lock is None:
      return (
        f'another process{_owner(path)} is training in {path}, and was left '
        'alone; use another --workdir, or wait until it has ended'
      )
    lock.truncate(0)
    lock.write(json.dumps(dict(pid=os.getpid(), host=socket.gethostname())))
    lock.flush()
  except OSError as error:
    return f'{path} cannot be written: {error.strerror or error}'
  return None


def _foreign(path: pathlib.Path) -> list[str]:
  """Names a run would replace, where none of ours has been."""
  # In this order: another run makes its lock before it makes anything else.
  there = [name for name in WRITTEN if os.path.lexists(path / name)]
  if not there or checkpoint.steps(path / 'checkpoints'):
    return []
  if not (path / LOCK).exists():
    return there
  text = (path / LOCK).read_text(errors='replace')
  # Empty: of an earlier release, or of a run that is just starting.
  return [] if not text or _parse(text) else [*there, LOCK]


def _owner(path: pathlib.Path) -> str:
  """' (pid 12 on host)', where that is known."""
  owner = _parse((path / LOCK).read_text(errors='replace'))
  return f' (pid {owner["pid"]} on {owner["host"]})' if owner else ''


def _parse(text: str) -> dict | None:
  try:
    owner = json.loads(text)
  except ValueError:
    return None
  good = isinstance(owner, dict) and {'pid', 'host'} <= set(owner)
  return owner if good else None
