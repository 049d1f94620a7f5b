"""Zero-order search by its configuration."""

import jax
import numpy as np
import pytest

from gen_rl import build, searches
from gen_rl.searches import pruning, walking
from gen_rl.selection import Cost


def first(latents):
  return latents[:, 0]


def test_rounds_add_to_best_of_n(linear):
  out, start = (
    jax.jit(lambda rows, m=method: m.find(linear.space(first), rows))(
      linear.rows
    )
    for method in (walking.zero_order(4, rounds=6), pruning.best_of_n(4))
  )
  assert out.cost == Cost(7 * 4 * linear.steps, 7 * 4)
  assert (out.score >= start.score).all() and (out.index >= 4).any()
  np.testing.assert_allclose(out.sample[:, 0], out.score)
  kept = np.asarray(out.index) < 4
  np.testing.assert_array_equal(out.index[kept], start.index[kept])


def test_angles_that_are_none():
  with pytest.raises(build.ConfigError, match='above -1 and below 1'):
    build.build(searches, dict(name='zero_order', cosine=1.0))
  assert not walking.zero_order().relative
