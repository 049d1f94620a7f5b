"""Folders of released models: where they are, and what their files hold.

A folder as diffusers or transformers writes it: config.json, and one
safetensors file or its parts with their index. Every complaint is one sentence
that says what was found and what was expected.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np
import safetensors

from gen_rl.models import pickles
from gen_rl.models.weights import WeightsError

FLOATS = dict(F32='float32', BF16='bfloat16', F16='float16')
STEMS = 'diffusion_pytorch_model', 'model'
_TORCH = '.bin', '.pt', '.pth'
# What a hub is asked for: weights, configs, tokenizers.
_WANTED = '*.json', '*.safetensors', '*.txt', '*.model', '*.pt'


def locate(
  name: str | os.PathLike[str], part: str = '', revision: str | None = None
) -> str:
  """The folder of a model, or of a part of a pipeline.

  Args:
    name: a folder, or the id "owner/model" on the hub that huggingface_hub
      knows; its cache is looked at where there is no network.
    part: a folder inside, "transformer" or "text_encoder_2".
    revision: of the id.

  Raises:
    WeightsError: no such folder; an id that cannot be had, with the reason.
  """
  name = os.fspath(name)
  folder = name
  if not os.path.isdir(name):
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', name) or name[0] in './':
      raise WeightsError(f'There is no folder {name}.')
    # Slow to import, and most runs need no hub.
    import huggingface_hub  # noqa: PLC0415

    patterns = [f'{part}/{x}' if part else x for x in _WANTED]
    try:
      folder = huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=patterns
      )
    except Exception as error:
      reason = ' '.join(str(error).split())
      raise WeightsError(
        f'{name} is no folder here, and as the id of a released model it '
        f'cannot be had ({type(error).__name__}: {reason[:300]}). Download it '
        'where there is a network and access, and give the path of the folder.'
      ) from error
  folder = os.path.join(folder, part) if part else folder
  if not os.path.isdir(folder):
    inside = sorted(os.listdir(os.path.dirname(folder)))
    raise WeightsError(
      f'{name} has no folder {part}; it has {", ".join(inside) or "nothing"}.'
    )
  return folder


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
  """An object of a JSON file; WeightsError if it is none."""
  try:
    with open(path, encoding='utf-8') as f:
      found = json.load(f)
  except FileNotFoundError:
    raise WeightsError(f'There is no {path}.') from None
  except ValueError as error:
    raise WeightsError(f'{path} is no JSON: {error}.') from None
  if not isinstance(found, dict):
    raise WeightsError(f'{path} holds a {type(found).__name__}, not an object.')
  return found


def config(
  folder: str | os.PathLike[str], kinds: tuple[str, ...] = ()
) -> dict[str, Any]:
  """What config.json of a folder holds.

  Args:
    folder: see `locate`.
    kinds: names one of which it must have, as _class_name (diffusers),
      architectures or model_type (transformers); () for any.

  Raises:
    WeightsError: no such file, or the config of another kind of model.
  """
  path = os.path.join(folder, 'config.json')
  found = read_json(path)
  said = [found.get('_class_name'), found.get('model_type')]
  said += found.get('architectures') or []
  said = [x for x in said if x]
  if kinds and not set(kinds) & set(said):
    raise WeightsError(
      f'{path} is of {" / ".join(said) or "no named model"}, where '
      f'{" or ".join(kinds)} is wanted.'
    )
  return found


def open_tensors(
  folder: str | os.PathLike[str],
  stack: contextlib.ExitStack,
  variant: str = '',
) -> dict[str, Any]:
  """{name of a tensor: the open file that holds it}.

  Args:
    folder: see `locate`; or a file of torch. In a folder without safetensors,
      one such file will do.
    stack: closes the files.
    variant: "fp16" for files like model.fp16.safetensors.

  Raises:
    WeightsError: no weights in this format, parts that are not there, files
      that are truncated, a tensor in two of them.
  """
  folder = os.fspath(folder)
  if torch := _torch_file(folder):
    file = stack.enter_context(pickles.File(torch))
    return dict.fromkeys(file.keys(), file)
  ending = f'.{variant}.safetensors' if variant else '.safetensors'
  for stem in STEMS:
    whole = os.path.join(folder, stem + ending)
    index = os.path.join(folder, f'{stem}.safetensors.index.json')
    if variant:
      index = os.path.join(folder, f'{stem}.safetensors.index.{variant}.json')
    if os.path.isfile(whole):
      paths = [whole]
      break
    if os.path.isfile(index):
      parts = sorted(set(read_json(index).get('weight_map', {}).values()))
      paths = [os.path.join(folder, part) for part in parts]
      break
  else:
    there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    raise WeightsError(
      f'{folder} has no {" or ".join(stem + ending for stem in STEMS)} and no '
      f'index of parts; other formats cannot be loaded. It has '
      f'{", ".join(there) or "nothing"}.'
    )
  absent = [path for path in paths if not os.path.isfile(path)]
  if absent or not paths:
    raise WeightsError(
      f'{index} names files that are not there: {", ".join(absent) or "none"}.'
    )
  files: dict[str, Any] = {}
  twice = []
  for path in paths:
    try:
      file = _Part(path)
    except Exception as error:
      raise WeightsError(
        f'{path} ({os.path.getsize(path)} bytes) is truncated or not a'
        f' safetensors file: {error}.'
      ) from None
    names = file.keys()
    twice += [name for name in names if name in files]
    files |= {name: file for name in names}
  if twice:
    raise WeightsError(
      f'{folder} has tensors in two files: {", ".join(sorted(twice))}.'
    )
  return files


def _torch_file(folder: str) -> str | None:
  """The file of torch that is meant, where there is no safetensors."""
  if os.path.isfile(folder):
    return folder if folder.endswith(_TORCH) else None
  if not os.path.isdir(folder):
    return None
  inside = os.listdir(folder)
  if any('.safetensors' in name for name in inside):
    return None
  found = [name for name in inside if name.endswith(_TORCH)]
  return os.path.join(folder, found[0]) if len(found) == 1 else None


class _Part:
  """A safetensors file that is open only while a tensor is read.

  An open one is mapped, and what was read of it counts as memory of the process
  until it is closed.
  """

  def __init__(self, path: str):
    self._path = path
    with safetensors.safe_open(path, 'numpy') as file:
      names = file.keys()  # a method: the file is no mapping
      slices = {name: file.get_slice(name) for name in names}
      self._header = {
        name: _Header(x.get_shape(), x.get_dtype())
        for name, x in slices.items()
      }

  def keys(self) -> list[str]:
    return list(self._header)

  def get_slice(self, name: str) -> '_Header':
    return self._header[name]

  def get_tensor(self, name: str) -> np.ndarray:
    with safetensors.safe_open(self._path, 'numpy') as file:
      return file.get_tensor(name)


class _Header(NamedTuple):
  shape: list[int]
  dtype: str

  def get_shape(self) -> list[int]:
    return self.shape

  def get_dtype(self) -> str:
    return self.dtype


class Held:
  """Tensors in memory, with the methods of an open file."""

  def __init__(self, tensors: Mapping[str, np.ndarray]):
    self._tensors = tensors

  def get_tensor(self, name: str) -> np.ndarray:
    return self._tensors[name]

  def get_slice(self, name: str) -> _Header:
    x = self._tensors[name]
    kinds = {value: key for key, value in FLOATS.items()}
    return _Header(list(x.shape), kinds.get(x.dtype.name, x.dtype.name))


def check(
  folder: str | os.PathLike[str],
  files: Mapping[str, Any],
  wanted: Mapping[str, tuple[int, ...]],
  ignored: tuple[str, ...] = (),
  aliases: tuple[tuple[str, str], ...] = (),
  optional: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, str]:
  """Names, shapes and types of all tensors, before any is read.

  Args:
    folder: for messages.
    files: of `open_tensors`.
    wanted: {name: shape}.
    ignored: see `released.Names`.
    aliases: see `released.Names`.
    optional: like `wanted`, of what may be there as well.

  Returns:
    {name that is wanted: name in the file}.

  Raises:
    WeightsError: all that is missing, unexpected or misshapen in one sentence.
  """
  may = dict(optional or {}) | dict(wanted)
  found: dict[str, str] = {}
  for name in files:
    if any(re.search(x, name) for x in ignored):
      continue
    new = name
    for expression, replacement in aliases:
      new = re.sub(expression, replacement, new)
    found[new] = name
  problems = []
  missing = [name for name in wanted if name not in found]
  if missing:
    problems.append(f'missing {", ".join(missing)}')
  unexpected = [name for name in found if name not in may]
  if unexpected:
    problems.append(f'unexpected {", ".join(sorted(unexpected))}')
  for name, theirs in found.items():
    if name not in may:
      continue
    part = files[theirs].get_slice(theirs)
    shape, kind = tuple(part.get_shape()), part.get_dtype()
    want = tuple(may[name])
    # Old files have products as convolutions of one pixel.
    pixel = len(want) == 2 and shape == (*want, 1, 1)
    if (shape != want and not pixel) or kind not in FLOATS:
      problems.append(
        f'{name} is {FLOATS.get(kind, kind)}{list(shape)} where '
        f'floats{list(want)} are wanted'
      )
  if problems:
    raise WeightsError(f'{folder} does not fit: {"; ".join(problems)}.')
  return {name: found[name] for name in may if name in found}
