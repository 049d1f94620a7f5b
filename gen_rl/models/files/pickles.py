"""Tensors of torch's own files, read without torch and without trust.

A file of torch.save is a zip archive: data.pkl, a pickle of the object,
and data/0, data/1, ..., the bytes of its storages. A pickle is a program. Here
it may build dicts, lists, numbers, strings and tensors, and call nothing else:
whatever else it names is refused before it runs. A tensor that would reach
outside of its storage is refused, too: with offset o, shape n and strides s,

  0 <= o,  0 <= s_i,  o + sum_i (n_i - 1) s_i < numbers in the storage   (1)
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import itertools
import math
import os
import pickle
from typing import Any, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from gen_rl.models.files import weights
from gen_rl.models.files.weights import WeightsError

# torch's name of a storage -> (type of its numbers, name in safetensors)
_STORAGES = {
  'FloatStorage': (np.float32, 'F32'),
  'HalfStorage': (np.float16, 'F16'),
  'BFloat16Storage': (ml_dtypes.bfloat16, 'BF16'),
  'DoubleStorage': (np.float64, 'F64'),
  'LongStorage': (np.int64, 'I64'),
  'IntStorage': (np.int32, 'I32'),
  'ShortStorage': (np.int16, 'I16'),
  'CharStorage': (np.int8, 'I8'),
  'ByteStorage': (np.uint8, 'U8'),
  'BoolStorage': (np.bool_, 'BOOL'),
}


_PICKLE_BYTES = 1 << 28  # of a pickle; it holds names and sizes
_TENSORS = 1 << 20  # of a file


class _Storage(NamedTuple):
  kind: str  # of _STORAGES
  key: str  # file in the archive
  count: int  # of numbers


class Lazy(NamedTuple):
  """A tensor in a file, with the methods of a safetensors slice."""

  file: Any
  storage: _Storage
  offset: int  # in numbers
  shape: tuple[int, ...]
  stride: tuple[int, ...]

  def get_shape(self) -> list[int]:
    return list(self.shape)

  def get_dtype(self) -> str:
    return _STORAGES[self.storage.kind][1]

  def __getitem__(self, at: Any) -> np.ndarray:
    return self.file.read(self)[at]


class _Reader(pickle.Unpickler):
  """Builds plain data and tensors."""

  def __init__(self, data: bytes, path: str, file: Any):
    super().__init__(io.BytesIO(data))
    self.path, self.file = path, file

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if module == 'torch' and name in _STORAGES:
      return name
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return self._tensor
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return lambda data, *_: data
    raise WeightsError(
      f'{self.path} names {module}.{name}, and only tensors in dicts and lists '
      'are read; save its state_dict() alone, or as safetensors.'
    )

  def persistent_load(self, pid: Any) -> _Storage:
    known = isinstance(pid, tuple) and len(pid) > 4 and pid[0] == 'storage'
    if not known or pid[1] not in _STORAGES or not isinstance(pid[4], int):
      raise WeightsError(
        f'{self.path} refers to {pid!r}, which is no storage of '
        f'{", ".join(_STORAGES)}.'
      )
    return _Storage(pid[1], str(pid[2]), pid[4])

  def _tensor(
    self,
    storage: _Storage,
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
    *_: Any,
  ) -> Lazy:
    numbers = offset, *shape, *stride
    if (
      not isinstance(storage, _Storage)
      or len(shape) != len(stride)
      or not all(isinstance(n, int) and n >= 0 for n in numbers)
    ):
      raise WeightsError(
        f'{self.path} is broken: it has a tensor of shape {list(shape)}, '
        f'strides {list(stride)} and offset {offset} in {storage!r}.'
      )
    return Lazy(self.file, storage, offset, tuple(shape), tuple(stride))


class File:
  """An open file, with the methods of `safetensors.safe_open`."""

  def __init__(self, path: str | os.PathLike[str]):
    """Reads what there is, but no tensor.

    Raises:
      WeightsError: no such file, not one of torch's, or anything in it that is
        not plain data.
    """
    self.path = os.fspath(path)
    weights.readable(self.path, 'weights file ')
    try:
      self._zip = zipfile.ZipFile(self.path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
      raise WeightsError(
        f'{self.path} ({os.path.getsize(self.path)} bytes) is truncated, or '
        'not of torch 1.6 or newer: it is no zip archive.'
      ) from None
    inside = [n for n in self._zip.namelist() if n.endswith('/data.pkl')]
    if len(inside) != 1:
      raise WeightsError(
        f'{self.path} is no file of torch.save: it has {len(inside) or "no"} '
        'data.pkl.'
      )
    self._root = inside[0].removesuffix('data.pkl')
    with self._broken():
      data = self._read(inside[0], _PICKLE_BYTES)
      whole = _Reader(data, self.path, self).load()
      found = list(itertools.islice(_flat(whole, set()), _TENSORS + 1))
      if len(found) > _TENSORS:
        raise ValueError(f'more than {_TENSORS} tensors')
      self._tensors = dict(found)
      if len(self._tensors) < len(found):
        raise ValueError('two tensors have one name')

  def __enter__(self) -> 'File':
    return self

  def __exit__(self, *_: Any) -> None:
    self._zip.close()

  @contextlib.contextmanager
  def _broken(self) -> Iterator[None]:
    """Bytes that are no pickle, or no zip, raise whatever they come upon."""
    try:
      yield
    except WeightsError:
      raise
    except Exception as error:
      raise WeightsError(
        f'{self.path} is broken: {type(error).__name__}: {error}.'
      ) from None

  def _read(self, name: str, most: int) -> bytes:
    """A file of the archive, which unpacks to no more than `most` bytes."""
    size = self._zip.getinfo(name).file_size
    if size > most:
      raise ValueError(f'{name} has {size} bytes where {most} are the most')
    return self._zip.read(name)

  def keys(self) -> list[str]:
    """Names of the tensors; those inside of dicts as "a.b"."""
    return list(self._tensors)

  def metadata(self) -> dict[str, str]:
    return {}

  def get_slice(self, name: str) -> Lazy:
    return self._tensors[name]

  def get_tensor(self, name: str) -> np.ndarray:
    return self.read(self._tensors[name])

  def read(self, lazy: Lazy) -> np.ndarray:
    """The numbers of a tensor."""
    dtype, _ = _STORAGES[lazy.storage.kind]
    with self._broken():
      most = lazy.storage.count * np.dtype(dtype).itemsize
      data = self._read(f'{self._root}data/{lazy.storage.key}', most)
      numbers = np.frombuffer(data, dtype)
    last = lazy.offset + sum(
      (n - 1) * s for n, s in zip(lazy.shape, lazy.stride, strict=True)
    )
    if math.prod(lazy.shape) and last >= len(numbers):
      raise WeightsError(
        f'{self.path} is broken: a tensor {list(lazy.shape)} ends beyond its '
        f'storage of {len(numbers)} numbers.'
      )
    return np.lib.stride_tricks.as_strided(
      numbers[lazy.offset :], lazy.shape,
      [s * numbers.itemsize for s in lazy.stride], writeable=False,
    )  # fmt: skip


def _flat(
  whole: Any, bare: set[int], above: str = ''
) -> Iterator[tuple[str, Lazy]]:
  """(name, tensor) of all tensors in nested dicts and lists.

  `bare` are those without tensors that were looked through: many places may
  hold the same one.
  """
  if isinstance(whole, Lazy):
    yield above.removesuffix('.') or 'tensor', whole
    return
  if isinstance(whole, Mapping):
    parts = whole.items()
  elif isinstance(whole, list | tuple):
    parts = enumerate(whole)
  else:
    return
  if id(whole) in bare:
    return
  empty = True
  for name, value in parts:
    for pair in _flat(value, bare, f'{above}{name}.'):
      empty = False
      yield pair
  if empty:
    bare.add(id(whole))
