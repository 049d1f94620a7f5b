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
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gen_rl import build
from gen_rl.build import ConfigError
from gen_rl.diffusion import process, schedules, solvers, transitions
from gen_rl.distributions import decision_keys
from gen_rl.fields import Count, Fraction, Index, NonNegative, Positive, Share
from gen_rl.models import flow_files
from gen_rl.models.parts.layers import Net
from gen_rl.policies import chain as chain_lib
from gen_rl.policies import guidance, ode
from gen_rl.types import (
  Array,
  Noised,
  Params,
  Policy,
  Trajectory,
)
from gen_rl.utils import rng, tree


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
  times, units = ode.grid_of(grid, steps, shift)
  own_grid = bool(grid and grid['name'])
  if own_grid and tail < 1:
    raise ConfigError(
      f'policy: tail={tail} shortens the linear grid; with grid={grid["name"]} '
      'it has to be 1'
    )
  width, high, start = _window(
    steps, window, window_low, window_high, window_start
  )
  chain = chain_lib.Chain(
    net,
    guidance.cfg(net, guidance_scale, guidance_gradient),
    chain_lib.Steps(
      steps, shift, tail, times, units, own_grid, width, window_low, high, start
    ),
    step_fn,
    noise,
    deterministic,
    shared_noise,
    solver,
    event,
    'unit' if unit_log_prob else 'full',
  )

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
    data = traj.replace(cond=cond)
    v = chain_lib.velocity_at(chain, params, data, at)
    return process.matching_error(v, at)[:, 0]

  def decode(params: Params, latent: Array) -> Array:
    if net.decode:
      return net.decode(params, latent)
    return process.clip((latent + 1.0) / 2.0)

  def foresee(params: Params, traj: Trajectory) -> Array:
    """Pictures [b k h w c], decoded."""
    v = chain_lib.velocity(chain, params, traj)
    x0 = process.x0_from_velocity(traj.states, v, traj.times[..., 0])
    media = decode(params, x0.reshape(-1, *net.shape))
    return media.reshape(*x0.shape[:2], *media.shape[1:])

  def compress(params: Params, pictures: Array) -> Array:
    """Latents of pictures, which are brought to the size it makes itself."""
    latents = jax.ShapeDtypeStruct((1, *net.shape), jnp.float32)
    size = jax.eval_shape(net.decode, params, latents).shape[1:3]
    pictures = process.resized(pictures, size)
    return jax.lax.stop_gradient(net.compress(params, pictures))

  def load(folder: str, dtype: str) -> Params:
    flow_files.same_grid(folder, net.shape, grid, shift)
    return net.load(folder, dtype)

  of_chain = (
    chain_lib.dist, chain_lib.velocity, chain_lib.velocity_at,
    chain_lib.complete, chain_lib.finish,
  )  # fmt: skip
  ops = {op.__name__: functools.partial(op, chain) for op in of_chain}
  ops |= dict(nll=nll, noised=noised, foresee=foresee)
  if net.compress:
    ops['compress'] = compress
  return Policy(
    net.init,
    functools.partial(chain_lib.rollout, chain),
    decode,
    ops,
    axes=net.axes,
    load=load if net.load else None,
    save=net.save,
    adapt=net.adapt,
  )


def _window(
  steps: int,
  window: int,
  low: int,
  high: int,
  start: Mapping[str, Any] | None,
) -> tuple[int, int, dict[str, Any]]:
  """(decisions w, one past the last that may be one, spec of the start).

  Raises:
    ValueError: they do not fit.
  """
  high = high or steps - 1
  width = window or steps - 1
  if not 0 < width <= high - low or high > steps - 1:
    raise ValueError(
      f'policy: a window of {width} steps does not fit between window_low='
      f'{low} and window_high={high}; with steps={steps} the last step '
      f'is noise-free and window_high is at most {steps - 1}'
    )
  spec = dict(start or dict(name='fixed_window'))
  if spec['name'] == 'fixed_window':
    first = spec.setdefault('start', low)
    if not 0 <= first <= steps - 1 - width:
      raise ValueError(
        f'policy: a window of {width} steps cannot start at step {first}; with '
        f'steps={steps} it may start at 0..{steps - 1 - width}'
      )
  return width, high, spec
