"""From the arguments of a command line to the config they mean."""

import ast
from collections.abc import Iterable, Mapping, Sequence
import difflib
import pathlib
import re
import runpy
import sys
import types
from typing import Any

from ml_collections import config_dict


def installed_configs() -> dict[str, pathlib.Path]:
  """{name: file} of the configs that stand beside this package."""
  folder = pathlib.Path(__file__).resolve().parents[1] / 'configs'
  files = {path.stem: path for path in sorted(folder.glob('*.py'))}
  return {n: p for n, p in files.items() if n not in ('__init__', 'base')}


def own_configs_first(path: str) -> None:
  """Makes `configs` the package beside this one, wherever the command runs.

  The names of the installed configs, `base` among them, are its own; what it
  does not have is looked for in folders `configs` of the search path. A config
  that stands in such a folder of somebody else has that one come first.

  Args:
    path: of the config to be run.
  """
  own = pathlib.Path(__file__).resolve().parents[1] / 'configs'
  beside = pathlib.Path(path).resolve().parent
  folders = [beside] if beside.name == 'configs' else []
  folders += [
    own,
    *(pathlib.Path(p or '.').resolve() / 'configs' for p in sys.path),
  ]
  folders = [str(f) for f in dict.fromkeys(folders) if f.is_dir()]
  package = sys.modules.get('configs')
  if package is None or list(getattr(package, '__path__', ())) != folders:
    package = types.ModuleType('configs', 'Configs, installed and others.')
    package.__path__ = folders
    for name in [n for n in sys.modules if n.startswith('configs.')]:
      del sys.modules[name]
    sys.modules['configs'] = package


def find_config(value: str) -> str:
  """The 'file.py:variant' a --config value names.

  Args:
    value: the path of a file; or NAME, NAME.py or configs/NAME.py of an
      installed config, wherever the command runs; with ':variant' or without.

  Raises:
    ValueError: there is neither, listing the installed ones.
  """
  name, colon, variant = value.partition(':')
  path = pathlib.Path(name)
  known = installed_configs()
  if not path.is_file():
    if str(path.parent) not in ('.', 'configs') or path.stem not in known:
      raise ValueError(
        f'there is no config {name!r}: neither a file nor one of the installed '
        f'{", ".join(known)}'
      )
    path = known[path.stem]
  return f'{path}{colon}{variant}'


def _check_label(override: str, label: str, there: Iterable[str]) -> None:
  """Raises ValueError where a new label is but another one misspelt."""
  for close in difflib.get_close_matches(label, list(there), n=1, cutoff=0.8):
    if not (label.startswith(close) or close.startswith(label)):
      raise ValueError(
        f'{override} cannot be set: {label!r} would be a new label beside '
        f'{close!r} (did you mean that?); give it a name that is less like it'
      )


def check_overrides(
  config: config_dict.ConfigDict, overrides: Mapping[str, str | None]
) -> None:
  """Says which fields there are where an override names one that is not.

  Besides those of the file, a part that names a function has the keywords of
  that function, and a dict of labels may be given a new one.

  Args:
    config: as the config file gives it.
    overrides: {path: value as text}, {'objective.pg.clip': '0.01'}.

  Raises:
    ValueError: naming the first wrong part of a path and what would be right.
  """
  for path, name in overrides.items():  # first: others set its keywords
    if path.endswith('.name'):
      _keywords(path.removesuffix('.name'), name)
  for override in overrides:
    node, seen = config, 'config'
    parts = override.split('.')
    if not all(part.isidentifier() for part in parts):
      raise ValueError(
        f'--config.{override} cannot be set: a field is names with dots '
        'between them, such as optimizer.lr; one of a tuple is set with all '
        'others'
      )
    if parts[:-1] == ['data', 'weights']:  # labels of tasks
      continue
    for i, part in enumerate(parts):
      if not isinstance(node, config_dict.ConfigDict):
        raise ValueError(
          f'--config.{override} cannot be set: {seen} is a value '
          f'({node!r}) without fields'
        )
      if part not in node:
        path = '.'.join(parts[:i])
        if _is_new(path, parts[i:], overrides):
          _check_label(f'--config.{override}', part, node)
          node = None
          break
        more = _keywords(path, _name(config, path, overrides))
        if part in (more or ()) and i == len(parts) - 1:
          node = None
          break
        valid = sorted({*node, *(more or ())})
        close = difflib.get_close_matches(part, valid, n=1)
        hint = f' (did you mean {close[0]!r}?)' if close else ''
        raise ValueError(
          f'--config.{override} cannot be set: {seen} has no field '
          f'{part!r}{hint}; valid: {", ".join(valid) or "(none)"}'
        )
      node, seen = node[part], f'{seen}.{part}'
    value = (overrides[override] or '').strip()
    if isinstance(node, (tuple, list)) and not value.startswith(('(', '[')):
      raise ValueError(
        f'--config.{override}={value} cannot be set: {seen} is a tuple; write '
        f'--config.{override}="({value!r},)"'
      )
    if isinstance(node, config_dict.ConfigDict) and not value.startswith('{'):
      field = next(iter(node), 'name')
      field = 'name' if 'name' in node else field
      raise ValueError(
        f'--config.{override}={value} cannot be set: {seen} has fields; set '
        f'one of them, --config.{override}.{field}=...; valid: '
        f'{", ".join(sorted(node)) or "(none)"}'
      )


def _name(
  config: config_dict.ConfigDict,
  path: str,
  overrides: Mapping[str, str | None],
) -> str | None:
  """The function of a part, or of the part that it changes."""
  from gen_rl import specs  # jax, which a typing error need not wait for

  node = config
  for part in path.split('.') if path else ():
    node = node[part]
  name = overrides.get(f'{path}.name', node.get('name'))
  changed = specs.changes(path)
  return name or (changed and _name(config, changed, overrides))


def _is_new(
  path: str, rest: Sequence[str], overrides: Mapping[str, str | None]
) -> bool:
  """Whether it is of a part that overrides add to the labels at `path`.

  Args:
    path: of a config, 'rewards'.
    rest: names that follow and that it does not have.
    overrides: see `check_overrides`.

  Raises:
    ValueError: it does not say which function it is.
  """
  from gen_rl import specs  # jax, which a typing error need not wait for

  part = f'{path}.{rest[0]}'
  if not specs.labelled(part):
    return False
  if len(rest) == 1:
    return (overrides[part] or '').strip().startswith('{')
  if specs.module(part) is not None and f'{part}.name' not in overrides:
    raise ValueError(
      f'--config.{part}.{rest[1]} cannot be set: {path} has no {rest[0]!r}; '
      f'a new one says what it is, --config.{part}.name=...'
    )
  return True


def drop_leftovers(
  config: config_dict.ConfigDict, overrides: Mapping[str, str | None]
) -> None:
  """Removes what another function took, where `name` was set by an override.

  `--config.data.prompts.name=txt` leaves a `split` behind that `txt` does not
  know, and weights of tasks it may not have; so does
  `--config.data.prompts.tasks="('text',)"` of the tasks left out. What an
  override set itself stays, to be complained about.
  """
  weighted = any(o.startswith('data.weights') for o in overrides)
  if 'data.prompts.tasks' in overrides and not weighted:
    tasks = config.data.prompts.tasks
    kept = tasks if isinstance(tasks, (tuple, list)) else ()
    for task in set(config.data.weights) - set(kept):
      del config.data.weights[task]
  for override in overrides:
    path, _, field = override.rpartition('.')
    if field != 'name' or not path:
      continue
    node = config
    for part in path.split('.'):
      node = node[part]
    known = _keywords(path, node.get('name'))
    if path == 'data.prompts' and not weighted:
      config.data.weights = {}  # by tasks of the other source
    for key in list(node) if known is not None else ():
      asked = f'{path}.{key}' in overrides
      if not asked and key not in ('name', *known):
        del node[key]


def _keywords(path: str, name: str | None) -> list[str] | None:
  from gen_rl import specs  # jax, which a typing error need not wait for

  found = specs.keywords(path, name)
  return None if found is None else [*found, *specs.outer(path)]


def overrides_of(argv: Sequence[str]) -> dict[str, str | None]:
  """{path: value as text} of the --config.path arguments; None: a flag."""
  found: dict[str, str | None] = {}
  for i, arg in enumerate(argv):
    if arg == '--':
      break
    flag, equals, value = arg.partition('=')
    if match := re.match(r'--?(?:no)?config\.(.*)', flag):
      after = argv[i + 1] if i + 1 < len(argv) else None
      found[match[1]] = value if equals else after
  return found


def resolve(argv: list[str]) -> list[str]:
  """Arguments with the config found, once it and its overrides are right.

  Raises:
    ValueError: no such config, variant or field.
  """
  argv, config = _loaded(argv)
  if config is not None:
    check_overrides(config, overrides_of(argv))
  return argv


def with_whole_parts(argv: list[str]) -> list[str]:
  """Arguments in which a part that the config does not have is one value.

  config_flags, which looks for overrides in `sys.argv`, sets a field of what is
  there, and a part as a whole.

  Args:
    argv: that `resolve` accepts.
  """
  _, config = _loaded(argv)
  if config is None:
    return argv
  new: dict[str, dict[str, Any]] = {}
  end = argv.index('--') if '--' in argv else len(argv)
  kept, words = [], list(argv[:end])
  while words:
    arg = words.pop(0)
    flag, equals, value = arg.partition('=')
    match = re.fullmatch(r'--?(no)?config\.(.+)', flag)
    part = match and _first_missing(match[2].split('.'), config)
    if not part:
      kept.append(arg)
      continue
    if not equals:  # a flag, or its value comes next
      bare = match[1] or not words or words[0].startswith('--')
      value = str(not match[1]) if bare else words.pop(0)
    _set(new.setdefault(part, {}), match[2].removeprefix(part), value)
  if not new:
    return argv
  wholes = [f'--config.{part}={fields!r}' for part, fields in new.items()]
  return [*kept, *wholes, *argv[end:]]


def _first_missing(
  parts: Sequence[str], config: config_dict.ConfigDict
) -> str | None:
  """The path down to the first dict that the config does not have."""
  node: Any = config
  for depth, name in enumerate(parts[:-1]):
    if not isinstance(node, config_dict.ConfigDict):
      return None
    if name not in node:
      return '.'.join(parts[: depth + 1])
    node = node[name]
  return None


def _set(fields: dict[str, Any], path: str, text: str) -> None:
  """Sets '.a.b' of nested dicts.

  Raises:
    ValueError: '.a' has a value that is no dict.
  """
  *parts, field = path.strip('.').split('.')
  for part in parts:
    fields = fields.setdefault(part, {})
    if not isinstance(fields, dict):
      raise ValueError(
        f'--config....{path} cannot be set: {part} is a value ({fields!r}) '
        'without fields'
      )
  fields[field] = _value(text)


def _value(text: str) -> Any:
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def _loaded(argv: list[str]) -> tuple[list[str], Any]:
  """(arguments with the config found, the config); None: they name none."""
  argv, config = list(argv), None
  for i, arg in enumerate(argv):
    flag, equals, value = arg.partition('=')
    if arg == '--':
      break
    if flag in ('-config', '--config'):
      if equals:
        config = find_config(value)
        argv[i] = f'--config={config}'
      elif i + 1 < len(argv):
        config = argv[i + 1] = find_config(argv[i + 1])
  if not config:
    return argv, None
  # Loaded once more by its flag, which hides what went wrong in a file.
  path, _, variant = config.partition(':')
  own_configs_first(path)
  try:
    get_config = runpy.run_path(path).get('get_config')
  except SyntaxError as error:
    raise ValueError(
      f'{error.filename}, line {error.lineno}: {error.msg}; a config is a '
      'Python file with a function get_config(arg)'
    ) from None
  if get_config is None:
    raise ValueError(f'{path} is no config: it defines no get_config(arg)')
  return argv, get_config(variant)
