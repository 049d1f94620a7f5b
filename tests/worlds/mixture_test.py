import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen_rl.diffusion import schedules
from gen_rl.worlds import mixture

jitted = functools.cache(jax.jit)
NAMED = jnp.arange(4)
TARGET = jnp.asarray(mixture.CENTERS)


def scipy_density(mix, points, i):
  return sum(
    w * stats.multivariate_normal(m, mix.var[i] * np.eye(2)).pdf(points)
    for w, m in zip(mix.weights[i], np.asarray(mix.means[i]), strict=True)
  )


def square(n=241, half=1.2):
  axis = np.linspace(-half, half, n)
  points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
  return points, (axis[1] - axis[0]) ** 2


def test_density_is_scipys():
  mix = jitted(mixture.base)(NAMED)
  points = np.random.default_rng(0).uniform(-1, 1, (50, 2))
  for i in range(4):
    one = jax.tree.map(lambda a, i=i: np.asarray(a)[i], mix)
    np.testing.assert_allclose(
      jitted(mixture.density)(one, jnp.asarray(points, jnp.float32)),
      scipy_density(mix, points, i),
      rtol=1e-4,
      atol=1e-6,
    )


def test_base_weights():
  np.testing.assert_allclose(
    jitted(mixture.base)(jnp.array([1, -1])).weights,
    [[0.2, 0.4, 0.2, 0.2], [0.25] * 4],
    rtol=1e-6,
  )


@pytest.mark.parametrize('s', [0.05, 0.3, 0.6, 0.9, 1.0])
def test_velocity_is_the_conditional_expectation(s):
  """E[x1 - x0 | x_s = x] by quadrature over x0 with x1 = (x - (1-s) x0) / s."""
  points, cell = square()
  mix = jitted(mixture.base)(jnp.array([2]))
  prior = scipy_density(mix, points, 0) * cell
  for x in [(0.1, -0.4), (0.5, 0.6), (-0.9, 0.3)]:
    x = np.array(x)
    x1 = (x - (1 - s) * points) / s
    log_weight = stats.norm.logpdf(x1).sum(-1)
    weight = prior * np.exp(log_weight - log_weight.max())
    expected = (weight[:, None] * (x1 - points)).sum(0) / weight.sum()
    got = jitted(mixture.velocity)(mix, jnp.asarray(x)[None], jnp.array([s]))[0]
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


def test_velocity_at_the_ends():
  """s = 1: x is noise, v = x - E[x0]; s = 0: x is data, v = 0 - x."""
  mix = jitted(mixture.base)(NAMED)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)) * 0.1) + TARGET
  mean, _ = jitted(mixture.moments)(mix)
  one, zero = jnp.ones(4), jnp.zeros(4)
  np.testing.assert_allclose(
    jitted(mixture.velocity)(mix, x, one), x - mean, atol=1e-6
  )
  np.testing.assert_allclose(mixture.velocity(mix, x, zero), -x, atol=1e-6)


def test_ode_and_sampler_have_the_moments():
  n = 20_000
  mix = jitted(mixture.base)(jnp.array(1))
  mean, second = jitted(mixture.moments)(mix)
  many = jax.tree.map(lambda a: jnp.broadcast_to(a, (n, *a.shape)), mix)
  grid = schedules.linear(100, 0.5)

  @jax.jit
  def flow(key):
    def body(x, i):
      v = mixture.velocity(many, x, jnp.full(n, grid[i]))
      return x + v * (grid[i + 1] - grid[i]), None

    x = jax.random.normal(key, (n, 2))
    return jax.lax.scan(body, x, jnp.arange(100))[0]

  @jax.jit
  def draw(key):
    return jax.vmap(mixture.sample)(many, jax.random.split(key, n))

  for points in (flow(jax.random.key(0)), draw(jax.random.key(1))):
    points = np.asarray(points)
    # 4 standard errors of a coordinate of deviation 0.36 are 0.01.
    np.testing.assert_allclose(points.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(points.T @ points / n, second, atol=0.01)


@pytest.mark.parametrize('beta', [0.02, 0.2, 2.0])
def test_optimum_is_the_tilted_density(beta):
  points, cell = square()
  mix = jitted(mixture.base)(NAMED)
  best = jitted(mixture.optimum)(mix, TARGET, beta)
  mean, second = jitted(mixture.moments)(best)
  for i in range(4):
    reward = -((points - np.asarray(TARGET[i])) ** 2).sum(-1)
    tilted = scipy_density(mix, points, i) * np.exp(reward / beta)
    tilted /= tilted.sum() * cell
    np.testing.assert_allclose(
      scipy_density(best, points, i), tilted, rtol=1e-3, atol=1e-3
    )
    weight = tilted * cell
    np.testing.assert_allclose(mean[i], weight @ points, atol=1e-4)
    np.testing.assert_allclose(
      second[i], (points * weight[:, None]).T @ points, atol=1e-4
    )


def test_optimum_limits():
  mix = jitted(mixture.base)(NAMED)
  free = jitted(mixture.optimum)(mix, TARGET, 1e6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), free, mix
  )
  greedy = jitted(mixture.optimum)(mix, TARGET, 0.0)
  np.testing.assert_allclose(greedy.var, 0.0)
  np.testing.assert_allclose(
    greedy.means, np.repeat(TARGET[:, None], 4, 1), atol=1e-6
  )
