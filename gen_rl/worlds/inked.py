"""ShapesWorld in another style: the same scenes, outlined in ink on paper.

Of a scene's coverage A [h w], of objects and word together, and its colours C,
which are the plain picture on black,

  O = max of A over the 3x3 pixels around                                (1)
  picture = C + (1 - A) (O ink + (1 - O) paper)                          (2)

so that an outline, a pixel wide, lies around what it outlines. Paper is warm,
lighter than any plain background, and of a level of its own in every picture.
To the oracle ink is no colour: it finds every shape where it was, and calls
99 % of fresh renders right. What errs it is much ink, such as that of four
crosses, which it takes for a darker background.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from gen_rl.types import Array
from gen_rl.worlds import shapes

PAPER = (0.26, 0.34)  # grey level, uniform
TINT = (1.0, 0.97, 0.90)  # of paper, times the level
INK = 0.12  # grey level

# How `look` tells: midway between paper and plain backgrounds, and between ink
# and paper.
_LIGHT = (PAPER[0] + shapes.BACKGROUND[1]) / 2
_DARKER = 0.7
_COLOURED = 0.15  # smallest difference of the channels of a coloured pixel


def draw(scene: shapes.Scene, level: Array) -> Float32[Array, '24 24 3']:
  """Equation (2) of one scene, in [0, 1].

  Args:
    scene: whose background is not looked at.
    level: [] grey level of the paper.
  """
  black, white = (
    shapes.draw(scene._replace(background=jnp.float32(grey)))
    for grey in (0.0, 1.0)
  )
  empty = white - black  # 1 - A
  outline = _widest(1.0 - empty[..., 0])[..., None]
  paper = level * jnp.asarray(TINT)
  return black + empty * (outline * INK + (1.0 - outline) * paper)


def render(key: Array, spec: dict[str, Array]) -> Float32[Array, '24 24 3']:
  """The scene of `shapes.render` by the same key. One row."""
  level = jax.random.uniform(
    jax.random.fold_in(key, 1), (), minval=PAPER[0], maxval=PAPER[1]
  )
  return draw(shapes.compose(key, spec), level)


class Look(NamedTuple):
  """What a picture has of the style."""

  paper: Array  # [b] bool, its background is light
  outline: Array  # [b] bool, what lies around its colours is darker than that


def look(images: Float[Array, 'b h w 3']) -> Look:
  """Tells plain pictures from those of this style, by their pixels alone.

  The level of a picture is the median of its grey pixels; its outline are those
  of them that touch a coloured one, dark where their mean is less than 0.7 of
  the level. Both are false of a picture without grey pixels, or colours.

  Args:
    images: in [0, 1].
  """
  grey, coloured = images.mean(-1), jnp.ptp(images, -1) >= _COLOURED
  level = jnp.nanmedian(jnp.where(coloured, jnp.nan, grey), (1, 2))
  ring = (_widest(coloured.astype(jnp.float32)) > 0) & ~coloured
  around = jnp.where(ring, grey, 0.0).sum((1, 2)) / ring.sum((1, 2))
  return Look(level > _LIGHT, around < _DARKER * level)


def _widest(x: Float[Array, '*b h w']) -> Float[Array, '*b h w']:
  """Equation (1)."""
  ones = (1,) * (x.ndim - 2)
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (*ones, 3, 3), (1,) * x.ndim, 'SAME'
  )
