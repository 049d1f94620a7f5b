"""Pictures for people: pixels to uint8, enlarging, captioned grids, PNG.

Media come in as float [0, 1] or uint8, [... h w c] with 1 or 3 channels, and
leave as uint8. Nothing here touches a device: arguments are read with numpy.

A grid is n cells. Each cell is the picture, enlarged by a whole factor with
nearest neighbour (a 24-pixel canvas stays crisp), a border that is green
where `correct` is true, red where it is false and grey where nobody asked, and
under it the reward and the caption, wrapped to the cell and cut with an
ellipsis, in any script (`lettering`).
"""

from collections.abc import Sequence
import io
import os

import numpy as np
from PIL import Image, ImageDraw

from gen_rl.utils import lettering

GREEN = (22, 145, 70)
RED = (214, 40, 40)
GREY = (196, 200, 206)
INK = (28, 32, 38)
MUTED = (105, 112, 122)
PAPER = (255, 255, 255)

BORDER = 4  # pixels of colour around a picture
GAP = 16  # pixels between cells
FONT_SIZE = 13
LINE = 17  # pixels from one line of text to the next
CAPTION_LINES = 3
MIN_CELL = 112  # pixels; the automatic scale makes pictures at least this wide


def to_uint8(images) -> np.ndarray:
  """Float [0, 1] -> uint8 by rounding (clipped, NaN -> 0); uint8 unchanged.

  A single channel is repeated to three.

  Args:
    images: [... h w c], c is 1 or 3.

  Returns:
    uint8 [... h w 3].

  Raises:
    ValueError: the last axis is not 1 or 3 long, or the dtype is neither
      floating point nor uint8 nor bool.
  """
  images = np.asarray(images)
  if images.ndim < 3 or images.shape[-1] not in (1, 3):
    raise ValueError(
      f'images are [... h w c] with c of 1 or 3, not {images.shape}.'
    )
  if images.dtype == bool:
    images = images.astype(np.float32)
  if images.dtype != np.uint8:
    if np.issubdtype(images.dtype, np.integer):
      raise ValueError(
        f'images are float in [0, 1] or uint8, not {images.dtype}.'
      )
    images = np.nan_to_num(images.astype(np.float32), posinf=1.0, neginf=0.0)
    images = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
  if images.shape[-1] == 1:
    images = np.repeat(images, 3, axis=-1)
  return images


def upscale(images, factor: int) -> np.ndarray:
  """[... h w c] -> [... h*factor w*factor c], nearest neighbour."""
  if factor < 1 or factor != int(factor):
    raise ValueError(f'factor is a whole number of at least 1, not {factor}.')
  images = np.repeat(np.asarray(images), factor, axis=-3)
  return np.repeat(images, factor, axis=-2)


def encode_png(image) -> bytes:
  """[h w c] -> the bytes of a PNG file."""
  buffer = io.BytesIO()
  Image.fromarray(to_uint8(image)).save(buffer, format='PNG', optimize=True)
  return buffer.getvalue()


def save_png(path, image) -> None:
  """Writes [h w c] to `path`, whole or not at all; makes the folders."""
  path = os.fspath(path)
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  part = f'{path}.part'
  with open(part, 'wb') as f:
    f.write(encode_png(image))
  os.replace(part, path)


def grid(
  images,
  captions: Sequence[str] | None = None,
  rewards=None,
  columns: int | None = None,
  scale: int | None = None,
  correct=None,
) -> np.ndarray:
  """Captioned pictures in rows.

  Args:
    images: [n h w c], n >= 1.
    captions: n strings, mostly prompts.
    rewards: [n] numbers; NaN (a row that could not be scored) shows as a dash.
    columns: pictures per row; by default min(n, 8).
    scale: whole enlargement; by default at least 112 pixels wide.
    correct: [n] of True, False or None (nobody judged), colours the borders.

  Returns:
    uint8 [H W 3].
  """
  images = to_uint8(images)
  if images.ndim != 4 or not len(images):
    raise ValueError(f'grid takes images [n h w c], n >= 1: {images.shape}.')
  n = len(images)
  captions = _rows('captions', captions, n)
  rewards = _rows('rewards', rewards, n)
  correct = _rows('correct', correct, n)
  scale = scale or _scale(images.shape[2])
  tiles = upscale(images, scale)
  texts = [
    ([] if rewards is None else [(_number(rewards[i]), INK)], caption)
    for i, caption in enumerate(captions or [''] * n)
  ]
  cells = [
    [_framed(tiles[i], None if correct is None else correct[i])]
    for i in range(n)
  ]
  return _sheet(cells, texts, min(columns or 8, n), captions is not None)


def beside(left, right) -> np.ndarray:
  """Pairs of pictures as one picture each, white between them.

  Args:
    left: [n h w c]; enlarged by a whole factor, or cut, to the height of right.
    right: [n H W c].

  Returns:
    uint8 [n H ... 3].
  """
  left, right = to_uint8(left), to_uint8(right)
  n, height = right.shape[:2]
  left = upscale(left, max(height // left.shape[1], 1))[:, :height]
  room = ((0, 0), (0, height - left.shape[1]), (0, 0), (0, 0))
  left = np.pad(left, room, constant_values=255)
  gap = np.full((n, height, max(height // 24, 1), 3), 255, np.uint8)
  return np.concatenate([left, gap, right], 2)


def captioned(picture, text: str, lines: int = 3) -> np.ndarray:
  """A picture with what is said about it underneath, as one picture.

  Args:
    picture: [h w c].
    text: cut to `lines` lines.
    lines: there is room for so many, whatever the text.

  Returns:
    uint8 [H W 3], at least 112 pixels wide.
  """
  picture = to_uint8(np.asarray(picture)[None])
  picture = upscale(picture, _scale(picture.shape[2]))[0]
  h, w, _ = picture.shape
  sheet = Image.new('RGB', (w, h + LINE * lines), PAPER)
  sheet.paste(Image.fromarray(picture), (0, 0))
  draw = ImageDraw.Draw(sheet)
  for k, line in enumerate(wrap(text, w - 6, lines)):
    lettering.draw(draw, (3, h + k * LINE), line, INK, FONT_SIZE)
  return np.asarray(sheet)


def scatter(points, size: int = 112) -> np.ndarray:
  """Points of the unit square as a picture, x to the right, y upwards.

  Args:
    points: [n 2]; those that are not finite are left out.
    size: of the picture, pixels.

  Returns:
    uint8 [size size 3]; darker where more points lie, centre lines in grey.
  """
  points = np.asarray(points)
  points = np.clip(points[np.isfinite(points).all(-1)], 0.0, 1.0)
  column, row = np.round((size - 1) * points).astype(int).T
  # A dot is 2 x 2 pixels.
  ink = np.zeros((size + 1, size + 1))
  for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
    np.add.at(ink, (size - 1 - row + dy, column + dx), 1.0)
  out = np.full((size, size, 3), PAPER, np.float64)
  out[size // 2] = out[:, size // 2] = GREY
  shade = (1.0 - 0.5 ** ink[:size, :size])[..., None]
  return np.round(out + shade * (np.array(INK) - out)).astype(np.uint8)


def before_after(
  before,
  after,
  captions: Sequence[str] | None = None,
  rewards=None,
  columns: int | None = None,
  scale: int | None = None,
  correct=None,
  titles: tuple[str, str] = ('base', 'trained'),
) -> np.ndarray:
  """Pairs of pictures made from the same seeds, side by side in one cell.

  Args:
    before: [n h w c].
    after: likewise.
    captions: n strings under the pairs.
    rewards: (before [n], after [n]) numbers, shown under each picture.
    columns: pairs per row; by default min(n, 4).
    scale: whole enlargement; by default at least 112 pixels wide.
    correct: likewise for (before [n], after [n]).
    titles: what stands above the two pictures.

  Returns:
    uint8 [H W 3].
  """
  before, after = to_uint8(before), to_uint8(after)
  if before.shape != after.shape or before.ndim != 4 or not len(before):
    raise ValueError(
      'before_after takes two equal [n h w c], n >= 1: '
      f'{before.shape} and {after.shape}.'
    )
  n = len(before)
  captions = _rows('captions', captions, n)
  if rewards is not None:
    rewards = [_rows('rewards', r, n) for r in rewards]
  if correct is not None:
    correct = [_rows('correct', c, n) for c in correct]
  scale = scale or _scale(before.shape[2])
  tiles = upscale(np.stack([before, after]), scale)
  cells = [
    [
      _framed(tiles[j][i], None if correct is None else correct[j][i])
      for j in range(2)
    ]
    for i in range(n)
  ]
  texts = [
    (
      [
        (t + ('' if rewards is None else f'  {_number(rewards[j][i])}'), INK)
        for j, t in enumerate(titles)
      ],
      caption,
    )
    for i, caption in enumerate(captions or [''] * n)
  ]
  return _sheet(cells, texts, min(columns or 4, n), captions is not None)


def wrap(text: str, width: int, lines: int, size: int = FONT_SIZE) -> list[str]:
  """Breaks text into at most `lines` lines of at most `width` pixels.

  Words longer than a line are cut; what does not fit ends in an ellipsis.
  """

  def fits(s):
    return lettering.length(s, size) <= width

  out, rest = [], lettering.readable(text)
  while rest and len(out) < lines:
    last = len(out) == lines - 1
    if fits(rest):
      return [*out, rest]
    if last:
      return [*out, _longest(rest, lambda s: fits(s.rstrip() + '…')) + '…']
    line = _longest(rest, fits)
    if ' ' in line and rest[len(line)] != ' ':
      line = line[: line.rindex(' ')]
    out.append(line.rstrip())
    rest = rest[len(line) :].lstrip()
  return out


def _longest(text, fits):
  """The longest prefix that fits, at least one character, right-stripped."""
  n = len(text)
  while n > 1 and not fits(text[:n]):
    n -= 1
  return text[:n].rstrip()


def _rows(name, values, n):
  if values is None:
    return None
  values = list(values) if name == 'captions' else np.asarray(values)
  if len(values) != n:
    raise ValueError(f'{name}: {len(values)} for {n} images.')
  return values


def _scale(width):
  return max(1, -(-MIN_CELL // width))


def _number(x):
  x = float(x)
  return f'{x:.2f}' if np.isfinite(x) else '–'


def _framed(tile, correct):
  """[h w 3] -> [h+2*BORDER w+2*BORDER 3]."""
  h, w, _ = tile.shape
  colour = GREY if correct is None else GREEN if correct else RED
  out = np.empty((h + 2 * BORDER, w + 2 * BORDER, 3), np.uint8)
  out[:] = colour
  out[BORDER:-BORDER, BORDER:-BORDER] = tile
  return out


def _sheet(cells, texts, columns, captioned):
  """Lays out cells (lists of framed pictures) and their text.

  Args:
    cells: n lists of m arrays [h w 3], all of one size.
    texts: n pairs (m or no (label, colour), one under each picture; caption).
    columns: cells per row.
    captioned: leave room for captions.
  """
  pad = 2  # between the pictures of one cell
  h, w, _ = cells[0][0].shape
  m, n = len(cells[0]), len(cells)
  width = m * w + (m - 1) * pad
  wrapped = [wrap(caption, width, CAPTION_LINES) for _, caption in texts]
  labelled = LINE * bool(texts[0][0])
  rows = -(-n // columns)
  lines = [
    max(len(t) for t in wrapped[r * columns : (r + 1) * columns])
    for r in range(rows)
  ]
  heights = [
    h + (5 if labelled or captioned else 0) + labelled + LINE * k for k in lines
  ]
  sheet = Image.new(
    'RGB',
    (GAP + columns * (width + GAP), GAP + sum(heights) + GAP * rows),
    PAPER,
  )
  draw = ImageDraw.Draw(sheet)
  for i, (pictures, (labels, _)) in enumerate(zip(cells, texts, strict=True)):
    row, column = divmod(i, columns)
    x = GAP + column * (width + GAP)
    y = GAP + sum(heights[:row]) + GAP * row
    for j, picture in enumerate(pictures):
      sheet.paste(Image.fromarray(picture), (x + j * (w + pad), y))
    y += h + 5
    for j, (label, colour) in enumerate(labels):
      (label,) = wrap(label, w, 1) or ('',)
      place = x + j * (w + pad), y
      lettering.draw(draw, place, label, colour, FONT_SIZE)
    y += labelled
    for k, line in enumerate(wrapped[i]):
      lettering.draw(draw, (x, y + k * LINE), line, MUTED, FONT_SIZE)
  return np.asarray(sheet)
