"""Classifier-free guidance (arXiv 2207.12598) of a velocity net.

  v = v(x, t, null) + scale (v(x, t, cond) - v(x, t, null))              (1)

No gradient passes through v(x, t, null): it is evaluated outside the tape, so
a backward pass costs what an unguided one costs. The gradient of (1) is then
scale times that of the conditional half; a run that was tuned with both
halves in the tape sees gradients larger by up to `scale` where the two halves
move together.
"""

import jax
import jax.numpy as jnp

from gen_rl.diffusion import process
from gen_rl.models.layers import Net
from gen_rl.types import Array, Params, PyTree


def cfg(net: Net, scale: float | Array) -> Net:
  """Wraps `net` by (1); the guided velocity is float32.

  Args:
    net: the network; its `null` says which condition stands for no prompt.
    scale: guidance scale; the Python number 1 gives back `net` itself. A
      traced scalar or [b] is possible.

  Returns:
    A Net whose encoded condition is a pair, with and without the prompt.
  """
  if isinstance(scale, int | float) and scale == 1:
    return net

  def encode(params: Params, cond: PyTree) -> tuple[PyTree, PyTree]:
    free = net.encode(jax.lax.stop_gradient(params), net.null(cond))
    return net.encode(params, cond), free

  def apply(params: Params, x: Array, t: Array, encoded: PyTree) -> Array:
    cond, null = encoded
    v = net.apply(params, x, t, cond).astype(jnp.float32)
    free = net.apply(*jax.lax.stop_gradient((params, x, t, null)))
    free = jax.lax.stop_gradient(free).astype(jnp.float32)
    return free + process.expand(scale, v) * (v - free)

  return net._replace(apply=apply, encode=encode)
