"""A network in the latents of an autoencoder: who sees what, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, models, rollout, sharding, testing
from gen_rl.build import ConfigError
from gen_rl.models import latent, vae
from gen_rl.models.parts.layers import Net
from gen_rl.policies import denoising
from gen_rl.utils import tree

NET = dict(
  name='mmdit', image=(8, 8, 4), layers=2, heads=2, head_dim=8, dual=1, text=12,
  pooled=10, grid=8, sample_size=8,
)  # fmt: skip
CODER = dict(
  channels=(8, 16), blocks=1, groups=4, latent=4, scale=2.0, shift=0.5
)  # fmt: skip
VAE = dict(name='vae', **CODER)
KEY = jax.random.key(0)


def make(**options) -> Net:
  net = latent.latent(NET, VAE, vocab=5, length=4, **options)
  return testing.jitted(net)


@pytest.fixture(scope='module')
def params():
  return make().init(KEY)


def latents(b=3):
  return jax.random.normal(jax.random.key(1), (b, 8, 8, 4))


def test_pictures_are_the_autoencoders(params):
  net, coder = make(), testing.jitted(vae.vae(**CODER))
  y = latents()
  pictures = net.decode(params, y)
  assert pictures.shape == (3, 16, 16, 3)
  np.testing.assert_array_equal(pictures, coder.decode(params['vae'], y))
  back = net.compress(params, pictures)
  want = coder.scaled(coder.encode(params['vae'], pictures).mean)
  np.testing.assert_array_equal(back, want)


@pytest.mark.parametrize('rows', [1, 2, 3, 4])
def test_rows_decoded_in_parts_are_the_same(params, rows):
  y = latents(4)
  want = make().decode(params, y)
  got = make(decode_rows=rows).decode(params, y)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_policy_decodes_by_it(params):
  policy = testing.jitted(denoising.denoising(make(), steps=3))
  np.testing.assert_array_equal(
    policy.decode(params, latents()), make().decode(params, latents())
  )


def test_gradients_reach_latents_and_not_the_autoencoder(params):
  net = make()
  grad = jax.jit(jax.grad(lambda p, y: net.decode(p, y).sum(), (0, 1)))
  grads, dy = grad(params, latents())
  assert float(jnp.abs(dy).max()) > 0
  assert all(not x.any() for x in jax.tree.leaves(grads))


def test_data_are_latents_from_the_rollout_on(params):
  """Of pictures of any size."""
  policy = testing.jitted(denoising.denoising(make(decode_rows=2), steps=3))
  pictures = jax.random.uniform(KEY, (4, 12, 20, 3))
  rows = rollout.make_rows(testing.batch((5, 2)), 2, KEY, jnp.int32(0))
  draw = lambda x: rollout.data_rollout(
    lambda rows: (2 * x - 1, rows.cond), policy.ops['compress']
  )(params, rows, 0)
  traj = draw(pictures)
  sized = jax.image.resize(pictures, (4, 16, 16, 3), 'linear')
  want = make().compress(params, sized)
  np.testing.assert_allclose(traj.sample, want, rtol=1e-4, atol=1e-5)


def test_learners_see_data_as_they_are():
  """Not decoded once more, and of the size of the samples."""
  data = 2 * jax.random.uniform(KEY, (4, 6, 6, 3)) - 1
  seen = rollout.media_of(data, jnp.zeros((4, 12, 12, 3)))
  assert seen.shape == (4, 12, 12, 3) and 0 <= seen.min() <= seen.max() <= 1
  same = rollout.media_of(data, data)
  np.testing.assert_allclose(same, (data + 1) / 2, atol=1e-6)
  words = jnp.arange(6).reshape(2, 3)
  np.testing.assert_array_equal(rollout.media_of(words, words), words)


def test_every_parameter_has_axes(params):
  net = make()
  for name, x in tree.named(params).items():
    sharding.logical_axes(name, x.ndim, net.axes)


def test_types_of_the_parts():
  drawn = make(vae_dtype='bfloat16').init(KEY)
  assert {x.dtype.name for x in jax.tree.leaves(drawn['vae'])} == {'bfloat16'}
  assert {x.dtype.name for x in jax.tree.leaves(drawn['net'])} == {'float32'}


def test_parts_that_do_not_fit():
  with pytest.raises(ConfigError, match='4 channels and the autoencoder makes'):
    latent.latent(NET, VAE | dict(latent=3), vocab=5, length=4)
  with pytest.raises(ConfigError, match='mmdit is no autoencoder'):
    latent.latent(NET, NET, vocab=5, length=4)
  small = dict(name='dit', image=(24, 24, 4), patch=12, width=16, heads=2)
  net = latent.latent(small, VAE, vocab=9, length=4)
  with pytest.raises(ConfigError, match='cannot be read from a released'):
    net.load('nowhere', 'float32')
  with pytest.raises(ConfigError, match='cannot be written as a released'):
    net.save('nowhere', {})


def test_by_name():
  spec = dict(name='latent', net=NET, vae=VAE)
  assert build.build(models, spec, vocab=5, length=4).shape == (8, 8, 4)
