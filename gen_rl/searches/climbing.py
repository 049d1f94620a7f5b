r"""Gradient ascent of the rewards on the initial noise.

ReNO (arXiv 2406.04312) and CARINOX leave the network as it is and move the
noise z that its deterministic sampler begins with. Of rewards r_k of weights
w_k, of noise of d numbers whose deviation is u, and with [x]_c the vector x cut
to the length c,

  |z| is most likely (d - 1)^{1/2} u: the log-density of the radius, less a
  constant, is
    R(z) = (d - 1) log |z / u| - |z / u|^2 / 2                           (1)
  g = [sum_k [grad (w_k r_k + pull R)]_c]_c                              (2)
  m <- momentum m + g,  z <- z + rate (g + momentum m)                   (3)

(2) clips every reward by itself, as CARINOX's code does, so that none drowns
the others; with one reward it is ReNO's. Where rewards are not summed (config.
mix) it is the gradient of what they are mixed to. What is found is the best of
all noises on the way, not the last one, by the score that all searches use.

An update takes one reward call, T calls of the network forward and, for each
reward, T back.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gen_rl import search
from gen_rl.fields import Count, Decay, NonNegative, Positive
from gen_rl.search import Found, Search, Space
from gen_rl.selection import Cost
from gen_rl.types import Array, Rows
from gen_rl.utils import tree


def noise_gradient(
  n: Count = 2,
  updates: Count = 8,
  rate: Positive = 5.0,
  clip: Positive = 0.1,
  momentum: Decay = 0.9,
  pull: NonNegative = 0.01,
) -> Search:
  """Climbs from n noises by (2) and (3); the rewards have to have gradients.

  Args:
    n: noises to begin with; the first is that of the sample itself.
    updates: of each.
    rate: of (3).
    clip: c of (2): with it no update moves z by more than rate c / (1 -
      momentum).
    momentum: Nesterov's.
    pull: weight of (1), towards the shell where noise is.
  """

  def find(space: Space, rows: Rows) -> Found:
    tried = search.candidates(rows, n)
    move = functools.partial(_climb, space, updates, rate, clip, momentum, pull)
    x, score, update = search.in_chunks(
      move, space.chunk, space.segments.noise(tried), tried
    )
    prompts = rows.group.shape[0]
    best = score.reshape(prompts, n).argmax(1)
    at = jnp.arange(prompts) * n + best
    index = (update[at] * n + best).astype(jnp.int32)
    calls = n * space.segments.steps * space.segments.calls
    rewards = max(len(space.weights), 1)
    cost = Cost(
      calls * (updates + 1), n * (updates + 1), calls * updates * rewards
    )
    return Found(x[at], score[at], index, cost)

  return Search(find, width=n, gradients=True)


def _climb(
  space: Space,
  updates: int,
  rate: float,
  clip: float,
  momentum: float,
  pull: float,
  z: Array,
  rows: Rows,
) -> tuple[Array, Array, Array]:
  """(samples, scores, after how many updates) of the best on the way, [b]."""
  judge = functools.partial(_judged, space, rows)

  def better(best: tuple, x: Array, score: Array, done: Array) -> tuple:
    now = x, score, jnp.full(score.shape, done)
    return tree.where(score > best[1], now, best)

  def body(carry: tuple, done: Array) -> tuple[tuple, None]:
    z, m, best = carry
    each, back, (x, score) = jax.vjp(judge, z, has_aux=True)
    g = clipped_sum(each, back, pull * inward(z, space.segments.unit), clip)
    m = momentum * m + g
    return (
      z + rate * (g + momentum * m),
      m,
      better(best, x, score, done),
    ), None

  b = z.shape[0]
  nothing = jnp.zeros_like(z), jnp.full(b, -jnp.inf), jnp.zeros(b, jnp.int32)
  carry, _ = jax.lax.scan(
    body, (z, jnp.zeros_like(z), nothing), jnp.arange(updates)
  )
  z, _, best = carry
  _, (x, score) = judge(z)
  x, score, done = better(best, x, score, jnp.asarray(updates))
  return x, score, done


def _judged(
  space: Space, rows: Rows, z: Array
) -> tuple[Float[Array, 'b k'], tuple[Array, Array]]:
  """Of the samples of noise: scores of each reward, (samples, scores [b])."""
  x = space.segments.through(space.params, z, rows.cond)
  out = space.judge(x, rows, 1)
  each = [w * out.parts[label] for label, w in space.weights.items()]
  score = jnp.where(out.valid, out.score, -jnp.inf)
  return jnp.stack(each or [out.score], -1), (x, score)


def clipped_sum(
  each: Float[Array, 'b k'],
  back: Callable[[Array], tuple[Array]],
  also: Float[Array, 'b ...'],
  clip: float,
) -> Float[Array, 'b ...']:
  """(2): the gradients of k scores, each clipped, and their sum.

  Args:
    each: scores.
    back: their vector-Jacobian product.
    also: what is added to each gradient before it is clipped.
    clip: largest length of a row's.
  """
  total = jnp.zeros_like(also)
  for k in range(each.shape[-1]):
    (g,) = back(jnp.zeros_like(each).at[:, k].set(1.0))
    total += _clip(g + also, clip)
  return _clip(total, clip)


def _clip(g: Array, length: float) -> Array:
  """Rows of at most this length; 0 for one that is not finite."""
  axes = tuple(range(1, g.ndim))
  norm = jnp.sqrt(jnp.square(g).sum(axes, keepdims=True))
  scale = jnp.minimum(1.0, length / jnp.maximum(norm, 1e-30))
  return jnp.where(jnp.isfinite(norm), g * scale, 0.0)


def inward(z: Float[Array, 'b ...'], unit: float) -> Float[Array, 'b ...']:
  """The gradient of (1); unit: deviation of the noise."""
  axes, d = tuple(range(1, z.ndim)), z[0].size
  square = jnp.square(z).sum(axes, keepdims=True)
  return (d - 1) * z / square - z / unit**2
