"""A flow model as a policy: every noisy denoising step is a decision.

State x_t, action x_t', and one kernel that both samples and scores:

  v = net(x_t, t, c),   x_t' ~ N(mean(x_t, v, t, t'), std(t, t')^2)      (1)

with the transition of `diffusion.transitions`. The last step takes no noise,
so at most T - 1 of T steps are trained. A window trains (and makes noisy)
only w consecutive steps; the others are Euler steps of the ODE, as in
Flow-GRPO-Fast (arXiv 2505.05470) and MixGRPO (arXiv 2507.21802). Times, noise
levels and the window's start are traced: moving a window never recompiles.
The matching loss of a sample x0 is

  nll = mean over the event of (net(x_t, t, c) - (x1 - x0))^2            (2)

with t and x1 drawn from the row's key. Nets that come from a discrete process
(`diffusion.ddpm`) are sampled on its grid, from s_0 < 1 to s_T >= 0: in the
units of that process, where variances are preserved, the first state is
standard normal and the last one is the sample. Times, log-probs and step
arithmetic are float32 whatever the net computes in.
"""

from collections.abc import Mapping
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen_rl import build
from gen_rl.build import ConfigError
from gen_rl.diffusion import process, schedules, solvers, transitions
from gen_rl.distributions import Gaussian, decision_keys
from gen_rl.fields import Count, Fraction, Index, NonNegative, Positive, Share
from gen_rl.models import flow_files
from gen_rl.models.layers import Net
from gen_rl.policies import guidance, ode
from gen_rl.types import (
  Array,
  Noised,
  Params,
  Policy,
  Rows,
  Trajectory,
)
from gen_rl.utils import rng, tree


class Decision(NamedTuple):
  """The fields of a Trajectory that have a place per decision."""

  states: Array  # [b k ...]
  actions: Array  # [b k ...]
  times: Array  # [b k 2]
  noise: Array  # [b k]
  log_prob: Array  # [b k]
  mask: Array  # [b k]


def denoising(
  net: Net,
  steps: Count = 8,
  shift: Positive = 1.0,
  transition: Mapping[str, Any] | None = None,
  noise: NonNegative = 0.8,
  window: Index = 0,
  window_low: Index = 0,
  window_high: Index = 0,
  window_start: Mapping[str, Any] | None = None,
  guidance_scale: NonNegative = 1.0,
  guidance_gradient: Literal['both', 'conditional'] = 'both',
  event: Literal['mean', 'sum'] = 'mean',
  unit_log_prob: bool = False,
  time_mean: float = 0.0,
  time_std: NonNegative = 1.0,
  training_times: Mapping[str, Any] | None = None,
  null_prob: Fraction = 0.0,
  solver: Literal['euler', 'dpm2'] = 'euler',
  tail: Share = 1.0,
  shared_noise: bool = False,
  deterministic: bool = False,
  grid: Mapping[str, Any] | None = None,
) -> Policy:
  """A denoising policy.

  Args:
    net: the velocity network.
    steps: denoising steps T of a rollout.
    shift: time shift of the grid, see `schedules.linear`.
    transition: spec of a function of `diffusion.transitions`.
    noise: noise level a of the trained steps.
    window: trained steps w; 0 trains all T - 1.
    window_low: first step a window may hold.
    window_high: one past the last; 0 is T - 1.
    window_start: spec of `fixed_window`, `random_window` or
      `progressive_window` of `diffusion.schedules`.
    guidance_scale: classifier-free guidance, 1 is off. Applied in sampling
      and scoring alike, not in matching losses, which fit the net itself.
    guidance_gradient: 'both' halves of a guided velocity are differentiated,
      as the policy that samples has it, or the 'conditional' one alone: faster,
      and biased (`policies.guidance`).
    event: a decision's log-prob is the 'mean' or the 'sum' over the latent's
      dimensions.
    unit_log_prob: drop 1 / (2 std^2) and the constants from the log-prob, as
      Flow-CPS does (arXiv 2509.05952).
    time_mean: mean of the logit-normal training times of (2).
    time_std: their standard deviation.
    training_times: spec of a function of `diffusion.schedules` that draws them
      in place of that: `levels`; None, or the name '': logit-normal ones.
    null_prob: share of rows whose condition is dropped in (2), for guidance.
    solver: of the noise-free steps outside of the window, see
      `diffusion.solvers`.
    tail: share of the steps after the window that is taken: longer ones, to
      save time (MixGRPO-Flash).
    shared_noise: the members of a group start from the same noise, as in
      DanceGRPO (arXiv 2505.07818).
    deterministic: no step takes noise, so none is trained: for objectives that
      need samples only.
    grid: spec of a function of `diffusion.schedules` that gives T + 1 times, in
      place of `schedules.linear` with `shift`; None, or the name '': that.
  """
  solvers.check(solver)
  if not 0 < tail <= 1:
    raise ConfigError(f'policy: tail={tail} must be in (0, 1]')
  transition = dict(transition or dict(name='cps'))
  step_fn, step_name = build.build(transitions, transition), transition['name']
  if not deterministic:
    transitions.check_noise(step_name, noise)
  high = window_high or steps - 1
  width = window or steps - 1
  if not 0 < width <= high - window_low or high > steps - 1:
    raise ValueError(
      f'policy: a window of {width} steps does not fit between window_low='
      f'{window_low} and window_high={high}; with steps={steps} the last step '
      f'is noise-free and window_high is at most {steps - 1}'
    )
  start_spec = dict(window_start or dict(name='fixed_window'))
  if start_spec['name'] == 'fixed_window':
    first = start_spec.setdefault('start', window_low)
    if not 0 <= first <= steps - 1 - width:
      raise ValueError(
        f'policy: a window of {width} steps cannot start at step {first}; with '
        f'steps={steps} it may start at 0..{steps - 1 - width}'
      )
  own_grid = bool(grid and grid['name'])
  if own_grid and tail < 1:
    raise ConfigError(
      f'policy: tail={tail} shortens the linear grid; with grid={grid["name"]} '
      'it has to be 1'
    )
  times, (first_unit, last_unit) = ode.grid_of(grid, steps, shift)
  guided = guidance.cfg(net, guidance_scale, guidance_gradient)
  scale = 'unit' if unit_log_prob else 'full'

  def grid_of(start: Array) -> tuple[Array, int | Array]:
    if own_grid:
      return times, steps
    return schedules.compressed_tail(steps, start + width, tail, shift)

  def window_of(rows: Rows, step: Array) -> Array:
    return build.build(
      schedules,
      start_spec,
      key=rows.key,
      iteration=step,
      window=width,
      low=window_low,
      high=high,
    )

  def kernel(x: Array, v: Array, t: Array, t_next: Array, a: Array) -> Gaussian:
    """(1) for decisions [b k]: x, v [b k ...], times and levels [b k]."""
    mean, std = step_fn(x, v, t, t_next, a)
    return Gaussian(mean, std, event=event, scale=scale)

  def rollout(params: Params, rows: Rows, step: Array) -> Trajectory:
    b = rows.group.shape[0]
    start = window_of(rows, step)
    grid, count = grid_of(start)
    level = 0.0 if deterministic else noise
    levels = schedules.noise_levels(steps, level, start, width)
    init_keys = rows.group_keys if shared_noise else rows.keys
    x = rng.normal(rng.stream_keys(init_keys, 'init'), net.shape) * first_unit
    prompt = guided.encode(params, rows.cond)

    def body(i: Array, carry: tuple) -> tuple:
      x, memory, kept = carry
      t, t_next, a = (
        jnp.full((b, 1), value) for value in (grid[i], grid[i + 1], levels[i])
      )
      v = guided.apply(params, x, t[:, 0], prompt)
      dist = kernel(x[:, None], v[:, None], t, t_next, a)
      action = dist.sample(rng.step_keys(rows.keys, i)[:, None])
      inside = (i >= start) & (i < start + width)
      noisy = inside & (not deterministic)
      free, memory = solvers.step(
        solver, x, v, grid[i], grid[i + 1], memory, noise_free=~noisy
      )
      if solver == 'euler':
        x_next = action[:, 0]
      else:
        x_next = jnp.where(noisy, action[:, 0], free)
      new = Decision(
        states=x[:, None],
        actions=action,
        times=jnp.stack([t, t_next], -1),
        noise=a,
        log_prob=dist.log_prob(action),
        mask=(dist.std > 0).astype(jnp.float32),
      )
      place = jnp.where(inside, i - start, width)  # outside: dropped
      kept = jax.tree.map(
        lambda all, one: all.at[:, place].set(one[:, 0], mode='drop'), kept, new
      )
      return x_next, memory, kept

    def buffer(*shape: int) -> Array:
      return jnp.zeros((b, width, *shape), jnp.float32)

    kept = Decision(
      states=buffer(*net.shape),
      actions=buffer(*net.shape),
      times=buffer(2),
      noise=buffer(),
      log_prob=buffer(),
      mask=buffer(),
    )
    start_carry = (x, solvers.empty(x), kept)
    sample, _, kept = jax.lax.fori_loop(0, count, body, start_carry)
    return Trajectory(
      cond=rows.cond,
      sample=sample / last_unit,
      group=rows.group,
      **kept._asdict(),
    )

  def complete(
    params: Params, rows: Rows, step: Array, traj: Trajectory
  ) -> Array:
    start = window_of(rows, step)
    grid, count = grid_of(start)
    prompt = guided.encode(params, rows.cond)
    b = rows.group.shape[0]

    def velocity_of(x: Array, t: Array) -> Array:  # x [m b ...]
      m = x.shape[0]
      tiled = jax.tree.map(
        lambda c: jnp.tile(c, (m, *(1 for _ in c.shape[1:]))), prompt
      )
      flat = x.reshape(m * b, *net.shape)
      v = guided.apply(params, flat, jnp.full(m * b, t), tiled)
      return v.reshape(x.shape)

    x = jnp.zeros((0, b, *net.shape))
    for j in range(width):  # one more to finish at each decision
      x = jnp.concatenate([x, traj.states[:, j][None]])
      t, t_next = grid[start + j], grid[start + j + 1]
      x = x + velocity_of(x, t) * (t_next - t)

    def body(i: Array, carry: tuple) -> tuple:
      x, memory = carry
      v = velocity_of(x, grid[i])
      return solvers.step(solver, x, v, grid[i], grid[i + 1], memory)

    carry = (x, solvers.empty(x))
    x, _ = jax.lax.fori_loop(start + width, count, body, carry)
    return x.swapaxes(0, 1) / last_unit

  def finish(
    params: Params, traj: Trajectory, cut: Array, detach_inputs: bool = False
  ) -> Array:
    if start_spec['name'] != 'fixed_window' or first + width != steps - 1:
      raise ConfigError(
        'gradients through samples need a window that stays at the last noisy '
        f'steps: set policy.window_low={steps - 1 - width} and '
        'policy.window_start.name="fixed_window"'
      )
    prompt = guided.encode(params, traj.cond)
    x = jax.lax.stop_gradient(traj.states[:, 0])

    @functools.partial(jax.checkpoint, static_argnums=2)
    def move(params_and_prompt, x, j):
      params, prompt = params_and_prompt
      t, t_next, a = (
        (traj.times[:, j, 0], traj.times[:, j, 1], traj.noise[:, j])
        if j < width
        else (traj.times[:, -1, 1], times[-1] + 0.0 * cut, 0.0 * cut)
      )
      seen = jax.lax.stop_gradient(x) if detach_inputs else x
      v = guided.apply(params, seen, t, prompt).astype(jnp.float32)
      live = process.expand(j >= cut, v) > 0
      v = jnp.where(live, v, jax.lax.stop_gradient(v))
      mean, _ = step_fn(x, v, t, t_next, a)
      if j == width:
        return mean
      # The stored action, to the bit, with the gradient of the mean.
      return traj.actions[:, j] + (mean - jax.lax.stop_gradient(mean))

    for j in range(width + 1):
      x = move((params, prompt), x, j)
    return x / last_unit

  def flat_velocity(net, params: Params, x: Array, t: Array, cond) -> Array:
    """Velocities [b k ...] at x [b k ...], t [b k]."""
    b, k = t.shape
    prompt = net.encode(params, cond)
    prompt = jax.tree.map(lambda c: jnp.repeat(c, k, axis=0), prompt)
    flat = x.reshape(b * k, *x.shape[2:])
    return net.apply(params, flat, t.reshape(-1), prompt).reshape(x.shape)

  def as_sampled(params: Params, traj: Trajectory) -> Array:
    t = traj.times[..., 0]
    return flat_velocity(guided, params, traj.states, t, traj.cond)

  def velocity(params: Params, traj: Trajectory) -> Array:
    return as_sampled(params, traj).astype(jnp.float32)

  def velocity_at(params: Params, traj: Trajectory, at: Noised) -> Array:
    v = flat_velocity(net, params, at.x, at.t, traj.cond)
    return v.astype(jnp.float32)

  def dist(params: Params, traj: Trajectory) -> Gaussian:
    v = as_sampled(params, traj)
    t, t_next = traj.times[..., 0], traj.times[..., 1]
    return kernel(traj.states, v, t, t_next, traj.noise)

  def times_of(keys: Array) -> Array:
    if training_times and training_times['name']:
      return build.build(schedules, training_times, keys=keys)
    return schedules.logit_normal(keys, time_mean, time_std, shift)

  def corrupted(x0: Array, keys: Array, draws: int) -> Noised:
    keys = decision_keys(keys, (len(keys), 2 * draws)).reshape(-1, 2)
    t = times_of(keys[:, 0])
    x1 = rng.normal(keys[:, 1], net.shape)
    x = process.corrupt(jnp.repeat(x0, draws, axis=0), x1, t)
    return Noised(
      x=x.reshape(-1, draws, *net.shape),
      t=t.reshape(-1, draws),
      x0=x0,
      x1=x1.reshape(-1, draws, *net.shape),
    )

  def noised(
    params: Params, traj: Trajectory, keys: Array, draws: int = 1
  ) -> Noised:
    del params
    return corrupted(traj.sample, keys, draws)

  def nll(params: Params, traj: Trajectory, keys: Array) -> Array:
    cond = traj.cond
    if null_prob > 0:
      drop_keys = rng.stream_keys(keys, 'null')
      drop = jax.vmap(jax.random.bernoulli, (0, None))(drop_keys, null_prob)
      cond = tree.where(drop, net.null(cond), cond)
    at = corrupted(traj.sample, keys, 1)
    v = flat_velocity(net, params, at.x, at.t, cond)
    return process.matching_error(v, at)[:, 0]

  def decode(params: Params, latent: Array) -> Array:
    if net.decode:
      return net.decode(params, latent)
    return process.clip((latent + 1.0) / 2.0)

  def compress(params: Params, pictures: Array) -> Array:
    """Latents of pictures, which are brought to the size it makes itself."""
    latents = jax.ShapeDtypeStruct((1, *net.shape), jnp.float32)
    size = jax.eval_shape(net.decode, params, latents).shape[1:3]
    pictures = process.resized(pictures, size)
    return jax.lax.stop_gradient(net.compress(params, pictures))

  def load(folder: str, dtype: str) -> Params:
    flow_files.same_grid(folder, net.shape, grid, shift)
    return net.load(folder, dtype)

  ops = dict(
    dist=dist, nll=nll, velocity=velocity, velocity_at=velocity_at,
    noised=noised, complete=complete, finish=finish,
  )  # fmt: skip
  if net.compress:
    ops['compress'] = compress
  return Policy(
    net.init,
    rollout,
    decode,
    ops,
    axes=net.axes,
    load=load if net.load else None,
    save=net.save,
    adapt=net.adapt,
  )
