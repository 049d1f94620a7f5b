"""Prompts of an evaluation in chunks, which need no more memory than a step.

Every chunk runs the same program: the last one is filled up with prompts that
were there before, whose results are dropped.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import sharding
from gen_rl.types import PyTree
from gen_rl.utils import hosts, programs


class Evaluator(NamedTuple):
  """What fixed prompts say of parameters."""

  call: Callable[..., Any]
  # The same arguments as shapes -> the program of a chunk, traced; None where
  # it was, in a run before (`utils.programs`)
  trace: Callable[..., Any]

  def __call__(self, *params: PyTree) -> Any:
    """As `call`."""
    return self.call(*params)


def evaluator(
  run: Callable[..., PyTree],
  batch: Mapping[str, Any],
  samples: int,
  rows: int = 0,
  layout: sharding.Layout | None = None,
  keep: Callable[[Any], Any] | None = None,
) -> Evaluator:
  """(*arguments) -> what the jitted run(*arguments, prompts) says of all.

  Args:
    run: says arrays of whole multiples of the prompts it is given.
    batch: the P prompts.
    samples: as the next one, see `places`.
    rows: see `places`.
    layout: where its rows and arguments live; None: on one device.
    keep: what keeps its program, see `utils.programs`.
  """
  run = keep(run) if keep else run
  shards = layout.row_shards if layout else 1
  at = places(len(batch['prompt_id']), samples, rows, shards)

  def placed(x: Any) -> jax.Array:
    """Once for all chunks."""
    if not isinstance(x, np.ndarray):
      return x
    return sharding.put(x, layout.everywhere) if layout else jnp.asarray(x)

  place = layout.place if layout else lambda prompts: prompts

  def call(*arguments: PyTree) -> PyTree:
    arguments = jax.tree.map(placed, arguments)
    return over(lambda prompts: run(*arguments, place(prompts)), batch, at)

  def shape(x: Any) -> jax.ShapeDtypeStruct:
    if isinstance(x, jax.ShapeDtypeStruct):
      return x
    where = layout and layout.everywhere
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  def trace(*arguments: PyTree) -> Any:
    prompts = take(batch, at[0])
    prompts = layout.shapes(prompts) if layout else prompts
    shapes = jax.tree.map(shape, (*arguments, prompts))
    return None if programs.entry(run, *shapes) else run.trace(*shapes)

  return Evaluator(call, trace)


def places(
  prompts: int, samples: int, rows: int = 0, shards: int = 1
) -> np.ndarray:
  """Which prompts a chunk holds, [chunks p] int, all of them in order.

  Args:
    prompts: P.
    samples: n, rows of a prompt; they stay together.
    rows: of a chunk, at most, where the next two allow; 0: all.
    shards: devices over which its rows are split evenly.
  """
  unit = shards // math.gcd(shards, samples)  # prompts of an even split
  most = max(rows // (samples * unit), 1) * unit if rows else prompts
  count = -(-prompts // most)
  size = -(-prompts // (count * unit)) * unit
  return (np.arange(count * size) % prompts).reshape(count, size)


def take(batch: Mapping[str, Any], at: np.ndarray) -> dict[str, Any]:
  """The prompts at these places of a batch."""

  def one(x: Any) -> Any:
    return x.take(at) if isinstance(x, hosts.Held) else np.asarray(x)[at]

  return jax.tree.map(one, dict(batch))


def over(
  run: Callable[[dict[str, Any]], PyTree],
  batch: Mapping[str, Any],
  at: np.ndarray,
) -> PyTree:
  """What `run` says of every chunk, on the host and joined.

  Args:
    run: prompts [p ...] -> arrays of whole multiples of p rows.
    batch: the P prompts.
    at: see `places`.
  """
  prompts = len(batch['prompt_id'])
  outs = [hosts.fetch(run(take(batch, chunk))) for chunk in at]

  def join(*pieces: np.ndarray) -> np.ndarray:
    each = len(pieces[0]) // at.shape[1]
    return np.concatenate(pieces)[: prompts * each]

  return jax.tree.map(join, *outs)
