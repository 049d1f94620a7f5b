"""Chips a program may be planned for: what they hold, and how fast they are.

Figures are those of the vendors' data sheets: dense bfloat16 products, and the
bytes a chip can send to its neighbours over all of its links together.
"""

import math
import os
import re
from typing import Any, NamedTuple

import jax

from gen_rl.build import ConfigError

GIB = 2**30
# A device of those that programs are traced for; None: of those that are there.
TRACED_FOR = jax.make_user_context(None)


class Chip(NamedTuple):
  """A chip, or GPU."""

  name: str
  hbm: float | None  # bytes
  flops: float | None  # bfloat16, per second
  bandwidth: float | None  # of its memory, bytes per second
  network: float | None  # sent per second, bytes


_TPUS = {
  'v4': Chip('TPU v4', 32 * GIB, 275e12, 1.228e12, 300e9),
  'v5e': Chip('TPU v5e', 16 * GIB, 197e12, 0.819e12, 200e9),
  'v5p': Chip('TPU v5p', 95 * GIB, 459e12, 2.765e12, 600e9),
  'v6e': Chip('TPU v6e', 32 * GIB, 918e12, 1.638e12, 448e9),
}
_GPUS = {  # by a part of jax's device_kind, no digit behind it
  'H200': Chip('H200', None, 989e12, 4.8e12, 450e9),
  'H100': Chip('H100', None, 989e12, 3.35e12, 450e9),
  'A100': Chip('A100', None, 312e12, 2.0e12, 300e9),
  'L4': Chip('L4', None, 121e12, 0.3e12, 32e9),
}
KNOWN = (
  'v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB (chips along each axis of the torus, '
  'such as v5e:4x4 or v5p:4x4x4), cpu:N, local'
)
_INSTALL = (
  "planning for a TPU needs its compiler: pip install 'gen_rl[plan]' (or pip "
  "install 'jax[tpu]')"
)


def devices(topology: str) -> tuple[list[Any], Chip]:
  """Devices to compile for, without owning them, and their kind.

  Args:
    topology: 'v5e:4x4', 'cpu:8' (virtual ones, before jax has made any array),
      'local' (those there are).

  Raises:
    ConfigError: an unknown one, listing those there are; a shape that does not
      exist; no compiler for TPUs.
  """
  kind, _, shape = topology.partition(':')
  if topology == 'local':
    return _local()
  sizes = re.fullmatch(r'\d+(x\d+)*', shape)
  axes = shape.count('x') + 1
  if kind == 'cpu' and sizes and axes == 1:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', int(shape))
    found = jax.devices('cpu')
    return found, _cpu(len(found))
  if kind not in _TPUS or not sizes or axes != (3 if kind in 'v4 v5p' else 2):
    raise ConfigError(f'--topology={topology!r} is none of {KNOWN}')
  return _tpu(topology, kind), _TPUS[kind]


def _tpu(topology: str, kind: str) -> list[Any]:
  jax.config.update('jax_platforms', 'cpu')  # it compiles, and runs nothing
  # Else the library asks a metadata server that is not there, and locks out
  # other processes, as if it held chips.
  for name, value in dict(
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v5litepod-1',
  ).items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise ConfigError(_INSTALL) from None
  # Two cores of a chip are one device, as on the machines themselves.
  options = dict(chip_config_name='megacore') if kind == 'v4' else {}
  bounds = [int(x) for x in topology.partition(':')[2].split('x')]
  if math.prod(bounds) < 4:  # a part of a host, which has four chips or more
    options['chips_per_host_bounds'] = (bounds + [1])[:3]
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(
      f'--topology={topology!r} does not exist: {str(error).splitlines()[0]}'
    ) from None
  return list(found.devices)


def _cpu(count: int) -> Chip:
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return Chip('CPU', memory / count, None, None, None)


def _local() -> tuple[list[Any], Chip]:
  found = jax.devices()
  first = found[0]
  if first.platform == 'cpu':
    return found, _cpu(len(found))
  chip = of_kind(first.device_kind)
  # Of another process's device nobody knows.
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
  return found, chip._replace(hbm=limit or chip.hbm)


def of_kind(kind: str) -> Chip:
  """The chip of jax's device_kind; of unknown ones only the name."""
  table = {**_GPUS, 'v5 lite': _TPUS['v5e'], 'v6 lite': _TPUS['v6e']}
  table |= {'v5': _TPUS['v5p'], 'v4': _TPUS['v4']}
  return next(
    (c for part, c in table.items() if re.search(rf'\b{part}(?!\d)', kind)),
    Chip(kind, None, None, None, None),
  )
