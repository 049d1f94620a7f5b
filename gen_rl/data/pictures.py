"""Where the pictures of a data batch come from: rows -> (latents, cond).

Latents are pictures in [-1, 1]; `cond` is what the policy is given, and labels
where it learns them. Used with `rollout.data_rollout`; a config names one of
these functions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.types import Array, PyTree, Rows
from gen_rl.utils import rng, tree
from gen_rl.worlds import shapes

Encode = Callable[[Rows], tuple[Array, PyTree]]


def shapes_pictures(caption_noise: float = 0.0) -> Encode:
  """Renders ShapesWorld on the device, every picture drawn afresh.

  Args:
    caption_noise: share of pictures that contradict their caption in one
      attribute, count or relation, as web captions do.
  """

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    spec = dict(rows.info)
    if caption_noise:
      keys = rng.stream_keys(rows.keys, 'caption noise')
      wrong = jax.vmap(jax.random.bernoulli, (0, None))(keys, caption_noise)
      keys = rng.stream_keys(rows.keys, 'mutation')
      spec = tree.where(wrong, jax.vmap(shapes.mutate)(keys, spec), spec)
    keys = rng.stream_keys(rows.keys, 'picture')
    return jax.vmap(shapes.render)(keys, spec) * 2.0 - 1.0, rows.cond

  return encode


def shapes_scenes(noise: float = 0.0) -> Encode:
  """Renders ShapesWorld and keeps what was drawn: labels for a detector.

  `cond` gets "scene", a `shapes.Scene` with rows [b ...].

  Args:
    noise: pixel noise, the standard deviation of the noisiest pictures in
      units of [0, 1]; each picture's is uniform up to it.
  """

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    keys = rng.stream_keys(rows.keys, 'picture')
    scene = jax.vmap(shapes.compose)(keys, dict(rows.info))
    image = jax.vmap(shapes.draw)(scene)
    if noise:
      level = rng.uniform(rng.stream_keys(rows.keys, 'noise level'), ())
      grain = rng.normal(rng.stream_keys(rows.keys, 'noise'), image.shape[1:])
      image += noise * level[:, None, None, None] * grain
      image = jnp.clip(image, 0.0, 1.0)
    return image * 2.0 - 1.0, {**rows.cond, 'scene': scene}

  return encode


def given() -> Encode:
  """The pictures of the source itself ("media" of the batch)."""

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    if rows.media is None:
      raise ConfigError(
        'rollout "given" needs a prompt source with pictures; this one has '
        'none: set data.prompts to a tfds source with an image field'
      )
    return rows.media * 2.0 - 1.0, rows.cond

  return encode
