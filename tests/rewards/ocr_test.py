"""Edit distances from the literature and against the defining recursion."""

import functools
import random
import sys

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont
import pytest

from gen_rl.build import ConfigError
from gen_rl.rewards import evaluate, ocr
from gen_rl.types import RewardInputs

# Textbook pairs and hand-worked ones.
PAIRS = [
  ('kitten', 'sitting', 3),
  ('saturday', 'sunday', 3),
  ('intention', 'execution', 5),
  ('rosettacode', 'raisethysword', 8),
  ('flaw', 'lawn', 2),
  ('gumbo', 'gambol', 2),
  ('', 'abc', 3),
  ('abc', '', 3),
  ('', '', 0),
  ('same', 'same', 0),
  ('ab', 'ba', 2),
  ('abcdef', 'azced', 3),
]


@functools.cache
def _recursion(a, b):
  """The definition of the distance, read from the front."""
  if not a or not b:
    return len(a) + len(b)
  if a[0] == b[0]:
    return _recursion(a[1:], b[1:])
  return 1 + min(
    _recursion(a[1:], b), _recursion(a, b[1:]), _recursion(a[1:], b[1:])
  )


def _distances(a, b, m=16, n=14):
  (a, a_len), (b, b_len) = ocr.encode(a, m), ocr.encode(b, n)
  # What stands in the padding must not matter.
  a[np.arange(m) >= a_len[:, None]] = ord('e')
  b[np.arange(n) >= b_len[:, None]] = ord('e')
  return np.asarray(jax.jit(ocr.levenshtein)(a, b, a_len, b_len))


def test_known_distances():
  a, b, expected = zip(*PAIRS, strict=True)
  assert _distances(a, b).tolist() == list(expected)
  assert [ocr.text_distance(x, y) for x, y in zip(a, b, strict=True)] == list(
    expected
  )


def test_distance_is_the_recursion():
  rng = random.Random(0)
  word = lambda: ''.join(rng.choices('abe', k=rng.randrange(9)))
  a, b = [word() for _ in range(200)], [word() for _ in range(200)]
  expected = [_recursion(x, y) for x, y in zip(a, b, strict=True)]
  assert _distances(a, b).tolist() == expected
  assert [
    ocr.text_distance(x, y) for x, y in zip(a, b, strict=True)
  ] == expected
  assert (_distances(a, b) == _distances(b, a)).all()


# read, target, score, by hand.
SCORES = [
  ('STOP', 'stop', 1.0),  # case
  ('S T O P', 'st op', 1.0),  # spaces
  ('xxstopyy', 'stop', 1.0),  # substring
  ('shop', 'stop', 0.75),  # one of four
  ('', 'stop', 0.0),
  ('a very long text', 'cat', 0.0),  # distance 11, clipped at 3
  ('ca', 'cat', 2 / 3),
  ('cta', 'cat', 1 / 3),  # a swap is two edits
  ('ct a', 'ca', 0.5),
]


def test_scores_by_hand():
  read, target, expected = zip(*SCORES, strict=True)
  (r, r_len), (t, t_len) = ocr.encode(read, 16), ocr.encode(target, 5)
  scores = jax.jit(ocr.ocr_score)(r, t, r_len, t_len)
  np.testing.assert_allclose(scores, expected, rtol=1e-6)
  for r, t, score in SCORES:
    assert ocr.text_score(r, t) == pytest.approx(score)


def test_arrays_and_strings_agree():
  rng = random.Random(1)
  word = lambda low, k: ''.join(rng.choices('ab', k=rng.randrange(low, k)))
  read, target = zip(
    *[(word(0, 8), word(1, 5)) for _ in range(200)], strict=True
  )
  (r, r_len), (t, t_len) = ocr.encode(read, 8), ocr.encode(target, 6)
  inside = jax.jit(ocr.contains)(r, t, r_len, t_len)
  assert np.asarray(inside).tolist() == [
    y in x for x, y in zip(read, target, strict=True)
  ]
  np.testing.assert_allclose(
    jax.jit(ocr.ocr_score)(r, t, r_len, t_len),
    [ocr.text_score(x, y) for x, y in zip(read, target, strict=True)],
    rtol=1e-6,
  )


def test_empty_target_has_no_score():
  (r, r_len), (t, t_len) = ocr.encode(['abc'], 4), ocr.encode([' '], 4)
  assert np.isnan(ocr.ocr_score(r, t, r_len, t_len)).all()
  with pytest.raises(ValueError, match='no text'):
    ocr.text_score('abc', ' ')


def test_quoted_text():
  assert ocr.quoted_text('a sign that says "Hello World", at "noon"') == (
    'Hello World'
  )
  for prompt in ('no quotes', 'only "one', 'an empty "" pair'):
    with pytest.raises(ValueError, match='double quotes'):
      ocr.quoted_text(prompt)


def test_encode_says_what_is_too_long():
  with pytest.raises(ValueError, match="'abcde' has 5 characters, over 4"):
    ocr.encode(['Ab cde'], 4)


def _drawn(text, size=44, at=(40, 220)):
  """512 x 512, dark letters on a light ground, in [0, 1]."""
  image = Image.new('RGB', (512, 512), (236, 228, 214))
  font = ImageFont.load_default(size=size)
  ImageDraw.Draw(image).text(at, text, font=font, fill=(30, 30, 90))
  return np.asarray(image, np.float32) / 255


def _asked(texts, length=20):
  return dict(text=ocr.encode(texts, length)[0])


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
