"""Adapters of a network that start from a file, and go to diffusers.

What is written is one safetensors file. A module X of the network has

  <part>.X.lora_A.weight = A^T [rank, in],
  <part>.X.lora_B.weight = scale B^T [out, rank]                         (1)

for A, B and scale of `lora`: their product is the trained change, for readers
of every kind, those that know of no other scale among them. The header (key
lora_adapter_metadata, whose fields begin with the part) says the rank, and the
same for alpha. Scanned blocks have one module in (1) for each layer. What can
be read is more, see `adapter_files`.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gen_rl.build import ConfigError
from gen_rl.models.files import adapter_files, options, released, weights
from gen_rl.types import Array, Params
from gen_rl.utils import tree as tree_lib
from gen_rl.utils.words import few

FILE = adapter_files.FILE


def _kernels(params: Params) -> dict[str, Any]:
  """{name: kernel} of all that have adapters."""
  leaves = tree_lib.named(params)
  names = [n.removesuffix('_lora_a') for n in leaves if n.endswith('_lora_a')]
  return {name: leaves[name] for name in names}


def _modules(
  kernels: Mapping[str, Any], names: released.Names
) -> dict[str, released.Place]:
  """{name of a module in a file: its kernel, and which of a stack}."""
  places = released.places(tree_lib.nest(dict(kernels)), names)
  return {n.removesuffix('.weight'): place for n, place in places.items()}


def save(
  path: str | os.PathLike[str],
  params: Params,
  names: released.Names,
  part: str = 'transformer',
) -> None:
  """Writes the adapters of a network, float32, by (1).

  Those of a smaller rank than others are filled up with zeros.

  Args:
    path: of the file; diffusers looks for FILE in a folder.
    params: with adapters.
    names: of the network.
    part: of the pipeline: transformer or unet.

  Raises:
    ValueError: there are none.
  """
  kernels = _kernels(params)
  if not kernels:
    raise ValueError('there are no adapters to write; config.lora adds some')
  leaves = tree_lib.named(jax.device_get({
    f'{name}_lora_{x}': tree_lib.named(params)[f'{name}_lora_{x}']
    for name in kernels for x in ('a', 'b', 'scale')
  }))  # fmt: skip
  rank = max(leaves[f'{name}_lora_a'].shape[-1] for name in kernels)
  tensors, modules = {}, _modules(kernels, names)
  for module, place in modules.items():
    at = ... if place.index is None else place.index
    a, b, scale = (
      np.asarray(leaves[f'{place.leaf}_lora_{x}'], np.float32)[at]
      for x in ('a', 'b', 'scale')
    )
    more = rank - a.shape[-1]
    a, b = np.pad(a, ((0, 0), (0, more))), np.pad(b, ((0, more), (0, 0)))
    for x, matrix in ((a, 'lora_A'), (scale * b, 'lora_B')):
      tensors[f'{part}.{module}.{matrix}.weight'] = np.asarray(x.T, order='C')
  said = dict(r=rank, lora_alpha=rank, target_modules=sorted(modules))
  header = {f'{part}.{name}': value for name, value in said.items()}
  data = safetensors.numpy.save(
    tensors,
    {'format': 'pt', adapter_files.HEADER: json.dumps(header, sort_keys=True)},
  )
  weights.write(path, data)


def in_folders(
  part: str,
  kinds: Sequence[str],
  said: Mapping[str, Any],
  init: Callable[[Array], Params],
  names: released.Names,
  config: Callable[[Mapping[str, Any]], dict[str, Any]],
  config_json: Callable[[Mapping[str, Any]], dict[str, Any]],
  check: Callable[[str], None] = lambda folder: None,
  extra: Callable[[], Mapping[str, np.ndarray]] = dict,
) -> dict[str, Callable[..., Any]]:
  """`load`, `save` and `adapt` of a `layers.Net` that a folder's config says.

  `save` writes adapters alone into a folder for `load_lora_weights`, or all of
  a network without any into its part, for `from_pretrained`. Adapters are for
  the network that was read: it raises ValueError where more than they changed
  since, and merging them (`lora.merge`) gives what can be written then.

  Args:
    part: of the folder of a pipeline.
    kinds: classes its config may be of.
    said: keywords that the network was made with, as `config` has them.
    init: key -> parameters.
    names: of the network.
    config: config.json -> keywords.
    config_json: keywords -> config.json.
    check: raises where something else in a pipeline's folder does not fit.
    extra: see `released.save`.
  """
  read: dict[str, np.ndarray] = {}  # some numbers of every leaf

  def load_folder(folder: str, dtype: str) -> Params:
    at = released.locate(folder, part)
    options.same(at, config(released.config(at, kinds)), said, 'model.net')
    check(folder)
    like = jax.eval_shape(init, jax.random.key(0))
    params = released.load(at, like, names, dtype, host=True)
    read.clear()
    read.update({n: _some(x) for n, x in tree_lib.named(params).items()})
    return params

  def save_folder(folder: str, params: Params) -> None:
    os.makedirs(folder, exist_ok=True)
    if not _kernels(params):
      at = os.path.join(folder, part)
      released.save(at, params, names, config_json(said), extra=extra())
      return
    changed = [
      name for name, x in tree_lib.named(params).items()
      if name in read and (_some(x) != read[name].astype(x.dtype)).any()
    ]  # fmt: skip
    if changed:
      raise ValueError(
        f'a file of adapters cannot hold what was trained beside them: '
        f'{few(sorted(changed))}; merge the adapters into the network '
        '(gen_rl.models.parts.lora.merge) and write all of it'
      )
    save(os.path.join(folder, FILE), params, names, part)

  def adapt(path: str, params: Params) -> Params:
    return start(path, params, names, part)

  return dict(load=load_folder, save=save_folder, adapt=adapt)


def _some(x: Any) -> np.ndarray:
  """Up to 128 numbers of an array, from its first one on."""
  flat = np.asarray(x).reshape(-1)
  return flat[:: max(1, flat.size // 64)].copy()


def load(
  path: str | os.PathLike[str],
  params: Params,
  names: released.Names,
  part: str = 'transformer',
) -> Params:
  """The network with the adapters of a file.

  Args:
    path: see `adapter_files.read`.
    params: of the network, without adapters.
    names: of the network.
    part: see `save`.

  Returns:
    The parameters with adapters, of the largest rank among those of a kernel.
    Of a stack of scanned blocks all have one, or none: zeros where the file has
    none.

  Raises:
    WeightsError: see `adapter_files.read`.
  """
  kernels, modules, found = _read(path, params, names, part)
  leaves = tree_lib.named(params)
  for leaf in {modules[m].leaf for m in found}:
    rank = max(
      x.a.shape[1] for m, x in found.items() if modules[m].leaf == leaf
    )
    *stack, rows, columns = kernels[leaf].shape
    leaves |= {
      f'{leaf}_lora_a': np.zeros((*stack, rows, rank), np.float32),
      f'{leaf}_lora_b': np.zeros((*stack, rank, columns), np.float32),
      f'{leaf}_lora_scale': np.ones(stack, np.float32),
    }
  for module, x in found.items():
    leaf, index, _ = modules[module]
    at = () if index is None else index
    rank = x.a.shape[1]
    leaves[f'{leaf}_lora_a'][at][:, :rank] = x.a
    leaves[f'{leaf}_lora_b'][at][:rank] = x.b
    leaves[f'{leaf}_lora_scale'][at] = x.scale
  return jax.tree.map(jnp.asarray, tree_lib.nest(leaves))


def start(
  path: str | os.PathLike[str],
  params: Params,
  names: released.Names,
  part: str = 'transformer',
) -> Params:
  """A network whose new adapters compute what those of a file do.

  Scales stay those of the network; what B is multiplied with differs. An
  adapter that is not in the file, or has a smaller rank there, stays as it was
  drawn beyond that.

  Args:
    path: see `adapter_files.read`.
    params: of the network, with adapters of `lora.add`.
    names: of the network.
    part: see `save`.

  Raises:
    WeightsError: see `adapter_files.read`.
    ConfigError: the file has adapters of modules that have none here, or of a
      larger rank.
  """
  _, modules, found = _read(path, params, names, part)
  leaves = tree_lib.named(params)
  none = [m for m in found if f'{modules[m].leaf}_lora_a' not in leaves]
  if none:
    raise ConfigError(
      f'config.lora.start={os.fspath(path)!r} has adapters of modules that '
      f'lora.pattern does not find: {few(sorted(none))}'
    )
  ranks = {
    m: (x.a.shape[1], leaves[f'{modules[m].leaf}_lora_a'].shape[-1])
    for m, x in found.items()
  }
  if any(theirs > ours for theirs, ours in ranks.values()):
    raise ConfigError(
      f'config.lora.start={os.fspath(path)!r} has adapters of rank '
      f'{max(x for x, _ in ranks.values())}, and lora.rank is '
      f'{min(x for _, x in ranks.values())}; make it the same'
    )
  changed = {
    f'{leaf}_lora_{x}': np.array(leaves[f'{leaf}_lora_{x}'], np.float32)
    for leaf in {modules[m].leaf for m in found} for x in ('a', 'b', 'scale')
  }  # fmt: skip
  for module, x in found.items():
    leaf, index, _ = modules[module]
    at = () if index is None else index
    rank = x.a.shape[1]
    scale = changed[f'{leaf}_lora_scale'][at]
    changed[f'{leaf}_lora_a'][at][:, :rank] = x.a
    changed[f'{leaf}_lora_b'][at][:rank] = x.b * np.float32(x.scale / scale)
  return tree_lib.nest(leaves | changed)


def _read(
  path: str | os.PathLike[str],
  params: Params,
  names: released.Names,
  part: str,
) -> tuple[
  dict[str, Any],
  dict[str, released.Place],
  dict[str, adapter_files.Adapter],
]:
  """(kernels that may have adapters, their modules, those of a file)."""
  kernels = {
    name: x for name, x in tree_lib.named(params).items()
    if name.split('/')[-1] == 'kernel' and x.ndim in (2, 3)
  }  # fmt: skip
  modules = _modules(kernels, names)
  shapes = {m: place.shape for m, place in modules.items()}
  products = {m: x for m, x in shapes.items() if len(x) == 2}
  return kernels, modules, adapter_files.read(path, products, part)
