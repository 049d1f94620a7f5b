"""All that is wrong with the fields of a config, before anything is built.

`mistakes` walks the fields of configs/base.py next to those of a config, be it
from a file, a notebook or a command line. A field that base.py does not have,
a value of another type or out of its range, a part with an unknown function or
keyword: each is a sentence. Of a part, the function's signature says what it
takes. Then the rules that concern several fields.

What only building shows (files, shapes, what goes together) is not seen here;
`checks` adds it.
"""

from collections.abc import Iterator, Mapping
import functools
import pathlib
import runpy
import types
import typing
from typing import Any, NamedTuple

from gen_rl import between, build, fields, specs
from gen_rl.fields import Field


class Mistake(NamedTuple):
  """One error of a config."""

  path: str  # 'policy.noise'; of a rule between fields ''
  says: str


class Part(NamedTuple):
  """A function that a config names."""

  path: str  # 'rewards.oracle'
  module: types.ModuleType
  spec: Mapping[str, Any]


@functools.cache
def base() -> Mapping[str, Any]:
  """What configs/base.py beside this package defines, wherever one is."""
  path = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'base.py'
  return runpy.run_path(str(path))


def check(config: Any, but: tuple[str, ...] = ()) -> None:
  """Raises a ConfigError that lists all mistakes, if there are any.

  Args:
    config: ConfigDict or mapping.
    but: paths of parts that will not be built.
  """
  found = [m.says for m in mistakes(config) if not m.path.startswith(but)]
  if found:
    raise build.Mistakes(found)


def mistakes(config: Any) -> list[Mistake]:
  """All that is wrong.

  Args:
    config: ConfigDict or mapping.
  """
  config = build.plain(config)
  found = list(_section(base()['fields'](), config, '', config))
  wrong = {mistake.path.partition('.')[0] for mistake in found}
  for reads, rule in between.RULES:
    if not wrong & set(reads):
      found += [Mistake('', says) for says in rule(config)]
  return found


def parts(config: Any) -> Iterator[Part]:
  """The functions that a config names at the top of its fields.

  Not those that are switched off, by a weight of 0 or without a name, nor those
  that only change another part.
  """
  for path, field in _leaves(base()['fields'](), ''):
    value = _at(config, path)
    named = value.items() if _of_parts(field) else [('', value)]
    for label, spec in named if _is_part(field) else ():
      where = f'{path}.{label}' if label else path
      if path == 'learners':
        spec = {k: v for k, v in spec.items() if k not in specs.LEARNER_KEYS}
      name = spec.get('name')
      if (
        name
        and build.weight(spec)
        and specs.changes(where) is None
        and (where, name) != ('rollout', 'policy')
      ):
        yield Part(where, specs.module(where), spec)


def _section(
  known: Mapping[str, Any], node: Any, path: str, root: Mapping[str, Any]
) -> Iterator[Mistake]:
  """Mistakes of the fields of `node`, which stands at `path` of `root`."""
  if not isinstance(node, Mapping):
    yield _mistake(path, f'is {node!r:.60}; it has fields')
    return
  for key in node:
    if key not in known:
      hint = build.did_you_mean(key, known)
      valid = ', '.join(sorted(known))
      yield _mistake(path, f'has no field {key!r}{hint}; valid: {valid}')
  for key, field in known.items():
    where = f'{path}.{key}' if path else key
    if key not in node:
      yield _mistake(where, 'is missing; start from base.get_config()')
    elif isinstance(field, Mapping):
      yield from _section(field, node[key], where, root)
    elif where == 'evals':
      yield from _evaluations(node[key], root)
    elif field.annotation == fields.Spec:
      yield from _whole_part(where, node[key], root)
    elif _of_parts(field):
      yield from _labelled(where, node[key])
    elif (wrong := fields.misfit(node[key], field.annotation)) is not None:
      yield _mistake(where, f'is {node[key]!r:.60}; it must be {wrong}')


def _whole_part(
  path: str, spec: Any, root: Mapping[str, Any]
) -> Iterator[Mistake]:
  """Mistakes of a part that no label names, and may change another one."""
  changed = specs.changes(path)
  if changed is None or not isinstance(spec, Mapping):
    yield from _part(path, spec)
    return
  of = _at(root, changed)
  if not isinstance(of, Mapping) or spec.get('name', '') == '' and not spec:
    return
  if of.get('name') == 'policy':
    yield _mistake(path, 'changes data, and here the policy samples')
  elif spec.get('name', of.get('name')) == of.get('name'):
    yield from _part(path, {**of, **spec})
  else:
    yield from _part(path, spec)


def _labelled(path: str, node: Any) -> Iterator[Mistake]:
  if not isinstance(node, Mapping):
    yield _mistake(path, f'is {node!r:.60}; it is {{label: dict(name=...)}}')
    return
  for label, spec in node.items():
    where = f'{path}.{label}'
    outer = specs.outer(where)
    for key in outer if isinstance(spec, Mapping) else ():
      if outer[key] is fields.Spec and key in spec:
        yield from _part(f'{where}.{key}', spec[key])
        continue
      wrong = key in spec and fields.misfit(spec[key], outer[key])
      if wrong:
        yield _mistake(
          f'{where}.{key}', f'is {spec[key]!r:.60}; it must be {wrong}'
        )
    if path == 'learners' and isinstance(spec, Mapping):
      yield from _learner(where, spec)
    else:
      yield from _part(where, spec, tuple(outer))


def _evaluations(node: Any, root: Mapping[str, Any]) -> Iterator[Mistake]:
  """Mistakes of the changes that further evaluations make to `eval`."""
  if not isinstance(node, Mapping):
    yield _mistake('evals', f'is {node!r:.60}; it is {{label: dict(...)}}')
    return
  if not isinstance(root.get('eval'), Mapping):
    return  # what they change is wrong itself
  known = base()['fields']()['eval']
  for label, changes in node.items():
    if not isinstance(changes, Mapping):
      yield _mistake(f'evals.{label}', f'is {changes!r:.60}; it has fields')
      continue
    path = f'evals.{label}'
    for mistake in _section(known, {**root['eval'], **changes}, path, root):
      # What it does not change is a mistake of `eval`.
      field = mistake.path.removeprefix(path).strip('.').partition('.')[0]
      if not field or field in changes:
        yield mistake


def _learner(path: str, spec: Mapping[str, Any]) -> Iterator[Mistake]:
  """Mistakes of a learner and of how it is trained."""
  export = base()['fields']()['export'].annotation
  for key, wanted in dict(every=fields.Count, export=export).items():
    wrong = key in spec and fields.misfit(spec[key], wanted)
    if wrong:
      yield _mistake(
        f'{path}.{key}', f'is {spec[key]!r:.60}; it must be {wrong}'
      )
  yield from _part(f'{path}.optimizer', spec.get('optimizer', specs.LEARNS))
  own = {k: v for k, v in spec.items() if k not in specs.LEARNER_KEYS}
  yield from _part(path, own)


def _part(
  path: str, spec: Any, also: tuple[str, ...] = ()
) -> Iterator[Mistake]:
  """Mistakes of dict(name=...); `also`: keys that are of its place."""
  module = specs.module(path)
  if not isinstance(spec, Mapping):
    yield _mistake(path, f'is {spec!r:.60}; it is a part, dict(name=...)')
    return
  name = spec.get('name')
  unset = not name and specs.optional(path)
  if unset or (path, name) == ('rollout', 'policy'):
    # A name of '' switches a part off that had keywords before.
    more = sorted(set(spec) - {'name'})
    if more and 'name' not in spec:
      yield _mistake(path, f'has {", ".join(more)} and names no function')
    return
  kwargs = {k: v for k, v in spec.items() if k not in also}
  if name in build.names(module) and (wrong := specs.misplaced(path, name)):
    found = [wrong]
  else:
    found = build.mistakes(module, kwargs, specs.BOUND.get(module, ()))
  for says in found:
    yield _mistake(path, says, ': ')
  for key, value in kwargs.items():
    inner = f'{path}.{key}'
    if specs.module(inner) is not None and value is not None:
      named = dict(name=value) if isinstance(value, str) else value
      yield from _part(inner, named)


def _mistake(path: str, says: str, between: str = ' ') -> Mistake:
  where = f'config.{path}' if path else 'config'
  return Mistake(path, f'{where}{between}{says}')


def _of_parts(field: Field) -> bool:
  """Is this {label: part}?"""
  return typing.get_args(field.annotation) == (str, fields.Spec)


def _is_part(field: Field) -> bool:
  return _of_parts(field) or field.annotation == fields.Spec


def _leaves(known: Mapping[str, Any], path: str) -> Iterator[tuple[str, Field]]:
  for key, field in known.items():
    where = f'{path}.{key}' if path else key
    if isinstance(field, Mapping):
      yield from _leaves(field, where)
    else:
      yield where, field


def _at(config: Any, path: str) -> Any:
  for key in path.split('.'):
    config = config[key]
  return config
