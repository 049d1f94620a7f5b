"""Rows over devices: data parallelism by sharding constraints.

Parameters are replicated, rows are split over the mesh, and the compiler adds
the collectives. Group statistics are taken over global arrays, so they are
exact wherever a group's rows happen to live.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_rl.types import PyTree


def data_mesh(devices: int | None = None) -> Mesh:
  """All devices (or the first `devices`) along one axis, "data"."""
  available = jax.devices()
  count = devices or len(available)
  return jax.make_mesh(
    (count,),
    ('data',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=available[:count],
  )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """A copy of every leaf on every device of the mesh."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def rows_error(rows: int, mesh: Mesh) -> str | None:
  """Why `rows` cannot be split over the mesh, or None."""
  if rows % mesh.size == 0:
    return None
  below = rows // mesh.size * mesh.size
  fits = [n for n in (below, below + mesh.size) if n]
  return (
    f'{rows} rows (prompts_per_step * group_size) do not divide over '
    f'{mesh.size} devices; {" or ".join(map(str, fits))} would'
  )
