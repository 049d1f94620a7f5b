"""Several processes as one program: who is there, and what all of them know.

Every process runs the same code on the same prompts and holds its part of the
global arrays (multi-controller JAX). Process 0 writes logs and reports, all
write checkpoints.
"""

from collections.abc import Callable
import glob
import os
import pickle
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


def cluster() -> str | None:
  """The kind of cluster that surrounds this process, if it has several.

  jax.distributed finds addresses and numbers: SLURM, Open MPI, TPU pods and
  Kubernetes by variables, slices of plain TPU machines by their metadata.
  """
  env = os.environ
  several = lambda name: int(env.get(name) or 1) > 1
  if 'SLURM_STEP_NODELIST' in env and several('SLURM_NTASKS'):
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


def start(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  heartbeat: int = HEARTBEAT,
) -> int:
  """Joins the other processes, if there are any; before any array is made.

  Args:
    coordinator: 'host:port' of process 0; None: of the cluster, if `cluster`
      finds one.
    processes: how many; goes with `coordinator`.
    process: which one this is, from 0; goes with `coordinator`.
    heartbeat: seconds after which a silent process counts as dead.

  Returns:
    How many processes there are.

  Raises:
    ConfigError: some of the three are given, others are not; or no process 0
      answers.
  """
  given = [coordinator, processes, process]
  if any(x is None for x in given) and any(x is not None for x in given):
    raise ConfigError(
      '--coordinator, --processes and --process go together: the address of '
      'process 0 (host:port), how many there are, and which one this is'
    )
  if coordinator is None and cluster() is None:
    return 1
  # Collectives of CPU devices of several processes.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      heartbeat_timeout_seconds=heartbeat,
    )
  except Exception as error:
    where = coordinator or f'the {cluster()} that the environment describes'
    raise ConfigError(
      f'the processes could not be joined through {where}: '
      f'{str(error).splitlines()[0]}'
    ) from error
  return jax.process_count()


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


def from_first(value: Callable[[], Any]) -> Any:
  """What `value()` is on process 0, on all of them; all have to ask.

  For what may differ between processes: a judge that is not deterministic. A
  ValueError it raises is raised on all of them, so that none waits for it.
  """
  if jax.process_count() == 1:
    return value()
  first = jax.process_index() == 0
  outcome = error = None
  if first:
    try:
      outcome = value()
    except ValueError as raised:
      error = raised
  data = np.frombuffer(pickle.dumps((outcome, error)), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(data))))
  data = np.resize(data, size)
  data = multihost_utils.broadcast_one_to_all(data).tobytes()
  outcome, error = pickle.loads(data)
  if error is not None:
    raise error
  return outcome


def any_process(flag: bool) -> bool:
  """Whether any process says so; all have to ask."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
