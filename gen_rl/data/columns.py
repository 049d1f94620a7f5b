"""Fields of a data source that are read when they are asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np

_JAX_DTYPES = {'int64': np.int32, 'float64': np.float32}


class Column:
  """A field of every record of a tfds data source, read when asked for."""

  def __init__(self, read: Callable[[int], Any], size: int, field: str):
    self.read, self.size, self.field = read, size, field

  def __len__(self):
    return self.size

  def _value(self, i: int):
    value = self.read(int(i))
    for name in self.field.split('/'):
      value = value[name]
    return value

  def __getitem__(self, i):
    if np.ndim(i):
      out = np.stack([self._value(j) for j in i])
      return out.astype(_JAX_DTYPES.get(out.dtype.name, out.dtype))
    return self._value(i)


class Text(Column):
  """Its text, the first where there are several."""

  def _value(self, i: int):
    value = super()._value(i)
    while isinstance(value, (list, np.ndarray)) and np.ndim(value):
      value = value[0]  # several texts: the first
    return value.decode() if isinstance(value, bytes) else str(value)


class Media(Column):
  """Its picture, float32 in [0, 1]."""

  def _value(self, i: int):
    value = super()._value(i)
    scale = 255 if value.dtype == np.uint8 else 1
    return np.asarray(value, np.float32) / scale
