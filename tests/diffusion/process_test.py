"""Conversions against the exact posterior of a Gaussian, and hand values."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from gen_rl.diffusion import process

# x0 ~ N(M, TAU^2): everything about x_s is known in closed form.
M, TAU = 0.7, 0.4


def _exact(x, s):
  """E[x0 | x], E[x1 | x] and score of the Gaussian example, in float64."""
  var = (1 - s) ** 2 * TAU**2 + s**2
  centred = (x - (1 - s) * M) / var
  x0 = M + (1 - s) * TAU**2 * centred
  return x0, s * centred, -centred


@pytest.fixture(name='case')
def _case():
  s = np.array([0.05, 0.3, 0.75, 0.98])
  x = np.random.default_rng(0).normal(size=(4, 3, 2))
  return x, s, _exact(x, s[:, None, None])


def test_velocity_gives_the_exact_posterior_means_and_score(case):
  x, s, (x0, x1, score) = case
  v = x1 - x0
  close = dict(rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(process.x0_from_velocity(x, v, s), x0, **close)
  np.testing.assert_allclose(process.x1_from_velocity(x, v, s), x1, **close)
  got = process.score_from_velocity(x, v, s)
  np.testing.assert_allclose(got, score, **close)
  for got in (
    process.velocity_from_x0(x, x0, s),
    process.velocity_from_x1(x, x1, s),
    process.velocity_from_score(x, score, s),
  ):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, v, rtol=1e-3, atol=1e-4)


def test_score_is_the_gradient_of_the_log_density(case):
  x, s, (x0, x1, _) = case

  def log_density(x, s):
    var = (1 - s) ** 2 * TAU**2 + s**2
    return jax.scipy.stats.norm.logpdf(x, (1 - s) * M, jnp.sqrt(var)).sum()

  want = jax.vmap(jax.grad(log_density))(jnp.asarray(x), jnp.asarray(s))
  got = process.score_from_velocity(x, x1 - x0, s)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_corrupt_ends_at_data_and_noise():
  x0, x1 = jnp.array([[2.0], [2.0], [2.0]]), jnp.array([[4.0]] * 3)
  got = process.corrupt(x0, x1, jnp.array([0.0, 0.25, 1.0]))
  np.testing.assert_array_equal(got, [[2.0], [2.5], [4.0]])
  # d x_s / d s is the velocity x1 - x0.
  _, v = jax.jvp(
    lambda s: process.corrupt(x0, x1, s), (jnp.full(3, 0.3),), (jnp.ones(3),)
  )
  np.testing.assert_allclose(v, x1 - x0)


def test_singular_ends_are_zero_with_finite_gradients():
  x = jnp.ones((2, 3))
  for fn, s in [
    (process.score_from_velocity, 0.0),
    (process.velocity_from_x0, 0.0),
    (process.velocity_from_x1, 1.0),
    (process.velocity_from_score, 1.0),
  ]:
    args = (x, 2 * x, jnp.full(2, s))
    assert not np.any(fn(*args)), fn
    grads = jax.grad(lambda *a, f=fn: f(*a).sum(), (0, 1, 2))(*args)
    assert all(not np.any(g) for g in grads), fn


def test_variance_preserving_adapters():
  # By hand: alpha = 0.8, sigma = 0.6 -> s = 3/7, x_s = x_vp / 1.4.
  # x0 = 1, eps = -2: x_vp = -0.4, x_s = -2/7, u = 0.8 * -2 - 0.6 = -2.2.
  x_vp = jnp.array([[-0.4]])
  x, s = process.flow_from_vp(x_vp, jnp.array([0.8]), jnp.array([0.6]))
  np.testing.assert_allclose(s, [0.4285714], rtol=1e-6)
  np.testing.assert_allclose(x, [[-0.2857143]], rtol=1e-6)
  want = process.corrupt(jnp.array([[1.0]]), jnp.array([[-2.0]]), s)
  np.testing.assert_allclose(x, want, rtol=1e-6)
  back, alpha, sigma = process.vp_from_flow(x, s)
  for got, want in [(back, -0.4), (alpha, 0.8), (sigma, 0.6)]:
    np.testing.assert_allclose(np.ravel(got), [want], rtol=1e-6)
  v = process.velocity_from_vp_velocity(x, jnp.array([[-2.2]]), s)
  np.testing.assert_allclose(v, [[-3.0]], rtol=1e-5)


def test_times_broadcast_over_any_prefix():
  x0, x1 = jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4))
  s = jnp.arange(6.0).reshape(2, 3) / 6
  got = process.corrupt(x0, x1, s)
  np.testing.assert_allclose(got, np.repeat(s[..., None], 4, -1))
  np.testing.assert_allclose(process.corrupt(x0, x1, 0.5), 0.5)


def test_latents_of_different_shapes_are_refused_while_testing():
  """The shapes stated in gen_rl are checked: numpy would broadcast these."""
  x0, x1 = jnp.zeros((2, 3)), jnp.ones((1, 3))
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x1'"):
    process.corrupt(x0, x1, 0.5)
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x1'"):
    jax.jit(process.corrupt)(x0, x1, 0.5)


def test_clip_lets_gradients_pass():
  x = jnp.array([-0.5, 0.3, 1.5])
  np.testing.assert_array_equal(process.clip(x), jnp.clip(x, 0, 1))
  grad = jax.grad(lambda x: (process.clip(x) * jnp.array([1.0, 2, 3])).sum())(x)
  np.testing.assert_array_equal(grad, [1, 2, 3])
