"""Where arrays live: a mesh, and rules from logical axes to its axes.

A mesh has three axes: "data" and "fsdp" split the rows, and prompts with all
they bring, "fsdp" and "tensor" split parameters. Models say what the dimensions
of their parameters are, by name ("embed", "mlp"); rules of the config say which
mesh axis splits what. The compiler adds the collectives (GSPMD). Group
statistics are taken over global arrays, so they are exact wherever a group's
rows happen to live.
"""

from collections.abc import Mapping, Sequence
import contextlib
import math
import re
from types import MappingProxyType
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.types import Axes, PyTree
from gen_rl.utils import chips, hosts
from gen_rl.utils import tree as tree_lib

MESH_AXES = ('data', 'fsdp', 'tensor')
ROW_AXES = ('data', 'fsdp')
# Logical axis -> mesh axis. "batch" are rows, wherever they are; the others
# are dimensions of parameters, "heads" and "mlp" of activations as well.
RULES = {
  'batch': ROW_AXES,
  'embed': 'fsdp',
  'mlp': 'tensor',
  'heads': 'tensor',
  'vocab': 'tensor',
}
# Parts of a TrainState whose leaves are shaped like parameters.
_LIKE_PARAMS = ('params', 'opt_state', 'refs', 'frozen/policy')
# What may be offloaded -> where it is in a TrainState.
OFFLOADED = {'ema': 'refs/ema', 'optimizer': 'opt_state'}
_HOST = 'pinned_host'
_LORA = re.compile(r'_lora_(a|b|scale)$')


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """The devices as an array of data x fsdp x tensor.

  Args:
    data: devices along it; -1 (of one axis at most): all that are left.
    fsdp: see data.
    tensor: see data; innermost, so that its devices are near each other.
    devices: default all, of all processes.

  Raises:
    ConfigError: the product is not the number of devices; says which axis to
      change.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes, count = [data, fsdp, tensor], len(devices)
  said = ' x '.join(f'{n}={k}' for n, k in zip(MESH_AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(k < 1 and k != -1 for k in sizes):
    raise ConfigError(
      f'config.mesh is {said}; sizes are positive, and one may be -1, for all '
      'devices that are left'
    )
  rest = math.prod(k for k in sizes if k != -1)
  if -1 in sizes and count % rest == 0:
    sizes[sizes.index(-1)] = count // rest
  if math.prod(sizes) != count:
    fits = [
      f'{name}={count * k // math.prod(sizes)}'
      for name, k in zip(MESH_AXES, sizes, strict=True)
      if -1 not in sizes and count * k % math.prod(sizes) == 0
    ]
    raise ConfigError(
      f'config.mesh is {said}, and there are {count} devices; '
      + (
        f'{" or ".join(fits)} would do'
        if fits
        else f'the product of its sizes has to divide {count}'
      )
    )
  types = (jax.sharding.AxisType.Auto,) * 3
  where = [(getattr(d, 'slice_index', 0), getattr(d, 'id', 0)) for d in devices]
  if len({part for part, _ in where}) > 1:
    # Slices of TPUs, hosts of GPUs: one after the other, along "data" if that
    # is as long, since what lies between them is the slowest.
    order = sorted(range(count), key=where.__getitem__)
    placed = np.array([devices[i] for i in order], dtype=object)
    return Mesh(placed.reshape(sizes), MESH_AXES, axis_types=types)
  return jax.make_mesh(
    tuple(sizes), MESH_AXES, axis_types=types, devices=devices
  )


def logical_axes(name: str, ndim: int, axes: Axes) -> tuple[str | None, ...]:
  """What the dimensions of a parameter are.

  Args:
    name: its path, 'block_0/qkv/kernel'; what stands before a parameter's own
      path does not matter ('opt_state/0/mu/block_0/qkv/kernel').
    ndim: its dimensions. A pattern names the last ones; those before, of
      stacked layers, belong to no axis.
    axes: (regular expression, names) in the order they are tried.

  Raises:
    ValueError: no pattern fits.
  """
  adapter = _LORA.search(name)
  base = _LORA.sub('', name)
  for pattern, names in axes:
    if re.search(pattern, base):
      if adapter:  # a: [in, rank], b: [rank, out]
        names = dict(a=(names[-2], None), b=(None, names[-1]), scale=())[
          adapter.group(1)
        ]
      if len(names) > ndim:
        break
      return (None,) * (ndim - len(names)) + tuple(names)
  raise ValueError(
    f'no pattern says which axes the {ndim} dimensions of {name!r} are; add '
    'one to the AXES of its model'
  )


class Layout(NamedTuple):
  """A mesh, what its axes split, and what a model's dimensions are."""

  mesh: Mesh
  axes: Axes = ()
  rules: Mapping[str, str | Sequence[str] | None] = RULES
  # Parts of a TrainState that stay in the hosts' memory, see OFFLOADED.
  offload: Sequence[str] = ()
  # {label of a reward or monitor: axes of its parameters}, and the same of what
  # learners train, of those that have some; the others' are on every device
  judges: Mapping[str, Axes] = MappingProxyType({})
  learners: Mapping[str, Axes] = MappingProxyType({})

  @property
  def row_shards(self) -> int:
    """Over how many devices rows are split."""
    return math.prod(self.mesh.shape[a] for a in ROW_AXES)

  @property
  def platform(self) -> str:
    """Of its devices: 'cpu', 'gpu', 'tpu'."""
    return self.mesh.devices.flat[0].platform

  def spec(self, shape: Sequence[int], names: Sequence) -> PartitionSpec:
    """Mesh axes of dimensions with these logical names.

    A dimension that its mesh axis does not divide stays whole, as does one
    whose mesh axis another dimension has taken.
    """
    taken, out = set(), []
    for size, name in zip(shape, names, strict=True):
      found = self.rules.get(name) if name else None
      found = (found,) if isinstance(found, str) else tuple(found or ())
      found = tuple(
        a for a in found if a not in taken and self.mesh.shape[a] > 1
      )
      if size % math.prod(self.mesh.shape[a] for a in found):
        found = ()
      taken.update(found)
      out.append(found[0] if len(found) == 1 else found or None)
    while out and out[-1] is None:  # as jax has it of what a program returns
      out.pop()
    return PartitionSpec(*out)

  def params(self, params: PyTree) -> PyTree:
    """NamedShardings of parameters; ValueError where the model says nothing."""
    return self._placed(params, self.axes)

  def judge(self, params: PyTree, axes: Axes) -> PyTree:
    """NamedShardings of a reward's parameters, of these axes if it has any."""
    if axes:
      return self._placed(params, axes)
    return jax.tree.map(lambda _: self.everywhere, params)

  def _placed(self, params: PyTree, axes: Axes) -> PyTree:
    def place(path, x):
      name = tree_lib.path_name(path)
      return self._sharding(x.shape, logical_axes(name, x.ndim, axes))

    return jax.tree_util.tree_map_with_path(place, params)

  def state(self, state: PyTree) -> PyTree:
    """NamedShardings of a TrainState: of its parameters, or on all devices."""

    def place(path, x):
      name, shape = tree_lib.path_name(path), x.shape
      axes = self._axes_of(name)
      if not axes or not len(shape):
        return self.everywhere
      try:
        names = logical_axes(name, len(shape), axes)
      except ValueError:  # statistics of another shape
        return self.everywhere
      return self._sharding(shape, names)

    # All parameters are known.
    self.params((state.params, state.frozen['policy']))
    for label, params in state.frozen['rewards'].items():
      self.judge(params, self.judges.get(label, ()))
    for label, part in state.aux.items():
      self.judge(part['params'], self.learners.get(label, ()))
    places = jax.tree_util.tree_map_with_path(place, state)
    return self._on_hosts(state, places)

  def _axes_of(self, name: str) -> Axes:
    """Of a leaf of a TrainState; (): it is on every device."""
    if name.startswith(_LIKE_PARAMS):
      return self.axes
    kind, _, rest = name.partition('/')
    if kind == 'aux':
      return self.learners.get(rest.partition('/')[0], ())
    kind, _, rest = rest.partition('/')
    of = dict(rewards=self.judges, learners=self.learners).get(kind, {})
    return of.get(rest.partition('/')[0], ())

  def _on_hosts(self, state: PyTree, shardings: PyTree) -> PyTree:
    """The shardings, in host memory those of what is offloaded."""
    return self._offloaded(
      lambda _, s: s.with_memory_kind(_HOST), state, shardings
    )

  def _offloaded(self, fn, state: PyTree, *trees: PyTree) -> PyTree:
    """The last of the trees, with `fn` of the leaves that are offloaded."""
    prefixes = tuple(OFFLOADED[part] for part in self.offload)
    if not prefixes:
      return (state, *trees)[-1]

    def one(path, *x):
      inside = tree_lib.path_name(path).startswith(prefixes) and x[0].ndim
      return fn(*x) if inside else x[-1]

    return jax.tree_util.tree_map_with_path(one, state, *trees)

  def near(self, state: PyTree) -> PyTree:
    """A TrainState whose offloaded parts are brought to the devices."""
    device = jax.memory.Space.Device
    return self._offloaded(lambda x: jax.device_put(x, device), state)

  def far(self, state: PyTree) -> PyTree:
    """Inside a program: a TrainState with them sent to the hosts again."""
    host = jax.memory.Space.Host
    return self._offloaded(lambda x: jax.device_put(x, host), state)

  def _sharding(self, shape, names) -> NamedSharding:
    return NamedSharding(self.mesh, self.spec(shape, names))

  def prompts(self, batch: PyTree) -> PyTree:
    """NamedShardings of prompts, arrays [P ...]: each is where its rows are.

    Rows are prompt-major, so that P prompts are split as their rows are. Where
    P does not divide over the devices of rows, all are on every device.
    """
    split = NamedSharding(self.mesh, PartitionSpec(ROW_AXES))

    def place(x):
      cut = self.row_shards > 1 and x.shape[0] % self.row_shards == 0
      return split if cut else self.everywhere

    return jax.tree.map(place, batch)

  def place(self, batch: PyTree) -> PyTree:
    """Prompts on their devices; of one device, left to what is called."""
    if self.mesh.size == 1:
      return batch
    return put(batch, self.prompts(batch))

  def shapes(self, batch: PyTree) -> PyTree:
    """The same as shapes."""
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      batch,
      self.prompts(batch),
    )

  def held(
    self, prompts: int, parts: int = 1, devices: Sequence[Any] | None = None
  ) -> np.ndarray:
    """Which prompts of a step `prompts` puts on some devices: ascending [n].

    Args:
      prompts: P.
      parts: stretches of them that are placed one after the other.
      devices: default those of this process.
    """
    if devices is None:
      here = jax.process_index()
      devices = [d for d in self.mesh.devices.flat if d.process_index == here]
    each = prompts // parts
    place = self.prompts(jax.ShapeDtypeStruct((each,), np.int32))
    at = place.devices_indices_map((each,))
    part = sorted({int(i) for d in devices for i in np.arange(each)[at[d]]})
    return np.add.outer(each * np.arange(parts), part).reshape(-1)

  @property
  def everywhere(self) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  def put(self, state: PyTree) -> PyTree:
    """A TrainState of one device or of the host, where it belongs."""
    if self.mesh.size > 1:
      return put(state, self.state(state))
    # As a program of one device returns it.
    one = jax.sharding.SingleDeviceSharding(self.mesh.devices.item())
    shardings = jax.tree.map(lambda _: one, state)
    return put(state, self._on_hosts(state, shardings))

  def constrain(self, state: PyTree) -> PyTree:
    """The same inside a program, all of it on the devices."""
    if self.mesh.size == 1:
      return state
    on_devices = self._replace(offload=()).state(state)
    return jax.lax.with_sharding_constraint(state, on_devices)

  def rows(self, x: PyTree, axis: int = 0) -> PyTree:
    """Inside a program: splits rows, which lie along `axis` of every leaf.

    What all rows share (Rows.key, of no dimension) is left alone.
    """
    if self.mesh.size == 1:
      return x
    spec = PartitionSpec(*(None,) * axis, ROW_AXES)
    sharding = NamedSharding(self.mesh, spec)
    return jax.tree.map(
      lambda a: (
        jax.lax.with_sharding_constraint(a, sharding) if a.ndim > axis else a
      ),
      x,
    )

  @contextlib.contextmanager
  def scope(self):
    """Programs traced inside place activations by `nn.with_logical_constraint`.

    On one device there is nothing to place. Where chips of another kind than
    those that are there are planned for, kernels are chosen for these.
    """
    with contextlib.ExitStack() as stack:
      first = self.mesh.devices.flat[0]
      if first.platform != jax.default_backend():
        stack.enter_context(chips.TRACED_FOR(first))
      if self.mesh.size > 1:
        rules = [(name, axes) for name, axes in self.rules.items()]
        stack.enter_context(jax.set_mesh(self.mesh))
        stack.enter_context(nn.logical_axis_rules(rules))
      yield


def one_device() -> Layout:
  """No mesh to speak of: the first device."""
  return Layout(make_mesh(devices=jax.devices()[:1]))


def put(tree: PyTree, shardings: PyTree) -> PyTree:
  """Arrays every process has, or arrays anywhere -> global arrays.

  Args:
    tree: of numpy or jax arrays, the same on all processes, or of
      `hosts.Held`.
    shardings: a tree like it, or one for all leaves.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)

  def one(x, sharding):
    if isinstance(x, hosts.Held):
      return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
    if jax.process_count() == 1 or not getattr(x, 'is_fully_addressable', True):
      return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = np.asarray(jax.random.key_data(x))
      spec = PartitionSpec(*sharding.spec, *(None,) * (data.ndim - x.ndim))
      data = one(data, NamedSharding(sharding.mesh, spec))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(one, tree, shardings)


def rows_error(
  rows: int, shards: int, parts: int = 1, name: str = 'microbatches'
) -> str | None:
  """Why rows cannot be split over devices, or None.

  Args:
    rows: of a rollout.
    shards: devices along the data and fsdp axes of the mesh.
    parts: of a rollout, each of which is split.
    name: what the parts are.
  """
  unit = shards * parts
  if rows % unit == 0:
    return None
  below = rows // unit * unit
  fits = [n for n in (below, below + unit) if n]
  cut = f' in {parts} {name}' if parts > 1 else ''
  return (
    f'{rows} rows (prompts_per_step * group_size){cut} do not divide over '
    f'{shards} device{"s" * (shards > 1)}; '
    f'{" or ".join(map(str, fits))} would'
  )
