"""Options of released configs: those that are computed, and the others.

A config says how a network computes, and most of what it may say is computed by
few. What a module here does not compute has to be refused before a weight is
read, as the tensors of two options often have the same names and shapes.
"""

from collections.abc import Collection, Mapping
from typing import Any

from gen_rl.build import ConfigError


def check(
  kind: str,
  config: Mapping[str, Any],
  computed: Mapping[str, tuple[Any, ...]],
  free: Collection[str] = (),
  required: Collection[str] = (),
) -> None:
  """Refuses what is not computed.

  Args:
    kind: of the model, for the message.
    config: what config.json holds. Names that begin with "_" are comments, and
      None stands for an option that is off.
    computed: {option: values that can be computed}; an option that is not there
      has the first of them.
    free: options that may have any value here.
    required: those of `free` that must be there.

  Raises:
    ValueError: all that is missing, or has another value, or that nobody here
      knows, in one sentence.
  """
  missing = [name for name in required if config.get(name) is None]
  found = [f'{name} is missing' for name in missing]
  found += problems(config, computed, free)
  if found:
    raise ValueError(
      f'the config of this {kind} asks for what is not computed: '
      f'{"; ".join(found)}'
    )


def problems(
  config: Mapping[str, Any],
  computed: Mapping[str, tuple[Any, ...]],
  free: Collection[str] = (),
) -> list[str]:
  """What `check` refuses, an option each."""
  out = []
  for name, value in config.items():
    value = tuple(value) if isinstance(value, list) else value
    if name in computed:
      if value not in computed[name]:
        allowed = ' or '.join(map(repr, computed[name]))
        out.append(f'{name}={value!r}, where it is {allowed}')
    elif name not in free and not name.startswith('_') and value is not None:
      out.append(f'{name}={value!r}, an option that is not known')
  return out


def same(
  folder: str, found: Mapping[str, Any], said: Mapping[str, Any], part: str
) -> None:
  """A released model has to be the one that a config describes.

  Args:
    folder: for the message.
    found: keywords that follow from the model's config.json.
    said: keywords of the config.
    part: of the config where they stand, for the message.

  Raises:
    ConfigError: they differ; names all that do.
  """
  differ = [
    f'{name}={_plain(found[name])} and not {_plain(said[name])}'
    for name in found
    if name in said and _plain(found[name]) != _plain(said[name])
  ]
  if differ:
    raise ConfigError(
      f'{folder} holds another model than the config describes: there '
      f'{", ".join(differ)}; choose the variant of that model, or set these '
      f'fields of config.{part}'
    )


def _plain(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
