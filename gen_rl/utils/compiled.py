"""Compiled programs on disk: entries that are checked, or made anew.

jax writes an entry in place and never replaces one: what a machine that died
left half written is complained about at every start. Here an entry is

  <key>-sha256-cache    SHA-256 of key and value [32 bytes], then the value

beside those of other programs, which are left alone. An entry that is not what
was written under its key, a cut one or that of another program, is dropped,
compiled again and written again.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import sys
import threading
from typing import Any

import jax
from jax._src import compilation_cache

_DIGEST = hashlib.sha256().digest_size
_here = threading.local()


class Checked:
  """What jax asks of a cache, over the one it has."""

  def __init__(self, files: Any, folder: str):
    """Args: jax's cache of the folder, with `get` and `put`; the folder."""
    self._files, self._path = files, folder
    self._writes = True

  def get(self, key: str) -> bytes | None:
    """The value; None where there is none, or not what was written."""
    getattr(_here, 'asked', set()).add(key)
    name = f'{key}-sha256'
    with contextlib.suppress(OSError):
      stored = self._files.get(name)
      if stored is None:
        return None
      value = stored[_DIGEST:]
      if stored[:_DIGEST] == _digest(key, value):
        return value
    self._drop(name)
    return None

  def put(self, key: str, value: bytes) -> None:
    """Keeps the value; says so once if nothing more can be kept."""
    if not self._writes:
      return
    name = f'{key}-sha256'
    try:
      self._files.put(name, _digest(key, value) + value)
    except OSError as error:
      self._writes = False
      self._drop(name)
      print(
        f'gen_rl: compiled programs can no longer be kept in {self._path} '
        f'({error.strerror or error}), so the next start compiles them anew',
        file=sys.stderr,
      )

  def clear(self) -> None:
    """Of what is in memory: nothing."""

  def _drop(self, name: str) -> None:
    path = os.path.join(self._path, f'{name}-cache')
    with contextlib.suppress(OSError):
      if os.path.isdir(path):
        os.rmdir(path)
      else:
        os.unlink(path)


def check_entries() -> None:
  """Has jax check the entries of its cache; before anything is compiled.

  jax has no public way to give it a cache. Where a version has no such inner
  one either, its own stays as it is.
  """
  make = getattr(compilation_cache, 'get_file_cache', None)
  if make is None or hasattr(make, 'of_jax'):
    return

  def get_file_cache(path: str) -> tuple[Any, str] | None:
    found = make(path)
    return found and (Checked(found[0], found[1]), found[1])

  get_file_cache.of_jax = make
  compilation_cache.get_file_cache = get_file_cache


@contextlib.contextmanager
def asked() -> Iterator[set[str]]:
  """Keys of what this thread compiles in it, none of it too short to keep."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, 0.0)
  _here.asked = set()
  try:
    yield _here.asked
  finally:
    jax.config.update(name, before)
    del _here.asked


def executable(key: str, client: Any) -> bytes | None:
  """A program as the runtime wrote it; None: it is not there.

  Of one that was read from the cache the runtime may write no other.

  Args:
    key: of `asked`.
    client: of the devices it is for.
  """
  cache = compilation_cache._get_cache(client)
  value = cache.get(key) if isinstance(cache, Checked) else None
  if value is None:
    return None
  value = compilation_cache.decompress_executable(value)
  return compilation_cache.extract_executable_and_time(value)[0]


def _digest(key: str, value: bytes) -> bytes:
  return hashlib.sha256(key.encode() + value).digest()
