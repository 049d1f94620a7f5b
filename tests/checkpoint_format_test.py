"""What is stored beside the arrays; reading it back: checkpoint_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import checkpoint_format


@pytest.mark.parametrize(
  ('leaf', 'text'),
  [
    (jnp.zeros((3, 4)), 'float32[3, 4]'),
    (jnp.zeros((0,), jnp.bfloat16), 'bfloat16[0]'),
    (np.zeros((2,), np.int64), 'int64[2]'),
    (jnp.array(True), 'bool[]'),
    (3, 'int32[]'),
    (jax.random.key(0), 'key<fry>[]'),
    (jax.random.split(jax.random.key(0, impl='rbg'), 5), 'key<rbg>[5]'),
  ],
)
def test_types_are_text_and_back(leaf, text):
  assert checkpoint_format.describe(leaf) == text
  struct = checkpoint_format.struct(text)
  assert struct.shape == np.shape(leaf)
  assert checkpoint_format.describe(struct) == text


def test_arrays_and_meta_of_a_state():
  key = jax.random.key(3)
  state = {'a': {'x': np.float32([1, 2]), 'none': jnp.zeros((0, 3))}, 'k': key}
  arrays, meta = checkpoint_format.pack(
    7, state, {'betas': (0.9, 0.99)}, {'index': np.int64(4)}
  )
  assert set(arrays) == {'a/x', 'k'}  # nothing to write of an empty array
  np.testing.assert_array_equal(arrays['k'], jax.random.key_data(key))
  assert meta['types'] == {
    'a/none': 'float32[0, 3]', 'a/x': 'float32[2]', 'k': 'key<fry>[]'
  }  # fmt: skip
  assert meta['step'] == 7 and meta['key_impls'] == {'k': 'threefry2x32'}
  assert meta['config'] == {'betas': [0.9, 0.99]}
  assert meta['extra'] == {'index': 4}
  # that of the bytes 00 00 80 3f 00 00 00 40, as gzip gives it
  assert meta['crc32']['a/x'] == 775923062


def test_large_states_have_no_checksums(monkeypatch):
  monkeypatch.setattr(checkpoint_format, 'CHECKSUM_BYTES', 7)
  _, meta = checkpoint_format.pack(1, {'x': np.float32([1, 2])})
  assert meta['crc32'] is None


def test_extra_must_be_json():
  state = {'x': np.zeros(3)}
  with pytest.raises(checkpoint_format.CheckpointError, match='JSON.*bytes'):
    checkpoint_format.pack(1, state, extra={'cursor': b'x'})
