"""Adapters as diffusers and PEFT write them, and back.

One safetensors file. A module X of the network has

  <part>.X.lora_A.weight = A^T [rank, in],
  <part>.X.lora_B.weight = B^T [out, rank]                               (1)

for the A and B of `lora`, and the header says rank and alpha (key
lora_adapter_metadata, whose fields begin with the part). Files without that
field mean alpha = rank. Scanned blocks have one module in (1) for each layer.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from gen_rl.models import options, released, weights
from gen_rl.models.weights import WeightsError
from gen_rl.types import Array, Params
from gen_rl.utils import tree as tree_lib

FILE = 'pytorch_lora_weights.safetensors'
_HEADER = 'lora_adapter_metadata'


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
  """Writes the adapters of a network, float32 as they are.

  Args:
    path: of the file; diffusers looks for FILE in a folder.
    params: with adapters.
    names: of the network.
    part: of the pipeline: transformer or unet.

  Raises:
    ValueError: there are none, or they have unlike ranks or scales.
  """
  kernels = _kernels(params)
  if not kernels:
    raise ValueError('there are no adapters to write; config.lora adds some')
  leaves = tree_lib.named(jax.device_get({
    f'{name}_lora_{x}': tree_lib.named(params)[f'{name}_lora_{x}']
    for name in kernels for x in ('a', 'b', 'scale')
  }))  # fmt: skip
  ranks = {leaves[f'{name}_lora_a'].shape[-1] for name in kernels}
  scales = {
    float(x) for name in kernels for x in np.ravel(leaves[f'{name}_lora_scale'])
  }
  if len(ranks) > 1 or len(scales) > 1:
    raise ValueError(
      f'adapters of one file have one rank and one scale; these have ranks '
      f'{sorted(ranks)} and scales {sorted(scales)}'
    )
  (rank,), (scale,) = ranks, scales
  tensors, modules = {}, _modules(kernels, names)
  for module, place in modules.items():
    for letter, matrix in (('a', 'lora_A'), ('b', 'lora_B')):
      x = leaves[f'{place.leaf}_lora_{letter}']
      x = x if place.index is None else x[place.index]
      tensors[f'{part}.{module}.{matrix}.weight'] = np.asarray(x.T, order='C')
  said = dict(r=rank, lora_alpha=rank * scale, target_modules=sorted(modules))
  header = {f'{part}.{name}': value for name, value in said.items()}
  data = safetensors.numpy.save(
    tensors, {'format': 'pt', _HEADER: json.dumps(header, sort_keys=True)}
  )
  weights.write(path, data)


def save_network(
  folder: str,
  params: Params,
  names: released.Names,
  part: str,
  config: Mapping[str, Any],
  extra: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Adapters into a folder, or all of a network without any into its part.

  Args:
    folder: for `load_lora_weights`, or whose `part` is for `from_pretrained`.
    params: of the network.
    names: of the network.
    part: see `save`.
    config: see `released.save`.
    extra: see `released.save`.
  """
  os.makedirs(folder, exist_ok=True)
  if _kernels(params):
    save(os.path.join(folder, FILE), params, names, part)
    return
  at = os.path.join(folder, part)
  released.save(at, params, names, config, extra=extra)


def in_folders(
  part: str,
  kinds: Sequence[str],
  said: Mapping[str, Any],
  init: Callable[[Array], Params],
  names: released.Names,
  config: Callable[[Mapping[str, Any]], dict[str, Any]],
  config_json: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> tuple[Callable[[str, str], Params], Callable[[str, Params], None]]:
  """(load, save) of a `layers.Net` that a folder's config describes whole.

  Args:
    part: of the folder of a pipeline.
    kinds: classes its config may be of.
    said: keywords that the network was made with, as `config` has them.
    init: key -> parameters.
    names: of the network.
    config: config.json -> keywords.
    config_json: keywords -> config.json.
  """

  def load(folder: str, dtype: str) -> Params:
    at = released.locate(folder, part)
    options.same(at, config(released.config(at, kinds)), said, 'model.net')
    like = jax.eval_shape(init, jax.random.key(0))
    return released.load(at, like, names, dtype, host=True)

  def save(folder: str, params: Params) -> None:
    save_network(folder, params, names, part, config_json(said))

  return load, save


def load(
  path: str | os.PathLike[str],
  params: Params,
  names: released.Names,
  part: str = 'transformer',
) -> Params:
  """The network with the adapters of a file.

  Args:
    path: of the file, or the folder that holds FILE.
    params: of the network, without adapters.
    names: of the network.
    part: see `save`.

  Returns:
    The parameters with adapters. Of a stack of scanned blocks all have one, or
    none: zeros where the file has none.

  Raises:
    WeightsError: no such file, or it holds something else: modules that the
      network does not have, halves of adapters, unlike ranks; all are named.
  """
  path = os.fspath(path)
  path = os.path.join(path, FILE) if os.path.isdir(path) else path
  tensors, header = _read(path)
  there = {
    name: x for name, x in tree_lib.named(params).items()
    if name.split('/')[-1] == 'kernel'
  }  # fmt: skip
  modules = _modules(there, names)
  found: dict[str, dict[str, np.ndarray]] = {}
  strange = []
  for name, x in tensors.items():
    module, _, end = name.removeprefix(f'{part}.').rpartition('.lora_')
    letter = end.removesuffix('.weight')
    if module not in modules or letter not in ('A', 'B'):
      strange.append(name)
    else:
      found.setdefault(module, {})[letter] = x
  half = [m for m, pair in found.items() if len(pair) < 2]
  wrong = [
    f'{m} is {list(p["B"].shape)} x {list(p["A"].shape)} where '
    f'{list(modules[m].shape)} is wanted'
    for m, p in found.items()
    if len(p) == 2
    and (p['B'].shape[0], p['A'].shape[1]) != tuple(modules[m].shape)
  ]
  ranks = {p['A'].shape[0] for p in found.values() if 'A' in p}
  problems = [
    f'unexpected {", ".join(strange)}' if strange else '',
    f'only half of {", ".join(half)}' if half else '',
    '; '.join(wrong),
    f'ranks {sorted(ranks)}, where one is wanted' if len(ranks) != 1 else '',
  ]
  if any(problems):
    raise WeightsError(
      f'{path} does not fit: {"; ".join(filter(None, problems))}.'
    )
  (rank,) = ranks
  alpha = header.get(f'{part}.lora_alpha', rank)
  leaves = tree_lib.named(params)
  for name in {modules[m].leaf for m in found}:
    *stack, rows, columns = there[name].shape
    leaves |= {
      f'{name}_lora_a': np.zeros((*stack, rows, rank), np.float32),
      f'{name}_lora_b': np.zeros((*stack, rank, columns), np.float32),
      f'{name}_lora_scale': np.full(stack, alpha / rank, np.float32),
    }
  for module, pair in found.items():
    place = modules[module]
    for letter, x in pair.items():
      whole = leaves[f'{place.leaf}_lora_{letter.lower()}']
      whole[... if place.index is None else place.index] = x.T
  return jax.tree.map(jnp.asarray, tree_lib.nest(leaves))


def _read(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  if not os.path.isfile(path):
    raise WeightsError(f'There is no file of adapters {path}.')
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      names = file.keys()  # a method: the file is no mapping
      tensors = {name: file.get_tensor(name) for name in names}
      header = json.loads((file.metadata() or {}).get(_HEADER, '{}'))
  except Exception as error:
    raise WeightsError(
      f'{path} ({os.path.getsize(path)} bytes) is truncated or not a'
      f' safetensors file: {error}.'
    ) from None
  return tensors, header
