"""What can be said of a picture without knowing what it should show.

  chroma   max(R, G, B) - min(R, G, B), mean over the pixels              (1)

0 for greys, 1 where every pixel is a pure colour. Unlike the saturation of
HSV, which divides by the maximum, it is not large for the noise of dark pixels.
"""

import jax.numpy as jnp
from jaxtyping import Float

from gen_rl.types import Array, Reward, RewardInputs, RewardOut


def chroma(images: Float[Array, 'b h w 3']) -> Float[Array, ' b']:
  """Equation (1) of images in [0, 1]."""
  return (images.max(-1) - images.min(-1)).mean((1, 2))


def saturation() -> Reward:
  """How colourful a picture is, equation (1), in [0, 1]; differentiable."""

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    value = chroma(inputs.media)
    return RewardOut(value, {}, jnp.isfinite(value))

  return Reward('saturation', (), score, differentiable=True)
