"""Weights files: round trips and complaints."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import flax as safetensors_flax
import safetensors.numpy

from configs import flow_grpo
from gen_rl import assemble, initial
from gen_rl.models.files import weights
from gen_rl.utils import tree as tree_lib


def params():
  k = jax.random.key(0)
  return {
    'conv': {'kernel': jax.random.normal(k, (3, 3, 2)).transpose(2, 0, 1)},
    'head': {'bias': jax.random.normal(k, (4,), jnp.bfloat16)},
    'scale': jnp.float32(2.0),
    'ids': jnp.arange(3, dtype=jnp.int32),
    'none': jnp.zeros((0, 2)),
  }


def test_round_trip_is_bitwise(tmp_path):
  path = tmp_path / 'w.safetensors'
  weights.save(path, params(), {'steps': 10, 'made by': 'a test'})
  got, metadata = weights.load(path)
  assert tree_lib.equal(got, params())
  assert metadata == {'steps': '10', 'made by': 'a test'}
  got, _ = weights.load(path, like=jax.eval_shape(params))
  assert tree_lib.equal(got, params())
  # Another reader sees the same names and values.
  other = safetensors_flax.load_file(path)
  assert tree_lib.equal(other, tree_lib.named(params()))


def test_everything_wrong_is_in_one_sentence(tmp_path):
  path = tmp_path / 'w.safetensors'
  weights.save(path, params())
  like = params()
  del like['ids']
  like['scale'] = jnp.zeros(3)
  like['head'] = {'bias': jnp.zeros(4), 'kernel': jnp.zeros((2, 2))}
  with pytest.raises(weights.WeightsError) as error:
    weights.load(path, like=like)
  text = str(error.value)
  assert 'missing head/kernel' in text
  assert 'unexpected ids' in text
  assert 'scale is float32[] where float32[3] is wanted' in text
  assert 'head/bias is bfloat16[4] where float32[4] is wanted' in text
  assert '\n' not in text


def test_types_are_cast_only_when_asked(tmp_path):
  path = tmp_path / 'w.safetensors'
  weights.save(path, {'w': jnp.array([1.5, 2.5])})
  like = {'w': jax.ShapeDtypeStruct((2,), jnp.bfloat16)}
  with pytest.raises(weights.WeightsError, match='w is float32'):
    weights.load(path, like=like)
  got, _ = weights.load(path, like=like, cast=True)
  assert got['w'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(got['w'].astype(float), [1.5, 2.5])


@pytest.mark.parametrize(
  'x, said',
  [
    (np.ones(3, np.int64), r'w is int64\[3\] where float32\[3\]'),
    (np.ones(3, bool), r'w is bool\[3\] where'),
    (np.array([0, np.nan, 1], np.float16), 'numbers in w that are not finite'),
    (np.array([0, np.inf, 1], jnp.bfloat16), 'that are not finite'),
    (np.array([0, -1e300, 1]), 'that are too large for float32'),
  ],
)
def test_a_cast_loses_nothing_but_rounding(tmp_path, x, said):
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file({'w': x}, path)
  with pytest.raises(weights.WeightsError, match=said):
    weights.load(path, {'w': jnp.zeros(3)}, cast=True)


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'float16', 'bfloat16'])
def test_finite(dtype):
  x = np.full(3, 2.5, jnp.dtype(dtype))
  assert weights.finite(x)
  for bad in (np.nan, np.inf, -np.inf):
    x[1] = bad
    assert not weights.finite(x)


@pytest.mark.parametrize('keep', [0, 4, 60, -1])
def test_truncated_file_is_a_sentence(tmp_path, keep):
  path = tmp_path / 'w.safetensors'
  weights.save(path, params())
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(weights.WeightsError, match='truncated or not a safe'):
    weights.load(path)


def test_missing_file_is_a_sentence(tmp_path):
  with pytest.raises(weights.WeightsError, match='no weights file'):
    weights.load(tmp_path / 'none')


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'w.safetensors'
  weights.save(path, {'w': jnp.ones(2)})

  def fail(*args):
    raise OSError('stop')

  monkeypatch.setattr(weights.os, 'replace', fail)
  with pytest.raises(OSError):
    weights.save(path, {'w': jnp.zeros(2)})
  assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']
  np.testing.assert_array_equal(weights.load(path)[0]['w'], [1, 1])


def test_find():
  assert weights.find('a/b.safetensors') == 'a/b.safetensors'
  found = weights.find('asset:base').replace('\\', '/')
  assert found.endswith('gen_rl/assets/base.safetensors')
  with pytest.raises(weights.WeightsError, match='no name of a file'):
    weights.find('asset:../../secret')


def test_what_never_ends_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/zero'):
    with pytest.raises(weights.WeightsError, match='a pipe or a device'):
      weights.load(path)
  with pytest.raises(weights.WeightsError, match='it is a folder'):
    weights.load(tmp_path)


def test_the_shipped_base_draws():
  """The file fits the main job's model, and holds what the model card says."""
  config = flow_grpo.get_config()
  config.eval.samples = 2
  built = assemble.setup(config)
  evaluate, _ = assemble.make_evaluator(config, built)
  result = evaluate(initial.params(config, built.policy))
  assert 0.45 < result.strict < 0.8  # 0.55-0.70, and two standard errors
