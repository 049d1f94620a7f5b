"""Text in pictures, by a real reader and by made ones."""

import sys

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont
import pytest

from gen_rl.build import ConfigError
from gen_rl.rewards import evaluate, ocr
from gen_rl.scoring import spelling
from gen_rl.types import RewardInputs


def _drawn(text, size=44, at=(40, 220)):
  """512 x 512, dark letters on a light ground, in [0, 1]."""
  image = Image.new('RGB', (512, 512), (236, 228, 214))
  font = ImageFont.load_default(size=size)
  ImageDraw.Draw(image).text(at, text, font=font, fill=(30, 30, 90))
  return np.asarray(image, np.float32) / 255


def _asked(texts, length=20):
  return dict(text=spelling.encode(texts, length)[0])


def _scored(reward, media, texts):
  inputs = RewardInputs(np.stack(media), _asked(texts), 1)
  key = jax.random.key(0)
  weighted = {'ocr': (reward, 1.0)}
  outs, metrics = evaluate.evaluate_host(weighted, inputs, key)
  return outs['ocr'], metrics


def test_rendered_text_is_read():
  """By a real reader; words as they are, and one that is spelled wrong."""
  pytest.importorskip('rapidocr_onnxruntime')
  media = [
    _drawn('Hello World'),
    _drawn('Step Goal Achieved'),
    _drawn('OPEN\n24 hours', 60),
    _drawn('Spring Collectoin'),
    _drawn(''),
    np.full((512, 512, 3), np.nan),
  ]
  asked = [
    'Hello World', 'Step Goal Achieved', 'open 24 hours', 'Spring Collection',
    'anything', 'anything',
  ]  # fmt: skip
  out, metrics = _scored(ocr.read_text(), media, asked)
  # "oi" for "io" are two of 16 characters.
  want = [1, 1, 1, 1 - 2 / 16, 0]
  np.testing.assert_allclose(out.score[:5], want, atol=1e-6)
  assert out.valid.tolist() == [True] * 5 + [False]
  assert out.parts['exact'].tolist()[:5] == [1, 1, 1, 0, 0]
  assert out.parts['characters'].tolist()[:5] == [10, 16, 11, 16, 0]
  assert metrics['reward/invalid'] == 1


def test_a_reader_that_fails_at_one_picture():
  made = []

  def engine():
    made.append(0)

    def read(image):
      assert image.dtype == np.uint8 and image.shape == (4, 4, 3)
      if image.max() == 255:
        raise RuntimeError('too bright')
      return f'A {image[0, 0, 0]}'

    return read

  levels = 10, 255, 20, 30
  media = [np.full((4, 4, 3), x / 255) for x in levels]
  out, _ = _scored(ocr.read_text(engine), media, ['a10', 'a', 'A 21', ''])
  assert out.valid.tolist() == [True, False, True, False]
  np.testing.assert_allclose(out.score[[0, 2]], [1, 2 / 3], atol=1e-6)
  assert len(made) == 1


def test_a_missing_reader_is_one_sentence(monkeypatch):
  monkeypatch.setitem(sys.modules, 'rapidocr_onnxruntime', None)
  with pytest.raises(ConfigError, match=r"pip install 'gen_rl\[ocr\]'"):
    ocr.read_text()


def test_prompts_without_a_text():
  reward = ocr.read_text(lambda: lambda image: '')
  inputs = RewardInputs(np.zeros((1, 4, 4, 3)), {}, 1)
  with pytest.raises(ConfigError, match='data.prompts.name="quoted"'):
    reward.score((), inputs, None)
