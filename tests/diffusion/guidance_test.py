"""Guidance: values by hand, gradients, and the cost of the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.diffusion import guidance
from gen_rl.models.layers import Net


def _net(params, x, t, cond):
  return jnp.tanh(x @ params['w']) * t[:, None] + cond['c'] @ params['u']


def _zeros(cond):
  return jax.tree.map(jnp.zeros_like, cond)


def _guided(apply, scale, null=_zeros):
  """(params, x, t, cond) -> guided velocity, from a bare function."""
  net = guidance.cfg(Net(None, apply, (3,), null), scale)
  return lambda params, x, t, cond: net.apply(
    params, x, t, net.encode(params, cond)
  )


def _case():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'w': normal(3, 3), 'u': normal(2, 3)}
  return params, normal(4, 3), jnp.linspace(0.1, 1, 4), {'c': normal(4, 2)}


def test_scale_one_is_the_net_itself():
  net = Net(None, _net, (3,), _zeros)
  assert guidance.cfg(net, 1) is net
  assert guidance.cfg(net, 1.0) is net


def test_guided_velocity_by_hand():
  # conditional 3, unconditional 1, scale 4.5: 1 + 4.5 * 2 = 10.
  net = lambda params, x, t, cond: jnp.ones_like(x) + cond
  x = jnp.zeros((2, 1))
  cond = jnp.array([[2], [2]])
  v = _guided(net, 4.5)(None, x, jnp.ones(2), cond)
  np.testing.assert_array_equal(v, [[10.0], [10.0]])
  # one traced scale per row, another null condition: 0 + s * 3.
  null = lambda cond: -jnp.ones_like(cond)
  f = jax.jit(lambda s: _guided(net, s, null)(None, x, jnp.ones(2), cond))
  np.testing.assert_array_equal(f(jnp.array([1.0, 2.0])), [[3.0], [6.0]])


def test_half_precision_nets_are_combined_in_float32():
  params, x, t, cond = _case()
  net = lambda *args: _net(*args).astype(jnp.bfloat16)
  v = _guided(net, 3.0)(params, x, t, cond)
  assert v.dtype == jnp.float32


def test_gradient_is_scale_times_that_of_the_conditional_half():
  args = _case()
  scale = 2.5
  guided = _guided(_net, scale)
  grad = jax.grad(lambda *a: guided(*a).sum(), (0, 1))(*args)
  want = jax.grad(lambda *a: _net(*a).sum(), (0, 1))(*args)
  for g, w in zip(jax.tree.leaves(grad), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, scale * w, rtol=1e-5, atol=1e-5)


def test_backward_pass_costs_what_an_unguided_one_costs():
  params, x, t, cond = _case()

  def matmuls(net, differentiate):
    f = lambda p: net(p, x, t, cond).sum()
    f = jax.grad(f) if differentiate else f
    return str(jax.make_jaxpr(f)(params)).count('dot_general')

  guided = _guided(_net, 3.0)
  plain = matmuls(_net, True) - matmuls(_net, False)
  assert plain > 0
  assert matmuls(guided, False) == 2 * matmuls(_net, False)
  assert matmuls(guided, True) - matmuls(guided, False) == plain
