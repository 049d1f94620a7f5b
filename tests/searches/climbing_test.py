"""Ascents of linear and quadratic rewards, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, searches
from gen_rl.searches import climbing
from gen_rl.selection import Cost


def found(method, space, rows):
  return jax.jit(lambda rows: method.find(space, rows))(rows)


@pytest.mark.parametrize('weighted', [True, False])
def test_two_updates_of_a_linear_reward(linear, weighted):
  """Nesterov with momentum .5: steps of 1.5 and 1.75 times rate and clip."""
  method = climbing.noise_gradient(
    n=3, updates=2, rate=2.0, clip=0.1, momentum=0.5, pull=0.0
  )
  space = linear.space(lambda x: 100.0 * x[:, 0])
  if not weighted:
    space = space._replace(weights={})
  out = found(method, space, linear.rows)
  start = linear.samples(3)
  best = start[:, :, 0].argmax(1)
  expected = start[range(3), best]
  expected[:, 0] += linear.gain * 2.0 * 0.1 * (1.5 + 1.75)
  np.testing.assert_allclose(out.sample, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(out.score, 100 * expected[:, 0], rtol=1e-4)
  np.testing.assert_array_equal(out.index, 2 * 3 + best)
  # 3 noises, judged before and after 2 updates, each back through 5 steps
  assert out.cost == Cost(3 * 3 * 5, 3 * 3, 3 * 2 * 5)
  assert method.width == 3 and method.gradients and not method.relative


def test_the_best_on_the_way_is_found(linear):
  """A step too long for the peak at the start: nothing is better."""
  start = jnp.asarray(linear.samples(1)[:, 0])
  space = linear.space(lambda x: -jnp.square(x - start - 0.01).sum(-1))
  method = climbing.noise_gradient(n=1, updates=3, rate=50.0, clip=1.0)
  out = found(method, space, linear.rows)
  np.testing.assert_array_equal(out.index, 0)
  np.testing.assert_allclose(out.sample, start, rtol=1e-5)


def test_each_reward_is_clipped_and_then_their_sum():
  """Gradients (3, 0) and (0, .4): (1, .4), whose length is more than 1."""
  slopes = jnp.array([[3.0, 0.0], [0.0, 0.4]])
  z = jnp.zeros((1, 2))
  each, back = jax.vjp(lambda z: z @ slopes.T, z)
  total = climbing.clipped_sum(each, back, jnp.zeros_like(z), 1.0)
  np.testing.assert_allclose(total, [[1 / 1.16**0.5, 0.4 / 1.16**0.5]], 1e-6)
  total = climbing.clipped_sum(each, back, jnp.zeros_like(z), 5.0)
  np.testing.assert_allclose(total, [[3.0, 0.4]], rtol=1e-6)
  total = climbing.clipped_sum(each, back, jnp.full_like(z, jnp.nan), 1.0)
  np.testing.assert_array_equal(total, 0.0)


def test_the_pull_ends_on_the_shell():
  """Without a reward that says anything, |z| goes to (d - 1)^{1/2} units."""
  z = jnp.array([[0.1, 0.2, 0.0], [3.0, -4.0, 12.0]])
  for _ in range(60):
    z = z + climbing.inward(z, 2.0)
  np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 2 * 2**0.5, rtol=1e-5)
  np.testing.assert_allclose(z[1] / z[1, 0], [1, -4 / 3, 4], rtol=1e-5)
  density = lambda z: 2 * jnp.log(jnp.linalg.norm(z) / 2) - z @ z / 8
  z = jnp.array([[0.3, -1.0, 2.0]])
  np.testing.assert_allclose(
    climbing.inward(z, 2.0)[0], jax.grad(density)(z[0]), rtol=1e-5
  )


def test_rates_that_are_none():
  with pytest.raises(build.ConfigError, match='above 0'):
    build.build(searches, dict(name='noise_gradient', rate=0.0))
