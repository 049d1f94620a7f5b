"""Generalized advantages by hand and in their limits."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import advantages, testing
from gen_rl.advantages import returns

generalized = jax.jit(returns.generalized, static_argnums=(3, 4))


def test_a_row_by_hand():
  # d_3 = 1 - .75, d_2 = .9 .75 - .25, d_1 = .9 .25 - .5; gamma lambda = .72
  earned = np.array([[0.0, 0.0, 1.0]])
  value = np.array([[0.5, 0.25, 0.75]])
  want = [-0.275 + 0.72 * (0.425 + 0.72 * 0.25), 0.425 + 0.72 * 0.25, 0.25]
  found = generalized(earned, value, np.ones((1, 3)), 0.9, 0.8)
  np.testing.assert_allclose(found, [want], rtol=1e-5)
  # What nobody decided is passed over: the same with a gap in the middle.
  gap = lambda x: np.insert(x, 2, 9.0, axis=1)
  mask = np.array([[1.0, 1, 0, 1]])
  found = generalized(gap(earned), gap(value), mask, 0.9, 0.8)
  np.testing.assert_allclose(found, [np.insert(want, 2, 0.0)], rtol=1e-5)


def test_lambda_1_is_the_return_less_the_value():
  rng = np.random.default_rng(0)
  earned, value = rng.normal(size=(2, 5, 6)).astype(np.float32)
  ends = rng.integers(1, 7, 5)
  mask = (np.arange(6) < ends[:, None]).astype(np.float32)
  found = generalized(earned * mask, value, mask, 0.5, 1.0)
  for row, n in enumerate(ends):
    for j in range(n):
      discounts = 0.5 ** np.arange(n - j)
      want = (discounts * earned[row, j:n]).sum() - value[row, j]
      np.testing.assert_allclose(found[row, j], want, rtol=1e-4, atol=1e-5)
    assert not np.asarray(found[row, n:]).any()


def test_the_score_is_earned_by_the_last_decision():
  score, valid = np.array([2.0, 5.0, 7.0]), np.array([1, 0, 1], bool)
  out = testing.scored(score, valid).replace(
    steps=np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]])
  )
  mask = np.array([[1.0, 1, 0], [1, 1, 1], [1, 1, 1]])
  advantage = advantages.gae(lam=1.0, whiten=False)
  update = jax.jit(lambda mask, value: advantage.update(
    out, jnp.zeros(3, jnp.int32), (), mask, value
  ))  # fmt: skip
  adv, weight, _, metrics = update(mask, jnp.ones((3, 3)))
  np.testing.assert_allclose(adv, [[2, 1, 0], [0, 0, 0], [6, 6, 6]])
  np.testing.assert_array_equal(weight, [1, 0, 1])
  # five decisions: returns 3 2 7 7 7
  np.testing.assert_allclose(metrics['advantage/return'], 5.2, rtol=1e-6)
  np.testing.assert_allclose(metrics['advantage/explained'], 0, atol=1e-6)


def test_whitened():
  rng = np.random.default_rng(1)
  out = testing.scored(rng.normal(size=8))
  value = rng.normal(size=(8, 3)).astype(np.float32)
  group, mask = jnp.zeros(8, jnp.int32), jnp.ones((8, 3))
  update = lambda v: advantages.gae().update(out, group, (), mask, v)[0]
  adv = jax.jit(update)(value)
  np.testing.assert_allclose(np.mean(adv), 0, atol=1e-6)
  np.testing.assert_allclose(np.std(adv), 1, rtol=1e-5)
