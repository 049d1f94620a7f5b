"""Noise per step: factors f_i of the level a of a policy, one for each step.

Step i goes from time t_i to t_{i+1} at level f_i a where it is trained. With
t_i from 1 (noise) to 0 (data), what decays along a sample's way is

  cosine_decay   f(t) = floor + (1 - floor) sin^2(pi t / 2)              (1)
  increasing     f(t) = floor + (1 - floor) sin^2(pi (1 - t) / 2)        (2)

(1) is HiCoGen's eta_min + (eta_max - eta_min) (1 + cos(pi (1 - t))) / 2 with
eta_max = a and eta_min = floor a; (2) is its reflection. Its theorem, that
noise spreads samples most where it comes early, is for a fixed budget
sum_i eta_i^2 dt_i and samples that start from the same noise. With g_i of (1)
or (2), W the steps of the window and std_i(a) what a transition adds at level
a, the variance that a constant level injects is kept by

  budget_match   f_i = c g_i,
                 sum_{i in W} std_i(c g_i a)^2 = sum_{i in W} std_i(a)^2  (3)

Where std_i is a s_i (flow_sde, dance_sde, ddim) that is c^2 = sum_W s_i^2 /
sum_W g_i^2 s_i^2, with s_i^2 = dt_i in dance_sde, the theorem's form; for cps,
std_i = t_{i+1} sin(a pi / 2), c is found by bisection.

Of the N = T - 1 steps that may be noisy the last n are in

  backward_interval   f_i = 1 for N - n <= i < N, else 0,
                      n = min(N, n_0 + floor(e (N - n_0 + 1) / E))       (4)

with e the stage, from 0 to E - 1, as in B2-DiffuRL (arXiv 2503.11240).
"""

from collections.abc import Callable
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.fields import Count, Fraction
from gen_rl.types import AnyArray, Array

__all__ = ['backward_interval', 'budget_match', 'cosine_decay', 'increasing']


def cosine_decay(
  times: Float[np.ndarray, ' n'], floor: Fraction = 0.1
) -> Float[np.ndarray, ' n-1']:
  """(1), HiCoGen's: most noise in the first steps.

  Tested, not measured.

  Args:
    times: the grid, T + 1 of them.
    floor: factor at time 0.
  """
  return floor + (1.0 - floor) * np.square(np.sin(np.pi / 2 * times[:-1]))


def increasing(
  times: Float[np.ndarray, ' n'], floor: Fraction = 0.1
) -> Float[np.ndarray, ' n-1']:
  """(2), most noise in the last steps: a control.

  Tested, not measured.

  Args:
    times: the grid.
    floor: factor at time 1, above 0 where that step is trained.
  """
  return floor + (1.0 - floor) * np.square(np.sin(np.pi / 2 * (1 - times[:-1])))


def budget_match(
  times: Float[np.ndarray, ' n'],
  inside: Bool[np.ndarray, 's n-1'],
  variance: Callable[[np.ndarray], np.ndarray],
  most: float,
  shape: Literal['cosine_decay', 'increasing'] = 'cosine_decay',
  floor: Fraction = 0.1,
) -> Float[np.ndarray, 's n-1']:
  """(3), a shape that injects as much variance as the constant level.

  Tested, not measured.

  Args:
    times: the grid.
    inside: steps of each window there may be.
    variance: what factors [s T] inject in their steps, [s T].
    most: largest factor that the transition takes.
    shape: g.
    floor: see there.

  Raises:
    ConfigError: the largest factors do not inject as much.
  """
  shapes = dict(cosine_decay=cosine_decay, increasing=increasing)
  g = np.where(inside, shapes[shape](times, floor), 0.0)

  def spent(factors: np.ndarray) -> np.ndarray:
    return np.where(inside, variance(factors), 0.0).sum(-1, keepdims=True)

  budget, own = spent(np.where(inside, 1.0, 0.0)), spent(g)
  if not own.all():
    return g
  # The root where std is linear in the level; where it is concave, below it.
  low = np.sqrt(budget / own)
  if math.isinf(most):
    return low * g
  high = np.maximum(most / g.max(-1, keepdims=True), low)
  if (spent(np.minimum(high * g, most)) < budget * (1 - 1e-6)).any():
    raise ConfigError(
      f'policy.noise_schedule: {shape} cannot inject as much noise as the '
      f'constant level within factors of at most {most:.4g}; take a smaller '
      'policy.noise, a larger floor or a wider window'
    )
  for _ in range(30):  # float32's precision
    middle = (low + high) / 2
    enough = spent(middle * g) >= budget
    low, high = np.where(enough, low, middle), np.where(enough, middle, high)
  return np.minimum(high * g, most)


def backward_interval(
  times: Float[np.ndarray, ' n'],
  iteration: int | Int32[Array, ''],
  initial: Count = 1,
  stages: Count = 100,
  every: Count = 1,
) -> Float32[Array, ' n-1']:
  """(4), which grows backwards from the last noisy steps as training goes on.

  Steps before the interval belong to the ODE and are not trained; there noise
  is drawn in the paper. 14 of 20 and 100 stages are its choice. Where the
  window is narrower than the interval, what is in both is trained.

  Args:
    times: the grid.
    iteration: update, from 0; may be traced.
    initial: steps n_0 of the first stage.
    stages: E.
    every: updates of a stage.
  """
  noisy = len(times) - 2
  check_interval(noisy, initial)
  n = interval(noisy, iteration, initial, stages, every)
  i = jnp.arange(noisy + 1)
  return jnp.where((i >= noisy - n) & (i < noisy), 1.0, 0.0)


def interval(
  noisy: int,
  iteration: int | Int32[AnyArray, ''],
  initial: int,
  stages: int,
  every: int,
) -> Int32[Array, '']:
  """The last n of (4), of `noisy` steps."""
  stage = jnp.minimum(jnp.asarray(iteration, jnp.int32) // every, stages - 1)
  return jnp.minimum(noisy, initial + stage * (noisy - initial + 1) // stages)


def check_interval(noisy: int, initial: int) -> None:
  """Refuses an interval that is longer than what it is of."""
  if initial > noisy:
    raise ConfigError(
      f'policy: initial={initial} steps of an interval are more than the '
      f'{noisy} that may be noisy and trained'
    )
