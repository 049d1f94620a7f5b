r"""A codec: pictures as few codes out of a small book, and back.

An encoder looks at a picture's squares of p x p pixels, each given what the
others show (a vision transformer), and says d numbers z_i for each. Finite
scalar quantisation (FSQ, arXiv 2309.15505) rounds number i to one of L_i
levels,

  z_i' = tanh(z_i + s_i) (L_i - 1) (1 + e) / 2 - o_i,   q_i = round(z_i')  (1)

with o_i = 1/2 for an even L_i, else 0, and s_i such that z_i = 0 gives 0. The
code of a square is the number whose digits the q_i are; there are prod L_i
codes, and no book that could be used in part, as that of a VQ-VAE is (arXiv
1711.00937). Gradients pass the rounding unchanged. A decoder, another
transformer, turns the codes of a picture into pixels.

The loss is the mean absolute error of pixels: edges stay sharp.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.fields import Count
from gen_rl.models import vlm
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.layers import Dense
from gen_rl.types import Array, Axes, Params

AXES = (
  (r'(^|/)(patches|pixels|codes)/kernel$', (None, 'embed')),
  (r'(^|/)to_code/kernel$', ('embed', None)),
  *layers_lib.AXES,
)
_EDGE = 1e-3  # e of (1): how far the outer levels are from what tanh reaches


class Codec(NamedTuple):
  """A codec as pure functions. Pictures are [b h w c] in [0, 1]."""

  init: Callable[[Array], Params]  # key -> params
  encode: Callable[[Params, Array], Array]  # pictures -> codes [b n] int32
  # codes -> pictures; what the decoder says outside of [0, 1] is clipped
  decode: Callable[[Params, Array], Array]
  loss: Callable[[Params, Array], Array]  # pictures -> [b]
  size: int  # of the book
  grid: tuple[int, int]  # of a picture's codes, n = their product
  axes: Axes = AXES


def quantise(z: Array, levels: Sequence[int]) -> Array:
  """(1): [... d] -> whole numbers with gradients, floor(-L/2)+1 and up."""
  top = np.array(levels)
  half = (top - 1) * (1 + _EDGE) / 2
  offset = np.where(top % 2, 0.0, 0.5)
  shift = np.arctanh(offset / half)
  bounded = jnp.tanh(z + shift) * half - offset
  return bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)


def to_codes(q: Array, levels: Sequence[int]) -> Array:
  """Whole numbers of `quantise` [... d] -> codes [...] int32."""
  top = np.array(levels)
  digits = jnp.round(q).astype(jnp.int32) + top // 2
  return (digits * np.cumprod([1, *levels[:-1]])).sum(-1)


def from_codes(codes: Array, levels: Sequence[int]) -> Array:
  """The inverse of `to_codes`, float32."""
  top = np.array(levels)
  digits = codes[..., None] // np.cumprod([1, *levels[:-1]]) % top
  return (digits - top // 2).astype(jnp.float32)


class _FSQ(nn.Module):
  image: tuple[int, int, int]
  patch: int
  levels: tuple[int, ...]
  width: int
  layers: int
  heads: int

  def setup(self):
    tower = (self.width, self.layers, self.heads)
    self.encoder = vlm.ViT(self.image, self.patch, *tower)
    self.to_code = Dense(len(self.levels))
    self.codes = Dense(self.width)
    self.decoder = vlm.Blocks(*tower)
    self.pixels = Dense(self.patch**2 * self.image[2])

  def encode(self, image: Array) -> Array:
    return quantise(self.to_code(self.encoder(image)), self.levels)

  def decode(self, q: Array) -> Array:
    half = np.maximum(np.array(self.levels) // 2, 1)
    h = self.decoder(self.codes(q / half))
    p = self.patch
    return 0.5 + einops.rearrange(
      self.pixels(h), 'b (h w) (p q c) -> b (h p) (w q) c', p=p, q=p,
      h=self.image[0] // p,
    )  # fmt: skip

  def __call__(self, image: Array) -> Array:
    return self.decode(self.encode(image))


def fsq_codec(
  image: tuple[Count, Count, Count] = (24, 24, 3),
  patch: Count = 6,
  levels: Sequence[Count] = (8, 8, 8),
  width: Count = 96,
  layers: Count = 2,
  heads: Count = 4,
) -> Codec:
  """A codec with finite scalar quantisation.

  Args:
    image: h w c of the pictures.
    patch: side of the square a code stands for, pixels.
    levels: L of (1); the book has their product.
    width: of both transformers.
    layers: of each.
    heads: of each.

  Raises:
    ValueError: sizes that do not fit each other, naming them.
  """
  if image[0] % patch or image[1] % patch:
    raise ValueError(
      f'fsq_codec: image {image[0]}x{image[1]} is not divisible by '
      f'patch={patch}'
    )
  if width % heads:
    raise ValueError(
      f'fsq_codec: width={width} is not divisible by heads={heads}'
    )
  if not levels or min(levels) < 2:
    raise ValueError(f'fsq_codec: levels={levels} are 2 or more each')
  levels = tuple(levels)
  module = _FSQ(tuple(image), patch, levels, width, layers, heads)

  def run(params: Params, method: str, x: Array) -> Array:
    return module.apply({'params': params}, x, method=method)

  def decode(params: Params, codes: Array) -> Array:
    out = run(params, 'decode', from_codes(codes, levels))
    return jnp.clip(out, 0.0, 1.0)

  return Codec(
    init=lambda key: module.init(key, jnp.zeros((1, *image)))['params'],
    encode=lambda params, x: to_codes(run(params, 'encode', x), levels),
    decode=decode,
    loss=lambda params, x: jnp.abs(run(params, '__call__', x) - x).mean(
      (1, 2, 3)
    ),
    size=math.prod(levels),
    grid=(image[0] // patch, image[1] // patch),
  )
