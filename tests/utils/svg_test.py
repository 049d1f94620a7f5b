import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gen_rl.utils import svg


@pytest.mark.parametrize(
  'low, high, expect',
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (0, 100, [0, 20, 40, 60, 80, 100]),
    (0.62, 0.93, [0.65, 0.7, 0.75, 0.8, 0.85, 0.9]),
    (-3, 7, [-2, 0, 2, 4, 6]),
  ],
)
def test_ticks_are_round_numbers_in_range(low, high, expect):
  np.testing.assert_allclose(svg.ticks(low, high), expect)


def test_coordinates_of_known_data():
  # The axes span x 50..446 and y 212 (bottom) .. 12 (top) of 460 x 250.
  points = svg.coordinates([0, 5, 10], [0, 1, 2], (0, 10), (0, 2))
  assert points == [(50.0, 212.0), (248.0, 112.0), (446.0, 12.0)]


def test_curve_path_lifts_over_nan():
  nan = math.nan
  out = svg.curves({'a': ([0, 1, 2, 3], [0, 1, nan, 1])}, y_range=(0, 1))
  (path,) = ET.fromstring(out).iter('path')
  assert path.get('d') == 'M50.0,212.0 L182.0,12.0 M446.0,12.0'
  assert path.get('class') == 's0'


def test_smoothing_draws_raw_and_mean():
  xs = list(range(40))
  out = svg.curves({'a': (xs, [0, 2] * 20)}, smoothing=4)
  raw, mean = ET.fromstring(out).iter('path')
  assert 'faint' in raw.get('class')
  ys = lambda p: {y for y in re.findall(r',([\d.]+)', p.get('d'))}  # noqa: E731
  assert len(ys(raw)) == 2
  inner = svg.smooth([0, 2] * 20, 4)[2:-2]
  np.testing.assert_allclose(inner, 1.0)
  np.testing.assert_allclose(svg.smooth([1, math.nan, 3], 3)[0], 1.0)
  assert len(ys(mean)) < 10


def test_long_curves_are_averaged():
  xs, ys = svg.thin(range(1000), np.arange(1000) * 2.0)
  assert len(xs) <= svg.MAX_POINTS
  np.testing.assert_allclose(ys, np.array(xs) * 2)
  assert xs[0] == 1.5  # mean of 0..3


def test_degenerate_data_still_draws():
  for data in ({}, {'a': ([3], [2.0])}, {'a': ([1, 2], [math.nan] * 2)}):
    ET.fromstring(svg.curves(data, title='<b>'))


def test_bounds_start_at_zero_for_small_positive_data():
  assert svg.bounds([0.01, 1.0])[0] == 0.0
  assert svg.bounds([0.5, 0.9])[0] == pytest.approx(0.48)


@pytest.mark.parametrize(
  'x, text',
  [(0, '0'), (0.25, '0.25'), (3e-5, '3e-5'), (12000, '12k'), (1234, '1234'),
   (2.5e7, '2.5e7'), (math.nan, '–')],
)  # fmt: skip
def test_number(x, text):
  assert svg.number(x) == text
