"""Counts against sums by hand, and against XLA's where it has no loops."""

import jax
import jax.numpy as jnp

from gen_rl import testing
from gen_rl.utils import flops

A, B = jnp.ones((4, 6)), jnp.ones((6, 10))
ONE = 2 * 4 * 6 * 10


def _count(f, *args):
  return flops.count(jax.make_jaxpr(f)(*args))


def _pair(f, *args):
  """(operations, open loops)."""
  found = _count(f, *args)
  return found.flops, found.open_loops


def test_products_by_hand():
  assert _pair(jnp.dot, A, B) == (ONE, 0)
  batched = _count(lambda a, b: jnp.einsum('bij,bjk->bik', a, b),
                   jnp.ones((3, 4, 6)), jnp.ones((3, 6, 10)))  # fmt: skip
  assert batched.flops == 3 * ONE
  # two products backward, and the forward one for the value
  grad = _count(
    jax.value_and_grad(lambda a, b: jnp.square(a @ b).sum(), (0, 1)), A, B
  )
  assert grad.flops == 3 * ONE


def test_convolution_by_hand():
  x, k = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
  conv = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  forward = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
  assert _count(conv, x, k).flops == forward
  grouped = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=3,
  )  # fmt: skip
  count = _count(grouped, x, jnp.ones((3, 3, 1, 6))).flops
  assert count == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 1)
  # The gradient of the kernel sums over as many products as the output has.
  loss = lambda k: jnp.square(conv(x, k)).sum()
  assert _count(jax.grad(loss), k).flops == 2 * forward


def test_loops_and_branches():
  square = jnp.ones((4, 4))
  one = 2 * 4**3

  def turn(x, _):
    return x @ square, None

  scan = lambda x: jax.lax.scan(turn, x, None, length=7)[0]
  assert _pair(scan, square) == (7 * one, 0)
  nested = lambda x: jax.lax.scan(lambda x, _: (scan(x), None), x, None, 3)[0]
  assert _pair(jax.jit(nested), square) == (21 * one, 0)
  static = lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ square, x)
  assert _pair(static, square) == (5 * one, 0)
  unknown = lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: x @ square, x)
  assert _pair(unknown, square, 5) == (one, 1)
  branch = lambda x, p: jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)
  assert _pair(branch, square, True) == (2 * one, 0)


def test_what_is_in_vain_does_not_count_and_what_is_done_again_does():
  def f(a, b):
    unused = jax.lax.scan(lambda x, _: (x, x @ b), a, None, length=9)[1]
    return (a @ b) + 0 * unused.shape[0]

  assert _count(f, A, B).flops == ONE

  @jax.checkpoint
  def layer(a, b):
    return jnp.sin(jnp.sin(a @ b))

  grad = jax.grad(lambda a, b: layer(a, b).sum(), (0, 1))
  # forward (its value is used by nothing but a sum), again, two backward
  assert _count(grad, A, B).flops in (3 * ONE, 4 * ONE)
  plain = jax.grad(lambda a, b: jnp.sin(jnp.sin(a @ b)).sum(), (0, 1))
  assert _count(plain, A, B).flops == 3 * ONE


def test_transformer_against_closed_form_and_xla():
  """Blocks of width d, i tokens, l words of text: the terms of the paper."""
  layers, d, i, l, w = 2, 16, 4, 4, 8
  net = testing.dit(layers=layers, scan=False)
  scanned = testing.dit(layers=layers, scan=True)
  b = 4
  x, t = jnp.zeros((b, *net.shape)), jnp.zeros(b)
  tokens = dict(tokens=jnp.ones((b, l), jnp.int32))

  def denoise(net):
    params = jax.eval_shape(net.init, jax.random.key(0))
    prompt = jax.eval_shape(net.encode, params, tokens)
    return _count(net.apply, params, x, t, prompt).flops, params, prompt

  found, params, prompt = denoise(net)
  ratio = params['block_0']['up']['kernel'].shape[1] // d
  block = 2 * i * d * (3 * d) + 2 * i * d * d + 4 * i * d * ratio * d
  block += 4 * i * (i + l) * d  # scores, and their products with the values
  pixels = 4 * 4 * 3
  frequencies = params['time1']['kernel'].shape[0]
  outside = 4 * i * d * pixels + 2 * frequencies * d + 2 * d * d
  outside += 2 * w * d + 2 * d * 6 * d + 2 * d * 2 * d
  assert found == b * (layers * block + outside)
  assert denoise(scanned)[0] == found
  compiled = jax.jit(net.apply).lower(params, x, t, prompt).compile()
  xla = compiled.cost_analysis()['flops']  # elementwise operations as well
  assert found < xla < 1.6 * found
