"""Next-token networks: cached and whole, padding, order, and their axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import sharding, testing
from gen_rl.models import ar, lm, vlm
from gen_rl.models.parts import attention, decoder

V, L, K, B = 20, 5, 4, 3
SMALL = dict(vocab=V, length=L, width=16, layers=2, heads=4, kv_heads=2)
NETS = dict(
  lm=lambda **o: lm.lm(**SMALL | o),
  qwen2=lambda **o: lm.lm(**SMALL, bias=True, qk_norm=False, tied=False, **o),
  vlm=lambda **o: vlm.vlm(
    **SMALL | o, image=(8, 8, 3), patch=4, vision_width=8, vision_layers=1,
    vision_heads=2,
  ),
  ar=lambda **o: ar.ar_image(**SMALL | o, codes=7, grid=(2, 2)),
)  # fmt: skip


@pytest.fixture(scope='module', params=list(NETS))
def made(request):
  net = testing.jitted(NETS[request.param]())
  params = net.init(jax.random.key(0))
  return net, testing.moved(params, jax.random.key(1), 0.3)


def inputs(net, length=L):
  """Prompts of 3, 4 and 5 tokens, padded; pictures; actions."""
  keys = jax.random.split(jax.random.key(2), 3)
  tokens = jax.random.randint(keys[0], (B, L), 1, V)
  tokens = jnp.where(jnp.arange(L) < jnp.array([[3], [4], [5]]), tokens, 0)
  tokens = jnp.pad(tokens, ((0, 0), (0, length - L)))
  image = jax.random.uniform(keys[1], (B, 8, 8, 3))
  actions = jax.random.randint(keys[2], (B, K), 0, net.vocab)
  return dict(tokens=tokens, image=image), actions


def decoded(net, params, cond, actions):
  cache, logits = net.prefill(params, cond, K)
  out = [logits]
  for i in range(K - 1):
    cache, logits = net.step(params, cache, actions[:, i])
    out.append(logits)
  return jnp.stack(out, 1)


def test_cached_decoding_is_the_whole_pass(made):
  net, params = made
  cond, actions = inputs(net)
  whole = net.score(params, cond, actions)
  assert whole.shape == (B, K, net.vocab) and whole.dtype == jnp.float32
  assert whole.std() > 0.1
  np.testing.assert_allclose(
    decoded(net, params, cond, actions), whole, atol=2e-5
  )


def test_padding_takes_no_place(made):
  net, params = made
  cond, actions = inputs(net)
  longer, _ = inputs(net, L + 4)
  np.testing.assert_allclose(
    net.score(params, longer, actions),
    net.score(params, cond, actions),
    atol=2e-5,
  )


def test_no_action_looks_ahead(made):
  net, params = made
  cond, actions = inputs(net)
  whole = net.score(params, cond, actions)
  for j in range(K):
    other = actions.at[:, j].set((actions[:, j] + 1) % net.vocab)
    changed = net.score(params, cond, other)
    np.testing.assert_array_equal(changed[:, : j + 1], whole[:, : j + 1])
    if j < K - 1:
      assert np.abs(changed[:, j + 1 :] - whole[:, j + 1 :]).max() > 1e-3


def test_rows_are_independent(made):
  net, params = made
  cond, actions = inputs(net)
  order = np.array([2, 0, 1])
  mixed = jax.tree.map(lambda x: x[order], (cond, actions))
  np.testing.assert_allclose(
    net.score(params, *mixed), net.score(params, cond, actions)[order],
    atol=2e-5,
  )  # fmt: skip


def test_the_prompt_matters_unless_it_is_null(made):
  net, params = made
  cond, actions = inputs(net)
  other = {**cond, 'tokens': cond['tokens'].at[:, 0].add(1) % V}
  whole = net.score(params, cond, actions)
  assert np.abs(net.score(params, other, actions) - whole).max() > 1e-3
  np.testing.assert_array_equal(
    net.score(params, net.null(other), actions),
    net.score(params, net.null(cond), actions),
  )


def test_every_parameter_has_axes(made):
  net, params = made
  layout = sharding.Layout(sharding.make_mesh(), net.axes)
  assert jax.tree.leaves(layout.params(params))


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_scanned_blocks_are_the_same(remat):
  loop, scan = (
    testing.jitted(NETS['lm'](**options))
    for options in ({}, dict(scan=True, remat=remat))
  )
  params = loop.init(jax.random.key(0))
  blocks = [params['decoder'][f'block_{i}'] for i in range(SMALL['layers'])]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
  rest = {
    k: v for k, v in params['decoder'].items() if not k.startswith('block_')
  }
  other = {**params, 'decoder': {**rest, 'block': stacked}}
  cond, actions = inputs(loop)

  def loss(net):
    return lambda p: jnp.square(net.score(p, cond, actions)).mean()

  np.testing.assert_allclose(loss(scan)(other), loss(loop)(params), rtol=1e-5)
  np.testing.assert_allclose(
    decoded(scan, other, cond, actions),
    loop.score(params, cond, actions),
    atol=2e-5,
  )
  found = testing.grad(loss(scan))(other)['decoder']['block']
  wanted = testing.grad(loss(loop))(params)['decoder']
  for i in range(SMALL['layers']):
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5),
      found,
      wanted[f'block_{i}'],
    )


def test_rotations_see_differences_only():
  """q . k of rotated vectors, at places with the same distance."""
  keys = jax.random.split(jax.random.key(0), 2)
  q, k = (jax.random.normal(key, (1, 1, 1, 8)) for key in keys)

  def product(at_q, at_k):
    turn = lambda x, at: decoder.rotate(
      x, decoder.rotations(jnp.array([[at]]), 8, 1e4)
    )
    return float((turn(q, at_q) * turn(k, at_k)).sum())

  assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
  assert abs(product(7, 3) - product(7, 4)) > 1e-3
  assert product(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_grouped_attention_is_that_of_jax():
  keys = jax.random.split(jax.random.key(0), 3)
  b, s, n, g, c = 2, 5, 2, 3, 4
  q = jax.random.normal(keys[0], (b, n, g, s, c))
  k, v = (jax.random.normal(key, (b, n, s, c)) for key in keys[1:])
  mask = jnp.tril(jnp.ones((b, s, s), bool))
  found = attention.grouped(q, (k, v, mask))
  wanted = jax.nn.dot_product_attention(
    q.transpose(0, 3, 1, 2, 4).reshape(b, s, n * g, c),
    k.transpose(0, 2, 1, 3),
    v.transpose(0, 2, 1, 3),
    is_causal=True,
  )
  np.testing.assert_allclose(found, wanted.reshape(b, s, -1), atol=1e-5)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: lm.lm(heads=3), 'kv_heads=2'),
    (lambda: lm.lm(width=90, heads=4), 'set head_dim'),
    (lambda: lm.lm(vocab=9, rows=8), '9 ids, the table 8 rows'),
    (lambda: vlm.vlm(patch=7), '24x24 is not divisible by patch=7'),
  ],
)
def test_bad_sizes(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_pictures_that_are_missing_or_of_another_size():
  net = NETS['vlm']()
  cond, actions = inputs(net)
  params = jax.eval_shape(net.init, jax.random.key(0))
  with pytest.raises(ValueError, match='data.view.name'):
    net.score(params, dict(tokens=cond['tokens']), actions)
  with pytest.raises(ValueError, match=r'\[4, 4, 3\], the model takes \[8'):
    net.score(params, {**cond, 'image': cond['image'][:, ::2, ::2]}, actions)
