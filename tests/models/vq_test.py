"""Finite scalar quantisation by hand, and codes that go there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, rollout, testing
from gen_rl.models import vq
from gen_rl.policies import supervised


def test_levels_by_hand():
  z = jnp.array([[-9.0], [0.0], [9.0]])
  whole = lambda level: vq.quantise(z, (level,))[:, 0].tolist()
  assert whole(3) == [-1, 0, 1]
  assert whole(5) == [-2, 0, 2]
  # An even number of levels has one more below zero.
  assert whole(2) == [-1, 0, 0]
  assert whole(8) == [-4, 0, 3]


def test_every_code_is_reached_and_comes_back():
  levels = (3, 4, 2)
  z = 4 * jax.random.normal(jax.random.key(0), (4000, 3))
  q = vq.quantise(z, levels)
  codes = vq.to_codes(q, levels)
  assert set(np.unique(codes)) == set(range(24))
  np.testing.assert_array_equal(vq.from_codes(codes, levels), jnp.round(q))


def test_gradients_pass_the_rounding():
  """That of tanh, equation (1), for an odd number of levels."""
  z = jnp.array([0.3])
  slope = jax.grad(lambda z: vq.quantise(z, (5,)).sum())(z)
  half = 4 * (1 + 1e-3) / 2
  np.testing.assert_allclose(slope, half * (1 - np.tanh(0.3) ** 2), rtol=1e-5)


def small():
  codec = vq.fsq_codec(
    image=(8, 12, 3), patch=4, levels=(4, 3), width=8, layers=1, heads=2
  )
  return testing.jitted(codec)


def test_shapes_and_codes():
  codec = small()
  params = codec.init(jax.random.key(0))
  x = jax.random.uniform(jax.random.key(1), (5, 8, 12, 3))
  codes = codec.encode(params, x)
  assert codes.shape == (5, 6) and codec.grid == (2, 3) and codec.size == 12
  out = codec.decode(params, codes)
  assert out.shape == x.shape and 0 <= out.min() <= out.max() <= 1
  assert jax.jit(codec.loss)(params, x).shape == (5,)


def test_as_a_policy_it_gives_the_codes_of_what_it_is_shown():
  codec = small()
  policy = testing.jitted(supervised.codec(codec))
  params = policy.init(jax.random.key(0))
  x = jax.random.uniform(jax.random.key(1), (4, 8, 12, 3))
  batch = dict(
    tokens=np.zeros((4, 2), np.int32),
    prompt_id=np.arange(4, dtype=np.int32),
    info={},
  )
  rows = rollout.make_rows(batch, 1, jax.random.key(0), jnp.int32(0))
  with pytest.raises(build.ConfigError, match='data.view.name'):
    policy.ops['greedy'](params, rows)
  codes = policy.ops['greedy'](params, rows.replace(media=x))
  np.testing.assert_array_equal(codes, codec.encode(params, x))
  np.testing.assert_allclose(
    policy.ops['nll'](params, testing.given(2 * x - 1, {}), ()),
    jax.jit(codec.loss)(params, x),
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    (dict(patch=5), 'divisible by patch=5'),
    (dict(levels=(8, 1)), '2 or more'),
    (dict(width=10, heads=4), 'heads=4'),
  ],
)
def test_bad_sizes(options, words):
  with pytest.raises(ValueError, match=words):
    vq.fsq_codec(**options)
