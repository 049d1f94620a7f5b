"""One stored checkpoint: its arrays, and the facts written beside them.

In the folder of a step, written by Orbax:

  state/  the arrays of the state, nested by name; keys as their data
  meta/   JSON: format, step, config, extra (data cursor, ...), the type and
          shape of every array, and its CRC-32 where that is cheap

What cannot be used is of two kinds. `Broken` is damage: an older checkpoint
may do. `CheckpointError` is for a person to decide, and is said before any
array is read: another config, other arrays, a newer format.

`checkpoint` keeps the checkpoints of a run; this is about a single one.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import gc
import json
import logging as std_logging
import sys
import time
from typing import Any
import warnings
import zlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gen_rl import build, resume
from gen_rl.types import PyTree
from gen_rl.utils import tree as tree_lib

# 2: without what never moves, see `pack`. 1: with everything.
FORMAT = 2

# States up to this size are checksummed; more would hold up the device.
CHECKSUM_BYTES = 1 << 30


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or read, said in one sentence."""


class Broken(Exception):
  """A checkpoint that is not whole."""


def pack(
  step: int,
  state: PyTree,
  config: Any = None,
  extra: Mapping[str, Any] | None = None,
  given: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
  """What is to be stored.

  Args:
    step: number of the checkpoint.
    state: pytree of arrays, typed PRNG keys included.
    config: ConfigDict or dict.
    extra: anything JSON holds.
    given: names of branches of the state that are left out: who restores it
      has them.

  Returns:
    ({name: array}, meta as JSON will give it back).

  Raises:
    CheckpointError: `config` or `extra` holds something JSON cannot.
  """
  leaves = stored(tree_lib.named(state), given)
  arrays, types, impls = {}, {}, {}
  for name, leaf in leaves.items():
    types[name] = describe(leaf)
    if _is_key(leaf):
      impls[name] = str(jax.random.key_impl(leaf))
      leaf = jax.random.key_data(leaf)
    if np.size(leaf):  # Orbax refuses empty arrays
      arrays[name] = leaf if hasattr(leaf, 'dtype') else jnp.asarray(leaf)
  meta = {
    'format': FORMAT,
    'step': int(step),
    'config': None if config is None else build.plain(config),
    'extra': dict(extra or {}),
    'types': types,
    'key_impls': impls,
    'crc32': _checksums(arrays),
  }
  try:
    meta = json.loads(json.dumps(meta, default=_to_json))
  except (TypeError, ValueError) as error:
    raise CheckpointError(
      f'Checkpoint {step} holds something JSON cannot: {error}.'
    ) from None
  meta['meta_crc32'] = _json_crc(meta)
  return arrays, meta


def stored(named: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
  """Without the leaves of the branches `given`: 'frozen', 'refs/ref'."""
  branches = tuple(f'{branch}/' for branch in given)
  return {n: x for n, x in named.items() if not f'{n}/'.startswith(branches)}


def read_meta(path: epath.Path, step: int) -> dict[str, Any]:
  """What `pack` gave, checksum verified.

  Args:
    path: directory of the checkpoints.
    step: which of them.

  Raises:
    Broken: it cannot be read.
    CheckpointError: a newer format.
  """
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      meta = reader.restore(path / str(step) / 'meta')
    crc = meta.pop('meta_crc32')
  except Exception as error:
    raise Broken(reason(error)) from None
  if crc != _json_crc(meta):
    raise Broken('meta is not what was saved')
  if meta['format'] > FORMAT:
    raise CheckpointError(
      f'Checkpoint {step} in {path} has format {meta["format"]}; this program'
      f' reads up to {FORMAT}.'
    )
  return meta


def check_config(
  path: epath.Path, step: int, meta: Mapping[str, Any], config: Any
) -> None:
  """Raises build.ConfigError, naming the fields, where a config differs.

  Args:
    path: directory of the checkpoints.
    step: which of them.
    meta: from `read_meta`.
    config: must compute what the saved one does (None: whatever it does).
  """
  if config is None or meta['config'] is None:
    return
  ours = json.loads(json.dumps(build.plain(config), default=_to_json))
  changed = resume.changes(meta['config'], ours)
  if changed:
    raise build.ConfigError(
      f'Checkpoint {step} in {path} was made with another config'
      f' ({"; ".join(changed)}): the updates to come would not be those of the'
      ' run it is of; restore those fields or choose another directory.'
    )


def check_types(
  path: epath.Path,
  step: int,
  meta: Mapping[str, Any],
  wanted: Mapping[str, Any],
) -> None:
  """Raises CheckpointError where names, types or shapes differ; lists all.

  Args:
    path: directory of the checkpoints.
    step: which of them.
    meta: from `read_meta`.
    wanted: {name: array or ShapeDtypeStruct}.
  """
  saved = meta['types']
  ours = {n: describe(leaf) for n, leaf in wanted.items()}
  problems = [f'{n} is missing' for n in ours if n not in saved]
  problems += [f'{n} is not wanted' for n in saved if n not in ours]
  problems += [
    f'{n} is {saved[n]} where {t} is wanted'
    for n, t in ours.items()
    if n in saved and saved[n] != t
  ]
  if problems:
    more = f'; and {len(problems) - 12} more' if len(problems) > 12 else ''
    raise CheckpointError(
      f'Checkpoint {step} in {path} holds another state:'
      f' {"; ".join(problems[:12])}{more}.'
    )


def read_leaves(
  path: epath.Path,
  step: int,
  meta: Mapping[str, Any],
  wanted: Mapping[str, Any],
) -> dict[str, Any]:
  """The wanted arrays, checksums verified.

  Args:
    path: directory of the checkpoints.
    step: which of them.
    meta: from `read_meta`; `check_types` has seen both.
    wanted: {name: array or ShapeDtypeStruct}; their shardings are used
      (default: the first device).

  Returns:
    {name: array}.

  Raises:
    Broken: an array cannot be read, or is not what was saved.
  """
  items, args = {}, {}
  for name, leaf in wanted.items():
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    if not np.size(data):
      continue
    items[name] = 0
    if isinstance(leaf, (np.ndarray, np.generic)):
      args[name] = ocp.RestoreArgs(restore_type=np.ndarray)
    else:
      args[name] = ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=_sharding(leaf), strict=True
      )
  problem = None
  with _late_failures_hidden():
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(
          path / str(step) / 'state',
          args=ocp.args.PyTreeRestore(
            tree_lib.nest(items),
            restore_args=tree_lib.nest(args),
            partial_restore=True,
          ),
        )
    except Exception as error:
      problem = reason(error)
    if problem is not None:
      time.sleep(0.1)  # the other reads end, and complain
      gc.collect()
  if problem is not None:
    raise Broken(problem)
  arrays = tree_lib.named(tree)
  if set(arrays) != set(items):
    raise Broken('arrays are missing')
  for name, crc in (meta['crc32'] or {}).items():
    whole = getattr(arrays.get(name), 'is_fully_addressable', True)
    if name in arrays and whole and _crc(arrays[name]) != crc:
      raise Broken(f'{name} is not what was saved')
  leaves = {}
  for name, leaf in wanted.items():
    if name in meta['key_impls']:
      shape = jax.eval_shape(jax.random.key_data, leaf)
      data = arrays.get(name, jnp.zeros(shape.shape, shape.dtype))
      leaves[name] = jax.random.wrap_key_data(
        data, impl=meta['key_impls'][name]
      )
    else:
      leaves[name] = arrays[name] if name in arrays else _empty(leaf)
  return leaves


def describe(leaf: Any) -> str:
  """Type and shape of an array as text: 'float32[3, 4]', 'key<fry>[5]'."""
  leaf = leaf if hasattr(leaf, 'dtype') else jnp.asarray(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'


def struct(text: str) -> jax.ShapeDtypeStruct:
  """Inverse of `describe`."""
  name, _, shape = text.partition('[')
  if name.startswith('key<'):
    dtype = next(
      key.dtype
      for key in map(
        lambda impl: jax.eval_shape(lambda: jax.random.key(0, impl=impl)),
        ('threefry2x32', 'rbg', 'unsafe_rbg'),
      )
      if str(key.dtype) == name
    )
  else:
    dtype = jnp.dtype(name)
  return jax.ShapeDtypeStruct(tuple(json.loads(f'[{shape}')), dtype)


def reason(error: Exception) -> str:
  """First line of an exception, in plain words where there are any."""
  text = str(error).strip() or type(error).__name__
  if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) or (
    'No space left' in text or 'quota exceeded' in text.lower()
  ):
    return 'the disk is full'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = text.splitlines()[0].rstrip('.')
  return text if len(text) <= 160 else f'{text[:157]}...'


def _empty(leaf: Any) -> Any:
  zeros = np.zeros if isinstance(leaf, np.ndarray) else jnp.zeros
  return zeros(leaf.shape, leaf.dtype)


def _sharding(leaf: Any) -> jax.sharding.Sharding:
  sharding = getattr(leaf, 'sharding', None)
  return sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(getattr(leaf, 'dtype', None), jax.dtypes.prng_key)


def _checksums(arrays: dict[str, Any]) -> dict[str, int] | None:
  """CRC-32 of each array; None where it would cost too much."""
  whole = all(getattr(x, 'is_fully_addressable', True) for x in arrays.values())
  if not whole or tree_lib.nbytes(arrays) > CHECKSUM_BYTES:
    return None
  return {name: _crc(x) for name, x in jax.device_get(arrays).items()}


def _crc(x: Any) -> int:
  x = np.ascontiguousarray(np.asarray(x))
  return zlib.crc32(x.reshape(-1).view(np.uint8).data)


def _json_crc(value: Any) -> int:
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _to_json(value: Any) -> Any:
  if isinstance(value, (np.ndarray, np.generic)):
    return value.tolist()
  raise TypeError(f'{type(value).__name__} {value!r:.60}')


@contextlib.contextmanager
def _late_failures_hidden() -> Iterator[None]:
  """Without the tracebacks of Orbax's other reads after one has failed."""
  logger, hook = std_logging.getLogger('asyncio'), sys.unraisablehook
  disabled, logger.disabled = logger.disabled, True
  sys.unraisablehook = lambda _: None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', RuntimeWarning)
      yield
  finally:
    logger.disabled, sys.unraisablehook = disabled, hook
