"""Exact ShapesWorld oracle: finds objects and words in any 24x24 picture.

Pixels are split into coverage masks m_c in [0, 1], one per palette colour: a
pixel belongs to the colour whose direction from the background it is nearest
to, with coverage 1 - |x - colour| / |background - colour|, which is exact for
anti-aliased edges. Every (shape, size, position) is scored by the soft
intersection over union of ink m = sum_c m_c and template T in its window,

  IoU = sum(m T) / (sum(m) + sum(T) - sum(m T))                          (1)

times the colour's share of the window. The best detections are kept greedily
(non-maximum suppression). Visible coverage, m >= `HAZE`, that neither they nor
a word explain counts as junk; a background that is off by less is no object.
Words are read the same way, letter by letter. Jittable; written for a batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Shaped
import numpy as np

from gen_rl.scoring import geneval, spelling
from gen_rl.types import Array
from gen_rl.worlds import shapes

MAX_DETECTIONS = 6
OBJECT_IOU = 0.62  # smallest IoU of a detection
LETTER_IOU = 0.62
JUNK_PIXELS = 10.0  # unexplained coverage a correct picture may have
HAZE = 0.25  # coverage of a pixel below which it is background
_RADIUS = shapes.WINDOW // 2


class Found(NamedTuple):
  """What the oracle sees. Unused rows of m have valid False."""

  shape: Array  # [b m] int
  color: Array  # [b m] int
  box: Array  # [b m 4] (cx, cy, w, h), pixels
  score: Array  # [b m] IoU
  valid: Array  # [b m] bool
  letters: Array  # [b 3] index into LETTERS, -1 unread
  letter_color: Array  # [b] int
  object_junk: Array  # [b] coverage outside the detected objects, pixels
  text_junk: Array  # [b] coverage outside the word, pixels


def coverage(images: Float[Array, 'b h w 3']) -> Float32[Array, 'b h w 6']:
  """Coverage of each palette colour; both in [0, 1]."""
  images = images.astype(jnp.float32)
  grey = images.mean(-1)
  neutral = (jnp.ptp(images, -1) < 0.15).astype(jnp.float32)
  level = (grey * neutral).sum((1, 2)) / jnp.maximum(neutral.sum((1, 2)), 1.0)
  back = level[:, None, None, None, None]
  palette = jnp.asarray(shapes.PALETTE)
  x = images[..., None, :]
  reach = jnp.linalg.norm(palette - back, axis=-1)
  distance = jnp.linalg.norm(x - palette, axis=-1)
  direction = jnp.einsum('bhwcd,bhwcd->bhwc', x - back, palette - back) / reach
  nearest = jax.nn.one_hot(direction.argmax(-1), len(palette))
  return nearest * jnp.clip(1 - distance / reach, 0.0, 1.0)


def _correlate(maps: Array, kernels: np.ndarray) -> Array:
  """Same-size correlation [n h w] x [t kh kw] -> [n h w t]."""
  return jax.lax.conv_general_dilated(
    maps[..., None],
    jnp.asarray(kernels).transpose(1, 2, 0)[:, :, None],
    (1, 1),
    'SAME' if kernels.shape[1] % 2 else 'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _iou(maps: Array, kernels: np.ndarray) -> Array:
  """Equation (1) at every position: [n h w t]."""
  ones = np.ones((1, *kernels.shape[1:]), np.float32)
  both = _correlate(maps, np.concatenate([kernels, ones]))
  inside, total = both[..., :-1], both[..., -1:]
  return inside / (total + kernels.sum((1, 2)) - inside)


def _visible(ink: Array) -> Array:
  return jnp.where(ink >= HAZE, ink, 0.0)


def _objects(masks: Array) -> tuple[Array, ...]:
  """Greedy detection. masks [b h w 6] -> shape, color, box, score, junk.

  Templates are searched in the ink of all colours together, which costs one
  correlation instead of six; a detection's colour is the one with most
  coverage in its window, and its score is equation (1) times that
  colour's share of the window's coverage.
  """
  b, height, width, _ = masks.shape
  kernels = shapes.object_templates().reshape(-1, shapes.WINDOW, shapes.WINDOW)
  ink = masks.sum(-1)
  iou = _iou(ink, kernels)
  best, label = iou.max(-1), iou.argmax(-1)
  y, x = jnp.arange(height), jnp.arange(width)

  def detect(left, _):
    best, junk = left
    at = best.reshape(b, -1).argmax(-1)
    cy, cx = at // width, at % width
    template = label.reshape(b, -1)[jnp.arange(b), at]
    near = (jnp.abs(y - cy[:, None]) <= _RADIUS)[:, :, None] & (
      jnp.abs(x - cx[:, None]) <= _RADIUS
    )[:, None, :]
    mass = jnp.einsum('bhwc,bhw->bc', masks, near.astype(masks.dtype))
    score = (
      best.reshape(b, -1).max(-1)
      * mass.max(-1)
      / (jnp.maximum(mass.sum(-1), 1e-6))
    )
    shape, size = template // len(shapes.RADII), template % len(shapes.RADII)
    side = 2 * jnp.asarray(shapes.RADII)[size]
    box = jnp.stack([cx + 0.5, cy + 0.5, side, side], -1)
    junk = jnp.where(near & (score >= OBJECT_IOU)[:, None, None], 0.0, junk)
    best = jnp.where(near, -1.0, best)
    return (best, junk), (shape, mass.argmax(-1), box, score)

  (_, junk), found = jax.lax.scan(
    detect, (best, _visible(ink)), length=MAX_DETECTIONS
  )
  found = (jnp.moveaxis(x, 0, 1) for x in found)
  return *found, junk.sum((1, 2))


def _word(masks: Array) -> tuple[Array, Array, Array]:
  """Reads one word: letters [b 3] (-1 unread), colour [b], junk [b]."""
  b, height, width, _ = masks.shape
  glyphs = shapes.glyph_templates()
  rows, advance = shapes.GLYPH
  n = shapes.WORD_LENGTH
  ink = masks.sum(-1)
  iou = _iou(ink, glyphs)  # VALID: [b height-rows+1 width-advance+1 letters]
  best = iou.max(-1)
  starts = width - n * advance + 1
  slots = jnp.stack(
    [best[:, :, i * advance : i * advance + starts] for i in range(n)]
  )
  at = slots.mean(0).reshape(b, -1).argmax(-1)
  y, x = at // starts, at % starts
  row = jnp.arange(b)
  letters = jnp.stack(
    [
      jnp.where(
        best[row, y, x + i * advance] >= LETTER_IOU,
        iou[row, y, x + i * advance].argmax(-1),
        -1,
      )
      for i in range(n)
    ],
    -1,
  )
  inside_y = jnp.arange(height) - y[:, None]
  inside_x = jnp.arange(width) - x[:, None]
  inside = ((inside_y >= 0) & (inside_y < rows))[:, :, None] & (
    (inside_x >= 0) & (inside_x < n * advance)
  )[:, None, :]
  color = (masks * inside[..., None]).sum((1, 2)).argmax(-1)
  return letters, color, (_visible(ink) * ~inside).sum((1, 2))


def look(images: Float[Array, 'b 24 24 3']) -> Found:
  """Everything the oracle sees; images in [0, 1]."""
  masks = coverage(images)
  shape, color, box, score, object_junk = _objects(masks)
  letters, letter_color, text_junk = _word(masks)
  return Found(
    shape=shape,
    color=color,
    box=box,
    score=score,
    valid=score >= OBJECT_IOU,
    letters=letters,
    letter_color=letter_color,
    object_junk=object_junk,
    text_junk=text_junk,
  )


def judge(
  images: Float[Array, 'b 24 24 3'], info: dict[str, Shaped[Array, 'b ...']]
) -> tuple[Float[Array, ' b'], Bool[Array, ' b']]:
  """Partial credit in [0, 1] and strict verdict.

  Credit is the mean of fractions of GenEval's strict score, or of a word
  Flow-GRPO's OCR score. The verdict wants every clause met, no object nobody
  asked for, and at most `JUNK_PIXELS` of coloured area that belongs to nothing.

  Args:
    images: in [0, 1].
    info: `grammar.spec_arrays`.
  """
  found = look(images)
  detections = geneval.Detections(
    box=found.box,
    label=found.shape,
    color=found.color,
    valid=found.valid,
    score=found.score,
  )
  clauses = geneval.Clauses(
    include_class=info['include_class'],
    include_count=info['include_count'],
    include_color=info['include_color'],
    relation=info['relation'],
  )
  partial, _ = geneval.strict_score(detections, clauses, quirks=False)
  strict = geneval.exact(detections, clauses) & (
    found.object_junk < JUNK_PIXELS
  )

  is_text = info['word'] >= 0
  b, n = found.letters.shape
  target = jnp.asarray(shapes.word_letters())[jnp.maximum(info['word'], 0)]
  # Unread letters get an id no letter has.
  read = jnp.where(found.letters < 0, len(shapes.LETTERS), found.letters)
  length = jnp.full(b, n)
  letters = spelling.ocr_score(read, target, length, length)
  asked = info['word_color']
  right_color = (asked < 0) | (found.letter_color == asked)
  text_partial = jnp.where(
    asked < 0, letters, letters * (1.0 + right_color) / 2.0
  )
  text_strict = (
    (found.letters == target).all(-1)
    & right_color
    & (found.text_junk < JUNK_PIXELS)
  )
  partial = jnp.where(is_text, text_partial, partial)
  strict = jnp.where(is_text, text_strict, strict)
  return jnp.clip(partial, 0.0, 1.0), strict
