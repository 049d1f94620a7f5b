"""Parts of vision transformers, and what the networks made of them hold."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from gen_rl import sharding
from gen_rl.models import blip, dinov2, siglip
from gen_rl.models.parts import vit
from gen_rl.utils import tree

SIZES = dict(width=16, layers=2, heads=2, mlp=24)


def nets(scan):
  return {
    'dinov2': dinov2.dinov2(**SIZES, image=8, patch=4, registers=1, scan=scan),
    'swiglu': dinov2.dinov2(**SIZES, image=8, patch=4, swiglu=True, scan=scan),
    'siglip': siglip.siglip(SIZES, SIZES, 8, 4, vocab=9, length=4, scan=scan),
    'blip': blip.image_reward(
      8, 4, 16, 2, 2, vocab=9, positions=4, text_width=16, text_layers=2,
      text_heads=2, text_mlp=24, scan=scan,
    ),
  }  # fmt: skip


@pytest.mark.parametrize('scan', [False, True])
def test_axes_of_all_parameters(scan):
  """The two axes that rules split, wherever a kernel has them."""
  for name, net in nets(scan).items():
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    for leaf, x in tree.named(shapes).items():
      found = sharding.logical_axes(leaf, x.ndim, net.axes)
      assert len(found) == x.ndim, leaf
      if leaf.endswith('kernel') and 'mlp/layers' not in leaf:
        split = {a for a in found if a in ('heads', 'mlp')}
        whole = leaf.startswith('text_model/head/') or 'patch' in leaf
        assert bool(split) != whole, (name, leaf)
        assert 'embed' in found, (name, leaf)


def test_patches_are_a_convolution():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 9, 3)).astype(np.float32)
  module = vit.Patches(5, 3)
  params = module.init(jax.random.key(0), x)['params']
  params['bias'] = jnp.arange(5.0)
  want = jax.lax.conv_general_dilated(
    x, params['kernel'], (3, 3), 'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
  found = module.apply({'params': params}, x)
  assert found.shape == (2, 2, 3, 5)
  np.testing.assert_allclose(found, want + params['bias'], atol=1e-5)


def test_resampled_positions_by_hand():
  """Twice as many places: at the quarters, k(1/4) and so on, a = -3/4."""
  weights = vit.resampling(4, 8)
  near, next_, far, beyond = 225 / 256, 67 / 256, -9 / 256, -27 / 256
  # The place 3 is between 1 and 2, at 1 + 1/4.
  np.testing.assert_allclose(weights[3], [beyond, near, next_, far], atol=1e-6)
  # The place 0 is at -1/4: what is beyond the edge is the edge.
  np.testing.assert_allclose(
    weights[0], [far + next_ + near, beyond, 0, 0], atol=1e-6
  )
  table = np.arange(12.0).reshape(2, 3, 2)
  assert vit.resized(table, (2, 3)) is table


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: dinov2.dinov2(width=10, heads=3), 'width=10.*heads=3'),
    (lambda: siglip.siglip(SIZES, None, 10, 4), 'image=10.*patch=4'),
    (lambda: siglip.siglip(SIZES | dict(heads=3), None), 'width=16.*heads=3'),
    (lambda: blip.image_reward(image=20), 'image=20.*patch=16'),
  ],
)
def test_sizes_that_do_not_fit(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize('size', [(24, 24), (40, 31), (13, 22), (17, 60)])
def test_pictures_are_fitted_as_pillow_does(size):
  """A photograph-like picture, smaller and larger, but for rounding."""
  rng = np.random.default_rng(0)
  smooth = rng.random((6, 6, 3)) * 255
  image = Image.fromarray(smooth.astype(np.uint8)).resize(size[::-1])
  short, side = 20, 16
  h, w = size
  scaled = [max(short, int(short * n / min(size))) for n in (w, h)]
  want = image.resize(scaled, Image.Resampling.BICUBIC)
  left, top = (round((n - side) / 2) for n in want.size)
  want = np.asarray(want.crop((left, top, left + side, top + side)), float)
  x = np.asarray(image, np.float32)[None] / 255
  mean, std = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)
  found = vit.fitted(x, side, mean, std, short)[0]
  found = found * np.array(std) + np.array(mean)
  assert found.shape == (side, side, 3)
  assert np.abs(255 * found - want).max() < 1.6
  assert np.abs(255 * found - want).mean() < 0.5


@pytest.mark.parametrize('size', [(24, 24), (40, 31), (96, 131), (13, 22)])
def test_rounded_pictures_are_transformers(size):
  """Noise and hard edges too; the middle of 96x131 begins at half a pixel."""
  from transformers.models.clip import (  # noqa: PLC0415 - slow
    image_processing_pil_clip as pil,
  )

  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
  edges = 255 * (rng.random((2, *size, 3)) > 0.5).astype(np.uint8)
  edges = edges[1].repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
  process = pil.CLIPImageProcessorPil(
    size=dict(shortest_edge=32), crop_size=dict(height=32, width=32)
  )
  want = process([noise, edges], return_tensors='np').pixel_values
  want = want.transpose(0, 2, 3, 1)
  x = jnp.asarray(np.stack([noise, edges]), jnp.float32) / 255

  def fit(x, rounded):
    return vit.fitted(
      x, 32, vit.CLIP_MEAN, vit.CLIP_STD, floor=True, rounded=rounded
    )

  far = np.abs(fit(x, True) - want) * np.array(vit.CLIP_STD) * 255
  assert far.max() < 1.01 and (far > 0.01).mean() < 2e-3
  smooth = np.abs(fit(x, False) - want) * np.array(vit.CLIP_STD) * 255
  assert smooth.mean() < 2 and smooth.max() < 20  # Pillow clips between passes
  # The gradient is that of what is not rounded, where nothing is clipped.
  calm = 0.3 + 0.4 * x
  seen, smooth = (
    jax.grad(lambda x, r=r: jnp.sum(fit(x, r) ** 2))(calm)
    for r in (True, False)
  )
  scale = np.abs(smooth).max()
  assert scale > 0 and np.abs(seen - smooth).max() < 0.02 * scale


def test_a_whole_picture_in_a_black_frame():
  """Against Pillow's resizing of floats; it is neither cut nor clipped."""
  rng = np.random.default_rng(0)
  x = (rng.random((3, 20, 33, 3)) > 0.5).astype(np.float32)
  mean, std = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)
  for pictures in (x, x.swapaxes(1, 2)):
    h, w = (round(n * 16 / 33) for n in pictures.shape[1:3])
    found = vit.framed(pictures, 16, mean, std) * np.array(std) + np.array(mean)
    inside = found[:, (16 - h) // 2 :][:, :h, (16 - w) // 2 :][:, :, :w]
    want = np.stack([
      [
        np.asarray(Image.fromarray(p[..., c]).resize((w, h), 3))
        for c in range(3)
      ]
      for p in pictures
    ]).transpose(0, 2, 3, 1)  # fmt: skip
    np.testing.assert_allclose(inside, want, atol=1e-5)
    assert inside.min() < -0.01 and inside.max() > 1.01
    np.testing.assert_allclose(
      np.abs(found).sum(), np.abs(inside).sum(), rtol=1e-4
    )


def test_a_picture_that_fits_is_not_changed():
  x = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
  found = vit.fitted(x, 8, (0.5,) * 3, (0.5,) * 3)
  np.testing.assert_allclose(found, 2 * x - 1, atol=1e-6)
