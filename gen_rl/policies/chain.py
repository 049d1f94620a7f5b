"""Denoising chains: their steps, which of them are decisions, what one does.

`policies.denoising` says what a chain is; here are the functions of it.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import build
from gen_rl.diffusion import caching, schedules, solvers
from gen_rl.distributions import Gaussian
from gen_rl.models.parts.layers import Net
from gen_rl.policies import branches as branches_lib
from gen_rl.policies import starts
from gen_rl.types import Array, Noised, Params, PyTree, Rows, Trajectory
from gen_rl.utils import rng


class Steps(NamedTuple):
  """The grid of a chain and the window of its steps that are decisions."""

  count: int  # T
  shift: float
  tail: float  # share of the steps after the window that is taken
  times: Array  # [T + 1]
  units: tuple[float, float]  # of a discrete process, at the ends of the grid
  own_grid: bool  # times are not those of shift
  width: int  # w, decisions
  low: int  # first step that may be one
  high: int  # one past the last
  start: Mapping[str, Any]  # spec of where the window starts
  first: int  # step that is taken first: 0, or later from a picture

  def grid(self, start: Array) -> tuple[Array, int | Array]:
    """(times, how many steps) of a rollout whose window starts there."""
    if self.own_grid:
      return self.times, self.count
    after = start + self.width
    return schedules.compressed_tail(self.count, after, self.tail, self.shift)

  def window(self, rows: Rows, step: Array) -> Array:
    """The first decision of update number `step`."""
    return build.build(
      schedules, self.start, key=rows.key, iteration=step, window=self.width,
      low=self.low, high=self.high,
    )  # fmt: skip

  def starts(self) -> np.ndarray:
    """Where the window may start."""
    if self.start['name'] == 'fixed_window':
      return np.array([self.start['start']])
    return np.arange(self.low, self.high - self.width + 1)


class Chain(NamedTuple):
  """What the functions below share; see `denoising.denoising`."""

  net: Net
  guided: Net
  steps: Steps
  # (x, v, t, t_next, noise) -> (mean, std), of `diffusion.transitions`
  move: Callable[..., tuple[Array, Array]]
  levels: Callable[[Array, Array], Array]  # (start, update) -> [T]
  spread: float  # share of them by which a row's may be lower
  branches: branches_lib.Branches | None  # None: all rows draw their own
  deterministic: bool
  solver: Literal['euler', 'dpm2']
  event: Literal['mean', 'sum']
  scale: Literal['full', 'unit']
  cache_threshold: caching.Threshold  # of steps that take no noise

  def kernel(
    self, x: Array, v: Array, t: Array, t_next: Array, a: Array
  ) -> Gaussian:
    """Where decisions [b k] lead: x, v [b k ...], times and levels [b k]."""
    mean, std = self.move(x, v, t, t_next, a)
    return Gaussian(mean, std, event=self.event, scale=self.scale)


class Decision(NamedTuple):
  """The fields of a Trajectory that have a place per decision."""

  states: Array  # [b k ...]
  actions: Array  # [b k ...]
  times: Array  # [b k 2]
  noise: Array  # [b k]
  log_prob: Array  # [b k]
  mask: Array  # [b k]


def rollout(
  chain: Chain, params: Params, rows: Rows, step: Array
) -> Trajectory:
  """Samples, keeping the decisions."""
  steps, net, guided = chain.steps, chain.net, chain.guided
  b, width = rows.group.shape[0], steps.width
  start = steps.window(rows, step)
  grid, count = steps.grid(start)
  levels = chain.levels(start, step)
  shared = chain.branches and branches_lib.share(chain.branches, rows, step)
  init_keys = rows.group_keys if shared else rows.keys
  noise = rng.normal(rng.stream_keys(init_keys, 'init'), net.shape)
  x = noise * steps.units[0]
  if steps.first:
    x = starts.noised(net, params, rows, noise, grid[steps.first])
  once = [branches_lib.Level(1, None)]
  if shared:
    once = branches_lib.levels(chain.branches, rows, shared)
  calls = _calls(guided, params, rows.cond, [level.size for level in once])

  def body(network: Callable[..., Array], i: Array, carry: tuple) -> tuple:
    x, memory, cache, kept = carry
    t, t_next, a = (
      jnp.full((b, 1), value) for value in (grid[i], grid[i + 1], levels[i])
    )
    keys = rng.step_keys(rows.keys, i)
    if shared:
      keys = shared.step_keys(i - start, i)
    if chain.spread:
      lower = rng.uniform(rng.stream_keys(keys, 'level'), (1,))
      a *= 1.0 - chain.spread * lower
    inside = (i >= start) & (i < start + width)
    noisy = inside & (not chain.deterministic)
    v, cache = caching.step(
      chain.cache_threshold,
      lambda x: network(i, x, t[:, 0]),
      x,
      cache,
      must=noisy | (i == count - 1),
      noise_free=~noisy,
    )
    dist = chain.kernel(x[:, None], v[:, None], t, t_next, a)
    chosen = dist.std > 0
    if shared:
      chosen &= shared.apart(i - start)[:, None]
    action = dist.sample(keys[:, None])
    free, memory = solvers.step(
      chain.solver, x, v, grid[i], grid[i + 1], memory, noise_free=~noisy
    )
    if chain.solver == 'euler':
      x_next = action[:, 0]
    else:
      x_next = jnp.where(noisy, action[:, 0], free)
    new = Decision(
      states=x[:, None],
      actions=action,
      times=jnp.stack([t, t_next], -1),
      noise=a,
      log_prob=dist.log_prob(action),
      mask=chosen.astype(jnp.float32),
    )
    place = jnp.where(inside, i - start, width)  # outside: dropped
    kept = jax.tree.map(
      lambda all, one: all.at[:, place].set(one[:, 0], mode='drop'), kept, new
    )
    return x_next, memory, cache, kept

  kept = _no_decisions(b, width, net.shape)
  cache = caching.empty(chain.cache_threshold, x)
  first = steps.starts()
  first = int(first[0]) if len(first) == 1 else start
  ends = [first + level.last + 1 for level in once[:-1]]
  carry = (x, solvers.empty(x), cache, kept)
  turn = functools.partial(_turn, calls, ends, steps.first, count)
  sample, _, cache, kept = turn(body, carry)
  return Trajectory(
    cond=rows.cond,
    sample=sample / steps.units[1],
    group=rows.group,
    reused=caching.reused(cache, count, b),
    spared=_spared(once, ends, steps, count, b),
    **kept._asdict(),
  )


def _calls(
  guided: Net, params: Params, cond: PyTree, sizes: list[int]
) -> list[Callable[[Array, Array], Array]]:
  """Calls (x [b ...], t [b]) -> v, of one of so many neighbours that are alike.

  Prompts are encoded once for the neighbours of the first size.
  """
  prompt = guided.encode(params, _first(cond, sizes[0]))

  def call(size: int) -> Callable[[Array, Array], Array]:
    def network(x: Array, t: Array) -> Array:
      asked = _repeat(prompt, sizes[0] // size)
      v = guided.apply(params, _first(x, size), _first(t, size), asked)
      return _repeat(v, size)

    return network

  return [call(size) for size in sizes]


def _first(x: PyTree, size: int) -> PyTree:
  """Of every so many neighbours, rows [b ...] -> [b/size ...]."""
  if size == 1:
    return x
  return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:])[:, 0], x)


def _repeat(x: PyTree, size: int) -> PyTree:
  """Its inverse where neighbours are the same."""
  return x if size == 1 else jax.tree.map(lambda a: jnp.repeat(a, size, 0), x)


def _turn(
  calls: list[Callable[[Array, Array], Array]],
  ends: list[int | Array],
  first: int,
  count: int | Array,
  body: Callable[..., tuple],
  carry: tuple,
) -> tuple:
  """Takes the steps of a chain.

  Where it is known when rows part, there is a loop for each call; else a step
  chooses its call.

  Args:
    calls: of the network, one after the other.
    ends: steps where the next call begins.
    first: the first step.
    count: one past the last.
    body: ((step, x, t) -> v, step, carry) -> carry.
    carry: before the first step.
  """
  if all(isinstance(end, int) for end in ends):
    lows = first, *ends
    for low, high, call in zip(lows, [*ends, count], calls, strict=True):
      own = functools.partial(body, lambda i, x, t, call=call: call(x, t))
      carry = jax.lax.fori_loop(low, high, own, carry)
    return carry

  def network(i: Array, x: Array, t: Array) -> Array:
    return jax.lax.switch((i >= jnp.stack(ends)).sum(), calls, x, t)

  own = functools.partial(body, network)
  return jax.lax.fori_loop(first, count, own, carry)


def _spared(
  once: list[branches_lib.Level],
  ends: list[int | Array],
  steps: Steps,
  count: int | Array,
  b: int,
) -> PyTree:
  """[b] what `_turn` spares of the steps before `count`."""
  if not ends:
    return ()
  i = jnp.arange(steps.first, steps.count)
  level = (i[:, None] >= jnp.asarray(ends)).sum(-1)
  computed = 1.0 / jnp.asarray([at.size for at in once], jnp.float32)[level]
  taken = jnp.where(i < count, computed, 0.0).sum()
  share = 1.0 - taken / (count - steps.first)
  return jnp.broadcast_to(share, (b,))


def _no_decisions(b: int, width: int, event: tuple[int, ...]) -> Decision:
  def buffer(*shape: int) -> Array:
    return jnp.zeros((b, width, *shape), jnp.float32)

  return Decision(
    states=buffer(*event),
    actions=buffer(*event),
    times=buffer(2),
    noise=buffer(),
    log_prob=buffer(),
    mask=buffer(),
  )


def complete(
  chain: Chain, params: Params, rows: Rows, step: Array, traj: Trajectory
) -> Array:
  """Samples [b k ...] finished without noise, see `capabilities`."""
  steps, net, guided = chain.steps, chain.net, chain.guided
  start = steps.window(rows, step)
  grid, count = steps.grid(start)
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
  for j in range(steps.width):  # one more to finish at each decision
    x = jnp.concatenate([x, traj.states[:, j][None]])
    t, t_next = grid[start + j], grid[start + j + 1]
    x = x + velocity_of(x, t) * (t_next - t)

  shape, x = x.shape, x.reshape(-1, *net.shape)

  def body(i: Array, carry: tuple) -> tuple:
    x, memory, cache = carry
    v, cache = caching.step(
      chain.cache_threshold,
      lambda x: velocity_of(x.reshape(shape), grid[i]).reshape(x.shape),
      x,
      cache,
      must=i == count - 1,
    )
    x, memory = solvers.step(chain.solver, x, v, grid[i], grid[i + 1], memory)
    return x, memory, cache

  carry = (x, solvers.empty(x), caching.empty(chain.cache_threshold, x))
  x, *_ = jax.lax.fori_loop(start + steps.width, count, body, carry)
  return x.reshape(shape).swapaxes(0, 1) / steps.units[1]


def velocities(
  net: Net, params: Params, x: Array, t: Array, cond: PyTree
) -> Array:
  """Velocities [b k ...] at x [b k ...], t [b k]."""
  b, k = t.shape
  prompt = net.encode(params, cond)
  prompt = jax.tree.map(lambda c: jnp.repeat(c, k, axis=0), prompt)
  flat = x.reshape(b * k, *x.shape[2:])
  return net.apply(params, flat, t.reshape(-1), prompt).reshape(x.shape)


def _as_sampled(chain: Chain, params: Params, traj: Trajectory) -> Array:
  t = traj.times[..., 0]
  return velocities(chain.guided, params, traj.states, t, traj.cond)


def dist(chain: Chain, params: Params, traj: Trajectory) -> Gaussian:
  """Of the stored decisions."""
  v = _as_sampled(chain, params, traj)
  t, t_next = traj.times[..., 0], traj.times[..., 1]
  return chain.kernel(traj.states, v, t, t_next, traj.noise)


def velocity(chain: Chain, params: Params, traj: Trajectory) -> Array:
  """At the stored states, after guidance, [b k ...] float32."""
  return _as_sampled(chain, params, traj).astype(jnp.float32)


def velocity_at(
  chain: Chain,
  params: Params,
  traj: Trajectory,
  at: Noised,
  null: bool = False,
) -> Array:
  """Of the net itself at noised samples, [b k ...] float32."""
  cond = chain.net.null(traj.cond) if null else traj.cond
  return velocities(chain.net, params, at.x, at.t, cond).astype(jnp.float32)


def ops(chain: Chain) -> dict[str, Callable]:
  """Capabilities, by name."""
  functions = dist, velocity, velocity_at, complete
  return {f.__name__: functools.partial(f, chain) for f in functions}


def window(
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
