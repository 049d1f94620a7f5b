"""Classifier-free guidance (arXiv 2207.12598) of a velocity net.

  v = v(x, t, null) + scale (v(x, t, cond) - v(x, t, null))              (1)

What is sampled depends on the parameters through both halves, and by default
both are differentiated: the gradient of a log-probability is then that of the
policy that sampled. With gradient='conditional' the parameters of the
unconditional half are held fixed, and a backward pass costs what an unguided
one costs. That gradient is biased: `scale` times the conditional half's, where
the true one has (1 - scale) times the other half's added. The larger the
scale, the less the two point the same way. Either way the gradient with
respect to x is that of (1): of a chain of steps, only what the parameters of
the unconditional half add is left out.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.models.parts.layers import Net
from gen_rl.types import Array, Params, PyTree

GRADIENTS = ('both', 'conditional')


def check(gradient: str) -> None:
  """Raises ConfigError for an unknown kind of gradient."""
  if gradient not in GRADIENTS:
    raise ConfigError(
      f'policy.guidance_gradient is {gradient!r}; it is one of '
      f'{", ".join(GRADIENTS)}'
    )


def unconditional(params: Params, gradient: str) -> Params:
  """The parameters that the unconditional half is computed with."""
  return params if gradient == 'both' else jax.lax.stop_gradient(params)


def cfg(
  net: Net,
  scale: float | Array,
  gradient: Literal['both', 'conditional'] = 'both',
) -> Net:
  """Wraps `net` by (1); the guided velocity is float32.

  Args:
    net: the network; its `null` says which condition stands for no prompt.
    scale: guidance scale; the Python number 1 gives back `net` itself. A
      traced scalar or [b] is possible.
    gradient: which halves pass gradients on to the parameters.

  Returns:
    A Net whose encoded condition is a pair, with and without the prompt.

  Raises:
    ConfigError: for an unknown kind of gradient.
  """
  check(gradient)
  if isinstance(scale, int | float) and scale == 1:
    return net

  def encode(params: Params, cond: PyTree) -> tuple[PyTree, PyTree]:
    free = unconditional(params, gradient)
    return net.encode(params, cond), net.encode(free, net.null(cond))

  def apply(params: Params, x: Array, t: Array, encoded: PyTree) -> Array:
    cond, null = encoded
    v = net.apply(params, x, t, cond).astype(jnp.float32)
    free = net.apply(unconditional(params, gradient), x, t, null)
    free = free.astype(jnp.float32)
    return free + process.expand(scale, v) * (v - free)

  return net._replace(apply=apply, encode=encode)
