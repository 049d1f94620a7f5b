"""Several processes as one program: who is there, and what all of them know.

Every process runs the same code on the same prompts, of whose pictures it reads
its part, and holds its part of the global arrays (multi-controller JAX).
Process 0 writes logs and reports, all write checkpoints.
"""

from collections.abc import Callable, Iterator
import contextlib
import glob
import json
import os
import re
import socket
import sys
import threading
from typing import Any
import urllib.error
import urllib.request

import jax
from jax.experimental import multihost_utils
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.types import PyTree

# A process that is not heard of for so many seconds ends all others.
HEARTBEAT = 60
# Who waits for the others says so after so many seconds, and then gives up.
PATIENCE = 10, 300
# More processes than anybody has: a number beyond is a mistake.
_MOST = 1 << 20

# There are such files where TPU chips are.
_CHIPS = '/dev/accel*', '/dev/vfio/[0-9]*'


def _tpu_vms() -> int:
  """Virtual machines of the TPU slice this one is of; 1 where it is none.

  The metadata server of the machine knows, which jax.distributed asks too.
  """
  if 'TPU_SKIP_MDS_QUERY' in os.environ or not any(map(glob.glob, _CHIPS)):
    return 1
  server = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{server}/computeMetadata/v1/instance/attributes/'
    'worker-network-endpoints',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as reply:
      return len(reply.read().decode().split(','))
  except urllib.error.HTTPError as error:
    if error.code == 404:  # a machine with chips that is of no slice
      return 1
    raise
  except urllib.error.URLError:  # no such server: not in that cloud
    return 1


def _number(name: str, least: int = 1, most: int = _MOST) -> int | None:
  """The whole number that a variable of the environment holds; None: no such.

  Raises:
    ConfigError: it holds something else.
  """
  text = os.environ.get(name, '').strip()
  if not text:
    return None
  if not re.fullmatch('[0-9]{1,18}', text) or not least <= int(text) <= most:
    raise ConfigError(
      f'the environment has {name}={text[:40]!r}, no whole number from '
      f'{least} to {most}; correct it, or unset it where there is no cluster'
    )
  return int(text)


def _slurm_tasks() -> int:
  """Of this job step; the shell of `salloc -n 4` is a step of one task."""
  return _number('SLURM_STEP_NUM_TASKS') or _number('SLURM_NTASKS') or 1


def cluster() -> str | None:
  """The kind of cluster that surrounds this process, if it has several.

  jax.distributed finds addresses and numbers: SLURM, Open MPI, TPU pods and
  Kubernetes by variables, slices of plain TPU machines by their metadata.

  Raises:
    ConfigError: a variable that should hold a number does not.
  """
  env = os.environ
  several = lambda name: (_number(name) or 1) > 1
  if 'SLURM_STEP_NODELIST' in env and _slurm_tasks() > 1:
    return 'SLURM'
  if 'OMPI_MCA_orte_hnp_uri' in env and several('OMPI_COMM_WORLD_SIZE'):
    return 'Open MPI'
  if ',' in env.get('TPU_WORKER_HOSTNAMES', ''):
    return 'TPU pod'
  if 'MEGASCALE_COORDINATOR_ADDRESS' in env:
    return 'TPU slices'
  if 'JAX_COORDINATOR_ADDRESS' in env or (
    'JOB_COMPLETION_INDEX' in env and several('JOB_COMPLETIONS')
  ):
    return 'Kubernetes'
  return 'TPU pod' if _tpu_vms() > 1 else None


def _check(coordinator: str, source: str, number: int, count: int) -> None:
  """Raises ConfigError for what cannot be an address, or a process of many."""
  host, _, port = coordinator.rpartition(':')
  if not host or not re.fullmatch('[0-9]{1,5}', port) or int(port) > 65535:
    raise ConfigError(
      f'{source} is {coordinator!r}; it is host:port of process 0, such as '
      '10.0.0.1:1234'
    )
  if not 1 <= count <= _MOST or not 0 <= number < count:
    raise ConfigError(
      f'--process={number} of --processes={count}: processes are numbered from '
      '0, and there is one at least'
    )


def start(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  heartbeat: int = HEARTBEAT,
  patience: tuple[float, float] = PATIENCE,
) -> int:
  """Joins the other processes, if there are any; before any array is made.

  Where they do not come, the process ends with a sentence and exit code 2.

  Args:
    coordinator: 'host:port' of process 0; None: of the cluster, if `cluster`
      finds one.
    processes: how many; goes with `coordinator`.
    process: which one this is, from 0; goes with `coordinator`.
    heartbeat: seconds after which a silent process counts as dead.
    patience: seconds of waiting after which it is said who waits for whom, and
      after which it ends.

  Returns:
    How many processes there are.

  Raises:
    ConfigError: some of the three are given, others are not; or one cannot be;
      or the cluster describes itself wrongly.
  """
  given = [coordinator, processes, process]
  if any(x is None for x in given) and any(x is not None for x in given):
    raise ConfigError(
      '--coordinator, --processes and --process go together: the address of '
      'process 0 (host:port), how many there are, and which one this is'
    )
  kind = None
  if coordinator is None:
    kind = cluster()
    if kind is None:
      return 1
    if address := os.environ.get('JAX_COORDINATOR_ADDRESS'):
      _check(address, 'JAX_COORDINATOR_ADDRESS', 0, 1)
  else:
    _check(coordinator, '--coordinator', process, processes)
  if kind == 'SLURM':
    processes = _slurm_tasks()
    process = _number('SLURM_PROCID', 0, processes - 1)
    _number('SLURM_LOCALID', 0)
    _number('SLURM_JOB_ID', 0, 10**18 - 1)
  where = coordinator or f'the {kind} that the environment describes'
  # Collectives of CPU devices of several processes.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  with _waiting(where, coordinator, processes, process, patience):
    try:
      jax.distributed.initialize(
        coordinator,
        processes,
        process,
        # Later than ours: it would end the process with a stack.
        initialization_timeout=int(patience[1]) + 60,
        heartbeat_timeout_seconds=heartbeat,
      )
    except Exception as error:
      raise ConfigError(
        f'the processes could not be joined through {where}: '
        f'{str(error).splitlines()[0]}'
      ) from error
  return jax.process_count()


@contextlib.contextmanager
def _waiting(
  where: str,
  coordinator: str | None,
  processes: int | None,
  process: int | None,
  patience: tuple[float, float],
) -> Iterator[None]:
  """Says for whom the block waits; ends the process when it waits too long.

  From a thread: the block is jax's, and cannot be interrupted.
  """
  joined = threading.Event()
  if processes is None:
    others = 'the other processes'
  elif processes == 2:
    others = f'process {1 - process}'
  else:
    others = f'the other {processes - 1} of {processes} processes'

  def whom() -> str:
    text = f'{others} (through {where})'
    if coordinator and process and not _answers(coordinator):
      text += '; no process 0 answers there'
    return text

  def watch() -> None:
    soon, late = patience
    if joined.wait(soon):
      return
    said = whom()
    print(f'gen_rl: waiting for {said}', file=sys.stderr, flush=True)
    if joined.wait(late - soon):
      return
    print(
      f'gen_rl: gave up after {late:.0f} s of waiting for {whom()}; start all '
      'of them within that time, or this one alone (without --coordinator, or '
      'outside the cluster step)',
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    joined.set()


def _answers(coordinator: str) -> bool:
  host, _, port = coordinator.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), 2).close()
  except OSError:
    return False
  return True


def lost(error: BaseException) -> str | None:
  """What to tell a person if `error` means that another process is gone."""
  if not isinstance(error, jax.errors.JaxRuntimeError):
    return None
  if jax.process_count() == 1:
    return None
  return (
    f'process {jax.process_index()} of {jax.process_count()} has lost another '
    f'one ({str(error).splitlines()[0][:200]}); its own log says why; when the '
    'same commands are run again on all hosts, training goes on from the '
    'newest checkpoint'
  )


def fetch(tree: PyTree) -> PyTree:
  """Global arrays as numpy arrays, on every process; all have to ask."""
  if all(
    getattr(x, 'is_fully_addressable', True) for x in jax.tree.leaves(tree)
  ):
    return jax.device_get(tree)

  def one(x: Any) -> Any:
    if getattr(x, 'is_fully_replicated', True):
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(one, tree)


class Held:
  """Rows of an array, those alone that devices of this process hold.

  Asking for others is an error.

  Attributes:
    shape: of the whole array, [N ...].
    dtype: its own.
  """

  def __init__(self, values: np.ndarray, rows: np.ndarray, count: int):
    """Keeps what there is.

    Args:
      values: [n ...], the rows that are here; of none, one that says the shape.
      rows: [n] their places, ascending.
      count: N.
    """
    self.shape, self.dtype = (count, *values.shape[1:]), values.dtype
    self._values, self._rows = values[: len(rows)], rows

  def __getitem__(self, at: Any) -> np.ndarray:
    """Of a slice of rows, or of one of every dimension.

    Raises:
      IndexError: some of the rows are not here.
    """
    first, *rest = at if isinstance(at, tuple) else (at,)
    wanted = np.arange(self.shape[0])[first]
    found = self.take(wanted)
    if len(found._rows) < len(wanted):
      raise IndexError(
        f'rows {first} of {self.shape[0]} are asked for, and only '
        f'{len(found._rows)} of them are held by this process'
      )
    return found._values[(slice(None), *rest)]

  def take(self, at: np.ndarray) -> 'Held':
    """Those of them that are at these places [n], as an array of n rows."""
    here = np.isin(at, self._rows)
    values = self._values[np.searchsorted(self._rows, np.asarray(at)[here])]
    return Held(values, np.flatnonzero(here), len(at))


def stretch(count: int) -> tuple[int, int]:
  """(first, one past the last) of `count` things that are this process's."""
  i, n = jax.process_index(), jax.process_count()
  return -(-i * count // n), -(-(i + 1) * count // n)


def fetch_rows(tree: PyTree, rows: slice) -> PyTree:
  """These rows of arrays as numpy arrays; all processes have to ask.

  Nothing is sent between hosts where each holds the rows it asks for.

  Args:
    tree: arrays, rows first.
    rows: start and stop, which may be others on every process.
  """
  leaves, form = jax.tree.flatten(tree)
  found = [_held(x, rows) for x in leaves]
  if jax.process_count() > 1:
    lacking = np.asarray([x is None for x in found], bool)
    lacking = multihost_utils.process_allgather(lacking)
    lacking = lacking.reshape(jax.process_count(), -1).any(0)
    found = [
      fetch(x)[rows] if missing else part
      for x, part, missing in zip(leaves, found, lacking, strict=True)
    ]
  return form.unflatten(found)


def _held(x: Any, rows: slice) -> np.ndarray | None:
  """Rows of an array that this process holds; None: not all of them."""
  if getattr(x, 'is_fully_addressable', True):
    return np.asarray(jax.device_get(x))[rows]
  out = np.empty((rows.stop - rows.start, *x.shape[1:]), x.dtype)
  there = np.zeros(len(out), bool)
  for shard in x.addressable_shards:
    start, stop, _ = shard.index[0].indices(x.shape[0])
    low, high = max(start, rows.start), min(stop, rows.stop)
    if low >= high or shard.data.shape[1:] != x.shape[1:]:
      continue
    at = slice(low - rows.start, high - rows.start)
    if not there[at].all():
      out[at] = np.asarray(shard.data[low - start : high - start])
      there[at] = True
  return out if there.all() else None


def everybody(text: str, numbers: np.ndarray) -> list[tuple[str, np.ndarray]]:
  """What every process says, in order; all have to.

  Args:
    text: of any length.
    numbers: [n m] float32, which may be others on every process.
  """
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = np.array([len(data), *numbers.shape], np.int32)
  sizes = multihost_utils.process_allgather(sizes).reshape(-1, 3)
  longest, most, widest = sizes.max(0)
  padded = np.zeros(longest, np.uint8)
  padded[: len(data)] = data
  wide = np.zeros((most, widest), np.float32)
  wide[: numbers.shape[0], : numbers.shape[1]] = numbers
  texts = multihost_utils.process_allgather(padded)
  tables = multihost_utils.process_allgather(wide)
  tables = tables.reshape(len(sizes), most, widest)
  return [
    (bytes(text[:size]).decode(), table[:n, :m])
    for (size, n, m), text, table in zip(sizes, texts, tables, strict=True)
  ]


def from_first(value: Callable[[], Any]) -> Any:
  """What `value()` is on process 0, on all of them; all have to ask.

  A ValueError it raises is raised on all of them, so that none waits for it.

  Args:
    value: says what JSON can.
  """
  if jax.process_count() == 1:
    return value()
  outcome = error = None
  if jax.process_index() == 0:
    try:
      outcome = value()
    except ValueError as raised:
      error = raised
  said = json.dumps([outcome, None if error is None else str(error)])
  text, _ = everybody(said, np.zeros((0, 0), np.float32))[0]
  if error is not None:
    raise error
  outcome, told = json.loads(text)
  if told is not None:
    raise ConfigError(told)
  return outcome


def any_process(flag: bool) -> bool:
  """Whether any process says so; all have to ask."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
