"""Where the pictures of a data batch come from: rows -> latents in [-1, 1].

Used with `rollout.data_rollout`; a config names one of these functions.
"""

from collections.abc import Callable

import jax

from gen_rl.build import ConfigError
from gen_rl.types import Array, Rows
from gen_rl.utils import rng, tree
from gen_rl.worlds import shapes


def shapes_pictures(caption_noise: float = 0.0) -> Callable[[Rows], Array]:
  """Renders ShapesWorld on the device, every picture drawn afresh.

  Args:
    caption_noise: share of pictures that contradict their caption in one
      attribute, count or relation, as web captions do.
  """

  def encode(rows: Rows) -> Array:
    spec = dict(rows.info)
    if caption_noise:
      keys = rng.stream_keys(rows.keys, 'caption noise')
      wrong = jax.vmap(jax.random.bernoulli, (0, None))(keys, caption_noise)
      keys = rng.stream_keys(rows.keys, 'mutation')
      spec = tree.where(wrong, jax.vmap(shapes.mutate)(keys, spec), spec)
    keys = rng.stream_keys(rows.keys, 'picture')
    return jax.vmap(shapes.render)(keys, spec) * 2.0 - 1.0

  return encode


def given() -> Callable[[Rows], Array]:
  """The pictures of the source itself ("media" of the batch)."""

  def encode(rows: Rows) -> Array:
    if rows.media is None:
      raise ConfigError(
        'rollout "given" needs a prompt source with pictures; this one has '
        'none: set data.prompts to a tfds source with an image field'
      )
    return rows.media * 2.0 - 1.0

  return encode
