"""Files of torch.save, read without torch and without running what they say.

Some models are released as a pickle of torch only. Such a file is a zip of
data.pkl, the pickle, and data/<key>, the numbers of a storage; a tensor is a
view of a storage: offset, size and stride in numbers. A pickle may call
anything that can be imported, so every name in it is looked up here, and there
are only those that make tensors and dictionaries; any other one is an error.

  torch_file.rewrite('ImageReward.pt', 'imagereward', 'med_config.json')

makes a folder that `released.load` reads.
"""

import collections
from collections.abc import Mapping, Sequence
import json
import math
import os
import pickle
from typing import Any
import zipfile

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gen_rl.models import folders, weights
from gen_rl.models.weights import WeightsError

_STORAGES = dict(
  FloatStorage='float32', DoubleStorage='float64', HalfStorage='float16',
  BFloat16Storage='bfloat16', LongStorage='int64', IntStorage='int32',
  ShortStorage='int16', CharStorage='int8', ByteStorage='uint8',
  BoolStorage='bool',
)  # fmt: skip


def _tensor(
  storage: np.ndarray,
  offset: int,
  size: Sequence[int],
  stride: Sequence[int],
  *_: Any,
) -> np.ndarray:
  """A view of a storage, copied."""
  size, stride = tuple(size), tuple(stride)
  reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  inside = min((offset, *size, *stride)) >= 0 and (
    not math.prod(size) or offset + reach < len(storage)
  )
  if not inside:
    raise WeightsError(
      f'a tensor of size {size}, stride {stride} and offset {offset} is not '
      f'within its {len(storage)} numbers'
    )
  steps = tuple(s * storage.itemsize for s in stride)
  view = np.lib.stride_tricks.as_strided(
    storage[min(offset, len(storage)) :], size, steps, writeable=False
  )
  return np.array(view)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
  return data


_NAMES = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch._utils', '_rebuild_tensor_v2'): _tensor,
  ('torch._utils', '_rebuild_parameter'): _parameter,
  **{('torch', name): np.dtype(jnp.dtype(x)) for name, x in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
  """Knows `_NAMES` and nothing else."""

  def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
    super().__init__(file)
    self._archive, self._root = archive, root
    self._storages: dict[str, np.ndarray] = {}

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _NAMES:
      raise WeightsError(
        f'it asks for {module}.{name}, and only tensors and dictionaries are '
        'read'
      )
    return _NAMES[module, name]

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, dtype, key, _, count = pid
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      raise WeightsError(f'it holds a {kind!r}, where a storage is known')
    if key not in self._storages:
      data = self._archive.read(f'{self._root}data/{key}')
      self._storages[key] = np.frombuffer(data, dtype, count)
    return self._storages[key]


def load(path: str | os.PathLike[str], part: str = '') -> dict[str, np.ndarray]:
  """{name: tensor} of a state dict.

  Args:
    path: of the file.
    part: where it is, if the file holds several things: 'state_dict'.

  Raises:
    WeightsError: no such file, one in another format, one that asks for more
      than tensors, or no state dict there.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise WeightsError(f'There is no weights file {path}.')
  try:
    with zipfile.ZipFile(path) as archive:
      roots = [
        name.removesuffix('data.pkl')
        for name in archive.namelist()
        if name.endswith('/data.pkl')
      ]
      if len(roots) != 1:
        raise WeightsError(f'it has {len(roots)} pickles, where there is one')
      (root,) = roots
      if f'{root}byteorder' in archive.namelist():
        order = archive.read(f'{root}byteorder').decode()
        if order != 'little':
          raise WeightsError(f'its numbers are {order}-endian')
      with archive.open(f'{root}data.pkl') as file:
        found = _Unpickler(file, archive, root).load()
  except (
    WeightsError, zipfile.BadZipFile, pickle.UnpicklingError, KeyError,
    ValueError, TypeError, EOFError,
  ) as error:  # fmt: skip
    raise WeightsError(
      f'{path} is no file of torch.save (version 1.6 or later) that can be '
      f'read: {error}.'
    ) from None
  if part:
    there = found if isinstance(found, Mapping) else {}
    if part not in there:
      raise WeightsError(
        f'{path} has no {part!r}; it has {", ".join(map(str, there))}.'
      )
    found = there[part]
  if not isinstance(found, Mapping) or not all(
    isinstance(x, np.ndarray) for x in found.values()
  ):
    holds = (
      ', '.join(map(str, found))
      if isinstance(found, Mapping)
      else type(found).__name__
    )
    raise WeightsError(
      f'{path} is no state dict; say which part of it is: {holds[:300]}.'
    )
  return {str(name): x for name, x in found.items()}


def rewrite(
  path: str | os.PathLike[str],
  folder: str | os.PathLike[str],
  config: Mapping[str, Any] | str | os.PathLike[str],
  part: str = '',
) -> None:
  """Writes a folder with model.safetensors and config.json.

  Args:
    path: of a file of torch.save.
    folder: made if it is not there; files of these names are replaced.
    config: for config.json, or the path of one.
    part: see `load`.

  Raises:
    WeightsError: see `load`; a config that is no JSON.
  """
  if not isinstance(config, Mapping):
    config = folders.read_json(config)
  tensors = load(path, part)
  os.makedirs(folder, exist_ok=True)
  data = safetensors.numpy.save(tensors, {'format': 'pt'})
  weights.write(os.path.join(folder, 'model.safetensors'), data)
  text = json.dumps(dict(config), indent=2, sort_keys=True) + '\n'
  weights.write(os.path.join(folder, 'config.json'), text)
