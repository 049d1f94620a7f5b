"""Guidance: values by hand, gradients, and the cost of the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.models.parts.layers import Net
from gen_rl.policies import guidance


def _net(params, x, t, cond):
  return jnp.tanh(x @ params['w']) * t[:, None] + cond['c'] @ params['u']


def _zeros(cond):
  return jax.tree.map(jnp.zeros_like, cond)


def _guided(apply, scale, null=_zeros, gradient='both'):
  """(params, x, t, cond) -> guided velocity, from a bare function."""
  net = guidance.cfg(Net(None, apply, (3,), null), scale, gradient)
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


@pytest.mark.parametrize('gradient', guidance.GRADIENTS)
def test_gradients_are_those_of_both_halves(gradient):
  """(1 - scale) dv(null) + scale dv(cond), of a perceptron by numpy.

  With 'conditional' the null half adds nothing to the parameters' gradient,
  and the same to that of x, which a chain of steps needs.
  """
  params, x, t, cond = _case()
  scale = 2.5
  guided = _guided(_net, scale, gradient=gradient)
  got, got_x = jax.grad(lambda *a: guided(*a).sum(), (0, 1))(params, x, t, cond)
  x, t, w = np.asarray(x), np.asarray(t), np.asarray(params['w'])
  slope = t[:, None] * (1 - np.tanh(x @ w) ** 2)  # of either half: c is added
  halves = 1.0 if gradient == 'both' else scale
  np.testing.assert_allclose(got['w'], halves * x.T @ slope, rtol=1e-5)
  # null features are 0, so that u is in the conditional half alone
  total = np.broadcast_to(np.asarray(cond['c']).sum(0)[:, None], (2, 3))
  np.testing.assert_allclose(got['u'], scale * total, rtol=1e-5)
  np.testing.assert_allclose(got_x, slope @ w.T, rtol=1e-5, atol=1e-6)


def test_an_unknown_gradient_is_refused():
  with pytest.raises(ConfigError, match="'cond'; it is one of both, cond"):
    _guided(_net, 1.0, gradient='cond')


def test_a_conditional_backward_pass_costs_what_an_unguided_one_costs():
  params, x, t, cond = _case()

  def matmuls(net, differentiate):
    f = lambda p: net(p, x, t, cond).sum()
    f = jax.grad(f) if differentiate else f
    return str(jax.make_jaxpr(f)(params)).count('dot_general')

  guided = _guided(_net, 3.0, gradient='conditional')
  plain = matmuls(_net, True) - matmuls(_net, False)
  assert plain > 0
  assert matmuls(guided, False) == 2 * matmuls(_net, False)
  assert matmuls(guided, True) - matmuls(guided, False) == plain
  both = _guided(_net, 3.0)
  assert matmuls(both, True) - matmuls(both, False) == 2 * plain
