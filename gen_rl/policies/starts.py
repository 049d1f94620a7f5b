"""Where a chain starts: at noise, or at a picture that is made noisy.

From a share tau of the grid on (SDEdit, arXiv 2108.01073; InstructVideo, arXiv
2312.12490),

  x_i = (1 - t_i) x0 + t_i eps,   i = T - round(tau T)                   (1)

with x0 the row's picture as the network would have it.
"""

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.models.parts.layers import Net
from gen_rl.types import Array, Params, Rows


def compress(net: Net, params: Params, pictures: Array) -> Array:
  """Latents of pictures, which are brought to the size it makes itself."""
  latents = jax.ShapeDtypeStruct((1, *net.shape), jnp.float32)
  size = jax.eval_shape(net.decode, params, latents).shape[1:3]
  pictures = process.resized(pictures, size)
  return jax.lax.stop_gradient(net.compress(params, pictures))


def noised(
  net: Net, params: Params, rows: Rows, noise: Array, t: Array
) -> Array:
  """(1) of `rows.media`, [b h w c] in [0, 1].

  Args:
    net: whose latents they become.
    params: its parameters.
    rows: with media.
    noise: eps [b ...].
    t: t_i, [].

  Raises:
    ConfigError: rows without a picture each.
  """
  if rows.media is None or rows.media.ndim != 4:
    found = 'none' if rows.media is None else f'{rows.media.shape[1]} a row'
    raise ConfigError(
      'policy.begin starts chains at pictures, one a row, and the data have '
      f'{found}: set data.view, name pictures in data.prompts, or set '
      'policy.begin to 1'
    )
  if net.compress:
    x0 = compress(net, params, rows.media)
  else:
    x0 = process.resized(rows.media, net.shape[:2]) * 2.0 - 1.0
  return process.corrupt(x0, noise, t)


def first_step(begin: float, count: int) -> int:
  """Number of (1).

  Raises:
    ConfigError: less than two steps would be left.
  """
  first = count - round(begin * count)
  if first and first > count - 2:
    raise ConfigError(
      f'policy.begin is {begin:g} of steps={count}: at least two have to be '
      f'taken, so that one is noisy; set it to {2 / count:g} or more'
    )
  return first
