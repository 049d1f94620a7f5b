"""The encoder of T5 1.1 (arXiv 1910.10683, 2002.05202), transformers' names.

Pre-norm blocks with RMS norms n and no biases,

  x <- x + A(n(x)),  x <- x + W_o (gelu(W_0 n(x)) * W_1 n(x))            (1)

where scores of attention are not divided by the root of the width of a head,
and all blocks add the same learned number for the distance j - i of a key from
its query: one for each of few distances, then for ranges that grow like
logarithms, for either direction. Nothing else says where a token is.

Image generators give it prompts that are padded and do not mask the padding, so
the features of a prompt depend on the length that it is padded to.
"""

from collections.abc import Mapping
import functools
import math
import os
from typing import Any, Literal, NamedTuple

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.models.files import options, released
from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.types import Array, Axes, Params

AXES = (
  (r'(^|/)(q|k|v)/kernel$', ('embed', 'heads')),
  (r'(^|/)o/kernel$', ('heads', 'embed')),
  (r'(^|/)wi_[01]/kernel$', ('embed', 'mlp')),
  (r'(^|/)wo/kernel$', ('mlp', 'embed')),
  (r'(^|/)relative_attention_bias/embedding$', (None, None)),
  (r'(^|/)shared/embedding$', ('vocab', 'embed')),
  (r'/scale$', (None,)),
)
NAMES = released.Names(
  rename=((r'\.wi\.(\d)\.', r'.wi_\1.'),),
  ignored=(r'^encoder\.embed_tokens\.weight$',),  # the same table again
)
KINDS = ('T5EncoderModel',)


class T5(NamedTuple):
  """The encoder as pure functions."""

  init: Any  # key -> params
  # (params, tokens [b l], mask [b l] bool or None) -> [b l d] float32
  apply: Any
  axes: Axes = AXES


def buckets(length: int, count: int, farthest: int) -> np.ndarray:
  """Which number of the table a distance takes: int [i j].

  Args:
    length: of queries and keys.
    count: numbers in the table, half of them for each direction.
    farthest: distances from here on are one.
  """
  place = np.arange(length)
  distance = place[None, :] - place[:, None]
  half = count // 2
  exact = half // 2
  far = np.abs(distance)
  growth = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
  growth = growth / np.float32(math.log(farthest / exact)) * (half - exact)
  large = np.minimum(exact + growth.astype(np.int64), half - 1)
  return np.where(far < exact, far, large) + half * (distance > 0)


class SelfAttention(nn.Module):
  """[b l d] -> ([b l d], the table's numbers [n i j])."""

  heads: int
  head_dim: int
  count: int
  farthest: int
  own_table: bool
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Array, table: Array | None, mask: Array | None
  ) -> tuple[Array, Array]:
    dense = functools.partial(Dense, use_bias=False, dtype=self.dtype)
    q, k, v = (
      constrain(
        einops.rearrange(
          dense(self.heads * self.head_dim, name=name)(x),
          'b i (n c) -> b i n c', n=self.heads,
        ),
        'batch', None, 'heads', None,
      )
      for name in 'qkv'
    )  # fmt: skip
    if self.own_table:
      embed = nn.Embed(self.count, self.heads, name='relative_attention_bias')
      at = buckets(x.shape[1], self.count, self.farthest)
      table = einops.rearrange(embed(jnp.asarray(at)), 'i j n -> n i j')
    seen = jax.nn.dot_product_attention(
      q, k, v, bias=table[None].astype(q.dtype), mask=mask, scale=1.0
    )
    out = dense(x.shape[-1], name='o')(
      einops.rearrange(seen, 'b i n c -> b i (n c)')
    )
    return out, table


class _Attention(nn.Module):
  """The first half of (1)."""

  settings: Mapping[str, Any]
  eps: float

  @nn.compact
  def __call__(self, x: Array, *others: Any) -> tuple[Array, Array]:
    norm = nn.RMSNorm(self.eps, dtype=self.settings['dtype'], name='layer_norm')
    attention = SelfAttention(**self.settings, name='SelfAttention')
    out, table = attention(norm(x), *others)
    return x + out, table


class _Gated(nn.Module):
  """W_o (gelu(W_0 x) * W_1 x)."""

  mlp: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(Dense, use_bias=False, dtype=self.dtype)
    h = nn.gelu(dense(self.mlp, name='wi_0')(x))
    h = constrain(h * dense(self.mlp, name='wi_1')(x), 'batch', None, 'mlp')
    return dense(x.shape[-1], name='wo')(h)


class _FeedForward(nn.Module):
  """The second half of (1)."""

  mlp: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = nn.RMSNorm(self.eps, dtype=self.dtype, name='layer_norm')
    gated = _Gated(self.mlp, self.dtype, name='DenseReluDense')
    return x + gated(norm(x))


class Block(nn.Module):
  """(1)."""

  settings: Mapping[str, Any]
  mlp: int
  eps: float

  @nn.compact
  def __call__(self, x: Array, *others: Any) -> tuple[Array, Array]:
    x, table = _Attention(self.settings, self.eps, name='layer_0')(x, *others)
    x = _FeedForward(
      self.mlp, self.eps, self.settings['dtype'], name='layer_1'
    )(x)
    return constrain(x, 'batch', None, None), table


class Encoder(nn.Module):
  """[b l d] -> [b l d]; the first block owns the table of distances."""

  layers: int
  mlp: int
  eps: float
  settings: Mapping[str, Any]

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> Array:
    table = None
    for i in range(self.layers):
      settings = {**self.settings, 'own_table': i == 0}
      block = Block(settings, self.mlp, self.eps, name=f'block_{i}')
      x, table = block(x, table, mask)
    norm = nn.RMSNorm(
      self.eps, dtype=self.settings['dtype'], name='final_layer_norm'
    )
    return norm(x)


class T5Model(nn.Module):
  """Tokens [b l], mask [b l] -> [b l d]."""

  vocab: int
  width: int
  encoder_settings: Mapping[str, Any]
  dtype: Any

  @nn.compact
  def __call__(self, tokens: Array, mask: Array | None = None) -> Array:
    words = nn.Embed(self.vocab, self.width, name='shared')(tokens)
    seen = None if mask is None else mask[:, None, None]
    x = Encoder(**self.encoder_settings, name='encoder')(
      words.astype(self.dtype), seen
    )
    return x.astype(jnp.float32)


def t5(
  width: int = 4096,
  layers: int = 24,
  heads: int = 64,
  head_dim: int = 64,
  mlp: int = 10240,
  vocab: int = 32128,
  buckets: int = 32,
  farthest: int = 128,
  eps: float = 1e-6,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> T5:
  """The encoder; the defaults are those of T5 1.1 XXL.

  Args:
    width: of a token.
    layers: blocks.
    heads: of attention.
    head_dim: numbers of a head.
    mlp: hidden numbers of (1).
    vocab: rows of the table of words.
    buckets: numbers of the table of distances.
    farthest: distance from which on they are one.
    eps: of the norms.
    dtype: of the arithmetic.
  """
  settings = dict(
    heads=heads, head_dim=head_dim, count=buckets, farthest=farthest,
    dtype=jnp.dtype(dtype),
  )  # fmt: skip
  module = T5Model(
    vocab, width, dict(layers=layers, mlp=mlp, eps=eps, settings=settings),
    jnp.dtype(dtype),
  )  # fmt: skip

  def init(key: Array) -> Params:
    return module.init(key, jnp.zeros((1, 1), jnp.int32))['params']

  def apply(params: Params, tokens: Array, mask: Array | None = None) -> Array:
    return module.apply({'params': params}, tokens, mask)

  return T5(init, apply)


# Options of T5 beside those of all models.
_OPTIONS = (
  'd_ff', 'd_kv', 'd_model', 'dense_act_fn', 'feed_forward_proj',
  'is_gated_act', 'layer_norm_epsilon', 'n_positions', 'num_decoder_layers',
  'num_heads', 'num_layers', 'relative_attention_max_distance',
  'relative_attention_num_buckets', 'scale_decoder_outputs', 'vocab_size',
)  # fmt: skip


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `t5` for a config.json.

  Raises:
    ValueError: anything that is not computed, in one sentence.
  """
  options.typed(
    'T5', config_json,
    whole=(
      'd_model', 'num_layers', 'num_heads', 'd_kv', 'd_ff', 'vocab_size',
      'relative_attention_num_buckets', 'relative_attention_max_distance',
    ),
    fraction=('layer_norm_epsilon',),
  )  # fmt: skip
  get = config_json.get
  problems = [
    f'{name}={get(name)!r}, where it is {want!r}'
    for name, silent, want in (
      ('feed_forward_proj', 'relu', 'gated-gelu'),
      # These follow from it, but a file may say something else.
      ('dense_act_fn', 'gelu_new', 'gelu_new'),
      ('is_gated_act', True, True),
      ('is_decoder', False, False),
    )
    if get(name, silent) != want
  ]
  problems += options.unknown(config_json, _OPTIONS)
  if problems:
    raise ValueError(
      f'config.json asks for what t5 does not compute: {"; ".join(problems)}'
    )
  return dict(
    width=get('d_model', 512),
    layers=get('num_layers', 6),
    heads=get('num_heads', 8),
    head_dim=get('d_kv', 64),
    mlp=get('d_ff', 2048),
    vocab=get('vocab_size', 32128),
    buckets=get('relative_attention_num_buckets', 32),
    farthest=get('relative_attention_max_distance', 128),
    eps=get('layer_norm_epsilon', 1e-6),
  )


def unread(
  folder: str | os.PathLike[str], **overrides: Any
) -> tuple[T5, Params, released.Names]:
  """(encoder, shapes and names of its parameters) of a config; see `load`."""
  net = t5(**config(released.config(folder, KINDS)) | overrides)
  return net, jax.eval_shape(net.init, jax.random.key(0)), NAMES


def load(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  **overrides: Any,
) -> tuple[T5, Params]:
  """A released encoder.

  Args:
    folder: with config.json and weights, see `released.locate`.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    **overrides: keywords of `t5` over those of the config.

  Returns:
    (the encoder, its parameters).

  Raises:
    WeightsError: see `released.load`.
    ValueError: see `config`.
  """
  net, like, names = unread(folder, **overrides)
  return net, released.load(folder, like, names, param_dtype)
