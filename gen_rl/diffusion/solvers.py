"""Steps of the probability-flow ODE, dx/dt = v(x, t), from t to t' < t.

With x0 = x - t v, every step is a line from x to an estimate D of the data,

  x' = (t' / t) x + (1 - t' / t) D                                       (1)

  euler  D = x0: exact where v is constant
  dpm2   D = x0 + (h / (2 h_prev)) (x0 - x0_prev),
         h = lambda(t') - lambda(t),  lambda = log((1 - t) / t)          (2)

(2) is the two-step DPM-Solver++ (2M, arXiv 2211.01095, algorithm 2) for signal
1 - t and noise t: second order at one evaluation a step. It starts, and ends
at t' = 0 where h is infinite, with D = x0; so does every step after one that
took noise, as the estimate before belongs to another path.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float32

from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.types import Array

SOLVERS = ('euler', 'dpm2')


class Memory(NamedTuple):
  """What `dpm2` remembers of the step before."""

  x0: Array  # [b ...]
  t: Array  # [] its time
  valid: Array  # [] bool, there was one, without noise


def check(solver: str) -> None:
  """Raises ConfigError unless `solver` is one of SOLVERS."""
  if solver not in SOLVERS:
    raise ConfigError(
      f'solver is {solver!r}; it is one of {", ".join(SOLVERS)}'
    )


def empty(x: process.Latent) -> Memory:
  """Before the first step from `x`."""
  return Memory(
    jnp.zeros_like(x), jnp.ones((), jnp.float32), jnp.zeros((), bool)
  )


def step(
  solver: str,
  x: process.Latent,
  v: process.Latent,
  t: Float32[Array, ''],
  t_next: Float32[Array, ''],
  memory: Memory,
  noise_free: Bool[Array, ''] | bool = True,
) -> tuple[process.Float32Latent, Memory]:
  """One step (1) of the rows of a batch.

  Args:
    solver: one of SOLVERS.
    x: states at t.
    v: velocities there.
    t: time, in (0, 1].
    t_next: t' in [0, t]; t' = t stays.
    memory: of the step before.
    noise_free: the caller takes this step; if False, the memory is dropped.

  Returns:
    x' and what the next step needs.
  """
  x, v = x.astype(jnp.float32), v.astype(jnp.float32)
  if solver == 'euler':
    return x + v * (t_next - t), memory
  x0 = process.x0_from_velocity(x, v, t)
  h, h_before = _log_ratio(t_next, t), _log_ratio(t, memory.t)
  second = memory.valid & (t_next > 0) & (memory.t < 1) & (h_before > 0)
  slope = jnp.where(second, process.divide(h, 2.0 * h_before), 0.0)
  data = x0 + slope * (x0 - memory.x0)
  x_next = x + process.divide(t_next - t, t) * (x - data)
  return x_next, Memory(x0, t, jnp.asarray(noise_free))


def _log_ratio(t_next: Array, t: Array) -> Array:
  """lambda(t') - lambda(t); 0 where one of the two is infinite."""
  finite = (t_next > 0) & (t < 1)
  a = jnp.where(finite, t_next, 0.5)
  b = jnp.where(finite, t, 0.5)
  return jnp.log1p(-a) - jnp.log(a) - (jnp.log1p(-b) - jnp.log(b))
