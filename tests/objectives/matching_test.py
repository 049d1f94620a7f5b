"""Matching losses against hand-worked tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives
from gen_rl.types import Experience, Replay, RewardOut


def experience(adv):
  adv = jnp.asarray(adv, jnp.float32)
  b = adv.shape[0]
  rewards = RewardOut(
    score=jnp.zeros(b), parts={}, valid=jnp.ones(b, dtype=bool)
  )
  return Experience(traj=None, adv=adv, weight=jnp.ones(b), rewards=rewards)


def replaying(nll):
  return Replay(dist=None, log_prob=None, nll=nll, velocity=None)


def test_flow_matching_asks_for_the_rows_keys():
  keys = jax.random.split(jax.random.key(0), 3)
  asked = []

  def nll(which, keys):
    asked.append(which)
    return jax.vmap(jax.random.uniform)(keys)

  term, metrics = objectives.flow_matching()(
    replaying(nll), experience(jnp.zeros((3, 1))), keys
  )
  assert asked == ['params']
  expected = [[float(jax.random.uniform(key))] for key in keys]
  np.testing.assert_allclose(term.value, expected, rtol=1e-6)
  np.testing.assert_array_equal(term.mask, np.ones((3, 1)))
  np.testing.assert_allclose(metrics['nll'], expected, rtol=1e-6)


def test_rwr_table_and_gradient():
  # temperature 2: exp(ln 9 / 2) = 3, exp(0) = 1, exp(-ln 4 / 2) = 1/2;
  # an advantage of 1000 is bounded at 10, without overflow
  adv = jnp.array([[np.log(9)], [0.0], [-np.log(4)], [1000.0]])
  nll = jnp.array([2.0, 5.0, 4.0, 1.0])

  def value(nll, adv):
    term, metrics = objectives.rwr(temperature=2.0, max_weight=10.0)(
      replaying(lambda which, keys: nll), experience(adv), None
    )
    return term.value.sum(), (term, metrics)

  (_, (term, metrics)), (grad, grad_adv) = jax.value_and_grad(
    value, (0, 1), has_aux=True
  )(nll, adv)
  np.testing.assert_allclose(term.value, [[6], [5], [2], [10]], rtol=1e-5)
  np.testing.assert_allclose(grad, [3, 1, 0.5, 10], rtol=1e-5)
  np.testing.assert_array_equal(grad_adv, 0)
  np.testing.assert_allclose(
    metrics['weight'], [[3], [1], [0.5], [10]], rtol=1e-5
  )


def test_rwr_averages_step_wise_advantages():
  term, _ = objectives.rwr()(
    replaying(lambda which, keys: jnp.ones(1)),
    experience([[0.0, 2 * np.log(2)]]),
    None,
  )
  np.testing.assert_allclose(term.value, [[2.0]], rtol=1e-6)


def test_rows_are_independent():
  """Half batches give the halves of the full batch: microbatch safe."""
  adv = jax.random.normal(jax.random.key(0), (6, 1))
  nll = jnp.arange(6.0)
  objective = objectives.rwr(0.5)

  def value(rows):
    replay = replaying(lambda which, keys: nll[rows])
    return objective(replay, experience(adv[rows]), None)[0].value

  np.testing.assert_allclose(
    jnp.concatenate([value(slice(0, 3)), value(slice(3, 6))]),
    value(slice(0, 6)),
    rtol=1e-6,
  )


def test_errors():
  with pytest.raises(ValueError, match='positive'):
    objectives.rwr(temperature=0.0)
