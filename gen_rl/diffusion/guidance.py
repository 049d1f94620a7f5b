"""Classifier-free guidance (arXiv 2207.12598) of a velocity net.

  v = v(x, t, null) + scale (v(x, t, cond) - v(x, t, null))              (1)

No gradient passes through v(x, t, null): it is evaluated outside the tape, so
a backward pass costs what an unguided one costs. The gradient of (1) is then
scale times that of the conditional half; a run that was tuned with both
halves in the tape sees gradients larger by up to `scale` where the two halves
move together.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gen_rl.diffusion import process

Array = jax.Array
PyTree = Any
# (params, x [n ...], t [n], cond [n ...]) -> v [n ...]
Net = Callable[[PyTree, Array, Array, PyTree], Array]


def zeros(cond: PyTree) -> PyTree:
  """The empty condition of nets that read 0 (padding) as no prompt."""
  return jax.tree.map(jnp.zeros_like, cond)


def cfg(
  net: Net,
  scale: float | Array,
  null: Callable[[PyTree], PyTree] = zeros,
) -> Net:
  """Wraps `net` by (1); the guided velocity is float32.

  Args:
    net: (params, x [n ...], t [n], cond [n ...]) -> v [n ...].
    scale: guidance scale; the Python number 1 gives back `net` itself. A
      traced scalar or [n] is possible.
    null: cond -> the condition that stands for no prompt, same structure.
  """
  if isinstance(scale, int | float) and scale == 1:
    return net

  def guided(params, x, t, cond):
    v = net(params, x, t, cond).astype(jnp.float32)
    free = net(*jax.lax.stop_gradient((params, x, t, null(cond))))
    free = jax.lax.stop_gradient(free).astype(jnp.float32)
    return free + process.expand(scale, v) * (v - free)

  return guided
