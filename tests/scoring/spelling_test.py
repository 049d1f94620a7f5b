"""Edit distances from the literature and against the defining recursion."""

import functools
import random

import jax
import numpy as np
import pytest

from gen_rl.scoring import spelling

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
  (a, a_len), (b, b_len) = spelling.encode(a, m), spelling.encode(b, n)
  # What stands in the padding must not matter.
  a[np.arange(m) >= a_len[:, None]] = ord('e')
  b[np.arange(n) >= b_len[:, None]] = ord('e')
  return np.asarray(jax.jit(spelling.levenshtein)(a, b, a_len, b_len))


def test_known_distances():
  a, b, expected = zip(*PAIRS, strict=True)
  assert _distances(a, b).tolist() == list(expected)
  assert [
    spelling.text_distance(x, y) for x, y in zip(a, b, strict=True)
  ] == list(expected)


def test_distance_is_the_recursion():
  rng = random.Random(0)
  word = lambda: ''.join(rng.choices('abe', k=rng.randrange(9)))
  a, b = [word() for _ in range(200)], [word() for _ in range(200)]
  expected = [_recursion(x, y) for x, y in zip(a, b, strict=True)]
  assert _distances(a, b).tolist() == expected
  assert [
    spelling.text_distance(x, y) for x, y in zip(a, b, strict=True)
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
  (r, r_len), (t, t_len) = spelling.encode(read, 16), spelling.encode(target, 5)
  scores = jax.jit(spelling.ocr_score)(r, t, r_len, t_len)
  np.testing.assert_allclose(scores, expected, rtol=1e-6)
  for r, t, score in SCORES:
    assert spelling.text_score(r, t) == pytest.approx(score)


def test_arrays_and_strings_agree():
  rng = random.Random(1)
  word = lambda low, k: ''.join(rng.choices('ab', k=rng.randrange(low, k)))
  read, target = zip(
    *[(word(0, 8), word(1, 5)) for _ in range(200)], strict=True
  )
  (r, r_len), (t, t_len) = spelling.encode(read, 8), spelling.encode(target, 6)
  inside = jax.jit(spelling.contains)(r, t, r_len, t_len)
  assert np.asarray(inside).tolist() == [
    y in x for x, y in zip(read, target, strict=True)
  ]
  np.testing.assert_allclose(
    jax.jit(spelling.ocr_score)(r, t, r_len, t_len),
    [spelling.text_score(x, y) for x, y in zip(read, target, strict=True)],
    rtol=1e-6,
  )


def test_empty_target_has_no_score():
  (r, r_len), (t, t_len) = (
    spelling.encode(['abc'], 4),
    spelling.encode([' '], 4),
  )
  assert np.isnan(spelling.ocr_score(r, t, r_len, t_len)).all()
  with pytest.raises(ValueError, match='no text'):
    spelling.text_score('abc', ' ')


def test_quoted_text():
  assert spelling.quoted_text('a sign that says "Hello World", at "noon"') == (
    'Hello World'
  )
  for prompt in ('no quotes', 'only "one', 'an empty "" pair'):
    assert spelling.quoted(prompt) == ''
    with pytest.raises(ValueError, match='double quotes'):
      spelling.quoted_text(prompt)


def test_encode_says_what_is_too_long():
  with pytest.raises(ValueError, match="'abcde' has 5 characters, over 4"):
    spelling.encode(['Ab cde'], 4)
