"""The transformer: shapes, rows, prompts, and the velocity formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import testing
from gen_rl.models import dit as dit_lib

KEY = jax.random.key(0)
B = 4


@pytest.fixture(scope='module')
def small():
  net = dit_lib.dit(
    image=(8, 8, 3), width=16, layers=2, heads=2, patch=4,
    vocab=16, length=5, text_width=8, text_layers=1,
  )  # fmt: skip
  params = jax.jit(net.init)(KEY)
  # Its last layers start at zero.
  return (
    net,
    testing.moved(params, KEY, 0.2),
    jax.jit(lambda p, x, t, c: net.apply(p, x, t, net.encode(p, c))),
  )


def inputs(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  x = jax.random.normal(keys[0], (B, 8, 8, 3))
  t = jax.random.uniform(keys[1], (B,), minval=0.2)
  tokens = jax.random.randint(keys[2], (B, 5), 1, 16)
  return x, t, dict(tokens=tokens.at[:, 4].set(0))


def test_shape_and_dtype(small):
  net, params, apply = small
  x, t, cond = inputs()
  v = apply(params, x.astype(jnp.bfloat16), t, cond)
  assert net.shape == (8, 8, 3)
  assert v.shape == x.shape and v.dtype == jnp.float32
  assert {str(p.dtype) for p in jax.tree.leaves(params)} == {'float32'}


def test_rows_are_independent(small):
  """A row's velocity ignores the others, and follows a permutation."""
  _, params, apply = small
  x, t, cond = inputs()
  v = apply(params, x, t, cond)
  order = np.array([2, 0, 3, 1])
  permuted = apply(
    params, x[order], t[order], dict(tokens=cond['tokens'][order])
  )
  np.testing.assert_allclose(permuted, v[order], atol=2e-5)
  x2, t2, cond2 = inputs(1)
  mixed = apply(
    params,
    x2.at[1].set(x[1]),
    t2.at[1].set(t[1]),
    dict(tokens=cond2['tokens'].at[1].set(cond['tokens'][1])),
  )
  np.testing.assert_allclose(mixed[1], v[1], atol=2e-5)
  assert np.abs(mixed[0] - v[0]).max() > 0.1


def test_one_row_has_no_gradient_from_another(small):
  _, params, apply = small
  x, t, cond = inputs()
  grad = jax.jit(
    jax.grad(lambda x: jnp.square(apply(params, x, t, cond)[1]).sum())
  )(x)
  live = np.abs(grad).max((1, 2, 3)) > 0
  np.testing.assert_array_equal(live, [False, True, False, False])


def test_velocity_is_that_of_a_clean_image(small):
  """v = (x - D) / max(t, t_min): x - t v is D, which knows no division."""
  _, params, apply = small
  # All zero: D = 0, so v = x / max(t, 0.05)
  params = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params)
  x, _, cond = inputs()
  t = jnp.array([1.0, 0.5, 0.05, 0.0])
  v = apply(params, x, t, cond)
  by_hand = np.asarray(x) * np.array([1, 2, 20, 20])[:, None, None, None]
  np.testing.assert_allclose(v, by_hand, rtol=1e-5)


def test_prompt_time_and_word_order_matter(small):
  _, params, apply = small
  x, t, cond = inputs()
  v = apply(params, x, t, cond)
  swapped = cond['tokens'].at[:, :2].set(cond['tokens'][:, 1::-1])
  for other in (
    apply(params, x, t, dict(tokens=swapped)),
    apply(params, x, t, dict(tokens=cond['tokens'] % 15 + 1)),
  ):
    assert (np.abs(other - v).max((1, 2, 3)) > 1e-4).all()
  # D itself depends on t
  clean = x - v * t[:, None, None, None]
  t2 = 0.5 * t
  clean2 = x - apply(params, x, t2, cond) * t2[:, None, None, None]
  assert (np.abs(clean - clean2).max((1, 2, 3)) > 1e-4).all()


def test_null_prompt(small):
  net, params, apply = small
  x, t, cond = inputs()
  null = net.null(dict(cond, source=x))
  assert not null['tokens'].any() and null['tokens'].dtype == jnp.int32
  np.testing.assert_array_equal(null['source'], x)  # the rest is kept
  v = apply(params, x, t, dict(tokens=null['tokens']))
  assert np.isfinite(v).all()
  # every row has the same prompt now: rows of equal x and t agree
  same = apply(params, x[:1].repeat(B, 0), t[:1].repeat(B), net.null(cond))
  np.testing.assert_allclose(same, same[:1].repeat(B, 0), atol=1e-5)


def test_sizes_that_do_not_fit():
  with pytest.raises(ValueError, match='30x24 is not divisible by patch=12'):
    dit_lib.dit(image=(30, 24, 3), patch=12)
  with pytest.raises(ValueError, match='width=10 is not divisible by heads=4'):
    dit_lib.dit(width=10, heads=4)


@functools.cache
def _net(**options):
  return dit_lib.dit(
    image=(8, 8, 3), width=16, layers=3, heads=2, patch=4,
    vocab=16, length=5, text_width=8, text_layers=1, **options,
  )  # fmt: skip


def _stacked(params):
  """Parameters block_0, block_1, ... as the scanned model has them."""
  blocks = [k for k in sorted(params) if k.startswith('block_')]
  rest = {k: v for k, v in params.items() if k not in blocks}
  stack = jax.tree.map(lambda *x: jnp.stack(x), *(params[k] for k in blocks))
  return {**rest, 'block': stack}


@functools.cache
def _params(net):
  return testing.moved(jax.jit(net.init)(KEY), KEY, 0.2)


@functools.cache  # one program for all tests that ask for it
def _compiled(net):
  x, t, cond = inputs()

  def loss(params):
    v = net.apply(params, x, t, net.encode(params, cond))
    return jnp.square(v).mean(), v

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _loss_and_grad(net, params):
  (_, v), grad = _compiled(net)(params)
  return v, grad


def test_scanned_blocks_are_the_same_blocks():
  net, scanned = _net(), _net(scan=True)
  shapes = jax.eval_shape(scanned.init, KEY)
  params = _params(net)
  stacked = _stacked(params)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  v, grad = _loss_and_grad(net, params)
  v2, grad2 = _loss_and_grad(scanned, stacked)
  np.testing.assert_allclose(v2, v, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    grad2,
    _stacked(grad),
  )


def test_rows_come_first_in_a_scanned_prompt():
  """Whoever repeats a prompt's rows need not know its layers."""
  net = testing.jitted(_net(scan=True))
  params = testing.moved(net.init(KEY), KEY, 0.2)
  x, t, cond = inputs()
  prompt = net.encode(params, cond)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(prompt)} == {B}
  twice = jax.tree.map(lambda c: jnp.repeat(c, 2, axis=0), prompt)
  v = net.apply(params, jnp.repeat(x, 2, 0), jnp.repeat(t, 2), twice)
  want = jnp.repeat(net.apply(params, x, t, prompt), 2, 0)
  np.testing.assert_allclose(v, want, rtol=1e-5, atol=1e-5)


def test_scanned_blocks_start_different():
  """Each layer draws its own kernels, at the scale of one layer."""
  kernel = jax.jit(_net(scan=True).init)(KEY)['block']['qkv']['kernel']
  assert kernel.shape == (3, 16, 48)
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01
  assert np.std(kernel) == pytest.approx(16**-0.5, rel=0.15)


@pytest.mark.parametrize('scan', (False, True))
@pytest.mark.parametrize('remat', ('dots', 'full'))
def test_recomputed_activations_are_the_same(scan, remat):
  net = _net(scan=scan)
  params = _params(net)
  v, grad = _loss_and_grad(net, params)
  v2, grad2 = _loss_and_grad(_net(scan=scan, remat=remat), params)
  np.testing.assert_allclose(v2, v, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    grad2,
    grad,
  )


def _residual_bytes(net):
  """What the backward pass of the velocity keeps."""
  x, t, cond = inputs()
  params = jax.eval_shape(net.init, KEY)
  _, pull = jax.eval_shape(
    lambda p: jax.vjp(lambda p: net.apply(p, x, t, net.encode(p, cond)), p),
    params,
  )
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


@pytest.mark.parametrize('scan', (False, True))
def test_remat_keeps_less(scan):
  none, dots, full = (
    _residual_bytes(_net(scan=scan, remat=r)) for r in ('none', 'dots', 'full')
  )
  assert full < dots < none


def test_unknown_remat_lists_those_there_are():
  with pytest.raises(ValueError, match="'some' is none of none, dots, full"):
    _net(remat='some').init(KEY)


@pytest.mark.parametrize('scan', (False, True))
def test_bfloat16_is_arithmetic_only(scan):
  """Parameters, gradients and the velocity stay float32, and near it."""
  net, half = _net(scan=scan), _net(scan=scan, dtype='bfloat16')
  params = _params(net)
  drawn = jax.tree.leaves(jax.eval_shape(half.init, KEY))
  assert {str(p.dtype) for p in drawn} == {'float32'}
  v, grad = _loss_and_grad(net, params)
  v2, grad2 = _loss_and_grad(half, params)
  assert v2.dtype == jnp.float32
  assert {str(g.dtype) for g in jax.tree.leaves(grad2)} == {'float32'}
  error = np.linalg.norm(v2 - v) / np.linalg.norm(v)
  assert 1e-4 < error < 0.03
  flat, flat2 = (
    np.concatenate([g.ravel() for g in jax.tree.leaves(x)])
    for x in (grad, grad2)
  )
  assert np.linalg.norm(flat2 - flat) / np.linalg.norm(flat) < 0.05
  x, t, cond = inputs()
  hlo = jax.jit(
    lambda p: half.apply(p, x, t, half.encode(p, cond))
  ).lower(params).as_text()  # fmt: skip
  dots = [line for line in hlo.splitlines() if 'dot_general' in line]
  low = [line for line in dots if line.rstrip().count('bf16')]
  assert len(low) >= 0.6 * len(dots)
