"""Rewards of the mixture world; media [b 2] in [0, 1] are points.

mixture_distance  r = -|x - y|^2, y the named centre; x = 2 media - 1    (1)
mixture_near      1 if |x - y| < radius, else 0. Its parts say how far the
                  samples of a prompt are from the optimum p* of (1) under
                  a KL penalty beta (`worlds.mixture`, equation (4)):
                    optimum_mean_gap    |mean x - E* x|
                    optimum_second_gap  Frobenius norm of
                                        mean x x^T - E* x x^T
                  0 up to the sampling error when training reached p*.
"""

import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.fields import NonNegative, Positive
from gen_rl.types import Array, Reward, RewardInputs, RewardOut
from gen_rl.worlds import mixture


def _square_distance(inputs: RewardInputs) -> tuple[Array, Array, Array]:
  """Points [b 2], squared distance to the target [b], valid [b]."""
  if jnp.shape(inputs.media)[1:] != (2,):
    raise ConfigError(
      'this reward looks at points [b 2], and these samples are '
      f'{list(jnp.shape(inputs.media))}'
    )
  facts = mixture.mixture().facts_of(inputs.info)
  x = 2.0 * inputs.media - 1.0
  square = jnp.sum(jnp.square(x - facts['target']), -1)
  return x, square, jnp.isfinite(square)


def mixture_distance() -> Reward:
  """Equation (1), in squared half-widths of the square; differentiable."""

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    _, square, valid = _square_distance(inputs)
    return RewardOut(-square, {}, valid)

  return Reward('mixture_distance', (), score, differentiable=True)


def mixture_near(
  radius: Positive = mixture.NEAR, beta: NonNegative = 0.2
) -> Reward:
  """Is the point within `radius` of the target? Score 1 or 0.

  Args:
    radius: in half-widths of the square.
    beta: weight of the KL term, for the parts.
  """

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    x, square, valid = _square_distance(inputs)
    best = mixture.optimum(
      mixture.base(inputs.info['named']), inputs.info['target'], beta
    )
    mean, second = mixture.moments(best)
    g = inputs.group_size
    groups = x.reshape(-1, g, 2)
    outer = jnp.einsum('pgd,pge->pde', groups, groups) / g
    mean_gap = jnp.linalg.norm(groups.mean(1) - mean[::g], axis=-1)
    second_gap = jnp.linalg.norm(outer - second[::g], axis=(-2, -1))
    parts = dict(
      optimum_mean_gap=jnp.repeat(mean_gap, g),
      optimum_second_gap=jnp.repeat(second_gap, g),
    )
    near = (square < radius**2).astype(jnp.float32)
    return RewardOut(near, parts, valid)

  return Reward('mixture_near', (), score, verdict=True, called_on='groups')
