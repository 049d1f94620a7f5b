"""The masked image net: gaps, padding, rows, and its axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, models, sharding, testing
from gen_rl.models import mask_image

V, L, CODES, B = 20, 5, 7, 3


@pytest.fixture(scope='module')
def made():
  net = mask_image.mask_image(
    V, L, CODES, (2, 2), width=16, layers=2, heads=2, text_width=8,
    text_layers=1,
  )  # fmt: skip
  net = testing.jitted(net)
  params = net.init(jax.random.key(0))
  run = jax.jit(
    lambda cond, codes: net.apply(params, codes, net.encode(params, cond))
  )
  return net, params, run


def inputs():
  keys = jax.random.split(jax.random.key(2), 2)
  tokens = jax.random.randint(keys[0], (B, L), 1, V)
  tokens = jnp.where(jnp.arange(L) < jnp.array([[3], [4], [5]]), tokens, 0)
  codes = jax.random.randint(keys[1], (B, 4), 0, CODES)
  return dict(tokens=tokens), codes.at[:, 1].set(CODES)


def test_every_place_sees_all(made):
  net, _, run = made
  cond, codes = inputs()
  whole = run(cond, codes)
  assert whole.shape == (B, 4, CODES) and whole.dtype == jnp.float32
  assert net.vocab == CODES and net.length == 4
  for j in range(4):
    changed = run(cond, codes.at[:, j].set((codes[:, j] + 1) % (CODES + 1)))
    assert (np.abs(changed - whole).max((0, 2)) > 1e-5).all()
  other = dict(tokens=cond['tokens'].at[:, 0].add(1))
  assert (np.abs(run(other, codes) - whole).max((1, 2)) > 1e-5).all()


def test_rows_are_independent(made):
  _, _, run = made
  cond, codes = inputs()
  order = np.array([2, 0, 1])
  mixed = run(dict(tokens=cond['tokens'][order]), codes[order])
  np.testing.assert_allclose(mixed, run(cond, codes)[order], atol=2e-5)


def test_nobody_sees_padding(made):
  """Whatever vectors stand where the prompt has ended."""
  net, params, _ = made
  cond, codes = inputs()
  vectors, visible = net.encode(params, cond)
  np.testing.assert_array_equal(visible, cond['tokens'] != 0)
  spoilt = jnp.where(visible[..., None], vectors, 9.0)
  np.testing.assert_allclose(
    net.apply(params, codes, (spoilt, visible)),
    net.apply(params, codes, (vectors, visible)),
    atol=1e-5,
  )


def test_null_prompts_are_alike(made):
  net, _, run = made
  cond, codes = inputs()
  null = net.null(cond)
  same = jnp.repeat(codes[:1], B, 0)
  out = run(null, same)
  np.testing.assert_allclose(out, jnp.repeat(out[:1], B, 0), atol=1e-5)
  assert np.isfinite(out).all()


def test_every_parameter_has_axes(made):
  net, params, _ = made
  layout = sharding.Layout(sharding.make_mesh(), net.axes)
  assert jax.tree.leaves(layout.params(params))


def test_bad_sizes(made):
  net, params, _ = made
  with pytest.raises(ValueError, match='width=10 is not divisible by heads=4'):
    mask_image.mask_image(width=10, heads=4)
  with pytest.raises(ValueError, match='3 tokens, the model takes 5'):
    net.encode(params, dict(tokens=jnp.ones((1, 3), jnp.int32)))
  built = build.build(models, 'mask_image', vocab=V, length=L)
  assert built.length == 16
