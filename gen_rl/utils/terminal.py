"""Printing that no surroundings can stop.

A run is worth more than what it prints. Where a terminal, pipe or file cannot
take a character, it gets the nearest in ASCII; where it takes nothing any more
(the reader is gone, its disk is full) or was closed, the run goes on without.
"""

import codecs
from collections.abc import Iterator
import contextlib
import os
import sys
from typing import IO, Any

_PLAIN = {'→': '->', '−': '-', '–': '-', '—': '-', '…': '...', '×': 'x'}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
  if not isinstance(error, UnicodeEncodeError):
    raise error
  text = error.object[error.start : error.end]
  plain = (
    _PLAIN.get(c) or c.encode('ascii', 'backslashreplace').decode()
    for c in text
  )
  return ''.join(plain), error.end


codecs.register_error('gen_rl.plain', _in_ascii)


class Lasting:
  """A text stream that goes on, silently, when nobody takes what it writes."""

  def __init__(self, stream: IO[str]):
    """Args: a stream of an open file descriptor."""
    self._stream = stream

  def write(self, text: str) -> int:
    """Characters taken."""
    with self._nobody_there():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Writes what is held back."""
    with self._nobody_there():
      self._stream.flush()

  def close(self) -> None:
    """Stays open: what one reward or library closes, all others print to."""
    self.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  @contextlib.contextmanager
  def _nobody_there(self) -> Iterator[None]:
    try:
      yield
    except OSError:
      # What is held back goes there as well, also when Python ends.
      _to_nowhere(self._stream.fileno())


def _to_nowhere(number: int) -> None:
  """What is written to a file descriptor, open or closed, is lost."""
  null = os.open(os.devnull, os.O_RDWR)
  if null != number:
    os.dup2(null, number)
    os.close(null)


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
  """Standard output lasts within the block, also for who is no program."""
  before = sys.stdout
  if before is None or isinstance(before, Lasting):
    yield
    return
  sys.stdout = Lasting(before)
  try:
    yield
  finally:
    sys.stdout = before


def make_lasting() -> None:
  """Makes standard output and error such streams."""
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    stream = getattr(sys, name)
    if stream is None:  # closed: its number is not to become another file's
      _to_nowhere(number)
      mode = 'r' if name == 'stdin' else 'w'
      stream = open(number, mode, encoding='utf-8', closefd=False)  # noqa: SIM115
    if name != 'stdin':
      if hasattr(stream, 'reconfigure'):
        stream.reconfigure(errors='gen_rl.plain')
      stream = Lasting(stream)
    setattr(sys, name, stream)
