"""What can be said of a picture without knowing what it should show.

  chroma   max(R, G, B) - min(R, G, B), mean over the pixels              (1)

0 for greys, 1 where every pixel is a pure colour. Unlike the saturation of
HSV, which divides by the maximum, it is not large for the noise of dark pixels.
"""

import jax.numpy as jnp
from jaxtyping import Float

from gen_rl.build import ConfigError
from gen_rl.types import AnyArray, Array, Reward, RewardInputs, RewardOut


def chroma(images: Float[Array, 'b h w 3']) -> Float[Array, ' b']:
  """Equation (1) of images in [0, 1]."""
  return (images.max(-1) - images.min(-1)).mean((1, 2))


def shown(inputs: RewardInputs) -> Array:
  """The pictures [b h w c] of samples that are some.

  Raises:
    ConfigError: they are none.
  """
  if jnp.ndim(inputs.image) != 4:
    raise ConfigError(
      'this reward looks at pictures [b h w c], and these samples are '
      f'{list(jnp.shape(inputs.image))}'
    )
  return inputs.image


def finite(media: AnyArray) -> tuple[Array, Array]:
  """Pictures for networks, which pass a NaN of one row on to others' gradients.

  Args:
    media: [b h w 3], float in [0, 1] or uint8.

  Returns:
    (float32 in [0, 1], those that are not finite black; which are [b]).

  Raises:
    ConfigError: samples that are no RGB pictures.
  """
  if jnp.ndim(media) != 4 or jnp.shape(media)[-1] != 3:
    raise ConfigError(
      f'this reward looks at RGB pictures [b h w 3], and these samples are '
      f'{list(jnp.shape(media))}'
    )
  media = jnp.asarray(media)
  scale = 255 if media.dtype == jnp.uint8 else 1
  media = media.astype(jnp.float32) / scale
  good = jnp.isfinite(media).all((1, 2, 3))
  return jnp.where(good[:, None, None, None], media, 0.0), good


def saturation() -> Reward:
  """How colourful a picture is, equation (1), in [0, 1]; differentiable."""

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    value = chroma(shown(inputs))
    return RewardOut(value, {}, jnp.isfinite(value))

  return Reward('saturation', (), score, differentiable=True)
