"""Adapters against those of qwix, which rewrites products while it traces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import lora as benchmark
from gen_rl import testing
from gen_rl.models.parts import lora
from gen_rl.utils import tree

pytest.importorskip('qwix')

KEY = jax.random.key(3)
PATTERN, RANK, ALPHA = 'block|text|pooled', 2, 5.0
TOKENS = jnp.asarray(testing.dit_batch()['tokens'])


@functools.cache
def _both(layers=1, **options):
  """(net, adapted parameters), ours and qwix's, with equal numbers in them."""
  # Made anew: qwix's differs by what stands in for the class.
  make = functools.partial(testing.dit.__wrapped__, layers, **options)
  net = make()

  @jax.jit
  def drawn(key):
    base = jax.tree.map(
      lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size).reshape(p.shape)),
      net.init(key),  # its last layers start at zero
    )
    params = lora.add(base, PATTERN, RANK, ALPHA, key)
    return benchmark.trained(params, size=0.3)

  params = drawn(KEY)
  theirs = benchmark.by_qwix(make, PATTERN, RANK, ALPHA)
  return (net, params), (theirs, benchmark.for_qwix(params))


def _noise(net):
  return jax.random.normal(KEY, (len(TOKENS), *net.shape))


def _velocity(net, params):
  call = jax.jit(functools.partial(benchmark.velocity, net))
  return call(params, _noise(net), TOKENS)


def _assert_close(found, want, error, name=''):
  """To an error in units of the largest number."""
  scale = np.abs(want).max()
  assert scale > 1e-3, name
  np.testing.assert_allclose(
    found, want, rtol=0, atol=error * scale, err_msg=name
  )


@pytest.mark.parametrize(
  'options',
  [{}, dict(layers=2, scan=True), dict(layers=2, scan=True, remat='full')],
  ids=['list', 'scan', 'remat'],
)
def test_velocity_and_gradients(options):
  found = []
  for net, params in _both(**options):
    free, fixed = tree.split(params, lora.TRAINABLE)

    def loss(free, net=net, fixed=fixed):
      x = _noise(net)
      out = benchmark.velocity(net, tree.merge(free, fixed), x, TOKENS)
      return jnp.sin(3 * out).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(free)
    found.append((out, tree.named(grads)))
  (out, grads), (their_out, their_grads) = found
  _assert_close(their_out, out, 2e-6)
  assert their_grads.keys() == grads.keys()
  for name, grad in grads.items():
    _assert_close(their_grads[name], grad, 5e-5, name)


def test_merged_parameters():
  """The net without adapters computes what qwix computes with them."""
  (net, params), theirs = _both()
  merged = _velocity(net, lora.merge(params))
  _assert_close(_velocity(*theirs), merged, 2e-6)
  base = {n: x for n, x in tree.named(params).items() if '_lora_' not in n}
  assert np.abs(merged - _velocity(net, tree.nest(base))).max() > 0.1


@pytest.mark.parametrize(
  'options', [{}, dict(layers=2, scan=True)], ids=['list', 'scan']
)
def test_names_and_shapes(options):
  """Of new adapters; qwix draws A 6 ** 0.5 times as wide as we do."""
  (_, ours), (theirs, params) = _both(**options)
  drawn = jax.jit(theirs.init)(KEY)
  shapes = jax.tree.map(jnp.shape, drawn)
  assert shapes == jax.tree.map(jnp.shape, params)
  ours, drawn = tree.named(ours), tree.named(drawn)
  for name in (n for n in drawn if n.endswith('_lora_a')):
    bound = drawn[name].shape[-2] ** -0.5  # ours: like the authors' code
    assert 0.7 * bound < np.abs(ours[name]).max() <= bound, name
    theirs = np.abs(drawn[name]).max() / 6**0.5
    assert 0.7 * bound < theirs <= bound, name
    assert not drawn[name.replace('_lora_a', '_lora_b')].any()


def test_several_adapters_in_one_call():
  found = []
  for net, params in _both():
    free, fixed = tree.split(params, lora.TRAINABLE)

    @jax.jit
    def several(free):
      each = [benchmark.trained(free, seed, 0.3) for seed in range(3)]
      return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    stack = several(free)
    call = jax.jit(functools.partial(benchmark.together, net))
    found.append(call(stack, fixed, _noise(net), TOKENS))
  _assert_close(found[1], found[0], 5e-6)


def test_bfloat16():
  """Equal to rounding; qwix needs its adapters cast by the caller."""
  (net, params), (theirs, qwix_params) = _both(dtype='bfloat16')
  half = {
    n: x.astype(jnp.bfloat16) if '_lora_' in n else x
    for n, x in tree.named(qwix_params).items()
  }
  want = _velocity(testing.dit(), params)
  _assert_close(_velocity(net, params), want, 0.03)
  _assert_close(_velocity(theirs, tree.nest(half)), want, 0.03)
