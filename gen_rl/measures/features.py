"""Networks that read pictures: features of whole pictures, [b d]."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_rl.fields import Count
from gen_rl.models import detector, dinov2
from gen_rl.models.files import weights as weights_lib
from gen_rl.models.parts import vit
from gen_rl.types import Array, Axes, Params

__all__ = ('dino', 'shapes_detector', 'thumbnails')


class Features(NamedTuple):
  """A reader of pictures [b h w c] in [0, 1]."""

  params: Params
  apply: Callable[[Params, Array], Array]  # -> [b d] float32
  axes: Axes = ()


def thumbnails(size: Count = 4) -> Features:
  """The pixels themselves, of pictures made size x size: colour and layout."""

  def apply(params: Params, pictures: Array) -> Array:
    del params
    shape = (len(pictures), size, size, pictures.shape[-1])
    return jax.image.resize(pictures, shape, 'linear').reshape(shape[0], -1)

  return Features((), apply)


def shapes_detector(weights: str = 'asset:shapes_detector') -> Features:
  """What the last layer of the ShapesWorld detector sees, mean over places.

  Args:
    weights: a safetensors file, "asset:NAME" for a shipped one.
  """
  net = detector.shapes_detector()
  like = jax.eval_shape(net.init, jax.random.key(0))
  loaded, _ = weights_lib.load(weights_lib.find(weights), like)

  def apply(params: Params, pictures: Array) -> Array:
    return net.features(params, pictures).mean((1, 2))

  return Features(loaded, apply, net.axes)


def dino(folder: str, short: Count = 256, side: Count = 224) -> Features:
  """DINOv2's pooled features.

  Args:
    folder: of its weights, or an id, see `dinov2.load`.
    short: pixels of the short side of a picture.
    side: pixels of the middle of it that is looked at.
  """
  net, loaded = dinov2.load(folder)

  def apply(params: Params, pictures: Array) -> Array:
    seen = vit.fitted(pictures, side, dinov2.MEAN, dinov2.STD, short)
    return net.apply(params, seen)[0].astype(jnp.float32)

  return Features(loaded, apply, net.axes)
