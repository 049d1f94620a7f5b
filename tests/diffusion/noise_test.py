"""Factors of the noise level, by hand and in closed form."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.diffusion import noise

# Quarters of the way: sin^2(pi t / 2) is 1, (2 + sqrt 2) / 4, 1 / 2,
# (2 - sqrt 2) / 4.
TIMES = np.array([1.0, 0.75, 0.5, 0.25, 0.0])
SHAPE = np.array([1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4])
INSIDE = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)


def test_shapes_by_hand():
  np.testing.assert_allclose(noise.cosine_decay(TIMES, 0.0), SHAPE, atol=1e-12)
  np.testing.assert_allclose(
    noise.increasing(TIMES, 0.0), 1 - SHAPE, atol=1e-12
  )
  np.testing.assert_allclose(
    noise.cosine_decay(TIMES, 0.2), 0.2 + 0.8 * SHAPE, atol=1e-12
  )


def test_a_budget_of_what_is_linear_in_the_level():
  """c^2 = sum s^2 / sum g^2 s^2 over the window, s^2 = (1, 2, 3, 4)."""
  s2 = np.array([1.0, 2.0, 3.0, 4.0])
  factors = noise.budget_match(
    TIMES, INSIDE, lambda f: np.square(f) * s2, math.inf, floor=0.0
  )
  for row, (i, j) in enumerate(((0, 1), (1, 2))):
    g, s = SHAPE[[i, j]], s2[[i, j]]
    c = math.sqrt(s.sum() / (g * g * s).sum())
    np.testing.assert_allclose(factors[row, [i, j]], c * g, rtol=1e-12)
    assert factors[row].sum() == pytest.approx((c * g).sum())  # 0 elsewhere


def test_a_budget_of_what_is_not():
  """Levels up to 1 of a = .5, std = sin(f a pi / 2): the sums agree."""

  def variance(f):
    return np.square(np.sin(0.5 * f * np.pi / 2))

  factors = noise.budget_match(TIMES, INSIDE, variance, 2.0, floor=0.0)
  spent = np.where(INSIDE, variance(factors), 0).sum(-1)
  np.testing.assert_allclose(spent, 2 * math.sin(math.pi / 4) ** 2, rtol=1e-6)
  ratio = factors[0, 1] / factors[0, 0]
  assert ratio == pytest.approx(SHAPE[1])  # the shape is kept
  assert factors.max() <= 2
  with pytest.raises(ConfigError, match='within factors of at most 1.01'):
    noise.budget_match(TIMES, INSIDE, variance, 1.01, floor=0.0)


def test_an_interval_that_grows_backwards_by_hand():
  """7 noisy steps from 4 on in 8 stages: floor(e 4 / 8) more, e = 0 .. 7."""
  times = np.linspace(1, 0, 9)

  def lengths(every=1):
    return [
      int(noise.backward_interval(times, i, 4, 8, every).sum())
      for i in range(10)
    ]

  assert lengths() == [4, 4, 5, 5, 6, 6, 7, 7, 7, 7]
  assert lengths(2) == [4, 4, 4, 4, 5, 5, 5, 5, 6, 6]
  np.testing.assert_array_equal(
    noise.backward_interval(times, jnp.int32(2), 4, 8), [0, 0, 1, 1, 1, 1, 1, 0]
  )
  with pytest.raises(ConfigError, match='initial=8 steps .* more than the 7'):
    noise.backward_interval(times, 0, 8)


def test_the_published_interval():
  """20 steps of B2-DiffuRL, its 14 to 20, each some 14 of 100 stages."""
  n = np.array([int(noise.interval(20, e, 14, 100, 1)) for e in range(100)])
  assert n[0] == 14 and n[-1] == 20 and (np.diff(n) >= 0).all()
  np.testing.assert_array_equal(
    np.unique(n, return_counts=True)[1], [15, 14, 14, 15, 14, 14, 14]
  )
