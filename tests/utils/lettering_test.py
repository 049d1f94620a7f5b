import numpy as np
from PIL import Image, ImageDraw
import pytest

from gen_rl.utils import lettering

SIZE = 13


@pytest.fixture(params=['alone', 'with others'])
def others(request, monkeypatch):
  """Whether there are faces but that of Pillow."""
  caches = lettering._face_of, lettering._has, lettering._faces
  for cache in caches:
    cache.cache_clear()
  if request.param == 'alone':
    monkeypatch.setattr(lettering, '_files', lambda: ())
  yield request.param == 'with others' and bool(lettering._files())
  for cache in caches:
    cache.cache_clear()


def ink(text):
  sheet = Image.new('RGB', (200, 20), (255, 255, 255))
  lettering.draw(ImageDraw.Draw(sheet), (2, 1), text, (0, 0, 0), SIZE)
  return 255 - np.asarray(sheet)[..., 0]


@pytest.mark.parametrize(
  'text, escaped',
  [
    ('d\u00e9j\u00e0', r'd\xe9j\xe0'),
    ('\u0436\u0442', r'\u0436\u0442'),
    ('e\u0301', r'\xe9'),  # joined
  ],
)
def test_letters_are_drawn_or_escaped(others, text, escaped):
  shown = lettering.readable(text)
  assert shown == (text.replace('e\u0301', '\u00e9') if others else escaped)
  first, second = (ink(lettering.readable(x)) for x in (text, text[::-1]))
  assert first.any() and (len(shown) == 1 or (first != second).any())


def test_what_no_face_has_is_escaped(others):
  text = 'a\u200bb \x1b[1m\t\U000f0000'
  assert lettering.readable(text) == r'ab \x1b[1m \U000f0000'


def test_ascii_is_as_pillow_draws_it():
  sheet = Image.new('RGB', (200, 20), (255, 255, 255))
  face = lettering.ImageFont.load_default(SIZE)
  ImageDraw.Draw(sheet).text((2, 1), 'a red dog, {y}', (0, 0, 0), face)
  same = 255 - np.asarray(sheet)[..., 0]
  np.testing.assert_array_equal(ink('a red dog, {y}'), same)
  assert lettering.length('a red dog, {y}', SIZE) == face.getlength(
    'a red dog, {y}'
  )
