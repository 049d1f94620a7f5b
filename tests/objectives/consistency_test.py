"""Consistency distillation on velocities that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, testing
from gen_rl.types import Experience, Noised, RowKeys

B = 64


def run(apply, params, teacher, target=None, **kwargs):
  """Rows of one number; `apply(params, x, t)` is the net of every copy."""
  keys = RowKeys(jax.random.split(jax.random.key(0), B), None)
  x0, x1 = jax.random.normal(jax.random.key(1), (2, B, 1, 1))
  at = Noised((x0 + x1) / 2, np.full((B, 1), 0.5), x0[:, 0], x1)
  copies = dict(
    params=params, ref=teacher, ema=params if target is None else target
  )
  replay = testing.answers(
    noised=lambda which, keys, draws: at,
    velocity_at=lambda which, at: apply(copies[which], at.x, at.t[..., None]),
  )
  exp = Experience(None, np.zeros((B, 1)), np.ones(B), None)
  objective = objectives.consistency_distillation(**kwargs)
  term, metrics = objective(replay, exp, keys)
  assert term.value.shape == term.mask.shape == (B, 1)
  return term.value.mean(), metrics


def to_a_point(params, x, t):
  """The velocity of data at the point `params`; consistent with itself."""
  return (x - params) / jnp.maximum(t, 1e-6)


def test_a_consistent_net_has_no_loss():
  """Where all paths are straight, the teacher's own answers agree."""
  loss, metrics = run(to_a_point, jnp.float32(0.3), jnp.float32(0.3))
  assert loss == pytest.approx(0, abs=1e-5)
  np.testing.assert_allclose(metrics['shift_from_teacher'], 0, atol=1e-6)


def test_loss_by_hand():
  """A net that answers 0.5 and a target that answers 0.3 differ by 0.2."""
  loss, metrics = run(
    to_a_point, jnp.float32(0.5), jnp.float32(0.3), jnp.float32(0.3), huber=0.1
  )
  # The target at t = 0 (the last step of the grid) is x_s itself, 0.3 too.
  assert loss == pytest.approx(np.hypot(0.2, 0.1) - 0.1, rel=1e-3)
  np.testing.assert_allclose(metrics['shift_from_teacher'], 0.04, rtol=1e-3)


def test_only_the_policy_has_a_gradient():
  def loss(params, teacher, target):
    return run(to_a_point, params, teacher, target)[0]

  grads = testing.grad(loss, (0, 1, 2))(0.5, 0.3, 0.3)
  assert grads[0] > 0.5 and grads[1] == grads[2] == 0


def test_answers_become_those_of_the_ode():
  """Gaussian data: f(x_t, t) is x_t times the ratio of deviations, by ODE."""
  std = 0.5
  grid = np.linspace(1, 0, 17)

  def teacher_velocity(x, t):
    var = (1 - t) ** 2 * std**2 + t**2
    return x * (t - (1 - t) * std**2) / var

  # One factor per grid time: f = factor x, so F = (1 - factor) x / t.
  def apply(params, x, t):
    if params is None:
      return teacher_velocity(x, t)
    place = jnp.clip(jnp.round(16 * (1 - t)).astype(int), 0, 15)
    return (1 - params[place]) * x / jnp.maximum(t, 1e-6)

  def loss(params, target):
    return run(apply, params, None, target, steps=16, shift=1.0)[0]

  # What Euler steps of the teacher end in, from each grid time.
  factors = []
  for n in range(16):
    x = 1.0
    for t, s in zip(grid[n:-1], grid[n + 1 :]):
      x += (s - t) * teacher_velocity(x, t)
    factors.append(x)
  factors = jnp.asarray(factors, jnp.float32)
  assert loss(factors, factors) == pytest.approx(0, abs=1e-5)
  grad = testing.grad(loss)(factors + 0.1, factors)
  assert (grad >= 0).all() and grad.max() > 0
