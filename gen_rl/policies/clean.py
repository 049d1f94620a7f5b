"""Clean samples of a denoising policy: made noisy again, seen, and encoded.

The matching loss of a sample x0 is

  nll = mean over the event of (net(x_t, t, c) - (x1 - x0))^2            (1)

with t and x1 drawn from the row's key.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_rl import build
from gen_rl.diffusion import process, schedules
from gen_rl.distributions import decision_keys
from gen_rl.models.parts.layers import Net
from gen_rl.policies import chain as chain_lib
from gen_rl.policies import starts
from gen_rl.types import Array, Noised, Params, Trajectory
from gen_rl.utils import rng, tree


class Clean(NamedTuple):
  """What the functions below share; see `denoising.denoising`."""

  chain: chain_lib.Chain
  times_of: Callable[[Array], Array]  # keys [n] -> times t of (1) [n]
  null_prob: float


def times_of(
  spec: Mapping[str, Any] | None, mean: float, std: float, shift: float
) -> Callable[[Array], Array]:
  """Of `Clean`: a function of `diffusion.schedules`, or logit-normal times."""
  if spec and spec['name']:
    return lambda keys: build.build(schedules, spec, keys=keys)
  return lambda keys: schedules.logit_normal(keys, mean, std, shift)


def noised(
  clean: Clean, params: Params, traj: Trajectory, keys: Array, draws: int = 1
) -> Noised:
  """Samples made noisy, see `capabilities`."""
  del params
  return _corrupted(clean, traj.sample, keys, draws)


def nll(clean: Clean, params: Params, traj: Trajectory, keys: Array) -> Array:
  """Equation (1), [b]."""
  cond, net = traj.cond, clean.chain.net
  if clean.null_prob > 0:
    drop_keys = rng.stream_keys(keys, 'null')
    drop = jax.vmap(jax.random.bernoulli, (0, None))(drop_keys, clean.null_prob)
    cond = tree.where(drop, net.null(cond), cond)
  at = _corrupted(clean, traj.sample, keys, 1)
  data = traj.replace(cond=cond)
  v = chain_lib.velocity_at(clean.chain, params, data, at)
  return process.matching_error(v, at)[:, 0]


def _corrupted(clean: Clean, x0: Array, keys: Array, draws: int) -> Noised:
  shape = clean.chain.net.shape
  keys = decision_keys(keys, (len(keys), 2 * draws)).reshape(-1, 2)
  t = clean.times_of(keys[:, 0])
  x1 = rng.normal(keys[:, 1], shape)
  x = process.corrupt(jnp.repeat(x0, draws, axis=0), x1, t)
  return Noised(
    x=x.reshape(-1, draws, *shape),
    t=t.reshape(-1, draws),
    x0=x0,
    x1=x1.reshape(-1, draws, *shape),
  )


def decode(net: Net, params: Params, latent: Array) -> Array:
  """Media of latents [b ...]."""
  if net.decode:
    return net.decode(params, latent)
  return process.clip((latent + 1.0) / 2.0)


def foresee(chain: chain_lib.Chain, params: Params, traj: Trajectory) -> Array:
  """Pictures [b k h w c] that stored states lead to, decoded."""
  net = chain.net
  v = chain_lib.velocity(chain, params, traj)
  x0 = process.x0_from_velocity(traj.states, v, traj.times[..., 0])
  media = decode(net, params, x0.reshape(-1, *net.shape))
  return media.reshape(*x0.shape[:2], *media.shape[1:])


def ops(clean: Clean) -> dict[str, Callable]:
  """Capabilities, by name."""
  net = clean.chain.net
  made = dict(
    nll=functools.partial(nll, clean),
    noised=functools.partial(noised, clean),
    foresee=functools.partial(foresee, clean.chain),
  )
  if net.compress:
    made['compress'] = functools.partial(starts.compress, net)
  return made
