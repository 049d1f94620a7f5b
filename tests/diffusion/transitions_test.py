"""Transitions: hand-worked steps, published forms, limits and marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_rl.build import ConfigError
from gen_rl.diffusion import schedules, transitions
from gen_rl.distributions import Gaussian

NAMES = ['ode', 'flow_sde', 'dance_sde', 'ddim', 'cps']
NOISY = NAMES[1:]
STEPS = {name: jax.jit(getattr(transitions, name)()) for name in NAMES}
# False-alarm rate of every statistical test (fixed keys).
LEVEL = 1e-3


def _random_case(n=64):
  rng = np.random.default_rng(0)
  x, v = rng.normal(size=(2, n, 3))
  t = rng.uniform(0.05, 0.99, size=n)
  t_next = t * rng.uniform(0.1, 0.95, size=n)
  noise = rng.uniform(0.1, 1.0, size=n)
  return [np.asarray(y, np.float32) for y in (x, v, t, t_next, noise)]


# x = 0.5, v = -0.8. At t = 0.6 -> 0.4: x0 = 0.98, x1 = 0.18, Euler 0.66;
# at t = 1 -> 0.9: x0 = 1.3, x1 = 0.5, Euler 0.58.
@pytest.mark.parametrize(
  'name, t, t_next, noise, mean, std',
  [
    ('ode', 0.6, 0.4, 0.7, 0.66, 0.0),
    # g^2 = 0.49 * 1.5 = 0.735: 0.66 - 0.735 / 1.2 * 0.18 * 0.2.
    ('flow_sde', 0.6, 0.4, 0.7, 0.63795, 0.3834058),  # sqrt(0.147)
    ('dance_sde', 0.6, 0.4, 0.3, 0.6573, 0.1341641),  # 0.66 - 0.015 * 0.18
    # (0.16 / 0.36)^2 = 0.1975309; 0.4 sqrt(1 - 0.1975309) = 0.3583226;
    # 0.588 + sqrt(0.16 - 0.1283951) * 0.18.
    ('ddim', 0.6, 0.4, 1.0, 0.62, 0.3583226),
    ('ddim', 0.6, 0.4, 0.5, 0.6523739, 0.1791613),
    # 0.588 + 0.4 cos(0.4 pi) * 0.18; 0.4 sin(0.4 pi).
    ('cps', 0.6, 0.4, 0.8, 0.6102492, 0.3804226),
    ('cps', 0.6, 0.4, 1.0, 0.588, 0.4),
    # t = 1: g^2 = 0.49 * 1 / (1 - 0.9) = 4.9: 0.58 - 4.9 / 2 * 0.5 * 0.1, and
    # 4.9 * 0.1 = 0.49 is the variance: the deviation is a.
    ('flow_sde', 1.0, 0.9, 0.7, 0.4575, 0.7),
    ('dance_sde', 1.0, 0.9, 0.3, 0.57775, 0.0948683),
    ('ddim', 1.0, 0.9, 1.0, 0.13, 0.9),
    ('ddim', 1.0, 0.9, 0.5, 0.5197114, 0.45),
    ('cps', 1.0, 0.9, 0.8, 0.2690576, 0.8559509),
    # The last step is x0 without noise for all of them.
    *((name, 0.1, 0.0, 0.7, 0.58, 0.0) for name in NAMES),
    *((name, 1.0, 0.0, 0.7, 1.3, 0.0) for name in NAMES),
  ],
)
def test_steps_by_hand(name, t, t_next, noise, mean, std):
  x, v = np.array([[0.5]]), np.array([[-0.8]])
  row = lambda y: np.array([y], np.float32)
  got = STEPS[name](x, v, row(t), row(t_next), row(noise))
  np.testing.assert_allclose(got[0], [[mean]], rtol=2e-6)
  np.testing.assert_allclose(got[1], [std], rtol=2e-6)


@pytest.mark.parametrize('name', NAMES)
def test_without_noise_every_step_is_the_euler_step_to_the_bit(name):
  x, v, t, t_next, _ = _random_case()
  t[:4], t_next[4:8] = 1.0, 0.0
  t[8:10] = t_next[8:10]
  zero = np.zeros_like(t)
  mean, std = getattr(transitions, name)()(x, v, t, t_next, zero)
  np.testing.assert_array_equal(mean, x + v * (t_next - t)[:, None])
  assert not np.any(std)
  mean, std = STEPS[name](x, v, t, t_next, zero)
  want, _ = STEPS['ode'](x, v, t, t_next, zero)
  np.testing.assert_array_equal(mean, want)
  assert not np.any(std)


def test_flow_sde_is_the_published_form():
  # sd3_sde_with_logprob.py: x (1 + s^2 / (2 t) dt) + v (1 + s^2 (1 - t) /
  # (2 t)) dt.
  x, v, t, t_next, a = _random_case()
  mean, std = STEPS['flow_sde'](x, v, t, t_next, a)
  t, t_next, a = (np.float64(y)[:, None] for y in (t, t_next, a))
  s, dt = a * np.sqrt(t / (1 - t)), t_next - t
  want = x * (1 + s**2 / (2 * t) * dt)
  want = want + v * (1 + s**2 * (1 - t) / (2 * t)) * dt
  np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(std, (s * np.sqrt(-dt))[:, 0], rtol=1e-4)


def test_dance_sde_is_the_published_form():
  # train_grpo_flux.py: the score from the x0 prediction.
  x, v, t, t_next, eta = _random_case()
  mean, _ = STEPS['dance_sde'](x, v, t, t_next, eta)
  t, t_next, eta = (np.float64(y)[:, None] for y in (t, t_next, eta))
  score = -(x - (1 - t) * (x - t * v)) / t**2
  want = x + v * (t_next - t) - 0.5 * eta**2 * score * (t_next - t)
  np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-4)


def test_ddim_is_equations_12_and_16_of_the_paper():
  # In the paper's variables: x_vp, alpha_bar, eps. The flow latent is x_vp
  # over (sqrt(alpha_bar) + sqrt(1 - alpha_bar)).
  x, v, t, t_next, eta = (np.float64(y) for y in _random_case())
  bar = lambda s: ((1 - s) ** 2 / ((1 - s) ** 2 + s**2))[:, None]
  norm = lambda b: np.sqrt(b) + np.sqrt(1 - b)
  b, b_next, eta_ = bar(t), bar(t_next), eta[:, None]
  eps, x0 = x + (1 - t)[:, None] * v, x - t[:, None] * v
  np.testing.assert_allclose(
    norm(b) * x, np.sqrt(b) * x0 + np.sqrt(1 - b) * eps
  )
  sigma = eta_ * np.sqrt((1 - b_next) / (1 - b)) * np.sqrt(1 - b / b_next)
  want = np.sqrt(b_next) * x0 + np.sqrt(1 - b_next - sigma**2) * eps
  mean, std = STEPS['ddim'](x, v, t, t_next, eta)
  np.testing.assert_allclose(mean, want / norm(b_next), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(std, (sigma / norm(b_next))[:, 0], rtol=1e-4)


def test_small_ddim_steps_are_flow_sde_steps_of_sqrt_two_times_the_noise():
  x, v, t, _, a = _random_case()
  a, h = 0.5 * a, 1e-3
  mean_d, std_d = STEPS['ddim'](x, v, t, t - h * t, a)
  mean_f, std_f = STEPS['flow_sde'](x, v, t, t - h * t, np.sqrt(2) * a)
  mid = (t > 0.1) & (t < 0.9)
  np.testing.assert_allclose(std_d[mid], std_f[mid], rtol=1e-2)
  np.testing.assert_allclose(mean_d[mid], mean_f[mid], rtol=1e-2, atol=1e-4)


def _coefficients(name, t, t_next, noise, level):
  """Data and noise level after a step from (1 - t) c + level z, x0 = c known.

  The step is linear in (x, v), so z and c are fed one at a time.
  """
  x = jnp.array([[level], [1 - t]])
  x0 = jnp.array([[0.0], [1.0]])
  mean, std = STEPS[name](x, (x - x0) / t, *jnp.array([[t], [t_next], [noise]]))
  return float(mean[1, 0]), float(np.hypot(mean[0, 0], std[0]))


@pytest.mark.parametrize('name', ['ode', 'ddim', 'cps'])
@pytest.mark.parametrize('steps', [3, 10])
def test_coefficients_are_exact_on_coarse_grids(name, steps):
  grid = np.asarray(schedules.linear(steps, shift=2.0))
  for noise in [0.0, 0.3, 0.7, 1.0]:
    level = 1.0
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
      data, level = _coefficients(name, t, t_next, noise, level)
      np.testing.assert_allclose([data, level], [1 - t_next, t_next], atol=1e-6)


def test_flow_sde_leaves_too_much_noise_on_coarse_grids():
  # sqrt((t' - g^2 / (20 t))^2 + g^2 / 10), g^2 = 0.49 t / (1 - t) (4.9 in
  # the first step), T = 10, each from the exact marginal at t; the targets
  # are 0.9, 0.8, ... 0.1.
  want = [0.9587, 0.8655, 0.7277, 0.6189, 0.5158]
  want += [0.4150, 0.3160, 0.2196, 0.1306]
  got = []
  for i in range(9):
    t = 1 - i / 10
    got.append(_coefficients('flow_sde', t, t - 0.1, 0.7, t)[1])
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_gradients_are_finite_at_both_ends_and_zero_without_noise(name):
  grid = jnp.array([1.0, 0.5, 0.0])
  t, t_next = grid[:-1], grid[1:]
  x = jnp.array([[0.3, -0.2], [0.5, 0.1]])
  actions = jnp.ones((2, 1, 2))

  def log_prob(v, times, noise):
    mean, std = getattr(transitions, name)()(x, v, times, t_next, noise)
    return Gaussian(mean[:, None], std[:, None]).log_prob(actions).sum()

  grad = jax.jit(jax.grad(log_prob, (0, 1, 2)))
  for noise in [0.0, 0.7, 1.0]:
    grads = grad(0.5 * x, t, jnp.full(2, noise))
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert not np.any(grads[0][1])  # the last step
    assert np.any(grads[0][0]) == (name != 'ode' and noise > 0)


def test_changing_times_and_noise_does_not_recompile():
  x, v, t, t_next, noise = (jnp.asarray(y) for y in _random_case(5))
  step = jax.jit(transitions.flow_sde())
  for i in range(3):
    step(x, v, t, t_next, noise * (i % 2))
  assert step._cache_size() == 1


def test_half_precision_inputs_are_stepped_in_float32():
  x, v, t, t_next, noise = (jnp.asarray(y) for y in _random_case())
  x, v = x.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
  for name in NAMES:
    mean, std = STEPS[name](x, v, t, t_next, noise)
    want, _ = STEPS[name](
      x.astype(jnp.float32), v.astype(jnp.float32), t, t_next, noise
    )
    assert mean.dtype == std.dtype == jnp.float32
    np.testing.assert_array_equal(mean, want)


def test_times_may_be_scalars_or_have_more_axes():
  x, v, t, t_next, noise = (jnp.asarray(y) for y in _random_case(6))
  mean, std = STEPS['cps'](x, v, t, t_next, noise)
  fold = lambda y: y.reshape(2, 3, *y.shape[1:])
  got = STEPS['cps'](*map(fold, (x, v, t, t_next, noise)))
  np.testing.assert_allclose(got[0], fold(mean), rtol=1e-6)
  np.testing.assert_allclose(got[1], fold(std), rtol=1e-6)
  got = STEPS['cps'](x, v, t[0], t_next[0], 0.5)
  assert got[0].shape == x.shape and got[1].shape == ()


# A 1-D mixture and its exact velocity.
WEIGHT = np.array([0.3, 0.7])
MEAN = np.array([-1.0, 0.6])
STD = np.array([0.15, 0.3])


def _velocity(x, s):
  """E[x1 - x0 | x_s = x]."""
  x = x[:, None]
  var = (1 - s) ** 2 * STD**2 + s**2
  centred = x - (1 - s) * MEAN
  weight = jax.nn.softmax(
    jnp.log(WEIGHT) - 0.5 * jnp.log(var) - 0.5 * centred**2 / var, axis=-1
  )
  x0 = MEAN + (1 - s) * STD**2 / var * centred
  return jnp.sum(weight * (s / var * centred - x0), axis=-1)


def _cdf(s):
  std = np.sqrt((1 - s) ** 2 * STD**2 + s**2)
  normal = scipy.stats.norm((1 - s) * MEAN, std)
  return lambda x: normal.cdf(np.asarray(x)[:, None]) @ WEIGHT


def _simulate(transition, noise, steps, n=20000):
  """Samples at s = 0.5 and s = 0, float64 numpy."""
  grid = schedules.linear(steps)

  def step(carry, times):
    x, key = carry
    key, sub = jax.random.split(key)
    t, t_next = times
    mean, std = transition(x, _velocity(x, t), t, t_next, noise)
    x = mean + std * jax.random.normal(sub, x.shape)
    return (x, key), None

  @jax.jit
  def run(key):
    key, sub = jax.random.split(key)
    carry = (jax.random.normal(sub, (n,)), key)
    half = steps // 2
    times = grid[:-1], grid[1:]
    head = jax.tree.map(lambda y: y[:half], times)
    tail = jax.tree.map(lambda y: y[half:], times)
    carry, _ = jax.lax.scan(step, carry, head)
    middle = carry[0]
    carry, _ = jax.lax.scan(step, carry, tail)
    return middle, carry[0]

  return [np.float64(x) for x in run(jax.random.key(0))]


@pytest.mark.parametrize(
  'name, noise',
  [
    ('ode', 0.0),
    ('flow_sde', 0.7),
    ('dance_sde', 0.3),
    ('dance_sde', 1.0),
    ('ddim', 0.5),
    ('ddim', 1.0),
  ],
)
def test_fine_steps_keep_the_marginals(name, noise):
  transition = getattr(transitions, name)()
  samples = _simulate(transition, noise, 400)
  for s, x in zip([0.5, 0.0], samples, strict=True):
    assert scipy.stats.kstest(x, _cdf(s)).pvalue > LEVEL, s


@pytest.mark.parametrize('name', ['flow_sde', 'dance_sde'])
def test_the_drift_correction_is_what_keeps_the_marginals(name):
  # Negative control: the same noise around the plain Euler mean is caught.
  transition = getattr(transitions, name)()

  def uncorrected(x, v, t, t_next, noise):
    _, std = transition(x, v, t, t_next, noise)
    return x + v * (t_next - t), std

  for s, x in zip([0.5, 0.0], _simulate(uncorrected, 0.5, 400), strict=True):
    assert scipy.stats.kstest(x, _cdf(s)).pvalue < 1e-9, s


def test_the_error_of_cps_does_not_vanish_on_fine_grids():
  # x' = (1 - t') E[x0 | x] + ...: what E[x0 | x] leaves of the spread of x0
  # given x is lost in every step, so no number of steps recovers it.
  for steps in [50, 400]:
    _, x = _simulate(transitions.cps(), 0.8, steps)
    assert scipy.stats.kstest(x, _cdf(0.0)).pvalue < 1e-9, steps
    assert np.std(x[x > 0]) < 0.9 * STD[1], steps


@pytest.mark.parametrize(
  'name, noise, said',
  [
    ('flow_sde', 0.0, 'noise is 0; .* flow_sde it is above 0$'),
    ('dance_sde', -0.7, 'noise is -0.7'),
    ('cps', 2.5, 'cps it is above 0 and at most 1$'),
    ('ddim', float('nan'), 'noise is nan'),
    ('ode', 0.7, '"ode", which takes no noise'),
  ],
)
def test_levels_that_leave_nothing_to_train(name, noise, said):
  with pytest.raises(ConfigError, match=said):
    transitions.check_noise(name, noise)
  transitions.check_noise('cps', 1.0)
