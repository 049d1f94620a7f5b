"""Denoising steps that take the velocity of an earlier one.

Velocities of neighbouring steps are much alike, and a network takes nearly all
of a sampler's time. The rule is EasyCache's (arXiv 2507.02860), which sees what
goes into a network and what comes out of it, and nothing within. With v_i the
velocity that was computed last, at step i, and v_j the one before it,

  k   = |v_i - v_j| / |x_i - x_j|                                        (1)
  e_m = k |x_m - x_{m-1}| / |v_i|                                        (2)
  step n takes v_i if e_{i+1} + .. + e_n < threshold                     (3)

where |.| is the mean absolute value. (1) says how much of a change of states
becomes a change of velocities, (2) guesses from it by which share the velocity
changes in a step. TeaCache (arXiv 2411.19108) adds up such guesses, too, by a
polynomial that is fitted to each network. EasyCache puts v - x aside and we v:
on a straight path that is what stays, and Euler steps of one velocity are one
longer Euler step, so that the rule chooses a coarser grid as it goes.

Sums (3) are of rows, and their mean decides, once for all rows of a call: a
network is called for a batch or not at all. So a sample depends on the rows
that are drawn beside it, on chunks, too, and the rule is off unless it is asked
for. Rows that are not finite have no say. Two velocities make a rate, so the
first two of a path are always computed, and `must` names others: the last one,
and those that are trained. A step that takes noise ends a path. Over a mesh the
mean is over all devices, which so agree.

With classifier-free guidance the velocity is the guided one: it alone moves x,
its change is what a sample notices, and it is half as much to keep.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32

from gen_rl.diffusion import process
from gen_rl.types import Array, PyTree

Threshold = float | Array  # of (3); the Python number 0 is off


class Memory(NamedTuple):
  """Of the steps before."""

  v: Array  # [b ...] v_i
  at: Array  # [b ...] x_i
  x: Array  # [b ...] x_{n-1}
  rate: Array  # [b] k
  change: Array  # [b] what (3) sums
  known: Array  # [] int32, velocities computed on this path
  calls: Array  # [] int32, of the network, on all paths


def empty(threshold: Threshold, x: process.Latent) -> Memory | None:
  """Before the first step from `x`; None: nothing is kept, the rule is off."""
  if isinstance(threshold, int | float) and threshold == 0:
    return None
  zero, row = jnp.zeros((), jnp.int32), jnp.zeros(x.shape[0], jnp.float32)
  blank = jnp.zeros(x.shape, jnp.float32)
  return Memory(blank, blank, blank, row, row, zero, zero)


def step(
  threshold: Threshold,
  network: Callable[[Array], Array],
  x: process.Latent,
  memory: Memory | None,
  must: Bool[Array, ''] | bool = False,
  noise_free: Bool[Array, ''] | bool = True,
) -> tuple[process.Latent, Memory | None]:
  """The velocity of a step, computed or taken from the memory.

  The network stands in a conditional: a step that does without it costs next
  to nothing. Under vmap it would be called all the same.

  Args:
    threshold: of (3), a share; it may be traced.
    network: x -> velocities [b ...] at this step's time.
    x: states.
    memory: of the step before, or `empty`.
    must: compute it.
    noise_free: the step goes along the velocity; if False, no later step takes
      this one's.

  Returns:
    Velocities, float32 unless the rule is off, and what the next step needs.
  """
  if memory is None:
    return network(x), None
  x = x.astype(jnp.float32)
  moved = memory.rate * _size(x - memory.x) / _size(memory.v)
  change = memory.change + moved
  finite = jnp.isfinite(change)  # NaN where no row is, which is below nothing
  mean = jnp.where(finite, change, 0.0).sum() / finite.sum()
  reuse = (mean < threshold) & (memory.known > 1) & ~jnp.asarray(must)

  def taken() -> Memory:
    return memory._replace(x=x, change=change)

  def computed() -> Memory:
    v = network(x).astype(jnp.float32)
    rate = _size(v - memory.v) / _size(x - memory.at)
    known, calls = memory.known + 1, memory.calls + 1
    return Memory(v, x, x, rate, jnp.zeros_like(change), known, calls)

  memory = jax.lax.cond(reuse, taken, computed)
  known = jnp.where(noise_free, memory.known, 0)
  return memory.v, memory._replace(known=known)


def reused(memory: Memory | None, steps: int | Array, rows: int) -> PyTree:
  """The share of `steps` that took a velocity [rows]; () with the rule off."""
  if memory is None:
    return ()
  return jnp.broadcast_to((steps - memory.calls) / steps, (rows,))


def _size(x: Array) -> Float32[Array, ' b']:
  """|.| of rows."""
  return jnp.abs(x).reshape(x.shape[0], -1).mean(-1)
