r"""A world of points: a Gaussian mixture per prompt, with everything exact.

The prompt is one of the words north, east, south, west. Points live in the
square [-1, 1]^2 around four centres, one per word; the base puts the weight
`NAMED` on the centre the prompt names and shares the rest, as a model does
that follows its prompts only some of the time. With weights w_k, centres m_k
and one variance q = STD^2 (d = 2),

  p(x) = sum_k w_k N(x; m_k, q I)                                        (1)

The rectified flow x_s = (1 - s) x0 + s x1 makes of component k the Gaussian
N((1 - s) m_k, q_s I), q_s = (1 - s)^2 q + s^2, in which x0 and x1 are jointly
Gaussian with x_s, so that v = E[x1 - x0 | x_s] is

  g_k(x) = softmax_k(log w_k - |x - (1 - s) m_k|^2 / (2 q_s))            (2)
  v(x, s) = sum_k g_k (c_s (x - (1 - s) m_k) - m_k),
            c_s = (s - (1 - s) q) / q_s                                  (3)

The reward is r(x) = -|x - y|^2 with y the named centre. Among all densities,
E[r] - beta KL(. || p) is largest for

  p*(x) ~ p(x) exp(r(x) / beta) = sum_k w*_k N(x; m*_k, q* I),           (4)
  with h = beta / 2:   w*_k ~ w_k exp(-|m_k - y|^2 / (2 (q + h))),
  m*_k = (h m_k + q y) / (q + h),   q* = q h / (q + h),

since exp(r / beta) ~ N(y; x, h I) and a product of Gaussians is one. A flow
trained to this optimum with a sampler whose samples forget their initial
noise (ancestral sampling) has p* as the end of its ODE too (Adjoint Matching,
arXiv 2409.08861, section 4).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.types import Array
from gen_rl.worlds.world import Facts, Sentence, World

WORDS = ('north', 'east', 'south', 'west')
CENTERS = ((0.0, 0.5), (0.5, 0.0), (0.0, -0.5), (-0.5, 0.0))  # x right, y up
STD = 0.12  # of every component, along each axis
NAMED = 0.4  # weight of the centre that the prompt names
NEAR = 0.3  # of the named centre, in half-widths of the square: right


class Mixture(NamedTuple):
  """(1), with any leading axes [...]."""

  weights: Array  # [... k], sum 1
  means: Array  # [... k d]
  var: Array  # [...]


def base(named: Array) -> Mixture:
  """The data of prompts that name centre `named`: int [...], -1 for none."""
  k = len(WORDS)
  hit = jnp.asarray(named)[..., None] == jnp.arange(k)
  rest = (1.0 - NAMED) / (k - 1)
  weights = jnp.where(hit, NAMED, rest)
  weights = jnp.where(hit.any(-1, keepdims=True), weights, 1.0 / k)
  means = jnp.broadcast_to(jnp.asarray(CENTERS), (*weights.shape, 2))
  return Mixture(weights, means, jnp.full(weights.shape[:-1], STD**2))


def velocity(mixture: Mixture, x: Array, s: Array) -> Array:
  """(3): x [... d], s [...] -> [... d]; finite for all s in [0, 1]."""
  weights, means, var = mixture
  var_s = jnp.square(1.0 - s) * var + jnp.square(s)
  offset = x[..., None, :] - (1.0 - s)[..., None, None] * means  # [... k d]
  square = jnp.sum(jnp.square(offset), -1)
  share = jax.nn.softmax(
    jnp.log(weights) - square / (2.0 * var_s[..., None]), -1
  )
  slope = (s - (1.0 - s) * var) / var_s
  each = slope[..., None, None] * offset - means
  return jnp.einsum('...k,...kd->...d', share, each)


def sample(mixture: Mixture, key: Array) -> Array:
  """One point [... d] of each mixture, from one key."""
  which, noise = jax.random.split(key)
  k = jax.random.categorical(which, jnp.log(mixture.weights))
  means = jnp.take_along_axis(mixture.means, k[..., None, None], -2)[..., 0, :]
  z = jax.random.normal(noise, means.shape)
  return means + jnp.sqrt(mixture.var)[..., None] * z


def density(mixture: Mixture, x: Array) -> Array:
  """(1): x [... d] -> [...]."""
  square = jnp.sum(jnp.square(x[..., None, :] - mixture.means), -1)
  var = mixture.var[..., None]
  norm = (2.0 * jnp.pi * var) ** (x.shape[-1] / 2)
  return jnp.sum(mixture.weights * jnp.exp(-square / (2.0 * var)) / norm, -1)


def optimum(mixture: Mixture, target: Array, beta: float) -> Mixture:
  """(4): p* for the reward -|x - target|^2; target [... d], beta >= 0."""
  weights, means, var = mixture
  h = beta / 2.0
  both = var + h
  square = jnp.sum(jnp.square(means - target[..., None, :]), -1)
  weights = jax.nn.softmax(
    jnp.log(weights) - square / (2.0 * both[..., None]), -1
  )
  keep = (h / both)[..., None, None]
  means = keep * means + (1.0 - keep) * target[..., None, :]
  return Mixture(weights, means, var * h / both)


def moments(mixture: Mixture) -> tuple[Array, Array]:
  """E[x] [... d] and E[x x^T] [... d d]."""
  weights, means, var = mixture
  mean = jnp.einsum('...k,...kd->...d', weights, means)
  second = jnp.einsum('...k,...kd,...ke->...de', weights, means, means)
  eye = jnp.eye(means.shape[-1])
  return mean, second + var[..., None, None] * eye


def _sentence(k: int) -> Sentence:
  facts = dict(named=np.int32(k), target=np.float32(CENTERS[k]))
  return Sentence(WORDS[k], facts, WORDS[k], 'all', k)


def _parse(text: str) -> Sentence:
  word = text.strip().lower()
  if word not in WORDS:
    raise ValueError(
      f'{text!r:.200} is none of the words of the mixture world: '
      f'{", ".join(WORDS)}'
    )
  return _sentence(WORDS.index(word))._replace(text=text)


def _render(key: Array, facts: Facts) -> Array:
  """A point [2] in [0, 1] of the named component, within 1.7 deviations."""
  z = jax.random.truncated_normal(key, -1.7, 1.7, (2,))
  return (facts['target'] + STD * z + 1.0) / 2.0


def _mutate(key: Array, facts: Facts) -> Facts:
  k = facts['named'] + jax.random.randint(key, (), 1, len(WORDS))
  named = k.astype(jnp.int32) % len(WORDS)
  return dict(named=named, target=jnp.asarray(CENTERS)[named])


def _judge(media: Array, facts: Facts) -> tuple[Array, Array]:
  """Credit falls from the centre on, and is half where it is near no more."""
  distance = jnp.linalg.norm(2.0 * media - 1.0 - facts['target'], axis=-1)
  return jnp.exp2(-distance / NEAR), distance < NEAR


def mixture() -> World:
  """Four words, each of a place in the plane."""
  return World(
    name='mixture',
    tasks=WORDS,
    splits=('all',),
    words=WORDS,
    facts=('named', 'target'),
    shape=(2,),
    sentences=lambda: [_sentence(k) for k in range(len(WORDS))],
    parse=_parse,
    render=_render,
    mutate=_mutate,
    judge=_judge,
  )
