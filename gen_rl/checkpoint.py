"""Checkpoints that survive being killed, truncated or out of disk.

On disk, under one directory, written by Orbax:

  <step>/state/   every array of the state, nested by name
  <step>/meta/    JSON: format, config, extra (data cursor, ...), the type and
                  shape of every array, and its CRC-32 where that is cheap
  <step>/metrics/ JSON, where the best checkpoint is kept as well

A save goes to `<step>.orbax-checkpoint-tmp` in a thread and is renamed when
complete, so a process killed at any moment leaves the previous checkpoint as
it was. Restoring takes the newest checkpoint that is whole; whether a state
fits the program is decided from `meta`, before any array is read, so that an
incompatible config is never mistaken for a broken file.

  with contextlib.closing(checkpoint.open_manager(path)) as manager:
    restored = checkpoint.restore_latest(manager, state, config)
    ...
    checkpoint.save(manager, step, state, config, extra={'data': cursor})
    checkpoint.check(manager)  # each step: did the last save work?
  # checkpoint.close(manager) instead says what went wrong in one sentence
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import errno
import gc
import json
import logging as std_logging
import sys
import time
from typing import Any, NamedTuple
import warnings
import zlib

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gen_rl import build
from gen_rl.types import PyTree
from gen_rl.utils import tree as tree_lib

FORMAT = 1

# Config fields that may change between a save and a resume.
IGNORE = ('steps', 'log', 'eval', 'checkpoint', 'mode', 'workdir')

# States up to this size are checksummed; more would hold up the device.
CHECKSUM_BYTES = 1 << 30


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or read, said in one sentence."""


class Restored(NamedTuple):
  """What a checkpoint held."""

  step: int
  state: PyTree  # like the abstract state, or {field: nested dicts}
  extra: dict[str, Any]  # as given to `save`
  config: dict[str, Any]  # as given to `save`, tuples as lists


def open_manager(
  directory: str,
  keep: int = 3,
  best: str | None = None,
  best_mode: str = 'max',
) -> ocp.CheckpointManager:
  """Makes the directory ready for writing, before anything is computed.

  Leftovers of saves that were cut short are removed, with a warning.

  Args:
    directory: local path or gs:// URL; made if it does not exist.
    keep: how many of the newest checkpoints stay.
    best: name of a metric; the checkpoint best in it stays as well.
    best_mode: 'max' or 'min'.

  Raises:
    CheckpointError: the directory cannot be written.
  """
  _quiet()
  path = (
    epath.Path(directory).absolute()
    if '://' not in str(directory)
    else epath.Path(directory)
  )
  if jax.process_index() == 0:
    try:
      path.mkdir(parents=True, exist_ok=True)
      probe = path / '.writable'
      probe.write_text('x')
      probe.unlink()
    except Exception as error:
      raise CheckpointError(
        f'Cannot write checkpoints to {path}: {_reason(error)}.'
      ) from None
    unfinished = sorted(p.name for p in path.iterdir() if _TMP in p.name)
    if unfinished:
      logging.warning(
        'The save of checkpoint %s was cut short and is discarded; the newest'
        ' whole one in %s is %s.',
        ', '.join(name.partition('.')[0] for name in unfinished),
        path,
        max(steps(path), default='(none)'),
      )
    for name in unfinished:
      (path / name).rmtree()
  policy = ocp.checkpoint_managers
  kept = [policy.LatestN(max(keep, 1))]
  if best:
    sign = {'max': 1.0, 'min': -1.0}[best_mode]

    def score(metrics: Mapping[str, float]) -> float:
      value = sign * metrics.get(best, -sign * np.inf)
      return value if np.isfinite(value) else -np.inf

    kept.append(
      policy.BestN(
        get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
      )
    )
  return ocp.CheckpointManager(
    path,
    item_names=('state', 'meta'),
    options=ocp.CheckpointManagerOptions(
      preservation_policy=policy.AnyPreservationPolicy(kept)
    ),
  )


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: PyTree,
  config: Any = None,
  extra: Mapping[str, Any] | None = None,
  metrics: Mapping[str, float] | None = None,
) -> bool:
  """Starts saving; returns as soon as the state may be donated or changed.

  Args:
    manager: from `open_manager`.
    step: number of the checkpoint.
    state: pytree of arrays, typed PRNG keys included.
    config: ConfigDict or dict, compared with the program's on restoring.
    extra: anything JSON holds: the data cursor, wall time so far.
    metrics: {name: value}, for keeping the best.

  Returns:
    False if this step is saved already.

  Raises:
    CheckpointError: this save, or the one before it, could not be written.
  """
  check(manager)
  if step in manager.all_steps():
    return False
  leaves = tree_lib.named(state)
  arrays, types, impls = {}, {}, {}
  for name, leaf in leaves.items():
    types[name] = _type(leaf)
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
  try:
    manager.save(
      int(step),
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(tree_lib.nest(arrays)),
        meta=ocp.args.JsonSave(meta),
      ),
      metrics=None
      if metrics is None
      else {k: float(v) for k, v in metrics.items()},
      force=True,
    )
  except Exception as error:
    raise _failed(manager, error) from None
  return True


def check(manager: ocp.CheckpointManager, wait: bool = False) -> None:
  """Raises CheckpointError if a save failed in its thread; otherwise cheap.

  With `wait`, returns when nothing is being written any more.
  """
  try:
    if wait or not manager.is_saving_in_progress():
      manager.wait_until_finished()
    manager.check_for_errors()
  except Exception as error:
    raise _failed(manager, error) from None


def close(manager: ocp.CheckpointManager) -> None:
  """Waits for the last save and raises CheckpointError if it failed."""
  try:
    check(manager, wait=True)
  finally:
    manager.close()


def steps(directory: Any) -> list[int]:
  """Numbers of the finished checkpoints of a directory, ascending."""
  path = epath.Path(directory)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def restore_latest(
  manager: ocp.CheckpointManager,
  abstract_state: PyTree,
  config: Any = None,
  ignore: Iterable[str] = IGNORE,
) -> Restored | None:
  """Restores the newest whole checkpoint, bitwise; None if there is none.

  Checkpoints that cannot be read are renamed to `<step>.broken` with a
  warning that names them and the one used instead, so that training can pass
  the same step again.

  Args:
    manager: from `open_manager`.
    abstract_state: the state, or ShapeDtypeStructs of it; their shardings are
      used (default: the first device).
    config: must agree with the saved one, except below
    ignore: these paths ('eval' covers 'eval.every').

  Raises:
    build.ConfigError: the config differs; the fields are named.
    CheckpointError: the state has other arrays; or checkpoints exist and none
      of them can be read; or a newer format.
  """
  path = epath.Path(manager.directory)
  numbers = steps(path)
  if not numbers:
    return None

  def read(step: int) -> Restored:
    meta = _read_meta(path, step)
    _check_config(path, step, meta, config, tuple(ignore))
    wanted = tree_lib.named(abstract_state)
    _check_types(path, step, meta, wanted)
    leaves = _read_leaves(path, step, meta, wanted)
    state = jax.tree.unflatten(
      jax.tree.structure(abstract_state), [leaves[n] for n in wanted]
    )
    return _restored(step, state, meta)

  restored, broken = _newest_whole(path, numbers, read)
  if broken:
    if jax.process_index() == 0:
      for step in broken:
        _set_aside(path, step)
    manager.reload()
  return restored


def restore_params(
  directory: str,
  fields: Iterable[str] = ('params',),
  abstract: Mapping[str, PyTree] | None = None,
  step: int | None = None,
) -> Restored:
  """Restores some fields of the state, e.g. to sample without an optimizer.

  Only reads: works while a training run writes, and on read-only media.

  Args:
    directory: where `open_manager` wrote.
    fields: names or paths in the state: 'params', 'refs/ema'.
    abstract: {field: tree} whose structure and shardings are wanted; without
      it, nested dicts on the first device.
    step: which checkpoint; the newest whole one by default.

  Returns:
    Restored with `state` = {field: tree}.

  Raises:
    CheckpointError: no checkpoint, no such step or field, or none readable.
  """
  _quiet()
  path = epath.Path(directory)
  numbers = steps(path)
  if not numbers:
    raise CheckpointError(f'There is no checkpoint in {path}.')
  if step is not None and step not in numbers:
    raise CheckpointError(
      f'There is no checkpoint {step} in {path}; there are'
      f' {", ".join(map(str, numbers))}.'
    )

  def read(step: int) -> Restored:
    meta = _read_meta(path, step)
    state = {}
    for field in fields:
      saved = {
        n: t for n, t in meta['types'].items() if n.startswith(f'{field}/')
      }
      if not saved:
        tops = sorted({n.partition('/')[0] for n in meta['types']})
        raise CheckpointError(
          f'Checkpoint {step} in {path} has no {field!r}; it has'
          f' {", ".join(tops)}.'
        )
      if abstract is None:
        wanted = {n: _struct(t) for n, t in saved.items()}
      else:
        wanted = {
          f'{field}/{n}': leaf
          for n, leaf in tree_lib.named(abstract[field]).items()
        }
        _check_types(path, step, {**meta, 'types': saved}, wanted)
      leaves = _read_leaves(path, step, meta, wanted)
      if abstract is None:
        state[field] = tree_lib.nest(
          {n[len(field) + 1 :]: leaf for n, leaf in leaves.items()}
        )
      else:
        state[field] = jax.tree.unflatten(
          jax.tree.structure(abstract[field]), [leaves[n] for n in wanted]
        )
    return _restored(step, state, meta)

  return _newest_whole(path, numbers if step is None else [step], read)[0]


_TMP = '.orbax-checkpoint-tmp'


class _Broken(Exception):
  """A checkpoint that is not whole."""


def _newest_whole(
  path: epath.Path, numbers: list[int], read: Callable[[int], Restored]
) -> tuple[Restored, list[int]]:
  """(first that can be read from the newest on, those that cannot)."""
  broken: list[int] = []
  reasons: list[str] = []
  for step in sorted(numbers, reverse=True):
    try:
      restored = read(step)
    except _Broken as error:
      broken.append(step)
      reasons.append(str(error))
      continue
    if broken:
      logging.warning(
        'Checkpoint %s in %s cannot be read (%s); going back to the newest'
        ' whole one, %s.',
        ', '.join(map(str, broken)),
        path,
        reasons[0],
        step,
      )
    return restored, broken
  raise CheckpointError(
    f'None of the checkpoints in {path} can be read'
    f' ({", ".join(map(str, broken))}: {reasons[0]}); to start anew, move the'
    ' directory away or choose another one.'
  )


def _read_meta(path: epath.Path, step: int) -> dict[str, Any]:
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      meta = reader.restore(path / str(step) / 'meta')
    crc = meta.pop('meta_crc32')
  except Exception as error:
    raise _Broken(_reason(error)) from None
  if crc != _json_crc(meta):
    raise _Broken('meta is not what was saved')
  if meta['format'] > FORMAT:
    raise CheckpointError(
      f'Checkpoint {step} in {path} has format {meta["format"]}; this program'
      f' reads up to {FORMAT}.'
    )
  return meta


def _check_config(path, step, meta, config, ignore) -> None:
  if config is None or meta['config'] is None:
    return
  ours = json.loads(json.dumps(build.plain(config), default=_to_json))
  changed = [
    line
    for line in build.diff(meta['config'], ours)
    if not any(line.startswith((f'{i}.', f'{i}:')) for i in ignore)
  ]
  if changed:
    raise build.ConfigError(
      f'Checkpoint {step} in {path} was made with another config'
      f' ({"; ".join(changed)}); restore those fields or choose another'
      ' directory.'
    )


def _check_types(path, step, meta, wanted) -> None:
  """Compares names, types and shapes; lists all that differ."""
  saved = meta['types']
  ours = {n: _type(leaf) for n, leaf in wanted.items()}
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


def _read_leaves(path, step, meta, wanted) -> dict[str, Any]:
  """The wanted arrays, checksums verified; raises _Broken."""
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
      problem = _reason(error)
    if problem is not None:
      time.sleep(0.1)  # the other reads end, and complain
      gc.collect()
  if problem is not None:
    raise _Broken(problem)
  arrays = tree_lib.named(tree)
  if set(arrays) != set(items):
    raise _Broken('arrays are missing')
  for name, crc in (meta['crc32'] or {}).items():
    if name in arrays and _crc(arrays[name]) != crc:
      raise _Broken(f'{name} is not what was saved')
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


def _empty(leaf: Any) -> Any:
  zeros = np.zeros if isinstance(leaf, np.ndarray) else jnp.zeros
  return zeros(leaf.shape, leaf.dtype)


def _restored(step: int, state: PyTree, meta: dict[str, Any]) -> Restored:
  return Restored(step, state, meta['extra'], meta['config'] or {})


def _set_aside(path: epath.Path, step: int) -> None:
  target = path / f'{step}.broken'
  count = 1
  while target.exists():
    count += 1
    target = path / f'{step}.broken{count}'
  (path / str(step)).rename(target)


def _failed(manager: ocp.CheckpointManager, error: Exception) -> Exception:
  """The sentence for a save that failed; frees what it had written."""
  if isinstance(error, CheckpointError):
    return error
  path = epath.Path(manager.directory)
  if jax.process_index() == 0:
    for partial in [p for p in path.iterdir() if _TMP in p.name]:
      with contextlib.suppress(OSError):
        partial.rmtree()
  last = max(steps(path), default=None)
  kept = (
    'there is no earlier one'
    if last is None
    else f'checkpoint {last} is whole and the same command resumes from it'
  )
  return CheckpointError(
    f'A checkpoint could not be written to {path}: {_reason(error)}; {kept}.'
  )


def _reason(error: Exception) -> str:
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


def _type(leaf: Any) -> str:
  leaf = leaf if hasattr(leaf, 'dtype') else jnp.asarray(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'


def _struct(text: str) -> jax.ShapeDtypeStruct:
  """Inverse of `_type`."""
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


def _quiet() -> None:
  """Leaves Orbax's warnings, without its progress and re-raised tracebacks."""
  logger = std_logging.getLogger('absl')
  if _keep not in logger.filters:
    logger.addFilter(_keep)


def _keep(record: std_logging.LogRecord) -> bool:
  if 'orbax' not in record.pathname:
    return True
  return record.levelno >= std_logging.WARNING and not record.exc_info
