"""Checkpoints that survive being killed, truncated or out of disk.

A directory holds `<step>/state/` and `<step>/meta/`, as `checkpoint_format`
describes them, and `<step>/metrics/` where the best checkpoint is kept as well.

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

from collections.abc import Callable, Iterable, Mapping
import contextlib
import logging as std_logging
import sys
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from gen_rl import checkpoint_format
from gen_rl.checkpoint_format import CheckpointError
from gen_rl.types import PyTree
from gen_rl.utils import tree as tree_lib


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
      reason = checkpoint_format.reason(error)
      raise CheckpointError(
        f'Cannot write checkpoints to {path}: {reason}.'
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
  given: Iterable[str] = (),
) -> bool:
  """Starts saving; returns as soon as the state may be donated or changed.

  Args:
    manager: from `open_manager`.
    step: number of the checkpoint.
    state: pytree of arrays, typed PRNG keys included.
    config: ConfigDict or dict, compared with the program's on restoring.
    extra: anything JSON holds: the data cursor, wall time so far.
    metrics: {name: value}, for keeping the best.
    given: branches of the state that are left out, because they never move
      and who restores has them: 'frozen', 'refs/ref'.

  Returns:
    False if this step is saved already.

  Raises:
    CheckpointError: this save, or the one before it, could not be written.
  """
  check(manager)
  if step in manager.all_steps():
    return False
  arrays, meta = checkpoint_format.pack(
    step, state, config, extra, tuple(given)
  )
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
  if manager.is_saving_in_progress() and not wait:
    # Asking takes the error away from the thread that finalizes the save: it
    # would take the save for complete and delete the checkpoint before it.
    return
  try:
    manager.wait_until_finished()
    manager.check_for_errors()
  except Exception as error:
    raise _failed(manager, error) from None


def close(manager: ocp.CheckpointManager) -> None:
  """Waits for the last save and raises CheckpointError if it failed."""
  try:
    check(manager, wait=True)
  finally:
    try:
      manager.close()
    except Exception as error:  # it may say the same again, in Orbax's words
      raise _failed(manager, error) from None


def steps(directory: Any) -> list[int]:
  """Numbers of the finished checkpoints of a directory, ascending."""
  path = epath.Path(directory)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def restore_latest(
  manager: ocp.CheckpointManager,
  abstract_state: PyTree,
  config: Any = None,
  given: Iterable[str] = (),
) -> Restored | None:
  """Restores the newest whole checkpoint, bitwise; None if there is none.

  Checkpoints that cannot be read are renamed to `<step>.broken` with a
  warning that names them and the one used instead, so that training can pass
  the same step again.

  Args:
    manager: from `open_manager`.
    abstract_state: the state, or ShapeDtypeStructs of it; their shardings are
      used (default: the first device).
    config: must compute what the saved one does (see `resume`).
    given: branches of the state that are as they should be in
      `abstract_state`, whatever the checkpoint holds of them.

  Raises:
    build.ConfigError: the config computes something else; the fields are named.
    CheckpointError: the state has other arrays; or checkpoints exist and none
      of them can be read; or a newer format.
  """
  path = epath.Path(manager.directory)
  numbers, given = steps(path), tuple(given)
  if not numbers:
    return None

  def read(step: int) -> Restored:
    meta = checkpoint_format.read_meta(path, step)
    checkpoint_format.check_config(path, step, meta, config)
    leaves = tree_lib.named(abstract_state)
    types, wanted = (
      checkpoint_format.stored(x, given) for x in (meta['types'], leaves)
    )
    checkpoint_format.check_types(path, step, {**meta, 'types': types}, wanted)
    leaves |= checkpoint_format.read_leaves(path, step, meta, wanted)
    state = jax.tree.unflatten(
      jax.tree.structure(abstract_state), list(leaves.values())
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
  optional: Iterable[str] = (),
) -> Restored:
  """Restores some fields of the state, e.g. to sample without an optimizer.

  Only reads: works while a training run writes, and on read-only media.

  Args:
    directory: where `open_manager` wrote.
    fields: names or paths in the state: 'params', 'refs/ema'.
    abstract: {field: tree} whose structure and shardings are wanted; without
      it, nested dicts on the first device.
    step: which checkpoint; the newest whole one by default.
    optional: those of the fields that a checkpoint need not have.

  Returns:
    Restored with `state` = {field: tree}, of those it has.

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
    meta = checkpoint_format.read_meta(path, step)
    state = {}
    for field in fields:
      saved = {
        n: t for n, t in meta['types'].items() if n.startswith(f'{field}/')
      }
      if not saved and field in optional:
        continue
      if not saved:
        tops = sorted({n.partition('/')[0] for n in meta['types']})
        raise CheckpointError(
          f'Checkpoint {step} in {path} has no {field!r}; it has'
          f' {", ".join(tops)}.'
        )
      if abstract is None:
        wanted = {n: checkpoint_format.struct(t) for n, t in saved.items()}
      else:
        wanted = {
          f'{field}/{n}': leaf
          for n, leaf in tree_lib.named(abstract[field]).items()
        }
        checkpoint_format.check_types(
          path, step, {**meta, 'types': saved}, wanted
        )
      leaves = checkpoint_format.read_leaves(path, step, meta, wanted)
      if abstract is None:
        state[field] = tree_lib.nest(
          {n[len(field) + 1 :]: leaf for n, leaf in leaves.items()}
        )
      else:
        state[field] = jax.tree.unflatten(
          jax.tree.structure(abstract[field]), [leaves[n] for n in wanted]
        )
    return _restored(step, state, meta)

  while True:
    try:
      return _newest_whole(path, numbers if step is None else [step], read)[0]
    except CheckpointError:
      # A run that goes on may have replaced all that were there.
      there, numbers = numbers, steps(path)
      if step is not None or numbers == there:
        raise


_TMP = '.orbax-checkpoint-tmp'


def _newest_whole(
  path: epath.Path, numbers: list[int], read: Callable[[int], Restored]
) -> tuple[Restored, list[int]]:
  """(first that can be read from the newest on, those that cannot)."""
  broken: list[int] = []
  reasons: list[str] = []
  for step in sorted(numbers, reverse=True):
    try:
      restored = read(step)
    except checkpoint_format.Broken as error:
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
  reason = checkpoint_format.reason(error)
  return CheckpointError(
    f'A checkpoint could not be written to {path}: {reason}; {kept}.'
  )


def _quiet() -> None:
  """Leaves Orbax's warnings, without its progress and re-raised tracebacks.

  Where one write of a save fails, those beside it end later and find nobody to
  tell: their tracebacks say nothing that the error of the save does not.
  """
  logger = std_logging.getLogger('absl')
  if _keep in logger.filters:
    return
  logger.addFilter(_keep)
  std_logging.getLogger('asyncio').addFilter(_keep)
  shown = sys.unraisablehook

  def show(failure: Any) -> None:
    if str(failure.exc_value) != 'Event loop is closed':
      shown(failure)

  sys.unraisablehook = show


def _keep(record: std_logging.LogRecord) -> bool:
  if record.name == 'asyncio':  # says which task nobody asked for its error
    return 'orbax' not in record.getMessage()
  if 'orbax' not in record.pathname:
    return True
  return record.levelno >= std_logging.WARNING and not record.exc_info
