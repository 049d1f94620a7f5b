"""Released checkpoints of Qwen2, Qwen3 and Llama as parameters of `lm`.

A folder as transformers writes it: config.json, and model.safetensors or its
parts with model.safetensors.index.json. A product there is y = A x, ours is
y = x W, so

  W = A^T                                                                (1)

and the queries, the key and the value of group j lie side by side in the
columns of one kernel (`decoder.Block`), with c numbers a head, g = heads /
kv_heads, and A_q[i] the c rows of head i,

  W_qkv = [W_0 W_1 ...],
  W_j = [A_q[j g] ... A_q[j g + g - 1] A_k[j] A_v[j]]^T                  (2)

and biases likewise. Rotations turn the pairs (i, i + c/2) there as here, so no
row has to move for them. What the decoder does not compute is refused, never
left out: windows of attention, scaled rotations, biases elsewhere, tensors that
find no place.

  net, params = convert.load_lm('Qwen3-0.6B', vocab=151669, pad=151643)
  weights.save('qwen3.safetensors', params)   # for config.init
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import os
from typing import Any, Literal

import einops
import jax.numpy as jnp
import numpy as np

from gen_rl.models import lm as lm_lib
from gen_rl.models.files import folders, weights
from gen_rl.models.files import options as options_lib
from gen_rl.models.files.weights import WeightsError
from gen_rl.models.parts.layers import TokenNet
from gen_rl.types import Params
from gen_rl.utils import tree as tree_lib

TYPES = 'qwen2', 'qwen3', 'llama'
# Ours -> (theirs) of a block; those of (2) are joined, kernels are transposed.
_BLOCK = {
  'norm_a/scale': ('input_layernorm.weight',),
  'norm_m/scale': ('post_attention_layernorm.weight',),
  'norm_q/scale': ('self_attn.q_norm.weight',),
  'norm_k/scale': ('self_attn.k_norm.weight',),
  'qkv/kernel': tuple(f'self_attn.{x}_proj.weight' for x in 'qkv'),
  'qkv/bias': tuple(f'self_attn.{x}_proj.bias' for x in 'qkv'),
  'out/kernel': ('self_attn.o_proj.weight',),
  'gate/kernel': ('mlp.gate_proj.weight',),
  'up/kernel': ('mlp.up_proj.weight',),
  'down/kernel': ('mlp.down_proj.weight',),
}
_TABLE, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
# Wavelengths that old files hold; they follow from theta.
_FOLLOWS = r'rotary_emb\.inv_freq$'


# Options of decoders beside those of all models.
_OPTIONS = (
  'attention_bias', 'head_dim', 'hidden_act', 'hidden_size',
  'intermediate_size', 'is_llama_config', 'layer_types',
  'max_position_embeddings', 'max_window_layers', 'mlp_bias',
  'num_attention_heads', 'num_hidden_layers', 'num_key_value_heads',
  'partial_rotary_factor', 'pretraining_tp', 'quantization_config',
  'rms_norm_eps', 'rope_interleaved', 'rope_parameters', 'rope_scaling',
  'rope_theta', 'sliding_window', 'use_mrope', 'use_sliding_window',
  'vocab_size',
)  # fmt: skip


def lm_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `lm.lm` for a config.json.

  Args:
    config: what config.json holds. The rotations' theta may stand at the top
      (transformers 4) or in rope_parameters (5).

  Returns:
    The keywords that decide what is computed: sizes, theta, qk_norm, bias,
    tied, eps, rows, vocab (= rows: how many ids the tokenizer has is not said
    there) and, where the config has one, pad.

  Raises:
    ValueError: numbers that are missing, or anything that `lm` does not
      compute; all in one sentence.
  """
  kind = config.get('model_type')
  if kind not in TYPES:
    raise ValueError(
      f'config.json has model_type={kind!r}; {", ".join(TYPES)} can be loaded'
    )
  sizes = (
    'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
    'intermediate_size',
  )  # fmt: skip
  missing = [name for name in sizes if not isinstance(config.get(name), int)]
  if missing:
    raise ValueError(f'config.json lacks the whole number {", ".join(missing)}')
  optional = 'num_key_value_heads', 'head_dim'
  given = {
    k: config[k] for k in (*sizes, *optional) if config.get(k) is not None
  }
  options_lib.typed(kind, given, whole=given)
  theta, problems = _rotations(config)
  problems += _not_computed(config)
  problems += options_lib.unknown(config, _OPTIONS)
  if problems:
    raise ValueError(
      f'config.json asks for what the decoder does not compute: '
      f'{"; ".join(problems)}'
    )
  width, heads = config['hidden_size'], config['num_attention_heads']
  # Where a file is silent; tensors of another size would be found.
  head_dim = 128 if kind == 'qwen3' else width // heads
  out = dict(
    vocab=config['vocab_size'],
    rows=config['vocab_size'],
    width=width,
    layers=config['num_hidden_layers'],
    heads=heads,
    kv_heads=_or(config.get('num_key_value_heads'), heads),
    mlp=config['intermediate_size'],
    head_dim=_or(config.get('head_dim'), head_dim),
    theta=theta,
    qk_norm=kind == 'qwen3',
    bias=kind == 'qwen2',
    tied=bool(config.get('tie_word_embeddings')),
    eps=float(config.get('rms_norm_eps', 1e-6)),
  )
  pad = config.get('pad_token_id')
  return out | (dict(pad=pad) if pad is not None and pad >= 0 else {})


def _or(value: Any, default: Any) -> Any:
  return default if value is None else value


def _rotations(config: Mapping[str, Any]) -> tuple[float, list[str]]:
  """(theta, what is not computed)."""
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  problems = []
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind != 'default' or any(isinstance(x, Mapping) for x in rope.values()):
    problems.append(f'scaled rotations, {json.dumps(rope)}')
  top = config.get('rope_theta', 1e4)
  theta = float(_or(rope.get('rope_theta'), top))
  for place in (config, rope):
    part = place.get('partial_rotary_factor', 1)
    if part != 1:
      problems.append(f'rotations of a part of a head, {part}')
  return theta, problems


def _not_computed(config: Mapping[str, Any]) -> list[str]:
  """Whatever else there is."""
  out = []
  layers = config['num_hidden_layers']
  kinds = set(config.get('layer_types') or ['full_attention'])
  windows = config.get('use_sliding_window') and (
    config.get('sliding_window', 4096) is not None
    and config.get('max_window_layers', 28) < layers
  )
  if windows or kinds != {'full_attention'}:
    out.append(
      'windows of attention, '
      f'use_sliding_window={config.get("use_sliding_window")}, '
      f'layer_types={sorted(kinds)}'
    )
  act = config.get('hidden_act', 'silu')
  if act != 'silu':
    out.append(f'hidden_act={act!r}, where it is silu')
  # Here all four products of attention have one; those of Qwen2 are its own.
  if config.get('attention_bias') and config['model_type'] != 'qwen2':
    out.append('attention_bias=true, a bias behind attention')
  if config.get('rope_interleaved'):
    out.append('rope_interleaved=true, pairs of neighbours that turn')
  if config.get('mlp_bias'):
    out.append('mlp_bias=true, biases in MLPs')
  if config.get('quantization_config'):
    out.append('quantised weights')
  return out


def load_lm(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  **overrides: Any,
) -> tuple[TokenNet, Params]:
  """A released language model.

  Args:
    folder: with config.json, and model.safetensors or its parts and their
      index.
    param_dtype: of the parameters; files in float32, bfloat16 and float16 are
      cast. `dtype` in `overrides` is that of the arithmetic.
    **overrides: keywords of `lm.lm`, over those of `lm_config`: `vocab`, the
      tokenizer's size, where the table has more rows; `pad`, the id it pads
      with; `scan`, `remat`, `dtype`.

  Returns:
    (net, its parameters).

  Raises:
    WeightsError: files that are missing or broken, or tensors that are
      missing, unexpected, of another shape or no floats; all are named.
    ValueError: see `lm_config`; or nobody says what id is padding. A real
      token must not be taken for it: ids from 0 on are words in these
      vocabularies.
  """
  folder = os.fspath(folder)
  options = (
    lm_config(folders.read_json(os.path.join(folder, 'config.json')))
    | overrides
  )
  pad, rows = options.get('pad'), options['rows']
  if pad is None or not 0 <= pad < rows:
    raise ValueError(
      f'{folder}: padding has the id {pad}, which is none of the {rows} rows '
      'of the table; set pad to the id that the tokenizer pads prompts with'
    )
  net = lm_lib.lm(**options)
  scan, layers = options.get('scan', False), options['layers']
  with contextlib.ExitStack() as stack:
    files = folders.open_tensors(folder, stack)
    wanted = _shapes(options)
    # A tied head may be written, too; whether it is the table is seen below.
    may = {_HEAD: wanted[_TABLE]}
    folders.check(folder, files, wanted, (_FOLLOWS,), optional=may)

    def read(name: str) -> np.ndarray:
      x = files[name].get_tensor(name)
      return weights.floats(folder, name, x, x.dtype)

    own = options['tied'] and _HEAD in files
    if own and not np.array_equal(read(_HEAD), read(_TABLE)):
      raise WeightsError(
        f'{folder}: tie_word_embeddings is true, but {_HEAD} is not {_TABLE}.'
      )
    leaves = {
      'table/embedding': read(_TABLE),
      'decoder/norm/scale': read('model.norm.weight'),
    }
    if not options['tied']:
      leaves['head/kernel'] = read(_HEAD).T
    cast = jnp.dtype(param_dtype)
    for ours, theirs in _block_names(options).items():
      each = (_leaf(ours, theirs, i, read, options) for i in range(layers))
      if scan:
        each = [x.astype(cast, copy=False) for x in each]
        leaves[f'decoder/block/{ours}'] = np.stack(each)
      else:
        for i, x in enumerate(each):
          leaves[f'decoder/block_{i}/{ours}'] = x
    params = {n: jnp.asarray(x, cast) for n, x in leaves.items()}
  return net, tree_lib.nest(params)


def _block_names(options: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  left_out = {
    'norm_q/scale': not options['qk_norm'],
    'norm_k/scale': not options['qk_norm'],
    'qkv/bias': not options['bias'],
  }
  return {n: x for n, x in _BLOCK.items() if not left_out.get(n)}


def _leaf(
  ours: str,
  theirs: tuple[str, ...],
  layer: int,
  read: Callable[[str], np.ndarray],
  options: Mapping[str, Any],
) -> np.ndarray:
  """A leaf of a block: (2) if it is made of three tensors, and (1)."""
  parts = [read(f'model.layers.{layer}.{name}') for name in theirs]
  if len(parts) == 3:
    parts = [
      einops.rearrange(
        x, '(n m c) ... -> n m c ...',
        n=options['kv_heads'], c=options['head_dim'],
      )
      for x in parts
    ]  # fmt: skip
    joined = einops.rearrange(
      np.concatenate(parts, 1), 'n m c ... -> (n m c) ...'
    )
  else:
    (joined,) = parts
  return joined.T


def _shapes(options: Mapping[str, Any]) -> dict[str, list[int]]:
  """{name: shape} of the tensors of a file."""
  d, c, mlp = options['width'], options['head_dim'], options['mlp']
  q, kv = options['heads'] * c, options['kv_heads'] * c
  shapes = {
    'input_layernorm.weight': [d],
    'post_attention_layernorm.weight': [d],
    'self_attn.q_norm.weight': [c],
    'self_attn.k_norm.weight': [c],
    'self_attn.o_proj.weight': [d, q],
    'mlp.gate_proj.weight': [mlp, d],
    'mlp.up_proj.weight': [mlp, d],
    'mlp.down_proj.weight': [d, mlp],
  }
  for x, rows in dict(q=q, k=kv, v=kv).items():
    shapes[f'self_attn.{x}_proj.weight'] = [rows, d]
    shapes[f'self_attn.{x}_proj.bias'] = [rows]
  out = {_TABLE: [options['rows'], d], 'model.norm.weight': [d]}
  if not options['tied']:
    out[_HEAD] = [options['rows'], d]
  used = [n for names in _block_names(options).values() for n in names]
  for i in range(options['layers']):
    out |= {f'model.layers.{i}.{name}': shapes[name] for name in used}
  return out
