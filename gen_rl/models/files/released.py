"""Folders of released models as parameter trees, and back.

A folder as diffusers or transformers writes it: config.json, and one
safetensors file or its parts with their index. Modules here are named as those
that made the file, so names follow mechanically:

  blocks_3/attn/to_q/kernel  <->  blocks.3.attn.to_q.weight              (1)

(an underscore before a number is a dot, but for linear_1 and linear_2; kernel,
scale and embedding are weight), and a product there is y = A x, ours y = x W:

  W = A^T;  convolutions [h w in out]  <->  [out in h w]                 (2)

Scanned blocks hold one leaf [layers ...] for as many tensors. `Names` says what
else differs. Nothing is skipped: a tensor that finds no place is an error.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import json
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gen_rl.models.files import folders, weights
from gen_rl.types import Params, PyTree
from gen_rl.utils import tree as tree_lib

config, locate = folders.config, folders.locate
_LIST = re.compile(r'(?<!linear)_(\d+)$')
_WEIGHTS = 'kernel', 'scale', 'embedding'


class Names(NamedTuple):
  """What (1) does not say of a model's names.

  Regular expressions search; replacements are those of `re.sub`.
  """

  # (expression, replacement), one after the other, of a name by (1)
  rename: tuple[tuple[str, str], ...] = ()
  # {path of scanned blocks: (dotted name of their list, index of the first)}
  stacked: Mapping[str, tuple[str, int]] = {}
  # tensors that follow from the config
  ignored: tuple[str, ...] = ()
  # (expression, replacement), of names in old files -> names of today
  aliases: tuple[tuple[str, str], ...] = ()


PLAIN = Names()


class Place(NamedTuple):
  """Where a tensor goes."""

  leaf: str  # name of ours
  index: int | None  # which of the scanned blocks
  shape: tuple[int, ...]  # of the tensor


def dotted(path: str) -> str:
  """(1) for the name of a leaf."""
  *modules, leaf = path.split('/')
  modules = [_LIST.sub(r'.\1', module) for module in modules]
  return '.'.join([*modules, 'weight' if leaf in _WEIGHTS else leaf])


def places(like: PyTree, names: Names = PLAIN) -> dict[str, Place]:
  """{name of a tensor: where it goes} for a parameter tree.

  Args:
    like: arrays or ShapeDtypeStructs.
    names: of the model.

  Raises:
    ValueError: two leaves with one name.
  """
  out: dict[str, Place] = {}
  for leaf, x in tree_lib.named(like).items():
    shape = tuple(x.shape)
    above = [p for p in names.stacked if leaf.startswith(f'{p}/')]
    if above:
      (path,) = above
      prefix, first = names.stacked[path]
      rest = dotted(leaf.removeprefix(f'{path}/'))
      each = [(f'{prefix}.{first + i}.{rest}', i) for i in range(shape[0])]
      shape = shape[1:]
    else:
      each = [(dotted(leaf), None)]
    for name, index in each:
      for expression, replacement in names.rename:
        name = re.sub(expression, replacement, name)
      if name in out:
        raise ValueError(f'{leaf} and {out[name].leaf} are both named {name}')
      out[name] = Place(leaf, index, _turned(leaf, shape))
  return out


def _turned(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the tensor for that of a leaf, by (2)."""
  if not _is_kernel(leaf, len(shape)):
    return shape
  return (shape[-1], shape[-2], *shape[:-2])


def _is_kernel(leaf: str, rank: int) -> bool:
  return leaf.split('/')[-1] == 'kernel' and rank >= 2


def _to_ours(leaf: str, x: np.ndarray) -> np.ndarray:
  if not _is_kernel(leaf, x.ndim):
    return x
  return np.transpose(x, (*range(2, x.ndim), 1, 0))


def _to_theirs(leaf: str, x: np.ndarray) -> np.ndarray:
  if not _is_kernel(leaf, x.ndim):
    return x
  return np.transpose(x, (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)))


def load(
  folder: str | os.PathLike[str],
  like: PyTree,
  names: Names = PLAIN,
  dtype: str | None = 'float32',
  shardings: PyTree = None,
  variant: str = '',
  host: bool = False,
) -> Params:
  """Parameters of a released model, tensor by tensor.

  No more than one leaf at a time is held on the host besides what the system
  maps of a file.

  Args:
    folder: with the weights, see `folders.locate`.
    like: tree of arrays or ShapeDtypeStructs, such as jax.eval_shape(init).
    names: of the model.
    dtype: of all parameters; None takes the types of `like`.
    shardings: tree like `like`, where the arrays shall live; None for the
      default device.
    variant: see `folders.open_tensors`.
    host: leave them in the memory of the host, as numpy arrays, for networks
      that one device does not hold.

  Returns:
    A tree like `like`.

  Raises:
    WeightsError: files that are missing or broken, or tensors that are
      missing, unexpected, of another shape or no floats; all are named. Or
      one whose numbers are not finite.
  """
  with contextlib.ExitStack() as stack:
    files = folders.open_tensors(folder, stack, variant)
    put = (lambda x, _: x) if host else _put
    return _filled(files, folder, like, names, dtype, shardings, put)


def fill(
  tensors: Mapping[str, np.ndarray],
  source: str,
  like: PyTree,
  names: Names = PLAIN,
  dtype: str | None = 'float32',
) -> Params:
  """Likewise, from tensors in memory.

  Args:
    tensors: {name: tensor} as a released file has them.
    source: where they come from, for messages.
    like: see `load`.
    names: see `load`.
    dtype: see `load`.

  Raises:
    WeightsError: see `load`.
  """
  held = folders.Held(tensors)
  return _filled(dict.fromkeys(tensors, held), source, like, names, dtype)


def _filled(
  files: Mapping[str, Any],
  folder: str | os.PathLike[str],
  like: PyTree,
  names: Names,
  dtype: str | None,
  shardings: PyTree = None,
  put: Callable[[np.ndarray, Any], Any] | None = None,
) -> Params:
  put = put or _put
  of_leaf: dict[str, dict[int | None, str]] = {}
  there = places(like, names)
  for name, place in there.items():
    of_leaf.setdefault(place.leaf, {})[place.index] = name
  where = tree_lib.named(shardings) if shardings is not None else {}
  wanted = {name: place.shape for name, place in there.items()}
  found = folders.check(folder, files, wanted, names.ignored, names.aliases)

  def read(leaf: str, name: str, own: np.dtype) -> np.ndarray:
    x = files[found[name]].get_tensor(found[name]).reshape(there[name].shape)
    return weights.floats(folder, name, _to_ours(leaf, x), own)

  leaves = []
  for leaf, want in tree_lib.named(like).items():
    own = jnp.dtype(dtype or want.dtype)
    each = of_leaf[leaf]
    if None in each:
      x = read(leaf, each[None], own)
    else:
      x = np.empty(want.shape, own)
      for i, name in each.items():
        x[i] = read(leaf, name, own)
    leaves.append(put(x, where.get(leaf)))
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _put(x: np.ndarray, sharding: Any) -> jax.Array:
  if sharding is None:
    return jnp.asarray(x)
  # Each process gives the parts that its own devices hold.
  return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])


def tensors(
  params: PyTree, names: Names = PLAIN
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor) of a released file for parameters, one after the other."""
  leaves = tree_lib.named(params)
  for name, place in places(params, names).items():
    x = leaves[place.leaf]
    x = np.asarray(jax.device_get(x if place.index is None else x[place.index]))
    yield name, np.asarray(_to_theirs(place.leaf, x), order='C')


def save(
  folder: str | os.PathLike[str],
  params: PyTree,
  names: Names,
  config: Mapping[str, Any],
  part_bytes: int = 5 * 10**9,
  extra: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Writes a folder that diffusers or transformers can load.

  Types are kept. Files of the same names are replaced, one by one, each as a
  whole.

  Args:
    folder: made if it is not there.
    params: parameters of the model.
    names: of the model.
    config: for config.json; one with _class_name makes files as diffusers
      names them.
    part_bytes: largest size of a file; more are written with an index.
    extra: {name: tensor} that follow from the config and are wanted all the
      same.

  Raises:
    OSError: the folder cannot be written.
  """
  os.makedirs(folder, exist_ok=True)
  stem = folders.STEMS[0] if '_class_name' in config else folders.STEMS[1]
  parts: list[list[str]] = [[]]
  filled, total = 0, 0
  leaves = tree_lib.named(params)
  sizes = {
    name: int(np.prod(place.shape)) * leaves[place.leaf].dtype.itemsize
    for name, place in places(params, names).items()
  }
  extra = dict(extra or {})
  for name, size in (sizes | {n: x.nbytes for n, x in extra.items()}).items():
    if parts[-1] and filled + size > part_bytes:
      parts.append([])
      filled = 0
    parts[-1].append(name)
    filled, total = filled + size, total + size
  count = len(parts)
  files = [
    f'{stem}-{i + 1:05d}-of-{count:05d}.safetensors' for i in range(count)
  ]
  files = files if count > 1 else [f'{stem}.safetensors']
  stream = itertools.chain(tensors(params, names), extra.items())
  weight_map = {}
  for file, part in zip(files, parts, strict=True):
    held = dict(next(stream) for _ in part)
    weight_map |= dict.fromkeys(held, file)
    data = safetensors.numpy.save(held, {'format': 'pt'})
    weights.write(os.path.join(folder, file), data)
  if count > 1:
    index = dict(metadata=dict(total_size=total), weight_map=weight_map)
    text = json.dumps(index, indent=2, sort_keys=True)
    weights.write(os.path.join(folder, f'{stem}.safetensors.index.json'), text)
  text = json.dumps(dict(config), indent=2, sort_keys=True) + '\n'
  weights.write(os.path.join(folder, 'config.json'), text)
