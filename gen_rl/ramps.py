r"""Factors of weights that move with the run: `schedule` of a reward or term.

With s = 0, 1, ... the rollouts done and p = clip((s - begin) / steps, 0, 1),

  linear   start + p (end - start)                                       (1)
  cosine   end + (start - end) (1 + cos(pi p)) / 2                       (2)

A jump is (1) with steps=1.
"""

from collections.abc import Callable

import jax.numpy as jnp

from gen_rl.fields import Count, Index
from gen_rl.types import Array

Ramp = Callable[[Array], Array]  # rollouts done [] -> factor []
__all__ = ('cosine', 'linear')


def linear(
  steps: Count, start: float = 0.0, end: float = 1.0, begin: Index = 0
) -> Ramp:
  """(1).

  Args:
    steps: rollouts from `start` to `end`.
    start: the factor before.
    end: the factor after.
    begin: rollouts before it moves.
  """
  return lambda done: start + _part(done, begin, steps) * (end - start)


def cosine(
  steps: Count, start: float = 0.0, end: float = 1.0, begin: Index = 0
) -> Ramp:
  """(2), with the arguments of `linear`."""

  def at(done: Array) -> Array:
    left = (1 + jnp.cos(jnp.pi * _part(done, begin, steps))) / 2
    return end + (start - end) * left

  return at


def _part(done: Array, begin: int, steps: int) -> Array:
  return jnp.clip((jnp.asarray(done, jnp.float32) - begin) / steps, 0.0, 1.0)
