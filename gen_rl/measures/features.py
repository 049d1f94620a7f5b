"""Networks that read pictures: features of them and of their places."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.fields import Count
from gen_rl.models import detector, dinov2, vlm
from gen_rl.models.files import weights as weights_lib
from gen_rl.models.parts import vit
from gen_rl.types import Array, Axes, Params

__all__ = ('dino', 'shapes_detector', 'shapes_vlm', 'thumbnails')


class Features(NamedTuple):
  """A reader of pictures [b h w c] in [0, 1]."""

  params: Params
  # -> of the whole [b d], of places [b p d], float32
  look: Callable[[Params, Array], tuple[Array, Array]]
  axes: Axes = ()

  def apply(self, params: Params, pictures: Array) -> Array:
    """Of whole pictures, [b d] float32."""
    return self.look(params, pictures)[0]


def thumbnails(size: Count = 4) -> Features:
  """The pixels themselves, of pictures made size x size: colour and layout.

  The features of a place are its pixel and, so that they are as many as those
  of the whole, zeros elsewhere.
  """

  def look(params: Params, pictures: Array) -> tuple[Array, Array]:
    del params
    b, c = len(pictures), pictures.shape[-1]
    small = jax.image.resize(pictures, (b, size, size, c), 'linear')
    whole, n = small.reshape(b, -1), size * size
    own = jnp.repeat(jnp.eye(n), c, axis=1)  # [p d]
    return whole, whole[:, None] * own

  return Features((), look)


def shapes_detector(weights: str = 'asset:shapes_detector') -> Features:
  """What the last layer of the ShapesWorld detector sees; whole: their mean.

  Args:
    weights: a safetensors file, "asset:NAME" for a shipped one.
  """
  net = detector.shapes_detector()
  like = jax.eval_shape(net.init, jax.random.key(0))
  loaded, _ = weights_lib.load(weights_lib.find(weights), like, cast=True)

  def look(params: Params, pictures: Array) -> tuple[Array, Array]:
    places = net.features(params, pictures)
    places = places.reshape(len(places), -1, places.shape[-1])
    return places.mean(1), places

  return Features(loaded, look, net.axes)


def shapes_vlm() -> Features:
  """What the eyes of the ShapesWorld VLM see, 96 numbers; whole: their mean.

  Of fresh renders, noise of deviation 0.1 is seven times as far from others as
  more renders are (560 of each), blur of a pixel four times, a wrong shape or
  colour fifteen times, and another style twenty times.
  """
  tower = vlm.ViT((24, 24, 3), patch=6, width=96, layers=2, heads=4)
  loaded, _ = weights_lib.load(weights_lib.find('asset:shapes_vlm'))
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), loaded['tower'])

  def look(params: Params, pictures: Array) -> tuple[Array, Array]:
    if pictures.shape[1:] != tower.image:
      raise ConfigError(
        f'features "shapes_vlm" are of pictures of {list(tower.image)}, and '
        f'these are {list(pictures.shape[1:])}; take "thumbnails"'
      )
    squares = tower.apply({'params': params}, pictures)
    return squares.mean(1), squares

  return Features(params, look, vlm.AXES)


def dino(folder: str, short: Count = 256, side: Count = 224) -> Features:
  """DINOv2's features, pooled and of squares of pixels.

  Args:
    folder: of its weights, or an id, see `dinov2.load`.
    short: pixels of the short side of a picture.
    side: pixels of the middle of it that is looked at.
  """
  net, loaded = dinov2.load(folder)

  def look(params: Params, pictures: Array) -> tuple[Array, Array]:
    seen = vit.fitted(pictures, side, dinov2.MEAN, dinov2.STD, short)
    whole, squares = net.apply(params, seen)
    squares = squares.reshape(len(squares), -1, squares.shape[-1])
    return whole.astype(jnp.float32), squares.astype(jnp.float32)

  return Features(loaded, look, net.axes)
