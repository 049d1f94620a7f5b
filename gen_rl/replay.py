"""What an objective may ask of the policy, for one microbatch."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.types import (
  Array,
  Experience,
  Noised,
  Params,
  Policy,
  PyTree,
  Replay,
  RewardOut,
)
from gen_rl.utils import tree


def make(
  policy: Policy,
  copies: dict[str, Params],
  exp: Experience,
  first: Array | bool = False,
  score: Callable[..., RewardOut] | None = None,
) -> Replay:
  """Answers about stored decisions and samples; see `types.Replay`.

  Each copy is evaluated at most once on the decisions, and on samples noised
  alike, however many objectives ask.
  Only "params" carries gradients.

  Args:
    policy: what is trained.
    copies: {name: all parameters of the policy}.
    exp: the microbatch.
    first: [] the old parameters are the current ones, and so are the answers,
      to the bit.
    score: (copies["params"], samples, info, keys) -> RewardOut.
  """

  def of(which: str) -> Params:
    if which not in copies:
      raise ConfigError(
        f'an objective asks for the parameter copy {which!r}; this run '
        f'keeps {", ".join(copies)}'
      )
    return copies[which]

  def fixed(which: str, x: PyTree) -> PyTree:
    return x if which == 'params' else jax.lax.stop_gradient(x)

  def answer(which: str, ask: Callable[[str], PyTree], x: PyTree) -> PyTree:
    """Answer x of a copy, or of `first` old parameters that of the current.

    Where `first` is known when compiling, their own is not computed.
    """
    if which != 'old':
      return fixed(which, x)
    return tree.where(first, fixed(which, ask('params')), fixed(which, x))

  @functools.cache
  def dist(which: str):
    if not exp.traj.mask.shape[-1]:
      raise ConfigError(
        'an objective asks for decisions, and data holds none: they are of '
        "samples, rollout.name='policy'"
      )
    return answer(which, dist, policy.dist(of(which), exp.traj))

  @functools.cache
  def log_prob(which: str) -> Array:
    return dist(which).log_prob(exp.traj.actions)

  def nll(which: str, keys: Array) -> Array:
    return fixed(
      which, policy.nll(of(which), exp.traj.sample, exp.traj.cond, keys)
    )

  def predicts(function: Callable[..., Array] | None) -> Callable[..., Array]:
    if function is None:
      raise ConfigError('this policy does not predict velocities')
    return function

  @functools.cache
  def velocity(which: str) -> Array:
    traj, net = exp.traj, predicts(policy.guided_velocity)
    v = net(of(which), traj.states, traj.times[..., 0], traj.cond)
    return answer(which, velocity, v.astype(jnp.float32))

  # By identity: what two objectives ask alike is answered, and
  # differentiated, once. The questions are kept, so that no id comes back.
  asked: dict[tuple, tuple] = {}

  def once(key: tuple, question: PyTree, answer: Callable[[], PyTree]):
    if key not in asked:
      asked[key] = question, answer()
    return asked[key][1]

  def noised(keys: Array, draws: int = 1) -> Noised:
    draw = predicts(policy.noised)
    return once(
      ('noised', id(keys), draws),
      keys,
      lambda: draw(exp.traj.sample, keys, draws),
    )

  def velocity_at(which: str, at: Noised) -> Array:
    net = predicts(policy.velocity)

    def ask() -> Array:
      v = net(of(which), at.x, at.t, exp.traj.cond)
      v = v.astype(jnp.float32)
      return answer(which, lambda copy: velocity_at(copy, at), v)

    return once((which, id(at)), at, ask)

  def finish(which: str, cut: Array, detach_inputs: bool = False) -> Array:
    if policy.finish is None:
      raise ConfigError('gradients through samples need a policy that denoises')
    sample = policy.finish(of(which), exp.traj, cut, detach_inputs)
    return fixed(which, sample)

  def score_samples(sample: Array, keys: Array) -> RewardOut:
    if score is None:
      raise ConfigError(
        'gradients through rewards need rewards that are on the device and '
        'differentiable, such as shapes_detector or jpeg_compressibility'
      )
    return score(of('params'), sample, exp.info, keys)

  return Replay(
    dist,
    log_prob,
    nll,
    velocity,
    noised=noised,
    velocity_at=velocity_at,
    finish=finish,
    score=score_samples,
  )
