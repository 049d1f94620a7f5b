"""Sampling without noise, whole and in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import rollout, testing
from gen_rl.build import ConfigError
from gen_rl.policies import ode

KEY = jax.random.key(0)


def rows_of(ids=range(8), group=4):
  return rollout.make_rows(testing.batch(ids), group, KEY, jnp.int32(0))


@pytest.mark.parametrize('scale', [1.0, 3.0])
def test_sampling_in_parts_is_sampling(scale):
  """Stopping and going on changes nothing; estimates are x - t v."""
  net = testing.perceptron()
  params, rows = net.init(KEY), rows_of()
  whole = ode.sampler(net, 6, 2.0, scale)(params, rows)
  parts = ode.segments(net, 6, 2.0, scale)
  assert parts.steps == 6 and parts.calls == (1 if scale == 1 else 2)
  x, states, foreseen = parts.noise(rows), [], []
  for start, stop in ((0, 1), (1, 4), (4, 4), (4, 6)):
    states.append((start, x))
    x, estimates = parts.run(params, x, rows.cond, start, stop)
    assert len(estimates) == stop - start
    foreseen.extend(estimates)
  np.testing.assert_allclose(x, whole, atol=1e-6)
  np.testing.assert_allclose(foreseen[-1], whole, atol=1e-5)
  at_once, estimates = parts.run(params, parts.noise(rows), rows.cond, 0, 6)
  np.testing.assert_allclose(x, at_once, atol=1e-6)
  np.testing.assert_allclose(foreseen, estimates, atol=1e-5)
  if scale == 1:  # shift 2: t -> 2 t / (1 + t) of 1, 5/6, ...
    for start, x in states[:2]:
      t = 2 * (1 - start / 6) / (2 - start / 6)
      v = net.apply(params, x, jnp.full(len(x), t), rows.cond)
      np.testing.assert_allclose(foreseen[start], x - t * v, atol=1e-5)


def test_what_a_part_foresees_of_a_point():
  """From any state the exact velocity foresees the data."""
  parts = ode.segments(testing.point_net(0.3), 5)
  rows = rows_of((0, 1), 2)
  _, foreseen = parts.run(jnp.float32(0), parts.noise(rows), rows.cond, 0, 3)
  np.testing.assert_allclose(foreseen, 0.3, atol=1e-5)


def test_gradients_go_through_every_step():
  """With v = x / 2 a sample is .9^5 of its noise; else it is the sampler's."""
  half = lambda params, x, t, cond: 0.5 * x
  rows = rows_of((0, 1), 2)
  net = testing.perceptron()._replace(apply=half)
  parts = ode.segments(net, 5)
  x = parts.noise(rows)
  grad = jax.grad(lambda x: parts.through((), x, rows.cond).sum())(x)
  np.testing.assert_allclose(grad, 0.9**5, rtol=1e-5)
  net = testing.perceptron()
  params, parts = net.init(KEY), ode.segments(net, 4, 2.0, 3.0)
  whole = ode.sampler(net, 4, 2.0, 3.0)(params, rows)
  x = parts.through(params, parts.noise(rows), rows.cond)
  np.testing.assert_allclose(x, whole, atol=1e-6)


def test_solvers_are_listed():
  with pytest.raises(ConfigError, match='euler, dpm2'):
    ode.sampler(testing.perceptron(), 4, solver='heun')
