"""Shared parts: attention against a loop, text masks, the time embedding."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import testing
from gen_rl.models.parts import attention, layers

KEY = jax.random.key(0)


def test_attention_is_a_weighted_mean_of_the_values_that_may_be_seen():
  """Against the definition, one query and one head at a time."""
  q, k, v = (
    np.asarray(jax.random.normal(key, shape))
    for key, shape in zip(
      jax.random.split(KEY, 3), [(2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4)]
    )
  )
  mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]], bool)
  got = np.asarray(attention.attend(q, k, v, jnp.asarray(mask)))
  assert got.shape == (2, 3, 8)
  for b in range(2):
    for i in range(3):
      for n in range(2):
        score = [q[b, i, n] @ k[b, j, n] / 2 for j in np.flatnonzero(mask[b])]
        weight = np.exp(score) / np.exp(score).sum()
        want = weight @ v[b, mask[b], n]
        np.testing.assert_allclose(
          got[b, i, 4 * n : 4 * n + 4], want, atol=1e-5
        )


def test_dense_is_flax_dense():
  x = jax.random.normal(KEY, (2, 3, 4))
  params = nn.Dense(5).init(KEY, x)

  def value_and_grad(module):
    return jax.value_and_grad(lambda p: jnp.square(module.apply(p, x)).sum())(
      params
    )

  want, want_grads = value_and_grad(nn.Dense(5))
  got, grads = value_and_grad(layers.Dense(5))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), grads, want_grads
  )


def test_text_mask_leaves_out_padding_but_never_everything():
  encoder = layers.TextEncoder(vocab=16, width=8, layers=1)
  tokens = jnp.array([[3, 4, 0, 0, 0]])
  params = encoder.init(KEY, tokens)
  _, mask = encoder.apply(params, tokens)
  np.testing.assert_array_equal(mask, [[True, True, False, False, False]])
  _, mask = encoder.apply(params, 0 * tokens)
  np.testing.assert_array_equal(mask, [[True, False, False, False, False]])


def test_time_embedding():
  """sin and cos of t times frequencies from 1 to 1000, in equal ratios."""
  got = layers.time_embedding(jnp.array([0.0, 0.3]), 8)
  angle = 0.3 * np.array([1, 10, 100, 1000])
  np.testing.assert_allclose(got[0], [0] * 4 + [1] * 4, atol=1e-6)
  np.testing.assert_allclose(
    got[1], np.concatenate([np.sin(angle), np.cos(angle)]), atol=2e-3
  )


def test_shards_of_an_axis():
  mesh = jax.sharding.AbstractMesh((4, 2), ('data', 'fsdp'))
  rules = (('batch', ('data', 'fsdp')), ('embed', 'fsdp'), ('mlp', None))
  assert layers.shards('batch') == 1  # no mesh
  with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules):
    found = [layers.shards(a) for a in ('batch', 'embed', 'mlp', 'heads')]
  assert found == [8, 2, 1, 1]


def test_a_network_called_twice_alike_is_traced_once():
  plain, calls = testing.perceptron(), []

  def apply(*args):
    calls.append(1)
    return plain.apply(*args)

  net = layers.traced_once(plain._replace(apply=apply))
  params, t = net.init(KEY), jnp.full(4, 0.5)
  cond = dict(tokens=jnp.ones((4, 2), jnp.int32))

  @jax.jit
  @jax.grad
  def slope(params, x):
    own = net.apply(params, x, t, cond)
    return jnp.square(own - net.apply(params, x, t, net.null(cond))).sum()

  slope(params, jax.random.normal(KEY, (4, *net.shape)))
  assert len(calls) == 1
