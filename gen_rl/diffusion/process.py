"""The corruption process, and conversions between what a net may predict.

Inside gen_rl there is one convention, the rectified flow, s in [0, 1]:

  x_s = (1 - s) x0 + s x1,   x1 ~ N(0, I),   v = E[x1 - x0 | x_s]        (1)
  E[x0 | x_s] = x_s - s v                                                (2)
  E[x1 | x_s] = x_s + (1 - s) v        (x1 is the noise, eps)            (3)
  score       = grad log p_s(x_s) = -E[x1 | x_s] / s                     (4)

Variance-preserving (DDPM) nets meet it at the edge. With
x_vp = alpha x0 + sigma eps and alpha^2 + sigma^2 = 1,

  s = sigma / (alpha + sigma),   x_s = x_vp / (alpha + sigma)            (5)
  u = alpha eps - sigma x0             ("v-prediction", arXiv 2202.00512)
  x0 = alpha x_vp - sigma u,   eps = sigma x_vp + alpha u                (6)

Latents are [n ...]; times are [n], or any prefix of the latent's shape, and
are broadcast. Results are float32. Where a conversion is singular (the score
and v from x0 at s = 0, v from x1 or from the score at s = 1) it returns 0.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Float32

from gen_rl.build import ConfigError
from gen_rl.types import AnyArray, Array, Noised

# In a signature all `*x` are one shape [n ...], all `*s` a prefix of it.
Latent = Float[AnyArray, '*x']
Float32Latent = Float32[Array, '*x']
Times = Float32[Array, '*s']


def expand(s: ArrayLike, x: AnyArray) -> Array:
  """Appends axes to `s` [n] until it broadcasts against `x` [n ...]."""
  s = jnp.asarray(s, jnp.float32)
  return s.reshape(s.shape + (1,) * (x.ndim - s.ndim))


def divide(a: Array, b: Array) -> Array:
  """A / b, and 0 with zero gradients where b == 0."""
  valid = b != 0
  return jnp.where(valid, a / jnp.where(valid, b, 1.0), 0.0)


def _inputs(
  x: AnyArray, y: AnyArray, s: ArrayLike
) -> tuple[Array, Array, Array]:
  x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
  return x, y, expand(s, x)


def corrupt(x0: Latent, x1: Latent, s: ArrayLike) -> Float32Latent:
  """x_s of (1) from data `x0`, noise `x1` and times `s`."""
  x0, x1, s = _inputs(x0, x1, s)
  return (1.0 - s) * x0 + s * x1


def x0_from_velocity(x: Latent, v: Latent, s: ArrayLike) -> Float32Latent:
  """(2)."""
  x, v, s = _inputs(x, v, s)
  return x - s * v


def x1_from_velocity(x: Latent, v: Latent, s: ArrayLike) -> Float32Latent:
  """(3), the noise prediction."""
  x, v, s = _inputs(x, v, s)
  return x + (1.0 - s) * v


def score_from_velocity(x: Latent, v: Latent, s: ArrayLike) -> Float32Latent:
  """(4)."""
  x, v, s = _inputs(x, v, s)
  return divide(-(x + (1.0 - s) * v), s)


def velocity_from_x0(x: Latent, x0: Latent, s: ArrayLike) -> Float32Latent:
  """Inverse of (2)."""
  x, x0, s = _inputs(x, x0, s)
  return divide(x - x0, s)


def velocity_from_x1(x: Latent, x1: Latent, s: ArrayLike) -> Float32Latent:
  """Inverse of (3); `x1` is a noise (eps) prediction."""
  x, x1, s = _inputs(x, x1, s)
  return divide(x1 - x, 1.0 - s)


def velocity_from_score(
  x: Latent, score: Latent, s: ArrayLike
) -> Float32Latent:
  """Inverse of (4)."""
  x, score, s = _inputs(x, score, s)
  return divide(-s * score - x, 1.0 - s)


@jax.custom_jvp
def clip(x: Float[AnyArray, '*x']) -> Float[Array, '*x']:
  """Clips to [0, 1] and lets all of the gradient pass (straight-through).

  Most pixels of a clean picture lie at or beyond an end: a gradient that
  stopped there would never reach them again.
  """
  return jnp.clip(x, 0.0, 1.0)


@clip.defjvp
def _clip_jvp(primals, tangents):
  return clip(*primals), tangents[0]


def resized(pictures: Array, size: tuple[int, int]) -> Array:
  """Pictures [b h w c] at a size (h, w), linearly; those that have it as is."""
  if pictures.shape[1:3] == tuple(size):
    return pictures
  shape = (len(pictures), *size, pictures.shape[-1])
  return jax.image.resize(pictures, shape, 'linear')


def event_mean(x: Float[AnyArray, 'b k ...']) -> Float32[Array, 'b k']:
  """Mean over all but the first two axes, in float32."""
  x = jnp.asarray(x, jnp.float32)
  return jnp.mean(x, tuple(range(2, x.ndim)))


def matching_error(
  v: Float[AnyArray, 'b k ...'],
  at: Noised,
  of: Literal['velocity', 'noise'] = 'velocity',
) -> Float32[Array, 'b k']:
  """Flow-matching error, the mean over the event of (v - (x1 - x0))^2.

  That of the noise is (1 - s)^2 times it, by (3).

  Raises:
    ConfigError: another `of`.
  """
  if of not in ('velocity', 'noise'):
    raise ConfigError(
      f"errors are of the 'velocity' or the 'noise', not {of!r}"
    )
  target = at.x1 - at.x0[:, None]
  error = event_mean(jnp.square(v.astype(jnp.float32) - target))
  return error if of == 'velocity' else jnp.square(1.0 - at.t) * error


def flow_from_vp(
  x_vp: Latent, alpha: ArrayLike, sigma: ArrayLike
) -> tuple[Float32Latent, Times]:
  """(5): x_s and s from a variance-preserving latent."""
  alpha = jnp.asarray(alpha, jnp.float32)
  sigma = jnp.asarray(sigma, jnp.float32)
  x_vp = jnp.asarray(x_vp, jnp.float32)
  return x_vp / expand(alpha + sigma, x_vp), sigma / (alpha + sigma)


def vp_from_flow(x: Latent, s: ArrayLike) -> tuple[Float32Latent, Times, Times]:
  """Inverse of (5): x_vp, alpha and sigma."""
  s = jnp.asarray(s, jnp.float32)
  x = jnp.asarray(x, jnp.float32)
  norm = jnp.sqrt(jnp.square(1.0 - s) + jnp.square(s))
  return x / expand(norm, x), (1.0 - s) / norm, s / norm


def velocity_from_vp_velocity(
  x: Latent, u: Latent, s: ArrayLike
) -> Float32Latent:
  """(6) then v = eps - x0, from the flow latent `x` and a v-prediction `u`."""
  x_vp, alpha, sigma = vp_from_flow(x, s)
  alpha, sigma = expand(alpha, x_vp), expand(sigma, x_vp)
  u = jnp.asarray(u, jnp.float32)
  return (sigma * x_vp + alpha * u) - (alpha * x_vp - sigma * u)
