"""The walk over microbatches: a loop in the program, or unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import minibatch


def _dense(carry, x):
  return carry + jnp.tanh(x).sum(), carry


def _convolution(carry, x):
  kernel = jnp.ones((3, 3, 1, 1))
  y = jax.lax.conv_general_dilated(
    x[None, :, :, None], kernel, (1, 1), 'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
  return carry + y.sum(), carry


def _nested(carry, x):
  return minibatch.fold(_convolution, carry, x[None])


@pytest.mark.parametrize('body', [_dense, _convolution, _nested])
@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_fold_is_a_scan_but_for_convolutions_on_cpus(
  body, backend, monkeypatch
):
  xs = jnp.arange(48.0).reshape(3, 4, 4)
  want, wants = jax.lax.scan(body, jnp.float32(0), xs)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  carry, outs = minibatch.fold(body, jnp.float32(0), xs)
  np.testing.assert_allclose(carry, want, rtol=1e-6)
  np.testing.assert_allclose(jnp.ravel(outs), jnp.ravel(wants), rtol=1e-6)
  program = jax.make_jaxpr(lambda x: minibatch.fold(body, jnp.float32(0), x))
  loops = 'scan[' in str(program(xs))
  assert loops == (body is _dense or backend == 'gpu')
  # one part needs no loop
  assert 'scan[' not in str(program(xs[:1]))


def test_a_body_is_traced_once():
  """Also one inside of another; its program gives the same numbers."""
  seen = []

  def inner(carry, x):
    seen.append(x)
    return carry + jnp.sin(x).sum(), {'y': 2 * x}

  def outer(carry, x):
    return minibatch.fold(inner, carry, x)

  xs = jnp.arange(24.0).reshape(2, 3, 4)
  carry, out = minibatch.fold(outer, jnp.float32(1), xs)
  assert len(seen) == 1
  np.testing.assert_allclose(carry, 1 + np.sin(xs).sum(), rtol=1e-6)
  np.testing.assert_array_equal(out['y'], 2 * xs)


def test_what_is_traced_has_shapes_and_a_gradient():
  scale = jnp.float32(3)
  call, shapes, _ = minibatch.trace(
    lambda x, y: dict(z=scale * x**2 + y), jnp.ones(2), jnp.ones(2)
  )
  assert shapes['z'].shape == (2,)
  x = jnp.array([1.0, 2.0])
  np.testing.assert_array_equal(call(x, x)['z'], 3 * x**2 + x)
  slope = jax.grad(lambda x: call(x, x)['z'].sum())(x)
  np.testing.assert_array_equal(slope, 6 * x + 1)


def test_cut_takes_turns_and_join_gives_back():
  x = dict(a=np.arange(6), b=np.arange(12).reshape(6, 2))
  parts = minibatch.cut({**x, 'key': np.float32(5)}, 3)
  np.testing.assert_array_equal(parts['a'], [[0, 3], [1, 4], [2, 5]])
  np.testing.assert_array_equal(parts['b'][1], [[2, 3], [8, 9]])
  np.testing.assert_array_equal(parts['key'], [5, 5, 5])
  del parts['key']
  jax.tree.map(np.testing.assert_array_equal, minibatch.join(parts), x)


def test_cut_keeps_groups_together():
  x = np.arange(12)
  parts = minibatch.cut(x, 2, unit=3)
  np.testing.assert_array_equal(
    parts, [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
  )
  np.testing.assert_array_equal(minibatch.join(parts, unit=3), x)
