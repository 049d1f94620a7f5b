"""ODE steps on data with an exact velocity: orders, ends, a fresh start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.diffusion import schedules, solvers

STD = 0.5  # of the data, N(0, STD^2)


def velocity(x, t):
  """E[x1 - x0 | x_t] of Gaussian data: closed form."""
  var = (1 - t) ** 2 * STD**2 + t**2
  return x * (t - (1 - t) * STD**2) / var


def solve(solver, steps, x=1.3, shift=1.0):
  """From t = 0.9, where everything is finite, to t = 0.1."""
  grid = np.linspace(0.9, 0.1, steps + 1, dtype=np.float32)
  x = jnp.full((1, 2), x)
  memory = solvers.empty(x)
  for t, t_next in zip(grid[:-1], grid[1:]):
    x, memory = solvers.step(
      solver, x, velocity(x, t), jnp.float32(t), jnp.float32(t_next), memory
    )
  return float(x[0, 0])


def exact(x=1.3):
  """The ODE scales x by the ratio of the deviations of its marginals."""
  std = lambda t: np.sqrt((1 - t) ** 2 * STD**2 + t**2)
  return x * std(0.1) / std(0.9)


@pytest.mark.parametrize(('solver', 'order'), [('euler', 1), ('dpm2', 2)])
def test_order(solver, order):
  errors = [abs(solve(solver, n) - exact()) for n in (16, 32, 64)]
  rates = np.log2([errors[0] / errors[1], errors[1] / errors[2]])
  np.testing.assert_allclose(rates, order, atol=0.25)


def test_dpm2_by_hand():
  # lambda = log((1 - t) / t): 1/5 -> log 4, 1/2 -> 0, 4/5 -> -log 4. Two steps
  # of one h: D = x0 + (x0 - x0_prev) / 2; x' = (t'/t) x + (1 - t'/t) D.
  x = jnp.array([[2.0]])
  one, memory = solvers.step(
    'dpm2', x, jnp.array([[1.0]]), jnp.float32(0.8), jnp.float32(0.5),
    solvers.empty(x),
  )  # fmt: skip
  x0 = 2.0 - 0.8
  np.testing.assert_allclose(one, 0.625 * 2 + 0.375 * x0, rtol=1e-6)  # Euler
  two, _ = solvers.step(
    'dpm2', one, jnp.array([[-1.0]]), jnp.float32(0.5), jnp.float32(0.2), memory
  )
  new = float(one[0, 0]) + 0.5
  data = new + (new - x0) / 2
  np.testing.assert_allclose(two, 0.4 * one + 0.6 * data, rtol=1e-6)


@pytest.mark.parametrize('solver', solvers.SOLVERS)
def test_ends_and_standing_still_are_finite(solver):
  """From t = 1 to t = 0, and steps of no length."""
  x = jnp.array([[2.0, -1.0]])
  memory = solvers.empty(x)

  def run(x):
    carry, grads = (x, memory), []
    for t, t_next in ((1.0, 0.5), (0.5, 0.5), (0.5, 0.0), (0.0, 0.0)):
      now, kept = carry
      carry = solvers.step(
        solver, now, now - 0.3, jnp.float32(t), jnp.float32(t_next), kept
      )
      grads.append(carry[0])
    return carry[0].sum(), grads

  (_, path), grad = jax.value_and_grad(run, has_aux=True)(x)
  assert all(np.isfinite(p).all() for p in path) and np.isfinite(grad).all()
  np.testing.assert_array_equal(path[1], path[0])
  np.testing.assert_array_equal(path[3], path[2])
  # The last step lands on x0 = x - t v.
  np.testing.assert_allclose(
    path[2], path[1] - 0.5 * (path[1] - 0.3), rtol=1e-6
  )


def test_a_step_after_noise_starts_afresh():
  x, v = jnp.array([[2.0]]), jnp.array([[1.0]])
  t, t_next = jnp.float32(0.5), jnp.float32(0.2)
  used = solvers.Memory(jnp.array([[9.0]]), jnp.float32(0.8), jnp.array(True))
  euler, _ = solvers.step('euler', x, v, t, t_next, used)
  second, kept = solvers.step('dpm2', x, v, t, t_next, used, noise_free=False)
  assert abs(float(second[0, 0] - euler[0, 0])) > 0.1
  assert not kept.valid
  first, _ = solvers.step('dpm2', x, v, t, t_next, kept._replace(t=used.t))
  np.testing.assert_allclose(first, euler, rtol=1e-6)


def test_compressed_tail_by_hand():
  # 10 steps, 4 stay, 40 % of 6 are 2.4: 3 steps of 2
  grid, count = schedules.compressed_tail(10, 4, 0.4)
  assert count == 7
  np.testing.assert_allclose(
    grid, [1, 0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0, 0, 0, 0], atol=1e-6
  )
  whole, count = schedules.compressed_tail(10, 4, 1.0, shift=3.0)
  assert count == 10
  np.testing.assert_allclose(whole, schedules.linear(10, 3.0), atol=1e-6)
  # At least one step, and none where none is left.
  assert schedules.compressed_tail(10, 9, 0.01)[1] == 10
  assert schedules.compressed_tail(10, 10, 0.5)[1] == 10
  ends = [schedules.compressed_tail(8, end, 0.5)[1] for end in range(9)]
  assert [int(n) for n in ends] == [4, 5, 5, 6, 6, 7, 7, 8, 8]
  with pytest.raises(ValueError, match='ratio'):
    schedules.compressed_tail(8, 2, 0.0)


def test_an_unknown_solver_is_named():
  with pytest.raises(ConfigError, match="'heun'; it is one of euler, dpm2"):
    solvers.check('heun')
