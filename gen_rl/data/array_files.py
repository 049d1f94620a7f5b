"""Arrays of .npz files, whose headers are believed only so far.

A header says a shape and a type, and the archive how many bytes follow. Arrays
are read where the two agree; objects, which are programs, never.
"""

from collections.abc import Mapping, Sequence
import math
import os
from typing import NamedTuple
import zipfile

import numpy as np

from gen_rl.utils import files

_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
  """Of an array that is not read yet."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Archive:
  """The arrays of an .npz file, by name."""

  def __init__(self, path: str | os.PathLike[str], what: str):
    """Reads what there is, but no array.

    Args:
      path: of the file.
      what: it is, for messages.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a file of arrays.
    """
    path = os.path.expanduser(os.fspath(path))
    self.where = f'{what} {path}'
    problem = files.trouble(path)
    if problem == files.ABSENT:
      raise FileNotFoundError(f'{self.where} does not exist')
    if problem:
      raise ValueError(f'{self.where} cannot be read: {problem}')
    try:
      with zipfile.ZipFile(path) as archive:
        self.headers: Mapping[str, Header] = {
          info.filename.removesuffix('.npy'): _header(archive, info)
          for info in archive.infolist()
        }
    except Exception as error:  # broken bytes raise whatever they come upon
      raise ValueError(
        f'{self.where} is no .npz file: {_reason(error)}'
      ) from None
    self._path = path

  def read(self, names: Sequence[str]) -> list[np.ndarray]:
    """Those arrays; ValueError where their bytes are broken."""
    try:
      with np.load(self._path, allow_pickle=False) as arrays:
        return [arrays[name] for name in names]
    except Exception as error:
      raise ValueError(f'{self.where} is broken: {_reason(error)}') from None


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
      raise ValueError(f'{info.filename} is of version {version}')
    shape, _, dtype = _HEADERS[version](file)
    size = info.file_size - file.tell()
  if dtype.hasobject:
    raise ValueError(f'{info.filename} has objects, which are not read')
  if math.prod(shape) * dtype.itemsize != size:
    raise ValueError(
      f'{info.filename} says {list(shape)} of {dtype}, and has {size} bytes'
    )
  return Header(shape, dtype)


def _reason(error: Exception) -> str:
  said = ' '.join(str(error).split())[:200]
  return f'{type(error).__name__}: {said}'
