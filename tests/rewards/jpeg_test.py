"""JPEG sizes against the files that Pillow (libjpeg) writes."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from gen_rl.rewards import jpeg
from gen_rl.types import RewardInputs

jpeg_bytes = jax.jit(jpeg.jpeg_bytes, static_argnums=1)
KEY = jax.random.key(0)


def _photographs():
  data = pytest.importorskip('skimage.data')
  datasets = pytest.importorskip('sklearn.datasets')
  names = ('astronaut', 'coffee', 'chelsea', 'rocket')
  images = [getattr(data, name)() for name in names]
  return images + list(datasets.load_sample_images().images)


def _crops(h, w):
  """Four crops of each of six photographs, uint8 [24 h w 3]."""
  corners = ((0, 0), (100, 120), (140, 77), (150, 200))
  return np.stack(
    [i[y : y + h, x : x + w] for i in _photographs() for y, x in corners]
  )


def _file(image, quality):
  with io.BytesIO() as file:
    Image.fromarray(image).save(
      file, 'JPEG', quality=quality, subsampling='4:2:0'
    )
    return file.getvalue()


def _inputs(images):
  return RewardInputs(np.float32(images) / 255, {}, 4)


@pytest.mark.parametrize(
  ('quality', 'h', 'w'),
  [
    (95, 24, 24),
    (95, 32, 32),
    (50, 37, 50),
    (75, 64, 96),
    (10, 7, 17),
  ],
)
def test_size_of_the_file(quality, h, w):
  images = _crops(h, w)
  ours = np.asarray(jpeg_bytes(_inputs(images).media, quality))
  files = np.array([len(_file(i, quality)) for i in images], np.float32)
  assert ours.dtype == np.float32
  # 2% is what a reward needs. It is the same arithmetic, so with libjpeg and
  # libjpeg-turbo (Pillow's wheels) it is the same number; other encoders
  # behind Pillow may differ in a few coefficients.
  np.testing.assert_allclose(ours, files, rtol=0.02)
  if np.any(ours != files):
    assert np.mean(np.abs(ours / files - 1)) < 0.005


@pytest.mark.parametrize('name', ['noise', 'primary', 'step', 'lines', 'flat'])
def test_synthetic_extremes(name):
  """Long zero runs (ZRL), 0xFF stuffing and the largest coefficients."""
  rng = np.random.default_rng(0)
  x = np.zeros((6, 24, 40, 3), np.uint8)
  if name == 'noise':
    x = rng.integers(0, 256, x.shape, dtype=np.uint8)
  elif name == 'primary':
    x = 255 * rng.integers(0, 2, x.shape, dtype=np.uint8)
  elif name == 'step':
    for i in range(6):
      x[i, :, 7 * i + 1 :] = 255
  elif name == 'lines':
    for i in range(6):
      x[i, :: i + 1] = rng.integers(0, 256, 3)
  else:
    x[:] = rng.integers(0, 256, (6, 1, 1, 3))
  for quality in (100, 30):
    ours = np.asarray(jpeg_bytes(_inputs(x).media, quality))
    files = np.array([len(_file(i, quality)) for i in x], np.float32)
    np.testing.assert_allclose(ours, files, rtol=0.02)


def test_tables_are_those_in_the_file():
  """Steps and code lengths, read back from the segments of a file."""
  for quality in (1, 25, 50, 95, 100):
    file, at, steps, codes = (
      _file(np.zeros((16, 16, 3), np.uint8), quality),
      2,
      [],
      {},
    )
    while file[at + 1] != 0xDA:  # start of scan
      size = int.from_bytes(file[at + 2 : at + 4], 'big')
      body = file[at + 4 : at + 2 + size]
      if file[at + 1] == 0xDB:
        steps.append(np.frombuffer(body[1:], np.uint8))
      elif file[at + 1] == 0xC4:
        lengths = np.repeat(np.arange(1, 17), list(body[1:17]))
        codes[body[0]] = dict(zip(body[17:], lengths, strict=True))
      at += 2 + size
    # The scan header has 14 bytes, the end marker 2.
    assert at + 14 + 2 == jpeg.HEADER
    natural = jpeg.quantization_tables(quality).reshape(2, 64)
    for ours, theirs in zip(natural, steps, strict=True):
      assert list(ours[[0, 1, 8, 16, 9, 2, 3]]) == list(theirs[:7])
      assert sorted(ours) == sorted(theirs)
  for table, theirs in zip(jpeg._TABLES, (0, 1, 0x10, 0x11), strict=True):
    ours = {i: n for i, n in enumerate(table[:, 1]) if n}
    assert ours == codes[theirs]


def test_zigzag_of_t81():
  first = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12]
  assert list(jpeg._ZIGZAG[:17]) == first
  assert sorted(jpeg._ZIGZAG) == list(range(64))


def test_integer_dct_is_the_orthonormal_dct():
  scipy_fft = pytest.importorskip('scipy.fft')
  dct = scipy_fft.dct(np.eye(8), axis=0, norm='ortho')
  np.testing.assert_allclose(jpeg._INT_DCT / 2**13 / np.sqrt(8), dct, atol=1e-4)
  np.testing.assert_allclose(jpeg._DCT, dct, atol=1e-12)


def test_rewards_on_device_and_host_agree():
  images = _crops(24, 24)
  inputs = _inputs(images)
  kilobytes = np.array([len(_file(i, 95)) / 1000 for i in images])
  scale = 1 / 500
  minus = jpeg.jpeg_compressibility(scale=scale)
  plus = jpeg.jpeg_incompressibility(scale=scale)
  host = jpeg.host_jpeg_compressibility(scale=scale)
  assert (minus.where, host.where) == ('device', 'host')
  assert not (minus.differentiable or host.differentiable)
  out = host.score(host.params, inputs, KEY)
  assert isinstance(out.score, np.ndarray) and out.valid.all()
  np.testing.assert_allclose(out.score, -kilobytes * scale, rtol=1e-6)

  @jax.jit
  def both(media):
    there = inputs.replace(media=media)
    return [reward.score((), there, KEY) for reward in (minus, plus)]

  for out, sign in zip(both(inputs.media), (-1, 1), strict=True):
    assert out.valid.all()
    np.testing.assert_allclose(out.score, sign * kilobytes * scale, rtol=0.02)


def test_row_with_a_nan_is_invalid():
  media = _inputs(_crops(24, 24)).media.copy()
  media[1, 3, 4, 2] = np.nan
  media[2, 0, 0, 0] = np.inf
  for make in (jpeg.jpeg_compressibility, jpeg.host_jpeg_compressibility):
    reward = make()
    score = lambda x, f=reward.score: f((), RewardInputs(x, {}, 1), KEY)
    out = (score if reward.where == 'host' else jax.jit(score))(media)
    assert np.asarray(out.valid).tolist() == [True, False, False] + 21 * [True]


@pytest.mark.parametrize('quality', [50, 95])
def test_surrogate_follows_the_size(quality):
  media = _inputs(_crops(24, 24)).media
  surrogate = jax.jit(jpeg.jpeg_surrogate, static_argnums=1)(media, quality)
  size = np.asarray(jpeg_bytes(media, quality))
  assert np.corrcoef(surrogate, size)[0, 1] > 0.99
  np.testing.assert_allclose(surrogate, size, rtol=0.3)


def test_surrogate_gradient():
  """Finite, right (central differences), also where all coefficients are 0."""
  media = _inputs(_crops(24, 24)).media
  value = jax.jit(jpeg.jpeg_surrogate)
  grad = jax.jit(jax.grad(lambda x: jpeg.jpeg_surrogate(x).sum()))
  total = lambda x: np.asarray(value(x), np.float64).sum()
  # Along the gradient the slope is its norm. |z| has a kink at 0: the smaller
  # the step, the closer (5.7% off at 0.02, 1.2% at 0.002, 0.9% at 0.001).
  noise = np.random.default_rng(0).random(media.shape, np.float32)
  norm = np.linalg.norm(grad(noise))
  way = 0.002 * np.asarray(grad(noise)) / norm
  slope = (total(noise + way) - total(noise - way)) / 0.004
  np.testing.assert_allclose(slope, norm, rtol=0.03)
  assert np.isfinite(grad(np.full_like(media, 128 / 255))).all()
  assert jpeg.smooth_compressibility().differentiable


def test_descending_the_surrogate_shrinks_the_file():
  """Small steps: every noise file, photographs only on average.

  A large step overshoots the kinks of a flat image: its zeros become ones.
  """
  grad = jax.jit(jax.grad(lambda x: jpeg.jpeg_surrogate(x).sum()))
  photos = _inputs(_crops(24, 24)).media
  noise = np.random.default_rng(0).random(photos.shape, np.float32)
  change = []
  for start in (noise, photos):
    x = start
    for _ in range(20):
      g = np.asarray(grad(x))
      x = x - 0.1 * g / np.sqrt(np.square(g).sum((1, 2, 3), keepdims=True))
    before, after = (np.asarray(jpeg_bytes(i, 95)) for i in (start, x))
    change.append(after - before)
  assert (change[0] < 0).all()
  assert change[1].mean() < 0


def test_says_what_is_wrong():
  with pytest.raises(ValueError, match='1..100, not 0'):
    jpeg.jpeg_compressibility(quality=0)
  with pytest.raises(ValueError, match=r'\[b h w 3\]'):
    jpeg.jpeg_bytes(jnp.zeros((2, 8, 8, 1)))
