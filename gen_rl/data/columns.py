"""Fields of a data source that are read when they are asked for."""

from collections.abc import Callable, Sequence
import os
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

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


class Pictures:
  """Pictures of files, read when asked for: [N] of float32 [h w 3] in [0, 1].

  What is transparent lies on white; pictures stand as their camera says.
  """

  def __init__(self, paths: Sequence[str], names: Sequence[str], size: int = 0):
    """Looks at the head of every file.

    Args:
      paths: of the N files.
      names: what messages call them, "line 3: the picture a.png".
      size: pixels of a side, to which the middle square of every picture is
        brought; 0: all are of one size.

    Raises:
      ValueError: a file is none, no picture, or of another size than the first.
    """
    self.paths, self.names, self.size = tuple(paths), tuple(names), size
    shapes = [self._shape(i) for i in range(len(self.paths))]
    for name, (w, h) in zip(self.names, shapes, strict=True):
      if not size and (w, h) != shapes[0]:
        raise ValueError(
          f'{name} has {w} x {h} pixels, and the first one has {shapes[0][0]} '
          f'x {shapes[0][1]}; data.prompts.image_size brings all to one size'
        )

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, i):
    return np.stack([self._read(j) for j in i]) if np.ndim(i) else self._read(i)

  def _open(self, i: int) -> Image.Image:
    if not os.path.isfile(self.paths[i]):
      raise ValueError(f'{self.names[i]} is no file')
    try:
      return Image.open(self.paths[i])
    except (OSError, ValueError, Image.DecompressionBombError):
      raise ValueError(f'{self.names[i]} cannot be read as one') from None

  def _shape(self, i: int) -> tuple[int, int]:
    """(width, height) as it stands."""
    with self._open(i) as picture:
      return picture.size[::-1] if _orientation(picture) > 4 else picture.size

  def _read(self, i: int) -> np.ndarray:
    with self._open(i) as picture:
      if picture.mode[0] in 'IF':
        raise ValueError(f'{self.names[i]} has more than 8 bits a channel')
      try:
        if _orientation(picture) > 1:
          picture = ImageOps.exif_transpose(picture)
        picture = picture.convert('RGBA')
      except (OSError, SyntaxError, ValueError):
        raise ValueError(f'{self.names[i]} is damaged') from None
    white = Image.new('RGBA', picture.size, 'white')
    picture = Image.alpha_composite(white, picture).convert('RGB')
    if self.size:
      picture = ImageOps.fit(picture, (self.size, self.size))
    return np.asarray(picture, np.float32) / 255


class Several:
  """Rows of a column, `each` of them a time: [N / each] of [each ...]."""

  def __init__(self, column: Any, each: int):
    self.column, self.each = column, each

  def __len__(self) -> int:
    return len(self.column) // self.each

  def __getitem__(self, i):
    some = self.each * np.asarray(i)[..., None] + np.arange(self.each)
    found = self.column[some.reshape(-1)]
    return found.reshape(*some.shape, *found.shape[1:])


def _orientation(picture: Image.Image) -> int:
  """How a camera was held, 1 to 8; of a PNG, which is no photograph, 1."""
  if picture.format == 'PNG':  # where it might stand at the end
    return 1
  return picture.getexif().get(ExifTags.Base.Orientation, 1)
