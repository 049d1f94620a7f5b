"""Sampling a flow model without noise: the ODE, as evaluation draws.

  dx/dt = net(x, t, c), from x_1 = noise at t = 1 to the sample at t = 0   (1)

on the grid of times that policies have. `sampler` runs it whole; `segments` can
stop at a step and say what it foresees, for `gen_rl.search`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import build, minibatch
from gen_rl.diffusion import caching, process, schedules, solvers
from gen_rl.models.parts.layers import Net
from gen_rl.policies import guidance
from gen_rl.types import Array, Params, PyTree, Rows
from gen_rl.utils import rng


def grid_of(
  spec: Mapping[str, Any] | None, steps: int, shift: float
) -> tuple[Array, tuple[float, float]]:
  """(times [T + 1], the units of a discrete process at the first and the last).

  Where variances are preserved, a state is x / unit. It is 1 at times 1 and 0.
  """
  with jax.ensure_compile_time_eval():  # a policy may be made in a program
    if not (spec and spec['name']):
      return schedules.linear(steps, shift), (1.0, 1.0)
    times = build.build(schedules, spec, steps=steps)
  ends = np.asarray(times, np.float64)[[0, -1]]
  first, last = np.hypot(1 - ends, ends).tolist()
  return times, (first, last)


def sampler(
  net: Net,
  steps: int,
  shift: float = 1.0,
  guidance_scale: float = 1.0,
  solver: Literal['euler', 'dpm2'] = 'euler',
  grid: Mapping[str, Any] | None = None,
  cache_threshold: caching.Threshold = 0.0,
) -> Callable[[Params, Rows], Array]:
  """Deterministic sampling for evaluation.

  Above 0, `cache_threshold` lets steps but the first two and the last take the
  velocity of one before (`diffusion.caching`).

  Returns:
    (params, rows) -> latents [b h w c]; the initial noise is that of a
    rollout with the same row keys.
  """
  drawn = counted(
    net, steps, shift, guidance_scale, solver, grid, cache_threshold
  )
  return lambda params, rows: drawn(params, rows)[0]


def counted(
  net: Net,
  steps: int,
  shift: float = 1.0,
  guidance_scale: float = 1.0,
  solver: Literal['euler', 'dpm2'] = 'euler',
  grid: Mapping[str, Any] | None = None,
  cache_threshold: caching.Threshold = 0.0,
) -> Callable[[Params, Rows], tuple[Array, PyTree]]:
  """`sampler`, which also says what share of the steps took a velocity, [b].

  In its place is () where the threshold is 0.
  """
  solvers.check(solver)
  guided = guidance.cfg(net, guidance_scale)
  times, (first, last) = grid_of(grid, steps, shift)

  def sample(params: Params, rows: Rows) -> tuple[Array, PyTree]:
    x = rng.normal(rng.stream_keys(rows.keys, 'init'), net.shape) * first
    prompt = guided.encode(params, rows.cond)

    def body(carry: tuple, i: Array) -> tuple[tuple, None]:
      x, memory, cache = carry
      t = jnp.full(x.shape[0], times[i])
      v, cache = caching.step(
        cache_threshold, lambda x: guided.apply(params, x, t, prompt), x, cache,
        must=i == steps - 1,
      )  # fmt: skip
      x, memory = solvers.step(solver, x, v, times[i], times[i + 1], memory)
      return (x, memory, cache), None

    start = x, solvers.empty(x), caching.empty(cache_threshold, x)
    (x, _, cache), _ = jax.lax.scan(body, start, jnp.arange(steps))
    return x / last, caching.reused(cache, steps, len(x))

  return sample


class Segments(NamedTuple):
  """Deterministic sampling that can stop at a step and go on later."""

  steps: int  # T
  calls: int  # evaluations of the network in a step: 2 with guidance
  noise: Callable[[Rows], Array]  # rows -> x_0 [b ...], as a rollout draws it
  # (params, x [b ...] at step `start`, cond [b ...], start, stop) -> (x at
  # step `stop`, estimates [stop - start b ...] of the sample, one per step)
  run: Callable[..., tuple[Array, Array]]
  # (params, x_0 [b ...], cond [b ...]) -> the sample, for gradients in x_0:
  # steps are computed again on the way back
  through: Callable[[Params, Array, PyTree], Array]
  unit: float = 1.0  # deviation of the noise


def segments(
  net: Net,
  steps: int,
  shift: float = 1.0,
  guidance_scale: float = 1.0,
  grid: Mapping[str, Any] | None = None,
  cache_threshold: caching.Threshold = 0.0,
) -> Segments:
  """Euler's `sampler` in parts: steps start..stop-1, and what they foresee.

  The estimate of step s is E[x0 | x_s] = x_s - t_s v(x_s, t_s), one Euler step
  to the end (Tweedie). It needs no network call besides the step's own, so
  s + 1 of them are spent once it is known. The last one is the sample. The
  prompt is encoded again in each part; `start` and `stop` are static. With a
  `cache_threshold` each part remembers its own velocities, and its last one is
  computed: what is foreseen of it may be scored. Gradients take none.
  """
  guided = guidance.cfg(net, guidance_scale)
  times, (first, last) = grid_of(grid, steps, shift)

  def noise(rows: Rows) -> Array:
    return rng.normal(rng.stream_keys(rows.keys, 'init'), net.shape) * first

  def run(
    params: Params, x: Array, cond: PyTree, start: int, stop: int
  ) -> tuple[Array, Array]:
    prompt = guided.encode(params, cond)

    def body(carry: tuple, i: Array) -> tuple[tuple, Array]:
      x, cache = carry
      t = jnp.full(x.shape[0], times[i])
      v, cache = caching.step(
        cache_threshold, lambda x: guided.apply(params, x, t, prompt), x, cache,
        must=i == stop - 1,
      )  # fmt: skip
      estimate = process.x0_from_velocity(x, v, t)
      return (x + v * (times[i + 1] - times[i]), cache), estimate

    first_of = x, caching.empty(cache_threshold, x)
    (x, _), foreseen = jax.lax.scan(body, first_of, jnp.arange(start, stop))
    if stop == steps and last != 1:  # the grid ends before the data
      x = x / last
      foreseen = foreseen.at[-1].set(x)
    return x, foreseen

  def through(params: Params, x: Array, cond: PyTree) -> Array:
    prompt = guided.encode(params, cond)

    @jax.checkpoint
    def body(x: Array, i: Array) -> tuple[Array, None]:
      v = guided.apply(params, x, jnp.full(x.shape[0], times[i]), prompt)
      return x + v * (times[i + 1] - times[i]), None

    x, _ = minibatch.fold(body, x, jnp.arange(steps))
    return x / last

  calls = 1 if guided is net else 2
  return Segments(steps, calls, noise, run, through, first)
