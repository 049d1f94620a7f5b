"""Which random number belongs to whom.

A sample depends on (seed, step, prompt, member) and on nothing else: not on
the other rows of the batch, their order, the number of devices, or what was
drawn before. Keys are therefore computed, never stored and never split:

  (1) row(step, p, g) = fold_in(fold_in(fold_in(root, step), p), g)
  (2) decision i of a row: fold_in(row, i)
  (3) any other purpose: fold_in(row, 2^31 + hash(purpose) mod 2^31), which no
      decision can reach
  (4) what the rows of a prompt share: purpose 'group' of
      fold_in(fold_in(root, step), p); decisions that they share are drawn by
      keys of `policies.branches`, folded from it

with root = training_key(seed), p the prompt's id (not its position) and g
the member of its group. Draws are vmapped over rows, which leaves each row's
numbers as they are alone for jax's default generator (threefry; not for 'rbg').

Two rows of a batch with the same prompt id would draw the same numbers: the
data pipeline yields distinct prompts in a batch.
"""

import zlib

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key

from gen_rl.types import AnyArray, Array


def training_key(seed: int | Int[AnyArray, '']) -> Key[Array, '']:
  """Root of all a training run draws.

  A stream of its own: an evaluation with the same seed draws other numbers.
  """
  return stream_keys(jax.random.key(seed), 'training')


def group_keys(
  root: Key[Array, ''], step: ArrayLike, prompt_id: Int[AnyArray, ' P']
) -> Key[Array, ' P']:
  """One key per prompt for what its rows share, eq. (4)."""
  at_step = jax.random.fold_in(root, step)
  prompts = jax.vmap(lambda p: jax.random.fold_in(at_step, p))(prompt_id)
  return stream_keys(prompts, 'group')


def row_keys(
  root: Key[Array, ''],
  step: ArrayLike,
  prompt_id: Int[AnyArray, ' P'],
  group: int,
  members: Int[AnyArray, 'P {group}'] | None = None,
) -> Key[Array, ' P*{group}']:
  """Keys of the rows of a batch, eq. (1).

  Args:
    root: of a run, `training_key(seed)`.
    step: int scalar, may be traced.
    prompt_id: one per group.
    group: G, samples of each prompt (static).
    members: which members of its group they are; None: the first G.

  Returns:
    Keys, prompt-major: row p * G + g is that of member g, or members[p, g].
  """
  at_step = jax.random.fold_in(root, step)
  prompts = jax.vmap(lambda p: jax.random.fold_in(at_step, p))(prompt_id)
  if members is None:
    members = jnp.broadcast_to(jnp.arange(group), (len(prompt_id), group))
  fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
  return fold_in(prompts, jnp.asarray(members)).reshape(-1)


def step_keys(keys: Key[Array, ' b'], i: ArrayLike) -> Key[Array, ' b']:
  """Keys of decision `i` (int scalar, may be traced) of each row, (2)."""
  return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)


def stream_keys(keys: Key[Array, '*b'], purpose: str) -> Key[Array, '*b']:
  """Keys for a purpose ('init', 'nll') of rows [b], or of one key, eq. (3)."""
  tag = (1 << 31) | (zlib.crc32(purpose.encode()) >> 1)

  def fold(key):
    return jax.random.fold_in(key, jnp.uint32(tag))

  return fold(keys) if keys.ndim == 0 else jax.vmap(fold)(keys)


def per_row(keys: Key[Array, '*b'], rows: int) -> Key[Array, ' {rows}']:
  """Keys of rows: `keys` [b] as they are, one key folded with 0 .. rows - 1."""
  if keys.ndim:
    return keys
  return jax.vmap(lambda i: jax.random.fold_in(keys, i))(jnp.arange(rows))


def normal(
  keys: Key[Array, ' b'], shape: tuple[int, ...], dtype=jnp.float32
) -> Float[Array, 'b ...']:
  """Standard normal [b *shape]; row r depends on keys[r] alone."""
  return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def uniform(
  keys: Key[Array, ' b'], shape: tuple[int, ...], dtype=jnp.float32
) -> Float[Array, 'b ...']:
  """Uniform [0, 1) [b *shape]; row r depends on keys[r] alone."""
  return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(keys)
