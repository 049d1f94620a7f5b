"""A flow model as a policy: every noisy denoising step is a decision.

State x_t, action x_t', and one kernel that both samples and scores:

  v = net(x_t, t, c),   x_t' ~ N(mean(x_t, v, t, t'), std(t, t')^2)      (1)

with the transition of `diffusion.transitions`. The last step takes no noise,
so at most T - 1 of T steps are trained. A window trains (and makes noisy)
only w consecutive steps; the others are Euler steps of the ODE, as in
Flow-GRPO-Fast (arXiv 2505.05470) and MixGRPO (arXiv 2507.21802). Levels may
differ from step to step (`diffusion.noise`), and the rows of a group may share
the noise of the first decisions (`policies.branches`). Times, noise levels,
branches and the window's start are traced: moving one never recompiles.
Nets that come from a discrete process (`diffusion.ddpm`) are sampled on its
grid, from s_0 < 1 to s_T >= 0: in the units of that process, where variances
are preserved, the first state is standard normal and the last one is the
sample. Times, log-probs and step arithmetic are float32 whatever the net
computes in.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Annotated, Any, Literal

from gen_rl import build
from gen_rl.build import ConfigError
from gen_rl.diffusion import solvers, transitions
from gen_rl.fields import (
  Count,
  Fraction,
  Index,
  NonNegative,
  Positive,
  Share,
  between,
)
from gen_rl.models import flow_files
from gen_rl.models.parts.layers import Net
from gen_rl.policies import branches, guidance, levels, ode, starts, through
from gen_rl.policies import chain as chain_lib
from gen_rl.policies import clean as clean_lib
from gen_rl.types import (
  Params,
  Policy,
)


def denoising(
  net: Net,
  steps: Count = 8,
  shift: Positive = 1.0,
  transition: Mapping[str, Any] | None = None,
  noise: NonNegative = 0.8,
  noise_schedule: Mapping[str, Any] | None = None,
  noise_spread: Annotated[float, between(0, 0.9)] = 0.0,
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
  begin: Share = 1.0,
  shared_noise: bool = False,
  branch: Mapping[str, Any] | None = None,
  deterministic: bool = False,
  grid: Mapping[str, Any] | None = None,
  cache_threshold: NonNegative = 0.0,
) -> Policy:
  """A denoising policy.

  Args:
    net: the velocity network.
    steps: denoising steps T of a rollout.
    shift: time shift of the grid, see `schedules.linear`.
    transition: spec of a function of `diffusion.transitions`.
    noise: noise level a of the trained steps.
    noise_schedule: spec of a function of `diffusion.noise`, which gives a
      factor of that per step; None, or the name '': 1.
    noise_spread: share by which a row's level may be lower, drawn for every row
      and step, uniformly (R0, arXiv 2503.13070); not measured yet.
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
    time_mean: mean of the logit-normal times of matching losses, see
      `policies.clean`.
    time_std: their standard deviation.
    training_times: spec of a function of `diffusion.schedules` that draws them
      in place of that: `levels`; None, or the name '': logit-normal ones.
    null_prob: share of rows whose condition matching losses drop, for guidance.
    solver: of the noise-free steps outside of the window, see
      `diffusion.solvers`.
    tail: share of the steps after the window that is taken: longer ones, to
      save time (MixGRPO-Flash).
    begin: share of the steps that is taken; below 1 a chain starts at the row's
      picture, made noisy (`policies.starts`), and no window before; not
      measured yet. Evaluation by the ODE starts at noise.
    shared_noise: the members of a group start from the same noise, as in
      DanceGRPO (arXiv 2505.07818): a branch before all decisions.
    branch: spec of a function of `policies.branches`: they share the noise of
      the first decisions, too, which are not trained; None, or the name '':
      steps draw noise of their own.
    deterministic: no step takes noise, so none is trained: for objectives that
      need samples only.
    grid: spec of a function of `diffusion.schedules` that gives T + 1 times, in
      place of `schedules.linear` with `shift`; None, or the name '': that.
    cache_threshold: above 0, steps without noise may take the velocity of one
      before while it is thought to change by less than this share
      (`diffusion.caching`); a row's sample then depends on those beside it.
      Trained steps are always computed.
  """
  solvers.check(solver)
  grid_and_window = _steps(
    steps, shift, tail, grid, window, window_low, window_high, window_start,
    begin,
  )  # fmt: skip
  move, noise_levels, shared = _noise(
    transition, noise, noise_schedule, branch, shared_noise, deterministic,
    grid_and_window,
  )  # fmt: skip
  chain = chain_lib.Chain(
    net,
    guidance.cfg(net, guidance_scale, guidance_gradient),
    grid_and_window,
    move,
    noise_levels,
    noise_spread,
    shared,
    deterministic,
    solver,
    event,
    'unit' if unit_log_prob else 'full',
    cache_threshold,
  )
  times = clean_lib.times_of(training_times, time_mean, time_std, shift)
  clean = clean_lib.Clean(chain, times, null_prob)
  return Policy(
    net.init,
    functools.partial(chain_lib.rollout, chain),
    functools.partial(clean_lib.decode, net),
    {**chain_lib.ops(chain), **through.ops(chain), **clean_lib.ops(clean)},
    axes=net.axes,
    load=_loader(net, grid, shift),
    save=net.save,
    adapt=net.adapt,
  )


def _loader(
  net: Net, grid: Mapping[str, Any] | None, shift: float
) -> Callable[[str, str], Params] | None:
  """(folder, dtype) -> parameters of a released network of the same grid."""
  if not net.load:
    return None

  def load(folder: str, dtype: str) -> Params:
    flow_files.same_grid(folder, net.shape, grid, shift)
    return net.load(folder, dtype)

  return load


def _steps(
  steps: int,
  shift: float,
  tail: float,
  grid: Mapping[str, Any] | None,
  window: int,
  low: int,
  high: int,
  start: Mapping[str, Any] | None,
  begin: float,
) -> chain_lib.Steps:
  """The grid and its window, of keywords of `denoising`."""
  if not 0 < tail <= 1:
    raise ConfigError(f'policy: tail={tail} must be in (0, 1]')
  times, units = ode.grid_of(grid, steps, shift)
  own_grid = bool(grid and grid['name'])
  if own_grid and tail < 1:
    raise ConfigError(
      f'policy: tail={tail} shortens the linear grid; with grid={grid["name"]} '
      'it has to be 1'
    )
  first = starts.first_step(begin, steps)
  if first:
    window, low = window or steps - 1 - first, low or first
  width, high, start = chain_lib.window(steps, window, low, high, start)
  made = chain_lib.Steps(
    steps, shift, tail, times, units, own_grid, width, low, high, start, first
  )
  if (at := made.starts().min()) < first:
    raise ConfigError(
      f'policy.begin={begin:g} starts at step {first} of {steps}, and the '
      f'window at step {at}: set policy.window_low to {first} or more, and '
      f'policy.window to at most {steps - 1 - first}'
    )
  return made


def _noise(
  transition: Mapping[str, Any] | None,
  noise: float,
  schedule: Mapping[str, Any] | None,
  branch: Mapping[str, Any] | None,
  shared_noise: bool,
  deterministic: bool,
  steps: chain_lib.Steps,
) -> tuple[Callable, Callable, branches.Branches | None]:
  """How steps move, how much noise they take, and who shares it."""
  transition = dict(transition or dict(name='cps'))
  move, name = build.build(transitions, transition), transition['name']
  if not deterministic:
    transitions.check_noise(name, noise)
  for key, spec in dict(noise_schedule=schedule, branch=branch).items():
    if deterministic and spec and spec['name']:
      raise ConfigError(
        f'policy.{key} is {spec["name"]!r}, and policy.deterministic is True: '
        f"steps take no noise; set policy.{key}.name=''"
      )
  most = transitions.LIMITS.get(name, math.inf)
  level = 0.0 if deterministic else noise
  shared = None
  if branch and branch['name']:
    shared = build.build(branches, branch, decisions=steps.width)
  elif shared_noise:
    shared = branches.fixed_branches(steps.width, (0,))
  return move, levels.make(schedule, level, steps, move, most), shared
