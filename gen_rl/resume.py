"""Which fields of a config a resumed run may change.

A checkpoint holds the config it was made with. Fields are compared as
`fields.Kind` says: what decides what is computed has to be the same, where and
in which parts it is computed, how long, and what is written may change. What
one of the two configs does not say counts as its default: a checkpoint of an
older release does not know the fields that came later.
"""

from collections.abc import Mapping
import inspect
from typing import Any

from gen_rl import build, schema, specs
from gen_rl.fields import Field, Kind, defaults, kind

_ABSENT = object()


def changes(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
  """Fields that must not differ and do, as lines 'path: saved -> ours'.

  Args:
    saved: config of a checkpoint.
    ours: config of the run.
  """
  found = []
  flat_saved, flat_ours = build.flatten(saved), build.flatten(ours)
  base = schema.base()
  known = build.flatten(defaults(base['fields']())) | base['REMOVED']
  for line in build.diff(saved, ours):
    path = line.partition(':')[0]
    if kind_of(path, ours) != Kind.MATHEMATICS:
      continue
    present = [flat[path] for flat in (flat_saved, flat_ours) if path in flat]
    default = _default(path, ours if path in flat_ours else saved, known)
    if len(present) == 2 or not build.same(present[0], default):
      found.append(line)
  return found


def kind_of(path: str, config: Mapping[str, Any]) -> Kind:
  """Of a field 'policy.noise'; mathematics where nobody knows it.

  Args:
    path: of the field.
    config: that has it, or could.
  """
  node: Any = schema.base()['fields']()
  for part in path.split('.'):
    if isinstance(node, Field) or part not in node:
      break
    node = node[part]
  if specs.written(path):
    return Kind.BOOKKEEPING
  own = isinstance(node, Field) and (node.kind or kind(node.annotation))
  if own and own != Kind.MATHEMATICS:
    return own
  parameter = _parameter(path, config)
  return Kind.MATHEMATICS if parameter is None else kind(parameter.annotation)


def _parameter(
  path: str, config: Mapping[str, Any]
) -> inspect.Parameter | None:
  """The keyword that a path names, of the function that its part names."""
  part, _, key = path.rpartition('.')
  node: Any = config
  for name in part.split('.') if part else ():
    node = node.get(name) if hasattr(node, 'get') else None
  name = node.get('name') if hasattr(node, 'get') else None
  try:
    return (specs.parameters(part, name) or {}).get(key) if name else None
  except build.ConfigError:
    return None


def _default(
  path: str, config: Mapping[str, Any], known: Mapping[str, Any]
) -> Any:
  parameter = _parameter(path, config)
  if parameter is not None and parameter.default is not parameter.empty:
    return parameter.default
  return known.get(path, _ABSENT)
