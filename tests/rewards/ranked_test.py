"""The order of the rows of a group as a score."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.rewards import ranked
from gen_rl.types import RewardInputs


@pytest.mark.parametrize(
  ('size', 'expected'), [(2, [1, 0] * 3), (3, [1, 0.5, 0] * 2), (1, [1] * 6)]
)
def test_first_is_best(size, expected):
  inputs = RewardInputs(jnp.zeros((6, 2, 2, 3)), {}, size)
  out = ranked.ranked().score((), inputs, None)
  np.testing.assert_allclose(out.score, expected)
  assert out.valid.all()
