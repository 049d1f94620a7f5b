"""Adapters against the products they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, testing
from gen_rl.models.parts import lora
from gen_rl.utils import tree

KEY = jax.random.key(3)
NET = testing.jitted(testing.dit())
PROMPTS = dict(tokens=jnp.asarray(testing.dit_batch()['tokens']))


@jax.jit
def _params():
  params = NET.init(KEY)  # its last layers start at zero

  def move(p):
    return p + 0.05 * jnp.cos(jnp.arange(p.size).reshape(p.shape))

  return jax.tree.map(move, params)


def _velocity(params, seed=0):
  x = jax.random.normal(jax.random.key(seed), (4, *NET.shape))
  prompt = NET.encode(params, PROMPTS)
  return NET.apply(params, x, jnp.full(4, 0.4), prompt)


def _trained(params, seed):
  """Adapters as after some training."""
  leaves = tree.named(params)
  for i, name in enumerate(n for n in leaves if n.endswith('_lora_b')):
    key = jax.random.fold_in(jax.random.key(seed), i)
    leaves[name] = 0.3 * jax.random.normal(key, leaves[name].shape)
  return tree.nest(leaves)


def test_new_adapters_change_nothing():
  params = _params()
  adapted = lora.add(params, 'block_|text', rank=2, alpha=4.0, key=KEY)
  np.testing.assert_array_equal(_velocity(adapted), _velocity(params))
  names = [n for n in tree.named(adapted) if 'lora' in n]
  assert 'text/phrase/kernel_lora_a' in names
  assert not any('embed' in n or 'mod' in n for n in names)
  leaves = tree.named(adapted)
  assert leaves['block_0/qkv/kernel_lora_a'].shape == (16, 2)
  assert leaves['block_0/qkv/kernel_lora_b'].shape == (2, 48)
  assert leaves['block_0/qkv/kernel_lora_scale'] == 2.0
  # He et al., uniform: variance 1 / (3 * inputs) of each.
  many = lora.add(params, 'block_0/up', rank=64, alpha=1.0, key=KEY)
  a = many['block_0']['up']['kernel_lora_a']
  assert np.var(a) == pytest.approx(1 / 48, rel=0.1)
  assert np.abs(a).max() <= 0.25


def test_adapters_are_a_product_of_low_rank():
  params = _params()
  adapted = _trained(lora.add(params, 'block_|text', 2, 4.0, KEY), 1)
  merged = lora.merge(adapted)
  assert tree.named(merged).keys() == tree.named(params).keys()
  layer = adapted['block_0']['up']
  a, b = (np.float64(layer[f'kernel_lora_{k}']) for k in 'ab')
  kernel = params['block_0']['up']['kernel']
  difference = merged['block_0']['up']['kernel'] - kernel
  np.testing.assert_allclose(difference, 2.0 * a @ b, atol=1e-6)
  assert np.linalg.matrix_rank(difference, tol=1e-5) == 2
  np.testing.assert_allclose(_velocity(merged), _velocity(adapted), atol=2e-5)
  assert np.abs(_velocity(adapted) - _velocity(params)).max() > 1e-2


def test_several_adapters_in_one_call():
  """The products with the shared kernels stay one for all of them."""
  adapted = lora.add(_params(), 'block_', 2, 4.0, KEY)
  versions = [_trained(adapted, seed) for seed in range(3)]
  _, shared = tree.split(adapted, lora.TRAINABLE)
  trained = [tree.split(v, lora.TRAINABLE)[0] for v in versions]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *trained)
  together = jax.vmap(lambda p: _velocity(tree.merge(p, shared)))(stacked)
  for got, version in zip(together, versions, strict=True):
    np.testing.assert_allclose(got, _velocity(version), atol=2e-5)


def test_only_adapters_are_trained():
  policy = testing.make_policy(NET)
  adapted = lora.add(_params(), 'block_', 2, 4.0, KEY)
  policy = policy._replace(init=lambda key: adapted)
  step, state = testing.make_step(policy, trainable=lora.TRAINABLE)
  names = tree.named(state.params).keys()
  assert names and all(n.endswith(('_lora_a', '_lora_b')) for n in names)
  start = jax.device_get(state)
  new, _ = testing.run(step, state, 2, testing.dit_batch())
  assert tree.differing(new.frozen, start.frozen) == []
  assert set(tree.differing(new.params, start.params)) == set(names)


@pytest.mark.parametrize(
  'pattern, rank, init, words',
  [
    ('block_9', 2, 'kaiming', 'finds no module .*block_0/down'),
    ('block_', 0, 'kaiming', 'at least 1'),
    ('block_', 2, 'normal', 'one of kaiming, gaussian'),
  ],
)
def test_adapters_of_nothing(pattern, rank, init, words):
  with pytest.raises(build.ConfigError, match=words):
    lora.add(_params(), pattern, rank, 1.0, KEY, init)


def test_stacked_layers_have_an_adapter_each():
  kernels = jax.random.normal(KEY, (3, 4, 6))
  params = dict(block=dict(up=dict(kernel=kernels)))
  adapted = lora.add(params, 'block', rank=2, alpha=4.0, key=KEY)
  layer = adapted['block']['up']
  shapes = {k: v.shape for k, v in layer.items()}
  assert shapes == dict(
    kernel=(3, 4, 6),
    kernel_lora_a=(3, 4, 2),
    kernel_lora_b=(3, 2, 6),
    kernel_lora_scale=(3,),
  )
  a = layer['kernel_lora_a']
  assert np.abs(a[0] - a[1]).max() > 0.01
  assert np.abs(a).max() <= 0.5  # sqrt(3 / (3 * 4)), the fan-in of one layer
  b = jax.random.normal(KEY, (3, 2, 6))
  layer['kernel_lora_b'] = b
  merged = lora.merge(adapted)['block']['up']['kernel']
  for i in range(3):
    want = np.float64(kernels[i]) + 2.0 * np.float64(a[i]) @ np.float64(b[i])
    np.testing.assert_allclose(merged[i], want, atol=1e-6)
  net = testing.dit(layers=2, scan=True)
  params = lora.add(jax.jit(net.init)(KEY), 'block', rank=2, alpha=4.0, key=KEY)
  params = _trained(params, 1)
  x = jax.random.normal(KEY, (4, *net.shape))

  @jax.jit
  def velocity(params):
    prompt = net.encode(params, PROMPTS)
    return net.apply(params, x, jnp.full(4, 0.4), prompt)

  np.testing.assert_allclose(
    velocity(lora.merge(params)), velocity(params), atol=2e-5
  )


def test_adapters_are_mixed():
  """W + sum_i w_i scale A_i B_i, in ranks that each left free."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  base = dict(x=dict(kernel=draw(6, 5)), y=dict(kernel=draw(3, 6, 5)))

  def run():
    leaves = tree.named(lora.add(base, '', 4, 8.0, KEY))
    for name in [n for n in leaves if n.endswith('_lora_b')]:
      *stack, rank, out = leaves[name].shape
      b = np.zeros((*stack, rank, out), np.float32)
      b[..., :2, :] = draw(*stack, 2, out)
      a = f'{name[:-1]}a'
      leaves |= {name: b, a: draw(*leaves[a].shape)}
    return tree.nest(leaves)

  one, two = run(), run()
  testing.assert_same(lora.mix([one, two], [1.0, 0.0]), one, to=0)
  mixed = lora.mix([one, two], [0.7, -0.3])
  expected = jax.tree.map(
    lambda w, a, b: w + 0.7 * (a - w) - 0.3 * (b - w),
    base, lora.merge(one), lora.merge(two),
  )  # fmt: skip
  testing.assert_close(lora.merge(mixed), expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(build.ConfigError, match='use 6 ranks .* lora.rank is 4'):
    lora.mix([one, two, run()], [1.0, 1.0, 1.0])
