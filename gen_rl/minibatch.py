"""How a rollout is cut into mini- and microbatches, and walked through."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
import jax.numpy as jnp

from gen_rl.types import PyTree


def geometry_error(
  rows: int, updates: int, microbatches: int, unit: int = 1
) -> str | None:
  """Why `rows` cannot be cut into minibatches and microbatches, or None.

  Args:
    rows: of a rollout.
    updates: minibatches.
    microbatches: of a minibatch.
    unit: rows that stay together, G where objectives compare them.
  """
  units, parts = rows // unit, updates * microbatches
  if units % parts == 0:
    return None
  fit = [
    m for m in range(1, units // updates + 1) if units % (updates * m) == 0
  ]
  what = (
    f'{rows} rows (prompts_per_step * group_size)'
    if unit == 1
    else f'{units} groups (prompts_per_step; the objective compares the rows '
    'of a group)'
  )
  return (
    f'{what} cannot be cut into '
    f'updates={updates} x microbatches={microbatches} equal parts'
    + (
      f'; with updates={updates}, microbatches may be '
      f'{", ".join(map(str, fit))}'
      if fit
      else f'; updates must divide {units}'
    )
  )


class Traced(NamedTuple):
  """A function for arguments of certain shapes."""

  call: Callable
  shapes: PyTree  # of what it returns
  program: ClosedJaxpr


def trace(function: Callable, *args: PyTree) -> Traced:
  """Runs a function on tracers, once.

  A network takes seconds to trace, and a body is wanted more than once: for its
  shapes, for what is in it, and in a loop. What is called afterwards is its
  program.
  """
  program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  run, into = jaxpr_as_fun(program), jax.tree.structure(shapes)

  def call(*args: PyTree) -> PyTree:
    return jax.tree.unflatten(into, run(*jax.tree.leaves(args)))

  return Traced(call, shapes, program)


def fold(
  body: Callable, carry: PyTree, xs: PyTree, platform: str | None = None
) -> tuple[PyTree, PyTree]:
  """lax.scan; a Python loop for convolutions on CPUs.

  XLA's CPU backend runs convolution gradients inside a while loop many times
  slower than outside of one. A loop's bodies may run at the same time, which
  takes the memory of all. `platform` is the one the program is for, by default
  that of this process.
  """
  platform = platform or jax.default_backend()
  length = jax.tree.leaves(xs)[0].shape[0]
  if length > 1:
    body, _, program = trace(body, carry, jax.tree.map(lambda x: x[0], xs))
    convolves = 'conv_general_dilated' in str(program)
    if platform != 'cpu' or not convolves:
      return jax.lax.scan(body, carry, xs)
  outs = []
  for i in range(length):
    carry, out = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
    outs.append(out)
  return carry, jax.tree.map(lambda *x: jnp.stack(x), *outs)


def cut(x: PyTree, parts: int, unit: int = 1) -> PyTree:
  """[b ...] -> [parts b/parts ...] on every leaf, dealt in turn.

  Part j has rows j, j + parts, j + 2 parts, ...: where rows are split over
  devices, a device's share of every part is of its own rows, and nothing moves
  between them. (Parts of neighbours would have to be gathered.)

  Args:
    x: rows first; what all rows share, of no dimension, is repeated.
    parts: how many.
    unit: neighbours that stay together.
  """

  def one(a):
    if not a.ndim:
      return jnp.broadcast_to(a, (parts,))
    rows, *rest = a.shape
    dealt = a.reshape(rows // (parts * unit), parts, unit, *rest)
    return dealt.swapaxes(0, 1).reshape(parts, rows // parts, *rest)

  return jax.tree.map(one, x)


def join(x: PyTree, unit: int = 1) -> PyTree:
  """Inverse of `cut`, for leaves with rows."""

  def one(a):
    parts, rows, *rest = a.shape
    dealt = a.reshape(parts, rows // unit, unit, *rest)
    return dealt.swapaxes(0, 1).reshape(parts * rows, *rest)

  return jax.tree.map(one, x)
