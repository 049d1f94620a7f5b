"""Numbers as people read them; an en dash for what nobody measured.

A number may be None, NaN or infinite: all three are "not measured".
"""

from collections.abc import Iterable
import math
from typing import Any


def to_float(x: Any) -> float:
  """A number as a float, None as NaN."""
  return math.nan if x is None else float(x)


def ratio(a: Any, b: Any) -> float:
  """Quotient a / b; NaN where either is missing or `b` is 0."""
  a, b = to_float(a), to_float(b)
  return a / b if b else math.nan


def fixed(x: Any) -> str:
  """0.5 -> '0.500'."""
  x = to_float(x)
  return f'{x:.3f}' if math.isfinite(x) else '–'


def signed(x: Any) -> str:
  """0.5 -> '+0.500'; with a real minus sign."""
  x = to_float(x)
  return f'{x:+.3f}'.replace('-', '−') if math.isfinite(x) else '–'


def points(x: Any) -> str:
  """29.4 -> '+29.4 points'."""
  x = to_float(x)
  if not math.isfinite(x):
    return '–'
  return f'{x:+.1f} points'.replace('-', '−')


def percent(x: Any) -> str:
  """A fraction: 0.95 -> '95%'."""
  x = to_float(x)
  return f'{100 * x:.0f}%' if math.isfinite(x) else '–'


def count(n: int, what: str) -> str:
  """(1, 'update') -> '1 update'; 1500 -> '1,500 updates'."""
  return f'{n:,} {what}' + ('' if n == 1 else 's')


def few(names: Iterable[Any], shown: int = 4) -> str:
  """The first names and how many more there are: 'a, b and 190 more'."""
  names = [str(x) for x in names]
  if len(names) <= shown + 1:
    return ', '.join(names)
  return f'{", ".join(names[:shown])} and {len(names) - shown:,} more'


def duration(seconds: Any) -> str:
  """31 -> '31.0 s'; 461.2 -> '7 min 41 s'; 7260 -> '2 h 1 min'."""
  seconds = to_float(seconds)
  if not math.isfinite(seconds):
    return '–'
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, s = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min {s} s'


def gibibytes(n: Any) -> str:
  """Bytes: 2**31 -> '2.0 GiB'."""
  n = to_float(n)
  return f'{n / 2**30:.1f} GiB' if math.isfinite(n) else '–'
