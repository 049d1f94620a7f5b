"""Tiles: a board of 2x2 tiles, some of which a sentence gives a colour.

  "red top left, blue bottom right"

The others are empty, as dark as the board is. Sentences go from top left to
bottom right; the parser takes any order, a model has seen this one. A world as
small as one can be: what it takes to add one is this file.
"""

import functools
import itertools
import random

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from gen_rl.types import Array
from gen_rl.worlds.world import Facts, Sentence, World

PLACES = ('top left', 'top right', 'bottom left', 'bottom right')
COLORS = dict(red=(0.9, 0.1, 0.1), green=(0.1, 0.8, 0.2), blue=(0.2, 0.3, 1.0))
TASKS = ('one', 'two', 'three', 'four')  # tiles with a colour
SPLITS = ('train', 'heldout')
SIDE = 4  # of a tile, pixels
DARK = 0.15  # the lightest board is this grey
SPREAD = 0.15  # mean distance of pixels from their tile's colour: still right
_PALETTE = np.float32([*COLORS.values(), (DARK / 2,) * 3])  # the last is empty


def _sentence(
  tiles: tuple[int, ...], split: str = '', number: int = -1
) -> Sentence:
  """Of the colour of each place, -1 for none."""
  said = [
    f'{tuple(COLORS)[color]} {place}'
    for color, place in zip(tiles, PLACES, strict=True)
    if color >= 0
  ]
  facts = dict(tiles=np.array(tiles, np.int32))
  return Sentence(', '.join(said), facts, TASKS[len(said) - 1], split, number)


@functools.cache
def _sentences() -> tuple[Sentence, ...]:
  """Every board but the empty one; of each task a fifth is held out."""
  boards = itertools.product(range(-1, len(COLORS)), repeat=len(PLACES))
  boards = [tiles for tiles in boards if max(tiles) >= 0]
  random.Random(0).shuffle(boards)
  out, seen = [], dict.fromkeys(TASKS, 0)
  for number, tiles in enumerate(boards):
    task = _sentence(tiles).task
    out.append(_sentence(tiles, SPLITS[seen[task] % 5 == 0], number))
    seen[task] += 1
  return tuple(out)


def _parse(text: str) -> Sentence:
  """Places in any order, each at most once."""
  tiles = [-1] * len(PLACES)
  for part in text.lower().strip(' .').split(','):
    color, _, place = ' '.join(part.split()).partition(' ')
    if color not in COLORS or place not in PLACES:
      raise ValueError(
        f'{part.strip()!r:.100} is no tile; say a colour ({", ".join(COLORS)}) '
        f'and a place ({", ".join(PLACES)}), and a comma between two tiles'
      )
    if tiles[PLACES.index(place)] >= 0:
      raise ValueError(f'the tile {place} has two colours in {text!r:.100}')
    tiles[PLACES.index(place)] = tuple(COLORS).index(color)
  return _sentence(tuple(tiles))._replace(text=text)


def _render(key: Array, facts: Facts) -> Float[Array, '8 8 3']:
  dark = jax.random.uniform(key, (), maxval=DARK)
  color = jnp.where(
    facts['tiles'][:, None] < 0, dark, jnp.asarray(_PALETTE)[facts['tiles']]
  )
  return jnp.kron(color.reshape(2, 2, 3), jnp.ones((SIDE, SIDE, 1)))


def _mutate(key: Array, facts: Facts) -> Facts:
  """Another colour, or none, in one place."""
  place, step = jax.random.split(key)
  place = jax.random.randint(place, (), 0, len(PLACES))
  step = jax.random.randint(step, (), 1, len(_PALETTE))
  other = (facts['tiles'][place] + 1 + step) % len(_PALETTE) - 1
  return dict(tiles=facts['tiles'].at[place].set(other))


def _judge(
  media: Float[Array, 'b 8 8 3'], facts: Facts
) -> tuple[Float[Array, ' b'], Bool[Array, ' b']]:
  """Credit falls with the mean distance of pixels from the right colours.

  The verdict wants every tile nearest to the right one, and its pixels near it.
  """
  tiles = media.reshape(-1, 2, SIDE, 2, SIDE, 3).transpose(0, 1, 3, 2, 4, 5)
  tiles = tiles.reshape(-1, len(PLACES), SIDE**2, 3)
  palette = jnp.asarray(_PALETTE)

  def distance(x: Array) -> Array:
    return jnp.linalg.norm(x[..., None, :] - palette, axis=-1)

  seen = distance(tiles.mean(2)).argmin(-1)  # [b 4]
  wanted = facts['tiles'] % len(_PALETTE)
  right = seen == wanted
  off = distance(tiles).mean(2)  # [b 4 colours]
  off = jnp.take_along_axis(off, wanted[..., None], -1)[..., 0]
  credit = jnp.clip(1.0 - off, 0.0, 1.0).mean(-1)
  return credit, (right & (off < SPREAD)).all(-1)


def tiles() -> World:
  """Up to four coloured tiles in 8x8 pixels."""
  words = (*COLORS, 'top', 'bottom', 'left', 'right', ',')
  return World(
    name='tiles',
    tasks=TASKS,
    splits=SPLITS,
    words=words,
    facts=('tiles',),
    shape=(2 * SIDE, 2 * SIDE, 3),
    sentences=_sentences,
    parse=_parse,
    render=_render,
    mutate=_mutate,
    judge=_judge,
  )
