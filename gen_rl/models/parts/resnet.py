"""Convolutional parts of released U-Nets and autoencoders (diffusers' names).

A block of two convolutions with a residual path (arXiv 2112.10752),

  h = conv1(silu(norm1(x))) + W silu(e),   y = S x + conv2(silu(norm2(h))) (1)

with e the embedding of the time, where there is one, and S a convolution of one
pixel where the number of channels changes. Everything is [b h w c].
"""

import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.types import Array

# Of a pair of convolutions the first is split by its outputs, the second by its
# inputs, so that the halves meet once.
AXES = (
  (r'(^|/)conv1/kernel$', (None, None, 'embed', 'mlp')),
  (r'(^|/)conv2/kernel$', (None, None, 'mlp', 'embed')),
  (r'(^|/)time_emb_proj/kernel$', ('embed', 'mlp')),
  (r'(^|/)conv_in/kernel$', (None, None, None, 'embed')),
  (r'(^|/)conv(_out|_shortcut)?/kernel$', (None, None, 'embed', None)),
  (r'/(bias|scale)$', (None,)),
)
# E[x^2] - E[x]^2 loses digits where the mean is large.
GroupNorm = functools.partial(nn.GroupNorm, use_fast_variance=False)
LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)


def conv(features: int, dtype: Any, name: str, size: int = 3) -> nn.Conv:
  """A convolution of `size` x `size` pixels that keeps height and width."""
  edge = (size - 1) // 2
  return nn.Conv(
    features, (size, size), padding=((edge, edge),) * 2, dtype=dtype, name=name
  )


class Resnet(nn.Module):
  """(1): x [b h w c], the embedding [b e] or None -> [b h w features]."""

  features: int
  groups: int
  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, embedding: Array | None = None) -> Array:
    norm = functools.partial(GroupNorm, self.groups, epsilon=self.eps)
    f, dtype = self.features, self.dtype
    h = conv(f, dtype, 'conv1')(nn.silu(norm(name='norm1', dtype=dtype)(x)))
    if embedding is not None:
      shift = Dense(f, dtype=dtype, name='time_emb_proj')(nn.silu(embedding))
      h += shift[:, None, None]
    h = constrain(h, 'batch', None, None, 'mlp')
    h = conv(f, dtype, 'conv2')(nn.silu(norm(name='norm2', dtype=dtype)(h)))
    if x.shape[-1] != f:
      x = conv(f, dtype, 'conv_shortcut', size=1)(x)
    return constrain(x + h, 'batch', None, None, None)


class Downsample(nn.Module):
  """Every second pixel of a convolution: [b h w c] -> [b h/2 w/2 c].

  Zeros are put around the picture, or `after` it alone.
  """

  after: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    edge = (0 if self.after else 1, 1)
    return nn.Conv(
      x.shape[-1], (3, 3), strides=2, padding=(edge, edge), dtype=self.dtype,
      name='conv',
    )(x)  # fmt: skip


class Upsample(nn.Module):
  """Every pixel four times, and a convolution: [b h w c] -> [b 2h 2w c].

  `size`, height and width that are wanted, may each be one less.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, size: tuple[int, int] | None = None) -> Array:
    x = x.repeat(2, 1).repeat(2, 2)
    if size is not None:
      x = x[:, : size[0], : size[1]]
    return conv(x.shape[-1], self.dtype, 'conv')(x)
