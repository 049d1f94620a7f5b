"""From `dict(name=..., **keywords)` in a config to a call of that function.

The module is the registry and the signature is the schema: `build` finds the
public function `name` defined in a module (or in a submodule of a package) and
calls it with the other keys of the spec. A package may say in `BUILDS` what
those functions are annotated to return; the others in it are helpers. Every
mistake a config can hold ends in a `ConfigError` of one sentence that lists
what would have been right.
"""

import ast
from collections.abc import Callable, Collection, Mapping, Sequence
import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import os
import pathlib
import pkgutil
import types
from typing import Any

from gen_rl import fields

Spec = Mapping[str, Any] | str

# Keys that belong to whoever combines the built functions: passed on to a
# function only when its signature asks for them.
OUTER_KEYS = ('weight', 'tasks', 'schedule')


class ConfigError(ValueError):
  """A config that cannot be right, said in one sentence for a person."""


class Mistakes(ConfigError):
  """Several sentences, `found`, or one."""

  def __init__(self, found: Sequence[str]):
    self.found = tuple(found)
    listed = ''.join(f'\n  {i}. {text}' for i, text in enumerate(found, 1))
    one = len(self.found) == 1
    super().__init__(
      found[0] if one else f'{len(found)} things are wrong:{listed}'
    )


def build(module: types.ModuleType, spec: Spec, **bound: Any) -> Any:
  """Calls the function a spec names.

  Args:
    module: where to look; of a package, `__init__` and its direct submodules
      are searched, and only the submodule that holds the name is imported.
      `name` may be written `submodule.function` where two submodules share it.
    spec: dict or ConfigDict with `name` and keyword arguments; a bare string
      is a spec without arguments. OUTER_KEYS are left out unless the function
      takes them: a weight scales the result elsewhere.
    **bound: what the program knows and a config does not (a model, an action
      shape); those the signature accepts are passed, the others are not.

  Returns:
    What the function returns.

  Raises:
    ConfigError: unknown name, unknown key, missing key.
  """
  kwargs = plain(spec) if not isinstance(spec, str) else {'name': spec}
  wrong = mistakes(module, _without_outer(module, kwargs), bound)
  if wrong:
    raise ConfigError(wrong[0])
  kwargs = _without_outer(module, kwargs)
  function = find(module, kwargs.pop('name'))
  accepted = {k: v for k, v in bound.items() if k in keywords(function)}
  for key, value in accepted.items():
    wanted = keywords(function)[key].annotation
    ours = isinstance(wanted, type) and wanted.__module__.startswith('gen_rl.')
    if ours and not isinstance(value, wanted):
      raise ConfigError(
        f'{function.__name__} in {module.__name__} takes a {wanted.__name__} '
        f'as {key}, and the config gives a {type(value).__name__}'
      )
  return function(**accepted, **{k: _home(v) for k, v in kwargs.items()})


def mistakes(
  module: types.ModuleType, spec: Mapping[str, Any], bound: Collection[str] = ()
) -> list[str]:
  """All that is wrong with a spec, a sentence each.

  Args:
    module: see `build`.
    spec: dict with `name` and keyword arguments.
    bound: keywords that the program gives, and a config may not.
  """
  kwargs = dict(spec)
  name = kwargs.pop('name', None)
  if not isinstance(name, str) or not name:
    return [
      f'A spec for {module.__name__} needs a name, got {_show(spec)};'
      f' valid: {", ".join(names(module))}.'
    ]
  try:
    function = find(module, name)
  except ConfigError as error:
    return [str(error)]
  settable = {k: p for k, p in keywords(function).items() if k not in bound}
  valid = ', '.join(map(_parameter, settable.values())) or '(none)'
  parameters = inspect.signature(function).parameters.values()
  any_key = any(p.kind == p.VAR_KEYWORD for p in parameters)
  found = []
  unknown = [
    k for k in kwargs if k in bound or (k not in settable and not any_key)
  ]
  if unknown:
    found.append(
      f'{name} in {module.__name__} has no key'
      f' {", ".join(map(repr, unknown))}{did_you_mean(unknown[0], settable)};'
      f' valid: {valid}.'
    )
  missing = [
    k for k, p in settable.items() if p.default is p.empty and k not in kwargs
  ]
  if missing:
    found.append(
      f'{name} in {module.__name__} needs {", ".join(map(repr, missing))};'
      f' valid: {valid}.'
    )
  for key in [k for k in kwargs if k in settable]:
    wrong = fields.misfit(kwargs[key], settable[key].annotation)
    if wrong is not None:
      found.append(
        f'{key} of {name} is {_show(kwargs[key])}; it must be {wrong}'
      )
  return found


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """What a function can be given by name."""
  return {
    p.name: p
    for p in inspect.signature(function).parameters.values()
    if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
  }


def _without_outer(
  module: types.ModuleType, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
  """Without what combines functions, where this one does not take it."""
  try:
    takes = keywords(find(module, kwargs.get('name') or ''))
  except ConfigError:
    return dict(kwargs)
  return {k: v for k, v in kwargs.items() if k in takes or k not in OUTER_KEYS}


def _home(value: Any) -> Any:
  """A path of the home folder in full; what is none stays."""
  if isinstance(value, str) and value.startswith('~/'):
    return os.path.expanduser(value)
  return value


def build_all(
  module: types.ModuleType,
  specs: Mapping[str, Spec],
  skip_zero_weight: bool = True,
  **bound: Any,
) -> dict[str, Any]:
  """Builds every spec of `{label: spec}`; a spec that is None is left out.

  With `skip_zero_weight`, a spec whose `weight` is 0 is left out: a term is
  removed when the program is built, not multiplied by zero at every step.
  Raises ConfigError with the label in front.
  """
  built = {}
  for label, spec in specs.items():
    if spec is None or (skip_zero_weight and weight(spec) == 0):
      continue
    try:
      built[label] = build(module, spec, **bound)
    except ConfigError as error:
      raise ConfigError(f'{label}: {error}') from None
  return built


def argument(module: types.ModuleType, spec: Spec, key: str) -> Any:
  """What `build` would pass as `key`, default included; None: it takes none."""
  kwargs = plain(spec) if not isinstance(spec, str) else {'name': spec}
  function = find(module, kwargs['name'])
  parameter = inspect.signature(function).parameters.get(key)
  if parameter is None:
    return None
  default = None if parameter.default is parameter.empty else parameter.default
  return kwargs.get(key, default)


def takes(module: types.ModuleType, spec: Spec, key: str) -> bool:
  """Has the function a spec names a parameter `key`?"""
  name = spec if isinstance(spec, str) else plain(spec)['name']
  return key in inspect.signature(find(module, name)).parameters


def weight(spec: Spec) -> float:
  """The `weight` of a spec; 1 where it has none."""
  return 1.0 if isinstance(spec, str) else spec.get('weight', 1.0)


def find(module: types.ModuleType, name: str) -> Callable[..., Any]:
  """The public function `name` of a module or package (see `build`)."""
  homes = [
    home
    for home, found in _catalogue(module).items()
    for candidate in found
    if name in (candidate, f'{home.rpartition(".")[2]}.{candidate}')
  ]
  if len(homes) == 1:
    if homes[0] != module.__name__:
      module = importlib.import_module(homes[0])
    return getattr(module, name.rpartition('.')[2])
  if homes:
    dotted = [f'{home.rpartition(".")[2]}.{name}' for home in homes]
    raise ConfigError(
      f'{name!r} is defined more than once in {module.__name__}; write'
      f' {" or ".join(dotted)}.'
    )
  valid = names(module)
  builds = getattr(module, 'BUILDS', ())
  if builds and any(
    name.rpartition('.')[2] in found
    for found in _catalogue(module, builds=()).values()
  ):
    raise ConfigError(
      f'{name!r} in {module.__name__} is taken for a helper: annotate what it '
      f'returns, "def {name}(...) -> {" or ".join(builds)}:"'
    )
  raise ConfigError(
    f'{module.__name__} has no {name!r}{did_you_mean(name, valid)}; valid:'
    f' {", ".join(valid) or "(none)"}.'
  )


def names(module: types.ModuleType) -> list[str]:
  """Names that `build(module, ...)` can find, sorted."""
  return sorted({n for found in _catalogue(module).values() for n in found})


def diff(config_a: Mapping[str, Any], config_b: Mapping[str, Any]) -> list[str]:
  """Fields in which two configs differ, as sorted lines 'path: a -> b'.

  Lists equal tuples (JSON knows no tuples), NaN equals NaN, an empty sub-dict
  equals an absent one.
  """
  a, b = flatten(config_a), flatten(config_b)
  return [
    f'{path}: {_show(a[path]) if path in a else "(absent)"} ->'
    f' {_show(b[path]) if path in b else "(absent)"}'
    for path in sorted(a | b)
    if path not in a or path not in b or not same(a[path], b[path])
  ]


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A config as `{'a.b.c': value}`."""
  flat = {}
  for key, value in plain(config).items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def plain(config: Any) -> dict[str, Any]:
  """A ConfigDict or mapping as dicts all the way down, with string keys."""
  return {
    str(k): plain(v) if isinstance(v, Mapping) or _is_config_dict(v) else v
    for k, v in config.items()
  }


def _catalogue(
  module: types.ModuleType, builds: tuple[str, ...] | None = None
) -> dict[str, list[str]]:
  """{module name: names of its public functions}, without importing any.

  Args:
    module: or package.
    builds: what functions of its submodules return; by default its `BUILDS`.
  """
  if builds is None:
    builds = getattr(module, 'BUILDS', ())
  found = {module.__name__: _public(module)}
  for info in pkgutil.iter_modules(getattr(module, '__path__', ())):
    home = f'{module.__name__}.{info.name}'
    if info.ispkg or info.name.startswith('_'):
      continue
    spec = importlib.util.find_spec(home)
    if spec is not None and spec.origin and spec.origin.endswith('.py'):
      source = pathlib.Path(spec.origin).read_text(encoding='utf-8')
      found[home] = list(_public_in_source(source, builds))
    else:
      found[home] = _public(importlib.import_module(home))
  return found


def _public(module: types.ModuleType) -> list[str]:
  """Functions defined in a loaded module; its `__all__` narrows them."""
  return [
    n
    for n, value in vars(module).items()
    if n in getattr(module, '__all__', (n,))
    and not n.startswith('_')
    and callable(value)
    and not inspect.isclass(value)
    and getattr(value, '__module__', None) == module.__name__
  ]


@functools.cache  # every name of a config looks into the same files
def _public_in_source(source: str, builds: tuple[str, ...]) -> tuple[str, ...]:
  """The same of a module's text, of those that return one of `builds`."""
  body = ast.parse(source).body
  found = [
    n.name
    for n in body
    if isinstance(n, ast.FunctionDef)
    and (not builds or (n.returns and ast.unparse(n.returns) in builds))
  ]
  for node in body:
    if isinstance(node, ast.Assign) and any(
      isinstance(t, ast.Name) and t.id == '__all__' for t in node.targets
    ):
      found = [n for n in found if n in ast.literal_eval(node.value)]
  return tuple(n for n in found if not n.startswith('_'))


def _is_config_dict(value: Any) -> bool:
  return hasattr(value, 'to_dict') and hasattr(value, 'items')


def same(a: Any, b: Any) -> bool:
  """Whether two values of configs are equal, see `diff`."""
  if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
    return len(a) == len(b) and all(map(same, a, b))
  if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
    return math.isnan(b)
  return isinstance(a, bool) == isinstance(b, bool) and a == b


def _parameter(parameter: inspect.Parameter) -> str:
  if parameter.default is parameter.empty:
    return f'{parameter.name} (required)'
  return f'{parameter.name}={_show(parameter.default)}'


def did_you_mean(word: str, valid: Any) -> str:
  """' (did you mean ...?)', or '' where nothing is close."""
  close = difflib.get_close_matches(word, list(valid), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def _show(value: Any) -> str:
  text = repr(plain(value) if _is_config_dict(value) else value)
  return text if len(text) <= 60 else f'{text[:57]}...'
