"""How much a picture looks like another one, as DINOv2 sees both.

  pooled   cos(f(x), f(y)), f the vector of a picture                    (1)
  patches  the mean of cos(f_i(x), f_i(y)) over squares i                (2)

(1) is about the subject, wherever it is (DINO's score of DreamBooth,
arXiv 2208.12242); (2) about what is where, for edits that should keep a
picture. Both in [-1, 1], with a gradient in the pixels.
"""

from typing import Literal

import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.fields import Count, Kernel, Remat
from gen_rl.models import dinov2
from gen_rl.models.parts import vit
from gen_rl.rewards import pixels
from gen_rl.types import Array, Params, Reward, RewardInputs, RewardOut

_TINY = 1e-12


def cosine(a: Array, b: Array) -> Array:
  """Of the last axis, float32; 0 where a vector is 0."""
  square = (a * a).sum(-1) * (b * b).sum(-1)
  return (a * b).sum(-1) / jnp.sqrt(jnp.maximum(square, _TINY))


def dino(
  folder: str,
  column: str = 'image',
  by: Literal['pooled', 'patches'] = 'pooled',
  short: Count = 256,
  side: Count = 224,
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  scan: bool = True,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
) -> Reward:
  """Likeness with the picture that a prompt comes with.

  A row with a picture that is not finite, either of them, is not valid. Parts:
  `pooled` and `patches`.

  Tested, not measured.

  Args:
    folder: of DINOv2's weights, or an id, see `dinov2.load`.
    column: of info that holds the other picture, [b h w 3] in [0, 1] or
      uint8; it may have another size.
    by: (1) or (2).
    short: pixels of the short side of a picture.
    side: pixels of the middle of it that is looked at, a multiple of the
      network's squares.
    param_dtype: of the weights.
    dtype: of the arithmetic.
    scan: one program for all blocks: compiles faster.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: see `attention.sdpa`.

  Raises:
    ConfigError: another `by`; when scored, samples that are no pictures or a
      column that is missing.
    WeightsError: see `dinov2.load`.
  """
  if by not in ('pooled', 'patches'):
    raise ConfigError(f"dino: by is {by!r}; it is 'pooled' or 'patches'")
  if not 0 < side <= short:
    raise ConfigError(
      f'dino: side={side} pixels cannot be cut out of short={short}'
    )
  net, loaded = dinov2.load(
    folder, param_dtype, dtype=dtype, scan=scan, remat=remat,
    attention=attention,
  )  # fmt: skip

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    if column not in inputs.info:
      raise ConfigError(
        f'dino compares with the picture {column!r}, and these prompts come '
        f'without; there are {", ".join(sorted(inputs.info)) or "none"}'
      )
    both = [pixels.finite(x) for x in (inputs.image, inputs.info[column])]
    seen = [
      vit.fitted(x, side, dinov2.MEAN, dinov2.STD, short) for x, _ in both
    ]
    found = net.apply(params, jnp.concatenate(seen))
    ours, theirs = (jnp.split(x, 2) for x in found)
    parts = dict(pooled=cosine(*ours), patches=cosine(*theirs).mean((1, 2)))
    return RewardOut(parts[by], parts, both[0][1] & both[1][1])

  return Reward('dino', loaded, score, differentiable=True, axes=net.axes)
