"""What a field of a config may hold, said where the field is.

One vocabulary for both places where there are fields:

  c.ema = field(0.9, Decay)                                # configs/base.py
  def adamw(lr: NonNegative = 1e-4, ...):                  # a signature

An annotation is a type, checked as written (4.0 is no `int`, True is none
either, a number is finite), and in `Annotated` what else must hold (`Must`)
and of which `Kind` the field is. `misfit` checks a value against it, `kind`
reads the kind. A field of base.py that says nothing has the type of its
default and is mathematics.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
import inspect
import math
import numbers
import re
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple

from ml_collections import config_dict


class Kind(enum.Enum):
  """What a field decides, and so whether a resumed run may change it."""

  MATHEMATICS = 'mathematics'  # what is computed: never
  GEOMETRY = 'geometry'  # where and in which parts: what differs is rounding
  BOOKKEEPING = 'bookkeeping'  # how long, what is written, shown and watched


class Must(NamedTuple):
  """A condition on a value of the right type."""

  says: str  # follows "it must be"
  holds: Callable[[Any], bool]


def at_least(low: float) -> Must:
  """Value >= low."""
  return Must(f'at least {low:g}', lambda x: x >= low)


def between(low: float, high: float) -> Must:
  """Both ends are in."""
  return Must(f'between {low:g} and {high:g}', lambda x: low <= x <= high)


POSITIVE = Must('above 0', lambda x: x > 0)

Positive = Annotated[float, POSITIVE]
NonNegative = Annotated[float, at_least(0)]
Fraction = Annotated[float, between(0, 1)]
# Of a running average.
Decay = Annotated[float, Must('at least 0 and below 1', lambda x: 0 <= x < 1)]
# Of a whole.
Share = Annotated[float, Must('above 0 and at most 1', lambda x: 0 < x <= 1)]
Count = Annotated[int, at_least(1)]
Several = Annotated[int, at_least(2)]
Index = Annotated[int, at_least(0)]  # or a count of which 0 is "none" or "all"
Quality = Annotated[int, between(1, 100)]  # of a JPEG
# What jax makes a key of.
Seed = Annotated[int, between(-(2**63), 2**63 - 1)]
Dtype = Literal['float32', 'bfloat16']
Remat = Annotated[Literal['none', 'dots', 'full'], Kind.GEOMETRY]
# What computes attention, see `models.parts.attention`.
Kernel = Annotated[Literal['auto', 'xla', 'cudnn', 'splash'], Kind.GEOMETRY]
# Of what is computed in parts: rows of a part, of which 0 may be all.
Chunk = Annotated[int, at_least(1), Kind.GEOMETRY]
RowsOrAll = Annotated[int, at_least(0), Kind.GEOMETRY]


def _is_regex(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True


Regex = Annotated[str, Must('a regular expression', _is_regex)]


class Copy:
  """Marks a keyword that names a copy of the parameters, see `schema`."""


CopyName = Annotated[str, Copy]

# A part: dict(name=..., **keywords of the function of that name).
Spec = Mapping[str, Any] | str


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of configs/base.py."""

  default: Any
  annotation: Any
  kind: Kind | None = None  # None: of the section it stands in


def field(
  default: Any, annotation: Any = None, kind: Kind | None = None
) -> Field:
  """A field with a range, choices or a kind; `annotation`: default's type."""
  return Field(default, annotation or type(default), kind)


def part(**spec: Any) -> Field:
  """A function and its keywords, of the module `specs.SPECS` says."""
  return Field(spec, Spec)


def labelled(
  annotation: Any = Spec, kind: Kind | None = None, **default: Any
) -> Field:
  """{label of a person's choice: value}; values are parts by default."""
  return Field(default, Mapping[str, annotation], kind)


def section(kind: Kind | None = None, **fields: Any) -> dict[str, Any]:
  """Fields below one name; those that do not say their kind are of this."""
  out = {}
  for name, value in fields.items():
    if isinstance(value, Mapping):
      out[name] = section(kind, **value)
    else:
      value = value if isinstance(value, Field) else field(value)
      own = value.kind or kind
      out[name] = dataclasses.replace(value, kind=own)
  return out


def defaults(fields: Mapping[str, Any]) -> config_dict.ConfigDict:
  """The config that a tree of fields describes."""
  out = config_dict.ConfigDict()
  for name, value in fields.items():
    if isinstance(value, Mapping):
      out[name] = defaults(value)
    elif isinstance(value, Field):
      value = value.default
      if isinstance(value, Mapping):
        value = config_dict.ConfigDict(value)
      out[name] = value
    else:
      out[name] = value
  return out


def misfit(value: Any, annotation: Any) -> str | None:
  """What a value would have to be, or None where it is that already.

  Args:
    value: of a config.
    annotation: of its field; without one, and with Any, nothing is checked.
  """
  if annotation in (Any, object, inspect.Parameter.empty):
    return None
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Annotated:
    base, *more = args
    must = [m for m in more if isinstance(m, Must)]
    if (wrong := misfit(value, base)) is not None:
      return ' '.join([wrong, *(m.says for m in must)])
    return next((m.says for m in must if not m.holds(value)), None)
  if origin in (typing.Union, types.UnionType):
    wrong = [misfit(value, a) for a in args]
    return None if None in wrong else ' or '.join(dict.fromkeys(wrong))
  if origin is Literal:
    ok = any(value == a and type(value) is type(a) for a in args)
    return None if ok else ' or '.join(map(repr, args))
  if annotation in (None, types.NoneType):
    return None if value is None else 'None'
  if origin is Callable or annotation is Callable:
    return None if callable(value) else 'a function'
  if origin in (tuple, Sequence) or annotation in (tuple, list):
    return _misfit_of_sequence(value, origin, args)
  if origin is Mapping or annotation in (dict, Mapping):
    return _misfit_of_mapping(value, args)
  if annotation is bool:
    return None if isinstance(value, bool) else 'True or False'
  if annotation is int:
    return None if _is(value, numbers.Integral) else 'a whole number'
  if annotation is float:
    ok = _is(value, numbers.Real) and math.isfinite(value)
    return None if ok else 'a finite number'
  if annotation is str:
    return None if isinstance(value, str) else 'text'
  if isinstance(annotation, type):
    return None if isinstance(value, annotation) else annotation.__name__
  return None


def kind(annotation: Any) -> Kind:
  """Of a field; mathematics where its annotation says nothing else."""
  if typing.get_origin(annotation) is Annotated:
    for more in annotation.__metadata__:
      if isinstance(more, Kind):
        return more
  return Kind.MATHEMATICS


def names_copy(annotation: Any) -> bool:
  """Whether the value is the name of a copy of the parameters."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return any(map(names_copy, typing.get_args(annotation)))
  return Copy in getattr(annotation, '__metadata__', ())


def _is(value: Any, number: type) -> bool:
  return isinstance(value, number) and not isinstance(value, bool)


def _misfit_of_sequence(value: Any, origin: Any, args: tuple) -> str | None:
  many = origin is not tuple or Ellipsis in args
  fixed = bool(args) and not many
  of = args[0] if args and many else Any
  if not isinstance(value, (tuple, list)):
    item = misfit(object(), of)
    more = f' of which each is {item}' if item else ''
    return f'a tuple of {len(args)}' if fixed else f'a tuple{more}'
  if fixed and len(value) != len(args):
    return f'a tuple of {len(args)}'
  kinds = args if fixed else [of] * len(value)
  for x, annotation in zip(value, kinds, strict=True):
    if (wrong := misfit(x, annotation)) is not None:
      return f'a tuple of which each is {wrong}'
  return None


def _misfit_of_mapping(value: Any, args: tuple) -> str | None:
  if not isinstance(value, (Mapping, config_dict.ConfigDict)):
    return 'a dict of fields'
  for key, x in value.items():
    wrong = misfit(x, args[1]) if len(args) == 2 else None
    if wrong is not None:
      return f'a dict of which each value is {wrong}; {key!r} is {x!r:.60}'
  return None
