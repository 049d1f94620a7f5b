"""How much noise each step of a denoising chain takes, and what has too little.

The levels of every window there may be are worked out when a policy is made; a
program looks up those of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import build
from gen_rl.build import ConfigError
from gen_rl.diffusion import noise, schedules
from gen_rl.policies import chain
from gen_rl.types import Array


def make(
  spec: Mapping[str, Any] | None,
  level: float,
  steps: chain.Steps,
  move: Callable[..., tuple[Array, Array]],
  limit: float,
) -> Callable[[Array, Array], Array]:
  """What says how much noise each step takes.

  Args:
    spec: of a function of `diffusion.noise`; None, or the name '': constant.
    level: of the policy.
    steps: the grid and its window.
    move: see `chain.Chain`.
    limit: largest level that it takes.

  Returns:
    (start of the window, number of the update) -> levels [T], 0 outside of it.

  Raises:
    ConfigError: a step that is to be trained takes no noise, or too much.
  """

  def within(start: Array, levels: float | Array) -> Array:
    return schedules.noise_levels(steps.count, levels, start, steps.width)

  if not (spec and spec['name']):
    return lambda start, step: within(start, level)
  with jax.ensure_compile_time_eval():  # a policy may be made in a program
    times, starts = steps.times, steps.starts()

    def variance(factors: np.ndarray) -> np.ndarray:
      none = jnp.zeros(factors.shape, jnp.float32)
      _, std = move(none, none, times[:-1], times[1:], level * factors)
      return np.square(np.asarray(std, np.float64))

    inside = np.asarray(within(jnp.asarray(starts), 1.0)) > 0
    bound = dict(
      times=np.asarray(times, np.float64),
      inside=inside,
      variance=variance,
      most=limit / level,
    )
    moves = build.takes(noise, spec, 'iteration')
    factors = build.build(noise, spec, iteration=0, **bound)
    factors = np.broadcast_to(np.asarray(factors, np.float64), inside.shape)
    # What moves with training leaves steps out, and most of them at first.
    _check_noise(spec['name'], variance(factors) > 0, inside, starts, moves)
    table = jnp.asarray(level * factors, jnp.float32)
  if moves:
    return lambda start, step: within(
      start, level * build.build(noise, spec, iteration=step, **bound)
    )
  return lambda start, step: within(start, table[start - starts[0]])


def _check_noise(
  name: str,
  noisy: np.ndarray,
  inside: np.ndarray,
  starts: np.ndarray,
  one: bool,
) -> None:
  """Refuses windows that train steps without noise.

  Args:
    name: of the schedule.
    noisy: [s T] steps that take noise.
    inside: [s T] steps of the windows there may be.
    starts: [s] their first ones.
    one: one noisy step of a window is enough.
  """
  silent = inside & ~noisy
  if one:
    silent &= ~(inside & noisy).any(-1, keepdims=True)
  for row, i in np.argwhere(silent)[:1]:
    first, last = starts[row], starts[row] + inside[row].sum() - 1
    raise ConfigError(
      f'policy.noise_schedule: {name} leaves step {i} without noise, and the '
      f'window of steps {first}..{last} trains it; change the keywords of the '
      'schedule, or move the window (policy.window_low, window_high, '
      'window_start)'
    )
