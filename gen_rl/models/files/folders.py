"""Folders of released models: where they are, and what their files hold.

A folder as diffusers or transformers writes it: config.json, and the weights,
in one file or in parts with their index. Of what may hold them the first that
is there is read: safetensors, files of torch (.bin), and then, where there is
no plain file, the one variant ("fp16") that there is. Nothing outside of the
folder is read, whatever an index says, but the blobs of a hub's cache. Every
complaint is one sentence that says what was found and what was expected.
"""

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np
import safetensors

from gen_rl.models.files import pickles, weights
from gen_rl.models.files.weights import WeightsError
from gen_rl.utils import files as files_lib
from gen_rl.utils import origins
from gen_rl.utils.words import few

FLOATS = dict(F32='float32', BF16='bfloat16', F16='float16')
STEMS = 'diffusion_pytorch_model', 'model'
TORCH = '.bin', '.pt', '.pth'
# (ending, stems) of weights, in the order in which they are looked for.
_FORMATS = (
  ('safetensors', STEMS),
  ('bin', ('diffusion_pytorch_model', 'pytorch_model', 'model')),
)
# What a hub is asked for: weights, configs, tokenizers; and where that holds no
# weights, files of torch.
_WANTED = '*.json', '*.safetensors', '*.txt', '*.model', '*.pt'
_OTHERS = '*.bin', '*.pth'


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
    WeightsError: no such folder; a file; an id that cannot be had, with the
      reason.
  """
  name = os.path.expanduser(os.fspath(name))
  if os.path.isfile(name):
    raise WeightsError(
      f'{name} is a file, and the folder of a model is wanted; a checkpoint in '
      'one file has to be converted once: from_single_file(...) of its '
      'pipeline in diffusers, and save_pretrained(folder).'
    )
  folder = name if os.path.isdir(name) else _download(name, part, revision)
  folder = os.path.join(folder, part) if part else folder
  if not os.path.isdir(folder):
    inside = sorted(os.listdir(os.path.dirname(folder)))
    raise WeightsError(
      f'{name} has no folder {part}; it has {few(inside, 12) or "nothing"}.'
    )
  return folder


def _download(name: str, part: str, revision: str | None) -> str:
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', name) or name[0] in './':
    raise WeightsError(f'There is no folder {name}.')
  # Slow to import, and most runs need no hub.
  import huggingface_hub  # noqa: PLC0415

  def ask(wanted: Sequence[str]) -> str:
    patterns = [f'{part}/{x}' if part else x for x in wanted]
    return huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=patterns
    )

  try:
    folder = ask(_WANTED)
    inside = os.walk(os.path.join(folder, part))
    if not any(x.endswith('.safetensors') for *_, xs in inside for x in xs):
      folder = ask((*_WANTED, *_OTHERS))
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise WeightsError(
      f'{name} is no folder here, and as the id of a released model it '
      f'cannot be had ({type(error).__name__}: {reason[:300]}). Download it '
      'where there is a network and access, and give the path of the folder.'
    ) from error
  return folder


def _inside(folder: str | os.PathLike[str], name: str) -> str:
  """Path of a file; WeightsError if it is none, or outside of the folder."""
  path = os.path.join(folder, name)
  if problem := files_lib.outside(folder, name):
    raise WeightsError(f'{path} cannot be read: it is {problem}.')
  weights.readable(path)
  return path


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
  """An object of a JSON file; WeightsError if it is none."""
  path = _inside(*os.path.split(path))
  try:
    with open(path, encoding='utf-8') as f:
      found = json.load(f)
  except OSError as error:
    raise WeightsError(f'{path} cannot be read: {error.strerror}.') from None
  except (ValueError, RecursionError) as error:
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
  classes = found.get('architectures')
  said = [found.get('_class_name'), found.get('model_type')]
  said += classes if isinstance(classes, list) else [classes]
  said = [x for x in said if isinstance(x, str) and x]
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
    folder: see `locate`; or a file of torch. In a folder without weights of the
      usual names, one such file will do.
    stack: closes the files.
    variant: "fp16" for files like model.fp16.safetensors; '' for the plain
      ones, or the one variant where there are none.

  Raises:
    WeightsError: no weights in these formats, parts that are not there or not
      in the folder, files that are truncated, a tensor in two of them.
  """
  folder = os.fspath(folder)
  if folder.endswith(TORCH) and not os.path.isdir(folder):
    weights.readable(folder)
    found, paths = {}, [folder]
  else:
    found, names = _weights(folder, variant)
    paths = [_inside(folder, name) for name in names]
  files: dict[str, Any] = {}
  for path in paths:
    file = open_file(path, stack)
    names = file.keys()  # a method: the file is no mapping
    if twice := sorted(name for name in names if name in files):
      raise WeightsError(f'{folder} has tensors in two files: {few(twice)}.')
    files |= {name: file for name in names}
  if absent := sorted(name for name in found if name not in files):
    raise WeightsError(
      f'{folder} has an index of parts, and they lack what it names: '
      f'{few(absent)}.'
    )
  return files


def _weights(
  folder: str, variant: str
) -> tuple[Mapping[str, str], Sequence[str]]:
  """(an index's {tensor: part}, names of the files with a folder's weights)."""
  inside = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  variants = [variant]
  if not variant:
    stems = '|'.join(dict.fromkeys(x for _, xs in _FORMATS for x in xs))
    name = re.compile(
      rf'({stems})(\.(?P<a>\w+))?\.(safetensors|bin)'
      r'(\.index(\.(?P<b>\w+))?\.json)?'
    )
    matches = filter(None, map(name.fullmatch, inside))
    others = sorted({x['a'] or x['b'] for x in matches} - {None})
    variants += others if len(others) == 1 else []
  for kind in variants:
    dot = f'.{kind}' if kind else ''
    for ending, stems in _FORMATS:
      for stem in stems:
        if (whole := f'{stem}{dot}.{ending}') in inside:
          return {}, [whole]
        if (index := f'{stem}.{ending}.index{dot}.json') in inside:
          return _parts(folder, index)
  torch = [name for name in inside if name.endswith(TORCH)]
  if len(torch) == 1 and not any('.safetensors' in x for x in inside):
    return {}, torch
  dot = f'.{variant}' if variant else ''
  raise WeightsError(
    f'{folder} has no {" or ".join(f"{x}{dot}.safetensors" for x in STEMS)}, '
    f'no index of parts, and no one variant or file of torch in their place; '
    f'it has {few(inside, 12) or "nothing"}.'
  )


def _parts(folder: str, name: str) -> tuple[Mapping[str, str], Sequence[str]]:
  """What an index says, and the files it names."""
  index = os.path.join(folder, name)
  found = read_json(index).get('weight_map')
  if not isinstance(found, dict) or not all(
    isinstance(part, str) for part in found.values()
  ):
    raise WeightsError(
      f'{index} has no weight_map, an object that says of every tensor which '
      'file holds it.'
    )
  names = sorted(set(found.values()))
  absent = [x for x in names if not os.path.lexists(os.path.join(folder, x))]
  if absent or not names:
    raise WeightsError(
      f'{index} names files that are not there: {few(absent) or "none"}.'
    )
  return found, names


def open_file(path: str, stack: contextlib.ExitStack) -> Any:
  """A file of weights, open for as long as the stack."""
  origins.note(path)
  if path.endswith(TORCH):
    return stack.enter_context(pickles.File(path))
  try:
    return _Part(path)
  except Exception as error:
    raise WeightsError(
      f'{path} ({os.path.getsize(path)} bytes) is truncated or not a'
      f' safetensors file: {error}.'
    ) from None


class _Part:
  """A safetensors file that is open only while a tensor is read.

  An open one is mapped, and what was read of it counts as memory of the process
  until it is closed.
  """

  def __init__(self, path: str):
    self._path = path
    with safetensors.safe_open(path, 'numpy') as file:
      self._metadata = file.metadata() or {}
      names = file.keys()  # a method: the file is no mapping
      slices = {name: file.get_slice(name) for name in names}
      self._header = {
        name: _Header(x.get_shape(), x.get_dtype())
        for name, x in slices.items()
      }

  def keys(self) -> list[str]:
    return list(self._header)

  def metadata(self) -> dict[str, str]:
    return self._metadata

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
  problems = []
  for name in files:
    if any(re.search(x, name) for x in ignored):
      continue
    new = name
    for expression, replacement in aliases:
      new = re.sub(expression, replacement, new)
    if new in found:
      problems.append(f'{name} and {found[new]} for one place')
    found[new] = name
  missing = [name for name in wanted if name not in found]
  if missing:
    problems.append(f'missing {few(missing, 12)}')
  unexpected = [name for name in found if name not in may]
  if unexpected:
    problems.append(f'unexpected {few(sorted(unexpected), 12)}')
  misshapen = []
  for name, theirs in found.items():
    if name not in may:
      continue
    part = files[theirs].get_slice(theirs)
    shape, kind = tuple(part.get_shape()), part.get_dtype()
    want = tuple(may[name])
    # Old files have products as convolutions of one pixel.
    pixel = len(want) == 2 and shape == (*want, 1, 1)
    if (shape != want and not pixel) or kind not in FLOATS:
      misshapen.append(
        f'{name} is {FLOATS.get(kind, kind)}{list(shape)} where '
        f'floats{list(want)} are wanted'
      )
  if misshapen:
    problems.append(few(misshapen, 12))
  if problems:
    raise WeightsError(f'{folder} does not fit: {"; ".join(problems)}.')
  return {name: found[name] for name in may if name in found}
