"""Likeness by DINOv2: what it cannot depend on, by the network's own words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.models import dinov2
from gen_rl.models.files import released
from gen_rl.models.parts import vit
from gen_rl.rewards import dino
from gen_rl.types import RewardInputs

CONFIG = dict(
  model_type='dinov2', hidden_size=16, num_hidden_layers=2,
  num_attention_heads=2, image_size=16, patch_size=4,
)  # fmt: skip
SIZES = dict(short=10, side=8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  net = dinov2.dinov2(**dinov2.config(CONFIG))
  params = jax.jit(net.init)(jax.random.key(0))
  out = tmp_path_factory.mktemp('dinov2')
  released.save(out, params, dinov2.NAMES, CONFIG)
  return out


def pictures(count=3, size=(12, 15), seed=0):
  rng = np.random.default_rng(seed)
  return rng.random((count, *size, 3), np.float32)


def score(reward, media, other):
  @jax.jit
  def run(params, media, other):
    inputs = RewardInputs(media, dict(image=other), 1)
    return reward.score(params, inputs, jax.random.key(0))

  return run(reward.params, media, other)


def test_cosines_of_features(folder):
  """Against features that are compared here, row by row."""
  reward = dino.dino(folder, **SIZES)
  media, other = pictures(), pictures(size=(20, 11), seed=1)
  out = score(reward, media, other)
  net, params = dinov2.load(folder)

  def features(x):
    return net.apply(params, vit.fitted(x, 8, dinov2.MEAN, dinov2.STD, 10))

  def cosine(a, b):
    return np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)

  a, b = jax.jit(features)(media), jax.jit(features)(other)
  pooled = [cosine(*x) for x in zip(a.pooled, b.pooled, strict=True)]
  patches = [
    np.mean([cosine(x[i], y[i]) for i in np.ndindex(2, 2)])
    for x, y in zip(np.array(a.patches), np.array(b.patches), strict=True)
  ]
  np.testing.assert_allclose(out.parts['pooled'], pooled, atol=1e-5)
  np.testing.assert_allclose(out.parts['patches'], patches, atol=1e-5)
  np.testing.assert_array_equal(out.score, out.parts['pooled'])
  assert np.ptp(pooled) > 1e-3
  by = score(dino.dino(folder, by='patches', **SIZES), media, other)
  np.testing.assert_array_equal(by.score, by.parts['patches'])


def test_the_same_picture(folder):
  """1, also in 8 bits; and a picture that is broken harms nobody else."""
  reward = dino.dino(folder, **SIZES)
  bits = np.round(255 * pictures()).astype(np.uint8)
  media = bits / np.float32(255)
  media[1, 2, 2] = np.nan
  out = score(reward, media, bits)
  assert out.valid.tolist() == [True, False, True]
  np.testing.assert_allclose(np.asarray(out.score)[[0, 2]], 1, atol=1e-5)
  broken = pictures()
  broken[0, 0, 0, 0] = np.inf
  assert score(reward, pictures(), broken).valid.tolist() == [False, True, True]


def test_gradient(folder):
  """In the pixels; steps along it make pictures more alike."""
  reward = dino.dino(folder, remat='full', **SIZES)
  assert reward.differentiable and reward.where == 'device'
  media, other = pictures(), pictures(seed=1)

  @jax.jit
  def value(media):
    inputs = RewardInputs(media, dict(image=other), 1)
    out = reward.score(reward.params, inputs, None)
    return jnp.where(out.valid, out.score, 0).sum(), out.score

  slope = jax.jit(jax.grad(value, has_aux=True))
  gradient, before = slope(media)
  along = np.random.default_rng(2).normal(size=media.shape).astype(np.float32)
  up, down = (value(media + s * 1e-3 * along)[0] for s in (1, -1))
  np.testing.assert_allclose(
    (up - down) / 2e-3, (gradient * along).sum(), rtol=0.02, atol=2e-3
  )
  moved = media
  for _ in range(10):
    moved = np.clip(moved + 0.02 * np.sign(slope(moved)[0]), 0, 1)
  assert (value(moved)[1] > before + 0.01).all()
  media[0] = np.nan
  gradient, _ = slope(media)
  assert np.isfinite(gradient).all() and not gradient[0].any()


def test_bad_input_is_said(folder):
  with pytest.raises(ConfigError, match="by is 'cls'"):
    dino.dino(folder, by='cls')
  with pytest.raises(ConfigError, match='side=9 .* short=8'):
    dino.dino(folder, side=9, short=8)
  reward = dino.dino(folder, **SIZES)
  with pytest.raises(ConfigError, match="'image'.*there are word"):
    inputs = RewardInputs(pictures(), dict(word=np.zeros(3)), 1)
    reward.score(reward.params, inputs, None)
  with pytest.raises(ConfigError, match=r'RGB pictures .* \[3, 4\]'):
    inputs = RewardInputs(np.zeros((3, 4)), dict(image=pictures()), 1)
    reward.score(reward.params, inputs, None)
