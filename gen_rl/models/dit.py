"""A small text-conditioned diffusion transformer that predicts a velocity.

  v = (x - D(x, t, c)) / max(t, t_min)                                   (1)

where D predicts the clean image ("x-prediction, v-loss": arXiv 2511.13720,
table 1): clean images of a small world lie on a low-dimensional manifold, noise
and velocities do not, so patches may be large and tokens few. Blocks are those
of DiT (arXiv 2212.09748) with the shared modulation of PixArt-alpha's
adaLN-single (arXiv 2310.00426): time and pooled text give six vectors that
every block shifts by its own table. Image tokens attend to each other and, in
the same softmax, to the text, whose keys and values have projections of their
own; queries and keys are RMS-normalised. No row's output depends on another's.
"""

import functools
from typing import Any, Literal, NamedTuple

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.fields import Count, Fraction, Index, Remat
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.attention import attend
from gen_rl.models.parts.layers import (
  PAD,
  Dense,
  Net,
  TextEncoder,
  constrain,
  time_embedding,
)
from gen_rl.types import Array, Params, PyTree

_ZERO = nn.initializers.zeros
_SAME = (nn.broadcast, nn.broadcast)  # for all blocks: mask and modulation
AXES = (
  (r'(^|/)(mod|mod_out|pixels|pooled)/kernel$', ('embed', None)),
  (r'(^|/)(embed|time[12])/kernel$', (None, 'embed')),
  *layers_lib.AXES,
)


def _norm(x: Array) -> Array:
  """LayerNorm without parameters."""
  x -= x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


class Block(nn.Module):
  """One transformer block; what it needs of the text is computed apart.

  x [b i d], text keys and values (2 x [b l n c]), mask [b l], modulation
  [b 6 d] -> x [b i d].
  """

  width: int
  heads: int
  mlp_ratio: int
  dtype: Any = jnp.float32

  def setup(self):
    d, dense = self.width, functools.partial(Dense, dtype=self.dtype)
    norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
    self.table = self.param('table', _ZERO, (6, d))
    self.qkv = dense(3 * d)
    self.kv_text = dense(2 * d)
    self.norm_q, self.norm_k = norm(), norm()
    self.out = dense(d, kernel_init=_ZERO)
    self.up = dense(self.mlp_ratio * d)
    self.down = dense(d, kernel_init=_ZERO)

  def split(self, x: Array, parts: int) -> Array:
    """[b i parts*d] -> [parts b i n c], n heads."""
    return einops.rearrange(
      x, 'b i (p n c) -> p b i n c', p=parts, n=self.heads
    )

  def see(self, text: Array, _: None = None) -> tuple[Array, Any]:
    """Keys and values of the text: [b l w] -> (text, 2 x [b l n c])."""
    k, v = self.split(self.kv_text(text), 2)
    return text, (self.norm_k(k), v)

  def __call__(
    self, x: Array, text: tuple[Array, Array], mask: Array, mod: Array
  ) -> tuple[Array, None]:
    mod = einops.rearrange(mod + self.table, 'b m d -> m b 1 d')
    mod = mod.astype(self.dtype)
    scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = mod
    q, k, v = self.split(self.qkv(_norm(x) * (1 + scale_a) + shift_a), 3)
    k = jnp.concatenate([text[0], self.norm_k(k)], 1)
    v = jnp.concatenate([text[1], v], 1)
    mask = jnp.concatenate([mask, jnp.ones(x.shape[:2], bool)], 1)
    q, k, v = (
      constrain(a, 'batch', None, 'heads', None) for a in (self.norm_q(q), k, v)
    )
    x += (1 + gate_a) * self.out(attend(q, k, v, mask))
    h = self.up(_norm(x) * (1 + scale_m) + shift_m)
    h = constrain(h, 'batch', None, 'mlp')
    x += (1 + gate_m) * self.down(nn.gelu(h))
    return constrain(x, 'batch', None, None), None


class Prompt(NamedTuple):
  """What the blocks need of the prompts: the same at every denoising step."""

  # Per block, [b l n c]; of scanned blocks stacked, [b layers l n c].
  keys_values: tuple[tuple[Array, Array], ...] | tuple[Array, Array]
  mask: Array  # [b l] bool
  pooled: Array  # [b w]


class DiT(nn.Module):
  """See the module docstring. `encode`, then `denoise`."""

  width: int
  layers: int
  heads: int
  mlp_ratio: int
  image: tuple[int, int, int]
  patch: int
  vocab: int
  text_width: int
  text_layers: int
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32
  pad: int = PAD

  def setup(self):
    d, p = self.width, self.patch
    Dense = functools.partial(layers_lib.Dense, dtype=self.dtype)
    height, width, channels = self.image
    self.text = TextEncoder(
      self.vocab, self.text_width, self.text_layers, pad=self.pad
    )
    self.time1, self.time2, self.pooled = Dense(d), Dense(d), Dense(d)
    self.mod = Dense(6 * d, kernel_init=_ZERO)
    self.embed = Dense(d)
    self.position = self.param(
      'position',
      nn.initializers.normal(0.1),
      ((height // p) * (width // p), d),
    )
    block = layers_lib.rematerialized(Block, self.remat, in_scan=self.scan)
    settings = d, self.heads, self.mlp_ratio, self.dtype
    if self.scan:
      over = dict(
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=self.layers,
      )
      # Rows come first in a Prompt, layers second.
      methods = dict(
        see=dict(over, out_axes=1),
        __call__=dict(over, in_axes=(1, *_SAME)),
      )
      self.block = nn.scan(block, methods=methods)(*settings)
    else:
      self.block = [block(*settings) for _ in range(self.layers)]
    self.mod_out = Dense(2 * d, kernel_init=_ZERO)
    self.norm_out = nn.LayerNorm(dtype=self.dtype)
    self.pixels = Dense(p * p * channels)

  def encode(self, tokens: Array) -> Prompt:
    """Prompts [b l] as the blocks see them."""
    text, mask = self.text(tokens)
    pooled = jnp.sum(text * mask[..., None], 1) / mask.sum(1, keepdims=True)
    if self.scan:
      seen = self.block.see(text, None)[1]
    else:
      seen = tuple(block.see(text)[1] for block in self.block)
    return Prompt(seen, mask, pooled)

  def denoise(self, x: Array, t: Array, prompt: Prompt) -> Array:
    """D(x, t, c): the clean image [b h w c]."""
    p = self.patch
    emb = self.time2(nn.silu(self.time1(time_embedding(t, 64))))
    emb = nn.silu(emb + self.pooled(prompt.pooled))
    mod = einops.rearrange(self.mod(emb), 'b (m d) -> b m d', m=6)
    h = einops.rearrange(x, 'b (h p) (w q) c -> b (h w) (p q c)', p=p, q=p)
    h = self.embed(h) + self.position.astype(self.dtype)
    if self.scan:
      h, _ = self.block(h, prompt.keys_values, prompt.mask, mod)
    else:
      for block, text in zip(self.block, prompt.keys_values, strict=True):
        h, _ = block(h, text, prompt.mask, mod)
    scale, shift = jnp.split(self.mod_out(emb)[:, None], 2, -1)
    h = self.pixels(self.norm_out(h) * (1 + scale) + shift)
    return einops.rearrange(
      h, 'b (h w) (p q c) -> b (h p) (w q) c', p=p, q=p, h=x.shape[1] // p
    )

  def __call__(self, x: Array, t: Array, tokens: Array) -> Array:
    return self.denoise(x, t, self.encode(tokens))


def dit(
  image: tuple[Count, Count, Count] = (24, 24, 3),
  width: Count = 160,
  layers: Count = 5,
  heads: Count = 4,
  mlp_ratio: Count = 4,
  patch: Count = 12,
  vocab: int = 64,
  length: int = 16,
  text_width: Count = 96,
  text_layers: Index = 2,
  t_min: Fraction = 0.05,
  scan: bool = False,
  remat: Remat = 'none',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  pad: int = PAD,
) -> Net:
  """The transformer as a velocity network.

  Args:
    image: h w c of the latent.
    width: of the image tokens.
    layers: number of blocks.
    heads: attention heads per block.
    mlp_ratio: hidden width of a block's MLP in units of `width`.
    patch: side of a token's square of pixels.
    vocab: token ids, padding and unknown included.
    length: prompt length in tokens.
    text_width: width of the text encoder.
    text_layers: its layers.
    t_min: smallest divisor of (1).
    scan: one program for all blocks, their parameters stacked [layers ...]:
      compiles as fast for many as for one.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    dtype: of the transformer's arithmetic; parameters and the division of (1)
      are float32.
    pad: id of padding in prompts.

  Raises:
    ValueError: sizes that do not divide, naming them.
  """
  if image[0] % patch or image[1] % patch:
    raise ValueError(
      f'dit: image {image[0]}x{image[1]} is not divisible by patch={patch}'
    )
  if width % heads:
    raise ValueError(f'dit: width={width} is not divisible by heads={heads}')
  module = DiT(
    width, layers, heads, mlp_ratio, tuple(image), patch, vocab, text_width,
    text_layers, scan, remat, jnp.dtype(dtype), pad,
  )  # fmt: skip

  def init(key: Array) -> Params:
    tokens = jnp.zeros((1, length), jnp.int32)
    return module.init(key, jnp.zeros((1, *image)), jnp.zeros(1), tokens)[
      'params'
    ]

  def encode(params: Params, cond: PyTree) -> Prompt:
    return module.apply({'params': params}, cond['tokens'], method='encode')

  def apply(params: Params, x: Array, t: Array, prompt: Prompt) -> Array:
    x = x.astype(jnp.float32)
    clean = module.apply({'params': params}, x, t, prompt, method='denoise')
    divisor = jnp.maximum(t, t_min)[:, None, None, None]
    return (x - clean.astype(jnp.float32)) / divisor

  def null(cond: PyTree) -> PyTree:
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], pad)}

  return Net(init, apply, tuple(image), null, encode, AXES)
