"""Transformers on the pixels of a U-Net (arXiv 2112.10752), diffusers' names.

Pixels attend to each other and then to the text, and pass a gated MLP,

  h += A1(n1(h), n1(h));  h += A2(n2(h), text);  h += W (a gelu(g)),
  [a g] = V n3(h),                                                       (1)

between two products with a residual path around all of it.
"""

import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from gen_rl.models.parts import resnet
from gen_rl.models.parts.attention import sdpa
from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.types import Array

AXES = (
  (r'(^|/)to_[qkv]/kernel$', ('embed', 'heads')),
  (r'(^|/)to_out_0/kernel$', ('heads', 'embed')),
  (r'(^|/)net_0/proj/kernel$', ('embed', 'mlp')),
  (r'(^|/)net_2/kernel$', ('mlp', 'embed')),
  (r'(^|/)proj_(in|out)/kernel$', ('embed', None)),
  *resnet.AXES,
)


class Settings(NamedTuple):
  """What the parts of the network share."""

  groups: int
  eps: float
  linear: bool
  remat: str
  implementation: str
  dtype: Any


class Attention(nn.Module):
  """Of x [b i d] to what is seen [b j e] -> [b i d]."""

  heads: int
  settings: Settings

  @nn.compact
  def __call__(self, x: Array, seen: Array) -> Array:
    d = x.shape[-1]
    dense = functools.partial(Dense, d, dtype=self.settings.dtype)
    q, k, v = (
      dense(use_bias=False, name=f'to_{name}')(a)
      for name, a in (('q', x), ('k', seen), ('v', seen))
    )
    q, k, v = (
      constrain(
        a.reshape(*a.shape[:2], self.heads, -1), 'batch', None, 'heads', None
      )
      for a in (q, k, v)
    )
    out = sdpa(q, k, v, implementation=self.settings.implementation)
    return dense(name='to_out_0')(out.reshape(x.shape))


class _Gated(nn.Module):
  """a gelu(g) of (1)."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    both = Dense(2 * self.features, dtype=self.dtype, name='proj')(x)
    a, g = jnp.split(both, 2, -1)
    return constrain(a * nn.gelu(g, approximate=False), 'batch', None, 'mlp')


class MLP(nn.Module):
  """The last part of (1)."""

  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d = x.shape[-1]
    h = _Gated(4 * d, self.dtype, name='net_0')(x)
    return Dense(d, dtype=self.dtype, name='net_2')(h)


class Block(nn.Module):
  """(1): x [b i d], text [b l e] -> [b i d]."""

  heads: int
  settings: Settings

  @nn.compact
  def __call__(self, x: Array, text: Array) -> Array:
    dtype = self.settings.dtype
    norm = functools.partial(resnet.LayerNorm, epsilon=1e-5, dtype=dtype)
    h = norm(name='norm1')(x)
    x += Attention(self.heads, self.settings, name='attn1')(h, h)
    h = norm(name='norm2')(x)
    x += Attention(self.heads, self.settings, name='attn2')(h, text)
    x += MLP(dtype, name='ff')(norm(name='norm3')(x))
    return constrain(x, 'batch', None, None)


class Transformer(nn.Module):
  """Blocks on the pixels of x [b h w c], residual."""

  heads: int
  depth: int
  settings: Settings

  @nn.compact
  def __call__(self, x: Array, text: Array) -> Array:
    s, c = self.settings, x.shape[-1]
    product = (
      functools.partial(Dense, c, dtype=s.dtype)
      if s.linear
      else functools.partial(resnet.conv, c, s.dtype, size=1)
    )
    norm = resnet.GroupNorm(s.groups, epsilon=1e-6, dtype=s.dtype, name='norm')
    h = product(name='proj_in')(norm(x)).reshape(x.shape[0], -1, c)
    for i in range(self.depth):
      h = Block(self.heads, s, name=f'transformer_blocks_{i}')(h, text)
    return x + product(name='proj_out')(h.reshape(x.shape))
