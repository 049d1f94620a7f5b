"""Text encoders on the devices of a process, for as long as they are needed.

Parameters are split over all devices of the process ("fsdp" of `sharding`), and
so are the texts: a device holds one of n parts and the matrices of the layer
that runs. They are not placed over the mesh of a run. Every process encodes by
itself the prompts of a step that its devices hold, and may find some of them in
a folder; a program of the whole mesh would have to be entered by all processes
at once, with as many texts.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import sharding
from gen_rl.models.files import released
from gen_rl.types import Array, Axes, Params


class Network(NamedTuple):
  """A text encoder of a folder, of which only the config was read."""

  apply: Callable[[Params, Array], Any]  # (params, ids [b l]) -> what it says
  like: Params  # ShapeDtypeStructs
  axes: Axes
  folder: str
  names: released.Names


def network(
  apply: Callable[[Params, Array], Any],
  axes: Axes,
  folder: str,
  dtype: str,
  like: Params,
  names: released.Names,
) -> Network:
  """A Network whose parameters are of one type, whatever `like` has."""
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), like
  )
  return Network(apply, like, axes, folder, names)


def layout(devices: Sequence[Any] | None = None) -> sharding.Layout:
  """All devices of a process as "fsdp"; by default, of this one."""
  devices = jax.local_devices() if devices is None else devices
  # In any order: there is one axis to speak of.
  placed = np.array(devices, dtype=object).reshape(1, -1, 1)
  types = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.sharding.Mesh(placed, sharding.MESH_AXES, axis_types=types)
  return sharding.Layout(mesh)


def load(
  networks: Sequence[Network], features: Callable[..., Any]
) -> Callable[..., Any]:
  """Reads parameters, each device its part of them.

  Args:
    networks: of which each is given the ids of its own tokenizer.
    features: what they say of texts -> {name: [b ...]}.

  Returns:
    (ids [b l] of each) -> features, which holds the parameters; b is a multiple
    of the devices.

  Raises:
    WeightsError: see `released.load`.
  """
  place = layout()
  params = [
    released.load(
      net.folder, net.like, net.names, None,
      place._replace(axes=net.axes).params(net.like),
    )
    for net in networks
  ]  # fmt: skip

  def run(params: list[Params], *ids: Array) -> Any:
    ids = place.rows(ids)
    each = zip(networks, params, ids, strict=True)
    return features(*(net.apply(p, i) for net, p, i in each))

  program = jax.jit(run)

  def encode(*ids: np.ndarray) -> Any:
    with _apart(place):
      return program(params, *ids)

  return encode


@contextlib.contextmanager
def _apart(place: sharding.Layout) -> Iterator[None]:
  """Inside, programs are of these devices alone, not of a run's mesh."""
  rules = [(name, axes) for name, axes in place.rules.items()]
  with jax.set_mesh(place.mesh), nn.logical_axis_rules(rules):
    yield


def device_bytes(networks: Sequence[Network], devices: Sequence[Any]) -> float:
  """Of parameters on a device.

  Args:
    networks: their shapes.
    devices: of a whole run; those of one process hold all of them.
  """
  first = devices[0].process_index
  place = layout([d for d in devices if d.process_index == first])
  return sum(
    math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
    for net in networks
    for x, s in zip(
      jax.tree.leaves(net.like),
      jax.tree.leaves(place._replace(axes=net.axes).params(net.like)),
      strict=True,
    )
  )


def rows(chunk: int) -> int:
  """Texts encoded at a time: `chunk`, up to a multiple of the devices."""
  count = jax.local_device_count()
  return -(-chunk // count) * count
