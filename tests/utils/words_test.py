"""Against tables written by hand."""

import math

import pytest

from gen_rl.utils import words


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (words.fixed(0.62), '0.620'),
    (words.signed(0.2), '+0.200'),
    (words.signed(-0.25), '−0.250'),
    (words.points(-12), '−12.0 points'),
    (words.percent(0.954), '95%'),
    (words.count(1, 'update'), '1 update'),
    (words.count(1500, 'update'), '1,500 updates'),
    (words.duration(59.94), '59.9 s'),
    (words.duration(461.2), '7 min 41 s'),
    (words.duration(7260), '2 h 1 min'),
    (words.gibibytes(3 * 2**29), '1.5 GiB'),
  ],
)
def test_numbers(text, expected):
  assert text == expected


@pytest.mark.parametrize('missing', [None, math.nan, math.inf])
def test_what_nobody_measured_is_a_dash(missing):
  for function in (
    words.fixed, words.signed, words.points, words.percent, words.duration,
    words.gibibytes,
  ):  # fmt: skip
    assert function(missing) == '–'


def test_ratio_without_a_denominator_is_nan():
  assert words.ratio(1, 4) == 0.25
  assert all(map(math.isnan, (words.ratio(1, 0), words.ratio(None, 2))))


def test_few_of_many_names():
  assert words.few([]) == ''
  assert words.few('abcde') == 'a, b, c, d, e'
  assert words.few('abcdef') == 'a, b, c, d and 2 more'
  assert words.few(range(2000), 2) == '0, 1 and 1,998 more'
