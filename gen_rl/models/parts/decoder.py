"""The decoder of Llama, Qwen2 and Qwen3: blocks between embeddings and logits.

With p the number of real tokens before a token, h its vector and n(h) =
s h / rms(h) (RMSNorm, arXiv 1910.07467), a block computes

  q = R(p) n_q(W_q n(h)),  k = R(p) n_k(W_k n(h)),  v = W_v n(h)          (1)
  h <- h + W_o sum_j softmax_j(q . k_j / sqrt(c)) v_j                     (2)
  h <- h + W_down (silu(W_gate n(h)) * W_up n(h))                         (3)

where R(p) turns the pairs (i, i + c/2) of a head's c numbers by p theta^(-2i/c)
(rotary positions, arXiv 2104.09864), so that q . k depends on the difference of
two positions only. Heads share keys and values in groups (grouped queries,
arXiv 2305.13245), MLPs are gated (arXiv 2002.05202), n_q and n_k are there with
`qk_norm` only. j runs over the tokens up to the own one that are not padding.
Norms, rotations, scores and their softmax are float32.
"""

import functools
from typing import Any, NamedTuple

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.models.parts import attention
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.types import Array

AXES = (
  (r'(^|/)gate/kernel$', ('embed', 'mlp')),
  *layers_lib.AXES,
)
_SHARED = (nn.broadcast,) * 3  # by all blocks: all but the layer


class Shape(NamedTuple):
  """Of a decoder; `lm.lm` says what the fields are."""

  width: int
  layers: int
  heads: int
  kv_heads: int
  mlp: int
  head_dim: int
  theta: float = 1e4
  qk_norm: bool = False
  bias: bool = False
  eps: float = 1e-6
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32


def shape_of(
  name: str,
  width: int,
  heads: int,
  kv_heads: int,
  mlp: int | None,
  head_dim: int | None,
  dtype: str,
  **others: Any,
) -> Shape:
  """A `Shape` whose defaults are filled in.

  Raises:
    ValueError: sizes that do not divide, naming them and the network.
  """
  if heads % kv_heads:
    raise ValueError(
      f'{name}: heads={heads} is not divisible by kv_heads={kv_heads}'
    )
  if head_dim is None:
    if width % heads:
      raise ValueError(
        f'{name}: width={width} is not divisible by heads={heads}; set head_dim'
      )
    head_dim = width // heads
  if head_dim % 2:
    raise ValueError(
      f'{name}: heads of {head_dim} numbers cannot be rotated in pairs; make '
      'head_dim even'
    )
  return Shape(
    width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
    mlp=4 * width if mlp is None else mlp, dtype=jnp.dtype(dtype), **others,
  )  # fmt: skip


class Past(NamedTuple):
  """A part of the tokens before those that a decoder is given.

  It has b rows, or fewer: each is then the past of as many neighbours.
  """

  # Per block, 2 x [b 1 n S c]; of scanned blocks stacked, 2 x [b layers n S c].
  keys_values: tuple[Any, ...]
  seen: Array  # [b S] bool: the slots that are filled, and not by padding


def rotations(
  positions: Array, head_dim: int, theta: float
) -> tuple[Array, Array]:
  """(cos, sin) of the angles of R in (1): [b s] -> 2 x [b s c/2], float32."""
  frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
  angle = positions[..., None] * jnp.asarray(frequency, jnp.float32)
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, rope: tuple[Array, Array]) -> Array:
  """R x of (1): [b ... s c] -> the same, float32."""
  cos, sin = (
    r.reshape(len(r), *(1,) * (x.ndim - 3), *r.shape[1:]) for r in rope
  )
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
  """Equations (1) to (3).

  x [b s d], layer, (cos, sin), visible [b s], parts of the past -> (x [b s d],
  its keys and values 2 x [b n s c]).
  """

  shape: Shape

  def setup(self):
    s = self.shape
    dense = functools.partial(Dense, use_bias=False, dtype=s.dtype)
    norm = functools.partial(nn.RMSNorm, epsilon=s.eps, dtype=s.dtype)
    self.norm_a, self.norm_m = norm(), norm()
    if s.qk_norm:
      self.norm_q, self.norm_k = norm(), norm()
    # The queries, the key and the value of a group lie side by side: groups
    # stay whole wherever "heads" are split.
    heads = s.heads + 2 * s.kv_heads
    self.qkv = dense(heads * s.head_dim, use_bias=s.bias)
    self.out = dense(s.width)
    self.gate, self.up = dense(s.mlp), dense(s.mlp)
    self.down = dense(s.width)

  def __call__(
    self,
    x: Array,
    layer: Array | int,
    rope: tuple[Array, Array],
    visible: Array,
    past: tuple[Past, ...],
  ) -> tuple[Array, tuple[Array, Array]]:
    s = self.shape
    qkv = einops.rearrange(
      self.qkv(self.norm_a(x)), 'b s (n m c) -> b n m s c',
      n=s.kv_heads, c=s.head_dim,
    )  # fmt: skip
    q, k, v = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
    if s.qk_norm:
      q, k = self.norm_q(q), self.norm_k(k)
    q, k = (rotate(a, rope).astype(s.dtype) for a in (q, k))
    q = constrain(q, 'batch', 'heads', None, None, None)
    k, v = (constrain(a, 'batch', 'heads', None, None) for a in (k, v))
    if not past:
      x += self.out(attention.causal(q, k, v, visible))
    else:
      before = [
        (
          *(
            jax.lax.dynamic_index_in_dim(a, layer, 1, keepdims=False)
            for a in part.keys_values
          ),
          part.seen[:, None],
        )
        for part in past
      ]
      now = k, v, attention.behind(visible)
      x += self.out(attention.grouped(q, *before, now))
    h = self.norm_m(x)
    h = constrain(nn.silu(self.gate(h)) * self.up(h), 'batch', None, 'mlp')
    return constrain(x + self.down(h), 'batch', None, None), (k, v)


class Decoder(nn.Module):
  """Blocks and a last norm.

  x [b s d], positions [b s], visible [b s] bool (False: padding), parts of what
  came before -> ([b s d], keys and values of x, as `Past` has them).
  """

  shape: Shape

  def setup(self):
    s = self.shape
    block = layers_lib.rematerialized(Block, s.remat, in_scan=s.scan)
    if s.scan:
      self.block = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=s.layers,
        in_axes=(0, *_SHARED),
        out_axes=1,
      )(s)
    else:
      self.block = [block(s) for _ in range(s.layers)]
    self.norm = nn.RMSNorm(epsilon=s.eps, dtype=s.dtype)

  def __call__(
    self, x: Array, positions: Array, visible: Array, *past: Past
  ) -> tuple[Array, Any]:
    s = self.shape
    rope = rotations(positions, s.head_dim, s.theta)
    x = x.astype(s.dtype)
    if s.scan:
      layers = jnp.arange(s.layers)
      x, new = self.block(x, layers, rope, visible, past)
    else:
      new = []
      for i, block in enumerate(self.block):
        own = tuple(Past(part.keys_values[i], part.seen) for part in past)
        x, pair = block(x, 0, rope, visible, own)
        new.append(tuple(a[:, None] for a in pair))
    return self.norm(x), tuple(new)


def room(x: Array, slots: int) -> Array:
  """Of keys or values as `Past` has them, as many empty slots."""
  return jnp.zeros((*x.shape[:3], slots, x.shape[4]), x.dtype)


def write(keys_values: Any, new: Any, slot: Array) -> Any:
  """Keys and values of `Past` with new ones from `slot` on, in all rows."""
  return jax.tree.map(
    lambda old, a: jax.lax.dynamic_update_slice_in_dim(old, a, slot, 3),
    keys_values,
    new,
  )
