"""Speeds by hand, of programs whose operations are known."""

import jax
import jax.numpy as jnp
import pytest

from gen_rl import pace
from gen_rl.utils import chips

CHIP = chips.Chip('a chip', None, 1e6, None, None)


def traced():
  @jax.jit
  def step(x):  # [10 10]: 2,000 operations a product
    with jax.named_scope('rollout'):
      y, _ = jax.lax.scan(lambda y, _: (y @ x, None), x, length=3)
    with jax.named_scope('update'):
      loss = lambda z: jnp.sin(z @ y).sum()
      with jax.named_scope('rewards'):  # a reward's gradient is the update's
        return jax.grad(loss)(x)

  return step.trace(jnp.ones((10, 10)))


def test_operations_of_a_step_over_its_seconds():
  calls = []
  found = pace.Pace(lambda: calls.append(1) or [traced()], 2, CHIP)
  assert not calls  # not before somebody asks
  # Three products of the rollout, two of the update, on two devices.
  assert found.metrics(0.1) == {
    'speed/tflops': pytest.approx(5000 / 0.1 / 1e12),
    'speed/mfu': pytest.approx(5000 / 1e6 / 0.1),
  }
  assert found.summary(0.1, dict(update=1.0)) == dict(
    step_seconds=0.1,
    tflops=pytest.approx(5e-8),
    mfu=pytest.approx(0.05),
    bound_seconds=pytest.approx(0.005),
    shares=dict(rollout=0.6, decode=0.0, rewards=0.0, update=0.4),
    measured_shares=dict(update=1.0),
  )
  assert found.metrics(None) == {} and len(calls) == 1


def test_of_a_chip_that_is_not_known():
  found = pace.Pace(lambda: [traced()], 1, CHIP._replace(flops=None))
  assert list(found.metrics(1.0)) == ['speed/tflops']
  assert found.summary(None)['mfu'] is found.bound is None
