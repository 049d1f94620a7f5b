"""ShapesWorld: 24x24 RGB renders of up to four objects or one short word.

A *spec* says what a prompt asks for (grammar.spec_arrays, rows [...]); a
*scene* fixes everything the prompt leaves open: cells, jitter, sizes, free
colours, background. All functions are pure and jittable, and written for ONE
row; `jax.vmap` them.

Objects are anti-aliased templates (8x8 samples per pixel) of 7 or 9 pixels on
a 2x2 layout of 12-pixel cells with one pixel of jitter, so objects never touch
and every ordered pair of cells satisfies its GenEval relation. Words stand in
the middle, in the bitmap font that ships with Pillow, six pixels a letter.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int32
import numpy as np
from PIL import ImageFont

from gen_rl.types import Array
from gen_rl.worlds import grammar

SIZE = 24  # canvas height and width, pixels
MAX_OBJECTS = 4
CENTERS = (5, 18)  # centre pixel of the two rows / columns of cells
JITTER = 1  # pixels
WINDOW = 11  # template side, pixels
RADII = (3.5, 4.5)  # small, large; pixels
LETTERS = tuple(sorted(set(''.join(grammar.TEXTS))))
WORD_LENGTH = 3
GLYPH = (8, 6)  # height, advance; pixels

PALETTE = np.array(
  [
    (0.90, 0.12, 0.12),  # red
    (0.10, 0.78, 0.16),  # green
    (0.16, 0.28, 0.96),  # blue
    (0.96, 0.88, 0.10),  # yellow
    (0.78, 0.16, 0.86),  # purple
    (0.12, 0.84, 0.92),  # cyan
  ],
  np.float32,
)
BACKGROUND = (0.04, 0.20)  # grey level, uniform


class Scene(NamedTuple):
  """One picture before it is drawn. Positions are centre pixels."""

  shape: Array  # [4] int, -1 absent
  color: Array  # [4] int
  size: Array  # [4] int, index into RADII
  center: Array  # [4 2] int (y, x)
  word: Array  # [] int, -1 absent
  word_color: Array  # [] int
  word_corner: Array  # [2] int (y, x) of the first letter's cell
  background: Array  # [] float grey level


@functools.cache
def object_templates() -> Float32[np.ndarray, '4 2 11 11']:
  """Coverage in [0, 1] of every (shape, size), WINDOW x WINDOW."""
  samples = 8
  axis = (np.arange(WINDOW * samples) + 0.5) / samples - WINDOW / 2
  y, x = np.meshgrid(axis, axis, indexing='ij')
  out = []
  for shape in grammar.SHAPES:
    for r in RADII:
      inside = {
        'circle': x**2 + y**2 <= r**2,
        'square': np.maximum(abs(x), abs(y)) <= r,
        'triangle': (abs(x) <= (y + r) / 2) & (y <= r),
        'cross': (np.minimum(abs(x), abs(y)) <= 1.5)
        & (np.maximum(abs(x), abs(y)) <= r),
      }[shape]
      out.append(inside.reshape(WINDOW, samples, WINDOW, samples).mean((1, 3)))
  return np.array(out, np.float32).reshape(
    len(grammar.SHAPES), len(RADII), WINDOW, WINDOW
  )


@functools.cache
def glyph_templates() -> Float32[np.ndarray, 'letters 8 6']:
  """Bitmaps of LETTERS, of 0 and 1."""
  font = ImageFont.load_default_imagefont()
  out = []
  for letter in LETTERS:
    mask = font.getmask(letter, mode='1')
    width, height = mask.size
    bitmap = np.array(mask, np.float32).reshape(height, width) > 0
    out.append(bitmap[2 : 2 + GLYPH[0], : GLYPH[1]])
  return np.array(out, np.float32)


@functools.cache
def word_letters() -> Int32[np.ndarray, 'words 3']:
  """Index into LETTERS of every letter of every text."""
  return np.array(
    [[LETTERS.index(c) for c in text] for text in grammar.TEXTS], np.int32
  )


def _cell_orders() -> tuple[np.ndarray, np.ndarray]:
  """All orders of the four cells, and which fulfil each relation.

  Returns orders [24 4] of cell indices (row * 2 + column) and allowed
  [5 24]: row r is relation r (cell of object 0 against that of object 1), the
  last row is "no relation".
  """
  orders = np.array(list(itertools.permutations(range(4))))
  row, column = orders // 2, orders % 2
  allowed = [
    column[:, 0] < column[:, 1],
    column[:, 0] > column[:, 1],
    row[:, 0] < row[:, 1],
    row[:, 0] > row[:, 1],
    np.ones(len(orders), bool),
  ]
  return orders, np.array(allowed)


_ORDERS, _ALLOWED = _cell_orders()


def compose(key: Array, spec: dict[str, Array]) -> Scene:
  """Draws everything the prompt leaves open. One row."""
  keys = jax.random.split(key, 8)
  count = spec['include_count']
  slot = jnp.arange(MAX_OBJECTS)
  clause = jnp.where(slot < count[0], 0, 1)
  present = slot < count.sum()
  wanted = spec['include_color'][clause]
  free = jax.random.randint(keys[0], (MAX_OBJECTS,), 0, len(PALETTE))
  orders, allowed = jnp.asarray(_ORDERS), jnp.asarray(_ALLOWED)
  which = jax.random.categorical(
    keys[1], jnp.where(allowed[spec['relation']], 0.0, -jnp.inf)
  )  # relation -1 is the last row: no relation
  cell = orders[which]
  center = jnp.asarray(CENTERS)[jnp.stack([cell // 2, cell % 2], -1)]
  center += jax.random.randint(keys[2], center.shape, -JITTER, JITTER + 1)
  word_size = jnp.array([GLYPH[0], GLYPH[1] * WORD_LENGTH])
  return Scene(
    shape=jnp.where(present, spec['include_class'][clause], -1),
    color=jnp.where(wanted >= 0, wanted, free),
    size=jax.random.randint(keys[3], (MAX_OBJECTS,), 0, len(RADII)),
    center=center,
    word=spec['word'],
    word_color=jnp.where(
      spec['word_color'] >= 0,
      spec['word_color'],
      jax.random.randint(keys[4], (), 0, len(PALETTE)),
    ),
    word_corner=(SIZE - word_size) // 2,
    background=jax.random.uniform(
      keys[6], (), minval=BACKGROUND[0], maxval=BACKGROUND[1]
    ),
  )


def draw(scene: Scene) -> Float32[Array, '24 24 3']:
  """Renders one scene, in [0, 1]."""
  image = jnp.full((SIZE, SIZE, 3), scene.background)
  templates = jnp.asarray(object_templates())
  palette = jnp.asarray(PALETTE)
  pixel = jnp.arange(SIZE)
  for i in range(MAX_OBJECTS):
    present = scene.shape[i] >= 0
    template = templates[jnp.maximum(scene.shape[i], 0), scene.size[i]]
    row = pixel - scene.center[i, 0] + WINDOW // 2
    column = pixel - scene.center[i, 1] + WINDOW // 2
    alpha = template.at[row[:, None], column].get(
      mode='fill', fill_value=0.0, wrap_negative_indices=False
    )
    alpha = jnp.where(present, alpha, 0.0)[..., None]
    image = image * (1 - alpha) + palette[scene.color[i]] * alpha
  glyphs = jnp.asarray(glyph_templates())
  letters = jnp.asarray(word_letters())[jnp.maximum(scene.word, 0)]
  text = jnp.concatenate([glyphs[letters[i]] for i in range(WORD_LENGTH)], 1)
  alpha = text.at[
    (pixel - scene.word_corner[0])[:, None], pixel - scene.word_corner[1]
  ].get(mode='fill', fill_value=0.0, wrap_negative_indices=False)
  alpha = jnp.where(scene.word >= 0, alpha, 0.0)[..., None]
  return image * (1 - alpha) + palette[scene.word_color] * alpha


def render(key: Array, spec: dict[str, Array]) -> Float32[Array, '24 24 3']:
  """A picture of what a prompt asks for, in [0, 1]. One row."""
  return draw(compose(key, spec))


def mutate(key: Array, spec: dict[str, Array]) -> dict[str, Array]:
  """Changes one attribute, count or relation, so the prompt is violated.

  One of the changes the spec allows is drawn uniformly: the shape of a clause
  (to one no clause asks for), a stated colour (likewise), the count of the
  only clause by one (within 1..4), the relation to its opposite, the word, or
  the word's stated colour. One row.
  """
  keys = jax.random.split(key, 8)

  def other(key, n, *taken):
    """A uniform index below n that is none of `taken`."""
    free = jnp.ones(n, bool)
    for t in taken:
      free &= jnp.arange(n) != t
    return jax.random.categorical(key, jnp.where(free, 0.0, -jnp.inf))

  shape, color = spec['include_class'], spec['include_color']
  count, relation = spec['include_count'], spec['relation']
  new_shape = other(keys[0], len(grammar.SHAPES), *shape)
  new_color = other(keys[1], len(PALETTE), *color)
  up = jnp.where(
    count[0] == 1,
    True,
    jnp.where(count[0] == 4, False, jax.random.bernoulli(keys[2])),
  )
  changes = [
    (count[0] > 0, 'include_class', shape.at[0].set(new_shape)),
    (count[1] > 0, 'include_class', shape.at[1].set(new_shape)),
    (color[0] >= 0, 'include_color', color.at[0].set(new_color)),
    (color[1] >= 0, 'include_color', color.at[1].set(new_color)),
    (
      (count[0] > 0) & (count[1] == 0),
      'include_count',
      count.at[0].add(jnp.where(up, 1, -1)),
    ),
    (
      relation >= 0,
      'relation',
      jnp.where(relation < 0, -1, jnp.array(grammar.OPPOSITE)[relation]),
    ),
    (
      spec['word'] >= 0,
      'word',
      other(keys[3], len(grammar.TEXTS), spec['word']),
    ),
    (
      spec['word_color'] >= 0,
      'word_color',
      other(keys[4], len(PALETTE), spec['word_color']),
    ),
  ]
  possible = jnp.stack([p for p, _, _ in changes])
  chosen = jax.random.categorical(keys[5], jnp.where(possible, 0.0, -jnp.inf))
  out = dict(spec)
  for i, (_, name, value) in enumerate(changes):
    out[name] = jnp.where(chosen == i, value.astype(jnp.int32), out[name])
  return out
