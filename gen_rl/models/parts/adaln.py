"""Parts that the transformers of Stable Diffusion 3, FLUX and Wan share.

Blocks are moved by vectors of the time and the pooled text, shared by all
tokens of a row (adaLN, arXiv 2212.09748). Names are diffusers'.

Where tokens say where they are by rotations (arXiv 2104.09864), pair j of the
d_a numbers that axis a turns goes by the angle, at place p,

  p_a 10000^(-2j / d_a)                                                  (1)
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.types import Array, Params, PyTree

EPS = 1e-6
_THETA = 1e4
AXES = (
  (r'(^|/)add_[qkv]_proj/kernel$', ('embed', 'heads')),
  (r'(^|/)to_[qkv]/kernel$', ('embed', 'heads')),
  (r'(^|/)to_(out_0|add_out)/kernel$', ('heads', 'embed')),
  (r'(^|/)net_0/proj/kernel$', ('embed', 'mlp')),
  (r'(^|/)net_0/proj/bias$', ('mlp',)),
  (r'(^|/)net_2/kernel$', ('mlp', 'embed')),
  (r'(^|/)(linear|linear_2|proj_out)/kernel$', ('embed', None)),
  (r'(^|/)(linear_1|(context|x)_embedder)/kernel$', (None, 'embed')),
)


def norm(dtype: Any) -> nn.LayerNorm:
  """A norm without parameters; its statistics are float32."""
  return nn.LayerNorm(epsilon=EPS, use_bias=False, use_scale=False, dtype=dtype)


class Modulation(nn.Module):
  """[b d] -> `parts` vectors [b 1 d] for the tokens of a row."""

  width: int
  parts: int
  dtype: Any

  @nn.compact
  def __call__(self, y: Array) -> list[Array]:
    out = Dense(self.parts * self.width, dtype=self.dtype, name='linear')
    return jnp.split(out(nn.silu(y))[:, None], self.parts, -1)


class TwoLayers(nn.Module):
  """[b f] -> [b d], through a layer of d."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(Dense, self.width, dtype=self.dtype)
    return dense(name='linear_2')(nn.silu(dense(name='linear_1')(x)))


class Projection(nn.Module):
  """A layer, then GELU."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return nn.gelu(Dense(self.width, dtype=self.dtype, name='proj')(x))


class FeedForward(nn.Module):
  """[b i d] -> [b i d], through `hidden` numbers, four times as many."""

  width: int
  dtype: Any
  hidden: int | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    hidden = self.hidden or 4 * self.width
    x = Projection(hidden, self.dtype, name='net_0')(x)
    x = constrain(x, 'batch', None, 'mlp')
    return Dense(self.width, dtype=self.dtype, name='net_2')(x)


def time_features(t: Array, size: int = 256) -> Array:
  """Cosines and sines of t at frequencies from 1 to 1e-4: [b] -> [b size]."""
  half = size // 2
  frequency = jnp.exp(-np.log(1e4) * jnp.arange(half) / half)
  angle = t.astype(jnp.float32)[:, None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def positions(
  height: int, width: int, d: int, grid: int, base: int
) -> np.ndarray:
  """The middle of a grid of sines and cosines: float32 [(height width) d].

  Args:
    height: rows of tokens.
    width: columns of tokens.
    d: numbers of a token; the first half says the column, the second the row.
    grid: side of the grid.
    base: side of the grid that a place is measured in.
  """

  def along(count: int) -> np.ndarray:
    place = np.arange(grid)[(grid - count) // 2 :][:count] / (grid / base)
    omega = 1e4 ** -(np.arange(d // 4) / (d / 4))
    angle = place[:, None] * omega
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)

  rows, columns = along(height), along(width)
  table = np.concatenate(
    np.broadcast_arrays(columns[None, :], rows[:, None]), -1
  )
  return table.reshape(height * width, d).astype(np.float32)


class Turns(NamedTuple):
  """Of (1): cosines and sines, float32 [i c/2]."""

  cos: Array
  sin: Array


def turns(places: np.ndarray, sizes: Sequence[int]) -> Turns:
  """(1).

  Args:
    places: [i a], where the tokens are.
    sizes: d_a, numbers of a head that an axis turns.
  """
  angle = np.concatenate(
    [
      places[:, a, None] * _THETA ** -(np.arange(0, d, 2) / d)
      for a, d in enumerate(sizes)
    ],
    1,
  )
  return Turns(
    jnp.asarray(np.cos(angle), jnp.float32),
    jnp.asarray(np.sin(angle), jnp.float32),
  )


def turned(x: Array, by: Turns) -> Array:
  """Pairs of neighbours of a head, turned: [b i n c]."""
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  a, b = pairs[..., 0], pairs[..., 1]
  cos, sin = by.cos[:, None], by.sin[:, None]
  out = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
  return out.reshape(x.shape).astype(x.dtype)


class Embedders(nn.Module):
  """What time, guidance and pooled text become; their names in files."""

  width: int
  guided: bool
  dtype: Any

  def setup(self):
    self.timestep_embedder = TwoLayers(self.width, self.dtype)
    self.text_embedder = TwoLayers(self.width, self.dtype)
    if self.guided:
      self.guidance_embedder = TwoLayers(self.width, self.dtype)

  def time(self, t: Array) -> Array:
    return self.timestep_embedder(time_features(1000.0 * t))

  def text(self, pooled: Array, guidance: float = 0.0) -> Array:
    out = self.text_embedder(pooled)
    if self.guided:
      scale = jnp.full(len(pooled), 1000.0 * guidance)
      out += self.guidance_embedder(time_features(scale))
    return out


class Encoded(NamedTuple):
  """What the blocks need of the prompts: the same at every denoising step."""

  text: Array  # [b l d]
  pooled: Array  # [b d], with the scale of guidance


def functions(
  module: nn.Module, few: tuple[int, int, int], text: int, pooled: int
) -> tuple[Callable, Callable, Callable]:
  """(init, apply, encode) of a `layers.Net`, of a module with these methods.

  Args:
    module: has encode(text, pooled) -> Encoded and denoise(x, t, Encoded).
    few: h w c of a latent that is enough to make parameters.
    text: numbers of a text token.
    pooled: numbers of the pooled text.
  """

  def init(key: Array) -> Params:
    words = jnp.zeros((1, 1, text)), jnp.zeros((1, pooled))
    return module.init(key, jnp.zeros((1, *few)), jnp.zeros(1), *words)[
      'params'
    ]

  def encode(params: Params, cond: PyTree) -> Encoded:
    return module.apply(
      {'params': params}, cond['text'], cond['pooled'], method='encode'
    )

  def apply(params: Params, x: Array, t: Array, encoded: Encoded) -> Array:
    v = module.apply({'params': params}, x, t, encoded, method='denoise')
    return v.astype(jnp.float32)

  return init, apply, encode
