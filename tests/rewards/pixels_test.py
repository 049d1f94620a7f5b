"""Statistics of pixels, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.rewards import pixels
from gen_rl.types import RewardInputs


def test_chroma_by_hand():
  media = np.zeros((3, 2, 2, 3), np.float32)
  media[0] = 0.3  # grey
  media[1, 0, 0] = 1, 0, 0  # a quarter pure red
  media[2] = 0.2, 0.5, 0.4  # .5 - .2 everywhere
  np.testing.assert_allclose(pixels.chroma(jnp.asarray(media)), [0, 0.25, 0.3])


def test_saturation_and_its_gradient():
  media = jnp.tile(jnp.array([0.2, 0.5, 0.4]), (2, 2, 4, 1))
  reward = pixels.saturation()
  assert reward.differentiable

  def total(media):
    out = reward.score((), RewardInputs(media, {}, 1), None)
    return out.score.sum()

  # up with the largest channel, down with the smallest, by 1 / pixels
  grad = jax.grad(total)(media)
  np.testing.assert_allclose(
    grad, np.broadcast_to([-1 / 8, 1 / 8, 0], media.shape)
  )
  out = reward.score(
    (), RewardInputs(media.at[0, 0, 0, 0].set(jnp.nan), {}, 1), None
  )
  assert out.valid.tolist() == [False, True]
  with pytest.raises(ConfigError, match=r'pictures .* samples are \[2, 3\]'):
    reward.score((), RewardInputs(jnp.zeros((2, 3)), {}, 1), None)
