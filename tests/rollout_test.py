"""Rows of a batch, and the identity rollout."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import rollout, testing
from gen_rl.utils import rng

KEY = jax.random.key(3)


def test_rows_are_prompt_major():
  batch = testing.batch((5, 2, 9))
  batch['media'] = np.arange(3 * 4 * 4 * 3, dtype=np.float32).reshape(
    3, 4, 4, 3
  )
  rows = rollout.make_rows(batch, 2, KEY, jnp.int32(4))
  np.testing.assert_array_equal(rows.group, [5, 5, 2, 2, 9, 9])
  np.testing.assert_array_equal(rows.info['channel'], [2, 2, 2, 2, 0, 0])
  for p in range(3):
    for g in range(2):
      row = 2 * p + g
      tokens, media = rows.cond['tokens'], rows.media
      np.testing.assert_array_equal(tokens[row], batch['tokens'][p])
      np.testing.assert_array_equal(media[row], batch['media'][p])
  expected = rng.row_keys(KEY, jnp.int32(4), batch['prompt_id'], 2)
  np.testing.assert_array_equal(
    jax.random.key_data(rows.keys), jax.random.key_data(expected)
  )
  assert rollout.make_rows(testing.batch(), 1, KEY, jnp.int32(0)).media is None


def test_data_rollout_has_no_decisions():
  rows = rollout.make_rows(testing.batch((5, 2)), 2, KEY, jnp.int32(0))
  sample = jax.random.normal(KEY, (4, 4, 4, 3))
  encode = lambda rows: (sample, rows.cond)
  traj = rollout.data_rollout(encode)(None, rows, 0)
  np.testing.assert_array_equal(traj.sample, sample)
  np.testing.assert_array_equal(traj.group, rows.group)
  np.testing.assert_array_equal(traj.cond['tokens'], rows.cond['tokens'])
  assert traj.mask.shape == traj.log_prob.shape == (4, 0)
  assert traj.times.shape == (4, 0, 2)
