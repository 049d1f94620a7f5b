"""A row's numbers depend on (seed, step, prompt, member) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen_rl.utils import rng

ROOT = jax.random.key(3)


def data(keys):
  return np.asarray(jax.random.key_data(keys)).reshape(-1, 2)


def test_keys_follow_prompt_and_member_not_position():
  keys = rng.row_keys(ROOT, 5, jnp.array([7, 2, 9]), 4)
  assert keys.shape == (12,)
  again = rng.row_keys(ROOT, 5, jnp.array([9, 100, 7, 1]), 6)
  for group, other in ((0, 2), (2, 0)):  # prompts 7 and 9
    np.testing.assert_array_equal(
      data(keys[group * 4 : group * 4 + 4]),
      data(again[other * 6 : other * 6 + 4]),
    )
  chain = ROOT
  for number in (5, 2, 3):  # step 5, prompt 2, member 3: by hand
    chain = jax.random.fold_in(chain, number)
  np.testing.assert_array_equal(data(keys[1 * 4 + 3]), data(chain))
  jitted = jax.jit(rng.row_keys, static_argnums=3)
  np.testing.assert_array_equal(
    data(jitted(ROOT, jnp.int32(5), jnp.array([7, 2, 9]), 4)), data(keys)
  )


def test_no_two_keys_are_equal():
  keys = [rng.row_keys(ROOT, step, jnp.arange(50), 8) for step in range(3)]
  keys += [rng.step_keys(k, i) for k in keys[:1] for i in range(10)]
  keys += [rng.stream_keys(keys[0], n) for n in ('init', 'nll', 'reward')]
  every = np.concatenate([data(k) for k in keys])
  assert len(every) == 400 * 16
  assert len(np.unique(every, axis=0)) == len(every)


def test_streams():
  keys = rng.row_keys(ROOT, 0, jnp.arange(2), 2)
  one = rng.stream_keys(keys[3], 'init')
  np.testing.assert_array_equal(
    data(one), data(rng.stream_keys(keys, 'init')[3])
  )


@pytest.mark.parametrize('draw', [rng.normal, rng.uniform])
def test_rows_draw_the_same_in_any_batch(draw):
  keys = rng.row_keys(ROOT, 1, jnp.arange(4), 4)
  order = np.random.RandomState(0).permutation(16)[:5]
  whole = np.asarray(draw(keys, (3, 5)))
  np.testing.assert_array_equal(whole[order], draw(keys[order], (3, 5)))
  np.testing.assert_array_equal(
    whole[order], jax.jit(lambda k: draw(k, (3, 5)))(keys[order])
  )
  alone = getattr(jax.random, draw.__name__)(keys[2], (3, 5))
  np.testing.assert_array_equal(whole[2], alone)
  assert whole.dtype == np.float32


def test_normals_of_all_rows_together_are_normal():
  keys = rng.row_keys(ROOT, 1, jnp.arange(20), 10)
  x = np.asarray(rng.normal(rng.step_keys(keys, 3), (50,))).ravel()
  assert stats.kstest(x, 'norm').pvalue > 1e-3
  u = np.asarray(rng.uniform(keys, (50,))).ravel()
  assert stats.kstest(u, 'uniform').pvalue > 1e-3


def test_keys_per_row():
  keys = rng.row_keys(ROOT, 0, jnp.arange(2), 2)
  np.testing.assert_array_equal(data(rng.per_row(keys, 4)), data(keys))
  one = data(rng.per_row(ROOT, 3))
  assert one.shape[0] == 3 and len({tuple(k) for k in np.asarray(one)}) == 3
