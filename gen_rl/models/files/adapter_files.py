"""Files of adapters, as those who train them write them.

Of a module X with the kernel W of `lora`, they hold

  X.lora_A.weight [rank in], X.lora_B.weight [out rank]   PEFT, diffusers
  X.lora_down.weight, X.lora_up.weight, X.alpha           kohya, ai-toolkit
  X.lora.down.weight, X.processor.to_q_lora.down.weight   diffusers before 0.22

X is a name of diffusers, with dots or, in kohya's, with underscores only, and
has one or more of `_ABOVE` before it. What is added to the product is

  scale (x A^T) B^T,  scale = alpha / rank, or alpha / sqrt(rank)        (1)

where a file says use_rslora. Alpha is that of the module (X.alpha,
alpha_pattern), else lora_alpha of the header or of adapter_config.json, else
the rank.
"""

from collections.abc import Mapping
import contextlib
import json
import math
import os
import re
from typing import Any, NamedTuple

import numpy as np

from gen_rl.models.files import folders, options, weights
from gen_rl.models.files.weights import WeightsError
from gen_rl.utils.words import few

FILE = 'pytorch_lora_weights.safetensors'
HEADER = 'lora_adapter_metadata'
_CONFIG = 'adapter_config.json'
_ENDINGS = ('.safetensors', *folders.TORCH)

_ABOVE = re.compile(
  r'base_model\.model\.|transformer\.|unet\.|diffusion_model\.|model\.'
  r'|lora_transformer_|lora_unet_'
)
_DOWN, _UP, _ALPHA = 'A', 'B', 'alpha'
_LETTERS = dict(A=_DOWN, B=_UP, down=_DOWN, up=_UP)
# A name of an adapter in memory, "default", may stand behind A and B.
_MATRIX = re.compile(
  r'(\.lora_|\.lora\.|_lora\.)(?P<letter>A|B|down|up)(\.\w+)?\.weight$'
)
_NUMBER = re.compile(r'(\.lora|_lora)?\.alpha$')
_NUMBERS = 'F64', 'I64', 'I32'  # types it may have as well

# Of PEFT's options those that change what is computed, and what they may be.
_COMPUTED = dict(
  peft_type=('LORA',),
  use_rslora=(False, True),
  use_dora=(False,),
  use_qalora=(False,),
  use_bdlora=(None, False),
  fan_in_fan_out=(False,),
  lora_bias=(False,),
  bias=('none',),
  modules_to_save=(None, ()),
  target_parameters=(None, ()),
  # Others of these change the kernels of the network, too.
  init_lora_weights=(True, False, 'gaussian', 'eva', 'orthogonal'),
)
_FREE = (
  'task_type', 'auto_mapping', 'peft_version', 'base_model_name_or_path',
  'revision', 'inference_mode', 'r', 'target_modules', 'exclude_modules',
  'lora_alpha', 'lora_dropout', 'layers_to_transform', 'layers_pattern',
  'rank_pattern', 'alpha_pattern', 'eva_config', 'runtime_config',
  'megatron_core', 'qalora_group_size',
)  # fmt: skip


class Adapter(NamedTuple):
  """Of one module: scale (x a) b."""

  a: np.ndarray  # float32 [in rank]
  b: np.ndarray  # float32 [rank out]
  scale: float


def read(
  path: str | os.PathLike[str],
  modules: Mapping[str, tuple[int, int]],
  part: str,
) -> dict[str, Adapter]:
  """The adapters of a file, {name of a module: adapter}.

  Args:
    path: a file; a folder that PEFT or diffusers wrote, or with one such file;
      or its id on the hub.
    modules: {name as in diffusers: (out, in)} of the network.
    part: of a pipeline, which fields of a header belong to.

  Raises:
    WeightsError: no such file; tensors or options that the network does not
      compute, halves of adapters, sizes that do not fit, or numbers that are
      not finite; in one sentence that names a few.
  """
  path = _file(os.path.expanduser(os.fspath(path)))
  tensors, header = _tensors(path)
  said = _said(path, header, tensors, part)
  names = {name.replace('.', '_'): name for name in modules}
  names |= {name: name for name in modules}
  found: dict[str, dict[str, np.ndarray]] = {}
  strange, twice = [], []
  for name, x in tensors.items():
    module, kind = _place(name, names)
    if module is None:
      strange.append(name)
    elif kind in found.setdefault(module, {}):
      twice.append(name)
    else:
      found[module][kind] = x
  half = [m for m, parts in found.items() if not {_DOWN, _UP} <= set(parts)]
  wrong = [
    f'{m} is {list(parts[_UP].shape)} x {list(parts[_DOWN].shape)} where '
    f'{list(modules[m])} is wanted'
    for m, parts in found.items()
    if m not in half and not _fits(parts, modules[m])
  ]
  problems = [
    f'{len(strange)} of {len(tensors)} tensors are no adapters of this '
    f'network, {few(sorted(strange))}' if strange else '',
    f'two tensors for one place, {few(sorted(twice))}' if twice else '',
    f'only half of {few(sorted(half))}' if half else '',
    few(sorted(wrong)),
    '' if tensors else 'it has no tensor',
  ]  # fmt: skip
  if any(problems):
    raise WeightsError(
      f'{path} does not fit: {"; ".join(filter(None, problems))}. Names are '
      'those of diffusers, PEFT or kohya; others are to be converted: '
      'load_lora_weights and save_lora_weights of the pipeline in diffusers.'
    )
  return {m: _adapter(path, m, parts, said) for m, parts in found.items()}


def _file(path: str) -> str:
  """The file that is meant."""
  if not os.path.exists(path) and re.fullmatch(r'\w[\w.-]*/[\w.-]+', path):
    path = folders.locate(path)
  if not os.path.isdir(path):
    weights.readable(path, 'file of adapters ')
    return path
  inside = sorted(os.listdir(path))
  usual = f'adapter_model{_ENDINGS[0]}', f'adapter_model{_ENDINGS[1]}', FILE
  found = [x for x in usual if x in inside]
  found = found or [x for x in inside if x.endswith(_ENDINGS)]
  if not found:
    raise WeightsError(
      f'There is no file of adapters in {path}; it has '
      f'{few(inside, 12) or "nothing"}.'
    )
  if len(found) > 1 and found[0] not in usual:
    raise WeightsError(
      f'{path} has {few(found)}; give the path of the file that is meant.'
    )
  return os.path.join(path, found[0])


def _tensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(tensors, what the header says)."""
  with contextlib.ExitStack() as stack:
    file = folders.open_file(path, stack)
    names = file.keys()
    kinds = {name: file.get_slice(name).get_dtype() for name in names}
    other = [
      f'{name} ({kind})' for name, kind in kinds.items()
      if kind not in folders.FLOATS
      and not (kind in _NUMBERS and _NUMBER.search(name))
    ]  # fmt: skip
    if other:
      raise WeightsError(
        f'{path} has tensors that are no floats: {few(other)}.'
      )
    tensors = {
      name: weights.floats(path, name, file.get_tensor(name), np.float32)
      for name in names
    }
  try:
    header = json.loads(file.metadata().get(HEADER, '{}'))
  except (ValueError, RecursionError) as error:
    raise WeightsError(f'{path}: {HEADER} is no JSON: {error}.') from None
  if not isinstance(header, dict):
    raise WeightsError(f'{path}: {HEADER} is no object.')
  return tensors, header


def _said(
  path: str, header: Mapping[str, Any], tensors: Mapping[str, Any], part: str
) -> dict[str, Any]:
  """PEFT's options, of the file beside the weights or of the header."""
  folder, name = os.path.split(path)
  at = path
  said = {
    key.removeprefix(f'{part}.'): value for key, value in header.items()
    if key.startswith(f'{part}.')
  }  # fmt: skip
  if name.startswith('adapter_model.'):
    at = os.path.join(folder, _CONFIG)
    said = folders.read_json(at)
  set_ = {k: v for k, v in said.items() if v not in (None, False, [], {})}
  problems = [x[:120] for x in options.problems(set_, _COMPUTED, _FREE)]
  if any('lora_magnitude' in name or 'dora_scale' in name for name in tensors):
    problems.append('DoRA, magnitudes of kernels')
  alpha = said.get('lora_alpha')
  patterns = said.get('alpha_pattern') or {}
  if not isinstance(patterns, dict):
    problems.append('alpha_pattern that is no object')
    patterns = {}
  for value in (alpha, *patterns.values()):
    if not isinstance(value, int | float | None) or not math.isfinite(
      value or 0
    ):
      problems.append(f'alpha={value!r}')
  if problems:
    raise WeightsError(f'{at} asks for what is not computed: {few(problems)}.')
  return dict(
    alpha=alpha, patterns=patterns, rslora=said.get('use_rslora', False)
  )


def _place(name: str, names: Mapping[str, str]) -> tuple[str | None, str]:
  """(module that a tensor belongs to, what it is of it)."""
  if match := _MATRIX.search(name):
    kind = _LETTERS[match['letter']]
  elif match := _NUMBER.search(name):
    kind = _ALPHA
  else:
    return None, ''
  stem = name[: match.start()].replace('.processor.', '.')
  while True:
    for module in (stem, f'{stem}.0'):  # to_out is to_out.0
      if module in names:
        return names[module], kind
    above = _ABOVE.match(stem)
    if not above:
      return None, ''
    stem = stem[above.end() :]


def _fits(parts: Mapping[str, np.ndarray], shape: tuple[int, int]) -> bool:
  """Whether both matrices and alpha are of the sizes of a kernel."""
  (rows, *more), (rank, *others) = parts[_UP].shape, parts[_DOWN].shape
  pixel = [1, 1]  # of convolutions
  alpha = parts.get(_ALPHA, np.ones(()))
  return (
    (rows, others[:1]) == (shape[0], [shape[1]])
    and more[:1] == [rank]
    and rank > 0
    and all(x in ([], pixel) for x in (more[1:], others[1:]))
    and alpha.size == 1
  )


def _adapter(
  path: str,
  module: str,
  parts: Mapping[str, np.ndarray],
  said: Mapping[str, Any],
) -> Adapter:
  """By (1)."""
  rank = len(parts[_DOWN])
  own = [
    alpha for pattern, alpha in said['patterns'].items()
    if _matches(path, pattern, module)
  ]  # fmt: skip
  alpha = parts.get(_ALPHA)
  if alpha is None:
    alpha = own[0] if own else rank if said['alpha'] is None else said['alpha']
  scale = float(np.ravel(alpha)[0]) / (
    math.sqrt(rank) if said['rslora'] else rank
  )
  a = parts[_DOWN].reshape(rank, -1).T
  b = parts[_UP].reshape(-1, rank).T
  return Adapter(a, b, scale)


def _matches(path: str, pattern: str, module: str) -> bool:
  """Whether PEFT takes a key of alpha_pattern for a module."""
  try:
    return re.match(rf'(.*\.)?({pattern})$', module) is not None
  except re.error as error:
    raise WeightsError(
      f'{path}: alpha_pattern has {pattern!r}, no regular expression: {error}.'
    ) from None
