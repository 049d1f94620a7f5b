"""Partition, selection and bitwise comparison of trees."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.utils import tree as tree_lib


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='head')(nn.Dense(4, name='lora_a')(x))


def net_params():
  return Net().init(jax.random.key(0), jnp.ones((2, 5)))['params']


def test_split_and_merge_are_inverse():
  params = net_params()
  chosen, rest = tree_lib.split(params, '^lora')
  assert sorted(tree_lib.named(chosen)) == ['lora_a/bias', 'lora_a/kernel']
  assert sorted(tree_lib.named(rest)) == ['head/bias', 'head/kernel']
  assert tree_lib.equal(tree_lib.merge(rest, chosen), params)
  everything, nothing = tree_lib.split(params, '')
  assert tree_lib.equal(everything, params) and nothing == {}
  with pytest.raises(ConfigError, match='none of the 4 parameters'):
    tree_lib.split(params, 'lorra')
  with pytest.raises(ValueError, match='head/bias'):
    tree_lib.merge(params, rest)


def test_gradients_flow_to_the_selected_part_only():
  params = net_params()
  chosen, rest = tree_lib.split(params, 'kernel$')

  def loss(p, q):
    return jnp.sum(Net().apply({'params': tree_lib.merge(p, q)}, jnp.ones(5)))

  grads = jax.grad(loss)(chosen, rest)
  whole = jax.grad(lambda p: loss(p, {}))(params)
  assert tree_lib.equal(grads, tree_lib.split(whole, 'kernel$')[0])


def test_nest_refuses_collisions():
  assert tree_lib.nest({'a/b': 1, 'a/c': 2, 'd': 3}) == {
    'a': {'b': 1, 'c': 2},
    'd': 3,
  }
  for names in (['a', 'a/b'], ['a/b', 'a']):
    with pytest.raises(ValueError):
      tree_lib.nest(dict.fromkeys(names, 0))


def test_sizes():
  params = net_params()
  assert tree_lib.size(params) == 5 * 4 + 4 + 4 * 3 + 3
  abstract = jax.eval_shape(net_params)
  assert tree_lib.size(abstract) == 39
  assert tree_lib.nbytes(abstract) == 39 * 4
  assert tree_lib.nbytes({'k': jax.random.key(0)}) == 8


def test_where_rows_scalars_and_keys():
  keys = jax.random.split(jax.random.key(0), 6)
  a = {'x': jnp.arange(6.0).reshape(3, 2), 'k': keys[:3]}
  b = {'x': -a['x'] - 1, 'k': keys[3:]}
  rows = jnp.array([True, False, True])
  got = tree_lib.where(rows, a, b)
  np.testing.assert_array_equal(got['x'], [[0, 1], [-3, -4], [4, 5]])
  assert got['k'][1] == b['k'][1] and got['k'][2] == a['k'][2]
  assert tree_lib.equal(tree_lib.where(True, a, b), a)
  assert tree_lib.equal(jax.jit(tree_lib.where)(False, a, b), b)


def test_equal_is_bitwise():
  a = {'x': jnp.array([jnp.nan, 0.0]), 'y': (jnp.int32(1),)}
  assert tree_lib.equal(a, jax.tree.map(jnp.array, a))
  minus = {'x': jnp.array([jnp.nan, -0.0]), 'y': (jnp.int32(1),)}
  assert tree_lib.differing(a, minus) == ['x']
  other = {'x': a['x'], 'y': (jnp.uint32(1),), 'z': 1}
  assert tree_lib.differing(a, other) == ['y/0', 'z']
  assert not tree_lib.equal(a, {'x': a['x'], 'y': [jnp.int32(1)]})
  assert not tree_lib.equal(jax.random.key(0), jax.random.key(1))
