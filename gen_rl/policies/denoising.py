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

with t and x1 drawn from the row's key. Times, log-probs and step arithmetic
are float32 whatever the net computes in.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gen_rl import build
from gen_rl.diffusion import guidance, process, schedules, transitions
from gen_rl.distributions import Gaussian
from gen_rl.models.layers import Net
from gen_rl.types import Array, Params, Policy, PyTree, Rows, Trajectory
from gen_rl.utils import rng, tree


def denoising(
  net: Net,
  steps: int = 8,
  shift: float = 1.0,
  transition: Mapping[str, Any] | None = None,
  noise: float = 0.8,
  window: int = 0,
  window_low: int = 0,
  window_high: int = 0,
  window_start: Mapping[str, Any] | None = None,
  guidance_scale: float = 1.0,
  event: Literal['mean', 'sum'] = 'mean',
  unit_log_prob: bool = False,
  time_mean: float = 0.0,
  time_std: float = 1.0,
  null_prob: float = 0.0,
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
      and scoring alike.
    event: a decision's log-prob is the 'mean' or the 'sum' over the latent's
      dimensions.
    unit_log_prob: drop 1 / (2 std^2) and the constants from the log-prob, as
      Flow-CPS does (arXiv 2509.05952).
    time_mean: mean of the logit-normal training times of (2).
    time_std: their standard deviation.
    null_prob: share of rows whose condition is dropped in (2), for guidance.
  """
  step_fn = build.build(transitions, dict(transition or dict(name='cps')))
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
  guided = guidance.cfg(net, guidance_scale)
  scale = 'unit' if unit_log_prob else 'full'

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
    grid = schedules.linear(steps, shift)
    start = window_of(rows, step)
    levels = schedules.noise_levels(steps, noise, start, width)
    x = rng.normal(rng.stream_keys(rows.keys, 'init'), net.shape)
    prompt = guided.encode(params, rows.cond)

    def body(x: Array, i: Array) -> tuple[Array, tuple[Array, ...]]:
      t, t_next, a = (
        jnp.full((b, 1), value) for value in (grid[i], grid[i + 1], levels[i])
      )
      v = guided.apply(params, x, t[:, 0], prompt)
      dist = kernel(x[:, None], v[:, None], t, t_next, a)
      action = dist.sample(rng.step_keys(rows.keys, i)[:, None])
      log_prob = dist.log_prob(action)
      mask = (dist.std > 0).astype(jnp.float32)
      times = jnp.stack([t, t_next], -1)
      return action[:, 0], (x, action[:, 0], times, a, log_prob, mask)

    sample, kept = jax.lax.scan(body, x, jnp.arange(steps))
    kept = [
      jax.lax.dynamic_slice_in_dim(value, start, width).swapaxes(0, 1)
      for value in kept
    ]
    states, actions, times, a, log_prob, mask = kept
    return Trajectory(
      cond=rows.cond,
      states=states,
      actions=actions,
      times=times[:, :, 0],
      noise=a[..., 0],
      log_prob=log_prob[..., 0],
      mask=mask[..., 0],
      sample=sample,
      group=rows.group,
    )

  def velocity(params: Params, traj: Trajectory) -> Array:
    b, k = traj.noise.shape
    x = traj.states.reshape(b * k, *net.shape)
    prompt = guided.encode(params, traj.cond)
    prompt = jax.tree.map(lambda c: jnp.repeat(c, k, axis=0), prompt)
    v = guided.apply(params, x, traj.times[..., 0].reshape(-1), prompt)
    return v.reshape(traj.states.shape)

  def dist(params: Params, traj: Trajectory) -> Gaussian:
    t, t_next = traj.times[..., 0], traj.times[..., 1]
    v = velocity(params, traj)
    return kernel(traj.states, v, t, t_next, traj.noise)

  def nll(params: Params, x0: Array, cond: PyTree, keys: Array) -> Array:
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    t = schedules.logit_normal(keys[:, 0], time_mean, time_std, shift)
    x1 = rng.normal(keys[:, 1], net.shape)
    if null_prob > 0:
      drop = jax.vmap(jax.random.bernoulli, (0, None))(keys[:, 2], null_prob)
      cond = tree.where(drop, net.null(cond), cond)
    prompt = net.encode(params, cond)
    v = net.apply(params, process.corrupt(x0, x1, t), t, prompt)
    return jnp.mean(jnp.square(v - (x1 - x0)), tuple(range(1, x0.ndim)))

  def decode(params: Params, latent: Array) -> Array:
    del params
    return jnp.clip((latent + 1.0) / 2.0, 0.0, 1.0)

  return Policy(net.init, rollout, dist, nll, decode, velocity)


def ode_sampler(
  net: Net, steps: int, shift: float = 1.0, guidance_scale: float = 1.0
) -> Callable[[Params, Rows], Array]:
  """Deterministic Euler sampling for evaluation.

  Returns:
    (params, rows) -> latents [b h w c]; the initial noise is that of a
    rollout with the same row keys.
  """
  guided = guidance.cfg(net, guidance_scale)

  def sample(params: Params, rows: Rows) -> Array:
    grid = schedules.linear(steps, shift)
    x = rng.normal(rng.stream_keys(rows.keys, 'init'), net.shape)
    prompt = guided.encode(params, rows.cond)

    def body(x: Array, i: Array) -> tuple[Array, None]:
      t = jnp.full(x.shape[0], grid[i])
      v = guided.apply(params, x, t, prompt)
      return x + v * (grid[i + 1] - grid[i]), None

    return jax.lax.scan(body, x, jnp.arange(steps))[0]

  return sample
