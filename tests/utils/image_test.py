import io

import numpy as np
from PIL import Image
import pytest

from gen_rl.utils import image, lettering


def test_to_uint8_rounds_and_clips():
  x = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf], np.float32)
  y = image.to_uint8(x.reshape(1, 7, 1))
  # 0.5 * 255 = 127.5 rounds to the even 128.
  assert y[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255]
  assert y.shape == (1, 7, 3) and y.dtype == np.uint8
  every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  back = image.to_uint8(every.astype(np.float32) / 255)
  np.testing.assert_array_equal(back[..., :1], every)


@pytest.mark.parametrize(
  'bad', [np.zeros((4, 4)), np.zeros((4, 4, 2)), np.zeros((4, 4, 3), np.int32)]
)
def test_to_uint8_says_what_it_takes(bad):
  with pytest.raises(ValueError, match='images are'):
    image.to_uint8(bad)


def test_upscale_repeats_pixels():
  x = np.random.default_rng(0).random((2, 3, 4, 3))
  expect = np.kron(x, np.ones((1, 3, 3, 1)))
  np.testing.assert_array_equal(image.upscale(x, 3), expect)
  with pytest.raises(ValueError, match='whole number'):
    image.upscale(x, 0)


def test_png_keeps_every_pixel(tmp_path):
  x = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  image.save_png(tmp_path / 'deep' / 'x.png', x)
  np.testing.assert_array_equal(
    np.asarray(Image.open(tmp_path / 'deep' / 'x.png')), x
  )
  assert [p.name for p in (tmp_path / 'deep').iterdir()] == ['x.png']
  np.testing.assert_array_equal(
    np.asarray(Image.open(io.BytesIO(image.encode_png(x)))), x
  )


def cell_corner(i, columns, cell_width, cell_height):
  row, column = divmod(i, columns)
  return (
    image.GAP + row * (cell_height + image.GAP),
    image.GAP + column * (cell_width + image.GAP),
  )


def test_grid_places_pictures_and_colours_borders():
  n, columns, scale = 5, 3, 4
  x = np.random.default_rng(0).random((n, 6, 8, 3))
  correct = np.array([True, False, None, False, False])
  sheet = image.grid(x, columns=columns, scale=scale, correct=correct)
  w, h = 8 * scale + 2 * image.BORDER, 6 * scale + 2 * image.BORDER
  assert sheet.shape == (
    2 * h + 3 * image.GAP,
    3 * w + 4 * image.GAP,
    3,
  )
  for i in range(n):
    top, left = cell_corner(i, columns, w, h)
    cell = sheet[top : top + h, left : left + w]
    colours = {True: image.GREEN, False: image.RED, None: image.GREY}
    colour = colours[correct[i]]
    inside = cell[image.BORDER : -image.BORDER, image.BORDER : -image.BORDER]
    np.testing.assert_array_equal(
      inside, np.kron(image.to_uint8(x[i]), np.ones((scale, scale, 1)))
    )
    edge = np.ones((h, w), bool)
    edge[image.BORDER : -image.BORDER, image.BORDER : -image.BORDER] = False
    assert (cell[edge] == colour).all()
  # The sixth cell is empty paper.
  top, left = cell_corner(5, columns, w, h)
  assert (sheet[top:, left:] == 255).all()


def test_grid_writes_captions_under_their_own_cell():
  x = np.zeros((3, 24, 24, 3))
  bare = image.grid(x)
  with_text = image.grid(x, captions=['', 'two red circles', ''])
  assert with_text.shape[0] > bare.shape[0]
  below = with_text[image.GAP + 24 * 5 + 2 * image.BORDER :]
  w = 24 * 5 + 2 * image.BORDER
  ink = [
    (below[:, image.GAP + i * (w + image.GAP) :][:, :w] < 200).any()
    for i in range(3)
  ]
  assert ink == [False, True, False]
  rewards = image.grid(x, rewards=[0.5, np.nan, 1.0])
  assert (rewards[image.GAP + w :] < 100).any()


def test_wrap_keeps_to_the_width_and_cuts_with_an_ellipsis():
  text = 'a large red circle left of a small blue square'
  lines = image.wrap(text, 130, 9)
  assert ' '.join(lines) == text
  short = image.wrap(text, 110, 2)
  assert len(short) == 2 and short[-1].endswith('…')
  for line in [*lines, *short, *image.wrap('x' * 99, 50, 3)]:
    assert lettering.length(line, image.FONT_SIZE) <= 130
  assert image.wrap('', 100, 3) == []
  assert ''.join(image.wrap('x' * 20, 60, 9)) == 'x' * 20


def test_before_after_puts_pairs_side_by_side():
  before, after = np.zeros((3, 8, 8, 3)), np.ones((3, 8, 8, 3))
  sheet = image.before_after(
    before,
    after,
    ['one', 'two', 'three'],
    rewards=([0, 0, 0], [1, 1, 1]),
    correct=([False] * 3, [True] * 3),
    columns=3,
    scale=4,
  )
  w = 8 * 4 + 2 * image.BORDER
  row = sheet[image.GAP + w // 2]
  centres = [
    image.GAP + i * (2 * w + 2 + image.GAP) + j * (w + 2) + w // 2
    for i in range(3)
    for j in range(2)
  ]
  assert [int(row[c, 0]) for c in centres] == [0, 255] * 3
  assert tuple(row[image.GAP]) == image.RED
  assert tuple(row[image.GAP + w + 2]) == image.GREEN


def test_beside_enlarges_the_left_to_the_right():
  left, right = np.full((2, 3, 2, 1), 0.0), np.full((2, 7, 5, 3), 1.0)
  both = image.beside(left, right)
  assert both.shape == (2, 7, 4 + 1 + 5, 3)  # twice as large, and one of white
  assert (both[:, :6, :4] == 0).all() and (both[:, 6:] == 255).all()
  assert (both[:, :, 4:] == 255).all()


def test_lengths_must_agree():
  x = np.zeros((3, 8, 8, 3))
  with pytest.raises(ValueError, match='captions: 2 for 3'):
    image.grid(x, captions=['a', 'b'])
  with pytest.raises(ValueError, match='equal'):
    image.before_after(x, x[:2])


def test_scatter_puts_points_where_they_belong():
  """(0, 0) is the lower left corner, (1, 1) the upper right one."""
  empty = image.scatter(np.zeros((0, 2)), 21)
  corners = image.scatter([[0.0, 0.0], [1.0, 1.0], [np.nan, 0.5]], 21)
  assert (corners[20, 0] < empty[20, 0]).all()
  assert (corners[0, 20] < empty[0, 20]).all()
  np.testing.assert_array_equal(corners[10], empty[10])
  crowd = image.scatter([[0.25, 0.5]] * 5, 21)
  one = image.scatter([[0.25, 0.5]], 21)
  assert crowd[10, 5].sum() < one[10, 5].sum() < empty[10, 5].sum()
