"""Noise-aware distillation: by hand, its gradient, and where it leads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.objectives import reward_model
from gen_rl.types import Reward, RewardInputs, RewardOut

KEY = jax.random.key(0)


def linear(differentiable=True):
  """Score w * mean of the picture + b; a picture with a negative is invalid."""

  def score(params, inputs, key):
    del key
    mean = inputs.media.mean((1, 2, 3))
    return RewardOut(
      params['w'] * mean + params['b'], {}, (inputs.media >= 0).all((1, 2, 3))
    )

  return Reward('linear', (), score, differentiable=differentiable)


def loss(params, means, target, valid):
  media = jnp.broadcast_to(
    jnp.float32(means)[:, None, None, None], (len(means), 2, 2, 3)
  )
  term = reward_model.noise_aware_distill(
    linear(), params, RewardInputs(media, {}, 1), target, valid, KEY
  )
  return term, (term.value * term.mask).sum() / term.mask.sum()


def test_by_hand():
  """2 * 0.25 + 1 = 1.5 against 1; the others do not count."""
  params = dict(w=jnp.float32(2), b=jnp.float32(1))
  target = jnp.float32([1.0, jnp.nan, 7.0])
  valid = jnp.array([True, False, True])
  term, _ = loss(params, [0.25, 0.5, -1.0], target, valid)
  np.testing.assert_allclose(term.value, [[0.25], [0], [0]])
  np.testing.assert_array_equal(term.mask, [[1], [0], [0]])
  # d (1.5 - 1)^2 = 2 * 0.5 * (0.25 dw + db); a NaN target leaves none behind
  gradient = jax.grad(lambda p: loss(p, [0.25, 0.5, -1.0], target, valid)[1])(
    params
  )
  np.testing.assert_allclose(gradient['w'], 0.25)
  np.testing.assert_allclose(gradient['b'], 1.0)


def test_the_minimum_is_the_conditional_mean():
  """Two pictures that look alike and end as 0 and 1 are worth 1/2."""
  params = dict(w=jnp.float32(0.3), b=jnp.float32(0))
  means, target = [0.2, 0.2, 0.8, 0.8], jnp.float32([0, 1, 1, 1])
  step = jax.jit(jax.grad(lambda p: loss(p, means, target, target >= 0)[1]))
  for _ in range(400):
    params = jax.tree.map(lambda p, g: p - 0.5 * g, params, step(params))
  w, b = float(params['w']), float(params['b'])
  np.testing.assert_allclose([0.2 * w + b, 0.8 * w + b], [0.5, 1], atol=1e-3)


def test_rewards_without_a_gradient():
  with pytest.raises(ValueError, match="'linear' is not differentiable"):
    reward_model.noise_aware_distill(
      linear(False), (), RewardInputs(jnp.ones((1, 2, 2, 3)), {}, 1),
      jnp.ones(1), jnp.ones(1, bool), KEY,
    )  # fmt: skip
