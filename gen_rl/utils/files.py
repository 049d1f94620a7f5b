"""Text files that are whole or not there, and values that JSON can hold."""

from collections.abc import Mapping
import math
import os
import pathlib
from typing import Any


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
