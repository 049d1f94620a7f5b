r"""Gradients of samples through the steps of a denoising chain.

What rewards see is a stored sample, or what the network foresees of it,

  (1) finish     x_{i+1} = mean(x_i, v_i) + std z_i,  v_i = net(x_i, t_i, c)
  (2) estimate   E[x0 | x_i] = x_i - t_i v_i                      (Tweedie)
  (3) last_step  mean((1 - t) x0 + t eps, v),  t of the last step, eps new

with stored x_i, z_i and x0. Calls are counted from the first decision; after
the k decisions comes the last call, k, which takes no noise.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from gen_rl import minibatch
from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.distributions import decision_keys
from gen_rl.policies import chain as chain_lib
from gen_rl.types import Array, Params, Trajectory
from gen_rl.utils import rng

# Most calls that a program holds one after the other: a loop is a smaller
# program that takes longer on CPUs.
_UNROLLED = 8


def finish(
  chain: chain_lib.Chain,
  params: Params,
  traj: Trajectory,
  live: Array,
  detach_inputs: bool = False,
  stop: Array | None = None,
  first: int = 0,
) -> Array:
  """The stored samples with gradients through the chain, see `capabilities`.

  Raises:
    ConfigError: the window is not always that of the last noisy steps, or steps
      without noise are not Euler's.
  """
  _check(chain)
  steps, width = chain.steps, chain.steps.width
  prompt = chain.guided.encode(params, traj.cond)
  states, times = _calls(traj)
  ends = jnp.full((len(live), 1), steps.times[-1])
  ends = jnp.concatenate([traj.times[..., 1], ends], 1)
  levels = jnp.pad(traj.noise, ((0, 0), (0, 1)))
  actions = jnp.concatenate(
    [traj.actions, jnp.zeros_like(traj.actions[:, :1])], 1
  )

  @jax.checkpoint
  def call(carry: tuple, each: tuple) -> tuple[tuple, tuple]:
    x, early = carry
    j, on, t, t_next, a, action = each
    seen = jax.lax.stop_gradient(x) if detach_inputs else x
    v = chain.guided.apply(params, seen, t, prompt).astype(jnp.float32)
    v = jnp.where(process.expand(on, v) > 0, v, jax.lax.stop_gradient(v))
    foreseen = process.x0_from_velocity(x, v, t)
    mean, _ = chain.move(x, v, t, t_next, a)
    # The stored action, to the bit, with the gradient of the mean.
    moved = action + (mean - jax.lax.stop_gradient(mean))
    x = jnp.where(j == width, mean, moved)
    if stop is not None:
      early = jnp.where(process.expand(stop == j, x) > 0, foreseen, early)
    return (x, early), ()

  each = [
    x[:, first:].swapaxes(0, 1) for x in (live, times, ends, levels, actions)
  ]
  x = jax.lax.stop_gradient(states[:, first])
  early = () if stop is None else jnp.zeros_like(x)
  carry, each = (x, early), (jnp.arange(first, width + 1), *each)
  if width + 1 - first > _UNROLLED:
    carry, _ = minibatch.fold(call, carry, each)
  else:
    for i in range(width + 1 - first):
      carry, _ = call(carry, jax.tree.map(lambda x, i=i: x[i], each))
  x, early = carry
  x = x / steps.units[1]
  if stop is None:
    return x
  return jnp.where(process.expand(stop < width, x) > 0, early, x)


def estimate(
  chain: chain_lib.Chain, params: Params, traj: Trajectory, call: Array
) -> Array:
  """(2) at the state before that call of each row, see `capabilities`.

  Raises:
    ConfigError: as `finish`.
  """
  _check(chain)
  prompt = chain.guided.encode(params, traj.cond)
  states, times = _calls(traj)
  rows = jnp.arange(len(call))
  x = jax.lax.stop_gradient(states[rows, call])
  t = times[rows, call]
  v = chain.guided.apply(params, x, t, prompt)
  return process.x0_from_velocity(x, v, t)


def last_step(
  chain: chain_lib.Chain,
  params: Params,
  traj: Trajectory,
  keys: Array,
  draws: int,
) -> Array:
  """(3), [b draws ...], see `capabilities`."""
  steps = chain.steps
  t, t_next = (jnp.full((len(keys), draws), x) for x in steps.times[-2:])
  keys = decision_keys(keys, t.shape).reshape(-1)
  noise = rng.normal(keys, chain.net.shape).reshape(*t.shape, *chain.net.shape)
  x0 = jnp.broadcast_to(traj.sample[:, None], noise.shape)
  x = process.corrupt(jax.lax.stop_gradient(x0), noise, t)
  v = chain_lib.velocities(chain.guided, params, x, t, traj.cond)
  mean, _ = chain.move(x, v, t, t_next, jnp.zeros_like(t))
  return mean / steps.units[1]


def _calls(traj: Trajectory) -> tuple[Array, Array]:
  """(states [b k+1 ...], times [b k+1]) before each call."""
  states = jnp.concatenate([traj.states, traj.actions[:, -1:]], 1)
  times = jnp.concatenate([traj.times[..., 0], traj.times[:, -1:, 1]], 1)
  return states, times


def _check(chain: chain_lib.Chain) -> None:
  """Whether stored actions are the states that followed, up to the sample."""
  steps = chain.steps
  last = steps.count - 1 - steps.width
  if steps.start['name'] != 'fixed_window' or steps.start['start'] != last:
    raise ConfigError(
      'gradients through samples need a window that stays at the last noisy '
      f'steps: set policy.window_low={last} and '
      'policy.window_start.name="fixed_window"'
    )
  if chain.solver != 'euler':
    raise ConfigError(
      'gradients through samples are those of Euler steps, and policy.solver '
      f'is {chain.solver!r}; set it to "euler"'
    )


def ops(chain: chain_lib.Chain) -> dict[str, Callable]:
  """Capabilities, by name."""
  functions = finish, estimate, last_step
  return {f.__name__: functools.partial(f, chain) for f in functions}
