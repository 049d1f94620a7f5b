"""A small text-conditioned convolutional U-Net that predicts a velocity.

  v = (x - D(x, t, c)) / max(t, t_min)                                   (1)

where D predicts the clean image ("x-prediction, v-loss": arXiv 2511.13720,
table 1): clean images of a small world lie on a low-dimensional manifold, noise
and velocities do not. Pixels enter by space-to-depth with two coordinate
channels; time and pooled text act through FiLM (arXiv 1709.07871), text tokens
through cross-attention at the coarse levels. Normalisation is per row, so no
row's output depends on another's.
"""

from collections.abc import Callable
from typing import NamedTuple

import einops
from flax import linen as nn
import jax.numpy as jnp

from gen_rl.types import Array, Params, PyTree

PAD = 0  # token id of padding


class Net(NamedTuple):
  """A velocity network as pure functions."""

  init: Callable[[Array], Params]  # key -> params
  # (params, x [b ...], t [b], cond) -> velocity [b ...], float32
  apply: Callable[[Params, Array, Array, PyTree], Array]
  shape: tuple[int, ...]  # of a latent: h w c of pictures
  null: Callable[[PyTree], PyTree]  # cond -> the unconditional cond


def time_embedding(t: Array, width: int) -> Array:
  """Sinusoidal features of t in [0, 1]: [b] -> [b width]."""
  half = width // 2
  frequency = jnp.exp(jnp.linspace(0.0, jnp.log(1000.0), half))
  angle = t[:, None] * frequency
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class TextEncoder(nn.Module):
  """Pre-norm transformer over prompt tokens.

  A convolution over five neighbouring words comes first: "red" belongs to the
  "circle" next to it, which attention is slow to find out.

  tokens [b l] int -> (features [b l d], mask [b l] bool).
  """

  vocab: int
  width: int
  layers: int
  heads: int = 4

  @nn.compact
  def __call__(self, tokens: Array) -> tuple[Array, Array]:
    length = tokens.shape[1]
    # The first position is always attended to: an all-padding (null) prompt
    # has no other one.
    mask = (tokens != PAD) | (jnp.arange(length) == 0)
    x = nn.Embed(self.vocab, self.width, name='embed')(tokens)
    position = self.param(
      'position', nn.initializers.normal(0.02), (length, self.width)
    )
    x = x + position
    x = x + nn.Conv(self.width, (5,), name='phrase')(nn.gelu(x))
    attend = nn.make_attention_mask(mask, mask)
    for i in range(self.layers):
      h = nn.LayerNorm(name=f'norm_a{i}')(x)
      x = x + nn.MultiHeadDotProductAttention(self.heads, name=f'attn{i}')(
        h, mask=attend
      )
      h = nn.LayerNorm(name=f'norm_b{i}')(x)
      h = nn.gelu(nn.Dense(2 * self.width, name=f'up{i}')(h))
      x = x + nn.Dense(self.width, name=f'down{i}')(h)
    return nn.LayerNorm(name='norm')(x), mask


def _group_norm(name: str) -> nn.GroupNorm:
  return nn.GroupNorm(num_groups=8, name=name)


class ResBlock(nn.Module):
  """Two 3x3 convolutions, FiLM-modulated by `emb` [b d] in between."""

  channels: int

  @nn.compact
  def __call__(self, x: Array, emb: Array) -> Array:
    h = nn.Conv(self.channels, (3, 3), name='conv1')(
      nn.silu(_group_norm('norm1')(x))
    )
    film = nn.Dense(2 * self.channels, name='film')(nn.silu(emb))
    scale, shift = jnp.split(film[:, None, None], 2, -1)
    h = _group_norm('norm2')(h) * (1 + scale) + shift
    h = nn.Conv(
      self.channels, (3, 3), kernel_init=nn.initializers.zeros, name='conv2'
    )(nn.silu(h))
    if x.shape[-1] != self.channels:
      x = nn.Conv(self.channels, (1, 1), name='skip')(x)
    return x + h


class Attention(nn.Module):
  """Self-attention over pixels, then cross-attention to the text."""

  heads: int = 4

  @nn.compact
  def __call__(self, x: Array, text: Array, mask: Array) -> Array:
    b, height, width, channels = x.shape
    h = einops.rearrange(_group_norm('norm_self')(x), 'b h w c -> b (h w) c')
    flat = einops.rearrange(x, 'b h w c -> b (h w) c')
    zero = nn.initializers.zeros
    flat = flat + nn.MultiHeadDotProductAttention(
      self.heads, out_kernel_init=zero, name='self'
    )(h)
    h = nn.LayerNorm(name='norm_cross')(flat)
    flat = flat + nn.MultiHeadDotProductAttention(
      self.heads, out_kernel_init=zero, name='cross'
    )(h, text, mask=mask[:, None, None, :])
    return flat.reshape(b, height, width, channels)


class UNet(nn.Module):
  """See the module docstring; returns D(x, t, c), the clean image."""

  channels: tuple[int, ...]
  blocks: tuple[int, ...]
  attention: tuple[bool, ...]
  patch: int
  vocab: int
  text_width: int
  text_layers: int
  emb_width: int

  @nn.compact
  def __call__(self, x: Array, t: Array, tokens: Array) -> Array:
    text, mask = TextEncoder(
      self.vocab, self.text_width, self.text_layers, name='text'
    )(tokens)
    pooled = jnp.sum(text * mask[..., None], 1) / mask.sum(1, keepdims=True)
    emb = nn.Dense(self.emb_width, name='time1')(time_embedding(t, 64))
    emb = nn.Dense(self.emb_width, name='time2')(nn.silu(emb))
    emb = emb + nn.Dense(self.emb_width, name='pooled')(pooled)

    p, c_in = self.patch, x.shape[-1]
    h = einops.rearrange(x, 'b (h p) (w q) c -> b h w (p q c)', p=p, q=p)
    rows, columns = h.shape[1:3]
    grid = jnp.stack(
      jnp.meshgrid(
        jnp.linspace(-1, 1, rows), jnp.linspace(-1, 1, columns), indexing='ij'
      ),
      -1,
    )
    grid = jnp.broadcast_to(grid, (*h.shape[:3], 2))
    h = nn.Conv(self.channels[0], (3, 3), name='stem')(
      jnp.concatenate([h, grid], -1)
    )
    levels = list(zip(self.channels, self.blocks, self.attention, strict=True))
    skips = []
    for i, (channels, blocks, attention) in enumerate(levels):
      if i:
        h = nn.Conv(channels, (3, 3), strides=2, name=f'down{i}')(h)
      for j in range(blocks):
        h = ResBlock(channels, name=f'enc{i}_{j}')(h, emb)
      if attention:
        h = Attention(name=f'enc{i}_attn')(h, text, mask)
      skips.append(h)
    for i, (channels, blocks, attention) in reversed(list(enumerate(levels))):
      if i < len(levels) - 1:
        h = jnp.concatenate([h, skips[i]], -1)
      for j in range(blocks):
        h = ResBlock(channels, name=f'dec{i}_{j}')(h, emb)
      if attention and i < len(levels) - 1:
        h = Attention(name=f'dec{i}_attn')(h, text, mask)
      if i:
        above = self.channels[i - 1]
        h = nn.Conv(above, (1, 1), name=f'up{i}')(h)
        h = einops.repeat(h, 'b h w c -> b (h r) (w s) c', r=2, s=2)
    h = nn.Conv(p * p * c_in, (3, 3), name='out')(
      nn.silu(_group_norm('norm_out')(h))
    )
    return einops.rearrange(h, 'b h w (p q c) -> b (h p) (w q) c', p=p, q=p)


def unet(
  image: tuple[int, int, int] = (24, 24, 3),
  channels: tuple[int, ...] = (64, 96, 128),
  blocks: tuple[int, ...] = (1, 2, 1),
  attention: tuple[bool, ...] = (False, True, True),
  patch: int = 2,
  vocab: int = 64,
  length: int = 16,
  text_width: int = 64,
  text_layers: int = 2,
  emb_width: int = 192,
  t_min: float = 0.05,
) -> Net:
  """The U-Net as a velocity network.

  Args:
    image: h w c of the latent.
    channels: width of each level, fine to coarse.
    blocks: residual blocks per level, in the encoder and in the decoder.
    attention: which levels have self- and cross-attention.
    patch: side of the space-to-depth patches, pixels.
    vocab: token ids, padding and unknown included.
    length: prompt length in tokens.
    text_width: width of the text encoder.
    text_layers: its layers.
    emb_width: width of the time + pooled-text embedding.
    t_min: smallest divisor of (1).
  """
  stride = patch * 2 ** (len(channels) - 1)
  if image[0] % stride or image[1] % stride:
    raise ValueError(
      f'unet: image {image[0]}x{image[1]} is not divisible by patch * 2 ** '
      f'(levels - 1) = {stride}'
    )
  module = UNet(
    tuple(channels), tuple(blocks), tuple(attention), patch, vocab,
    text_width, text_layers, emb_width,
  )  # fmt: skip

  def init(key: Array) -> Params:
    tokens = jnp.zeros((1, length), jnp.int32)
    return module.init(key, jnp.zeros((1, *image)), jnp.zeros(1), tokens)[
      'params'
    ]

  def apply(params: Params, x: Array, t: Array, cond: PyTree) -> Array:
    x = x.astype(jnp.float32)
    clean = module.apply({'params': params}, x, t, cond['tokens'])
    divisor = jnp.maximum(t, t_min)[:, None, None, None]
    return (x - clean.astype(jnp.float32)) / divisor

  def null(cond: PyTree) -> PyTree:
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], PAD)}

  return Net(init, apply, tuple(image), null)
