"""What an objective may ask of the policy, for one microbatch."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from gen_rl import capabilities
from gen_rl.build import ConfigError
from gen_rl.types import Array, Experience, Params, Policy, Replay, RewardOut
from gen_rl.utils import tree

Ops = Mapping[str, Callable[..., Any]]


def make(
  policy: Policy,
  copies: Mapping[str, Params],
  exp: Experience,
  first: Array | bool = False,
  score: Callable[..., RewardOut] | None = None,
  learners: Mapping[str, tuple[Ops, Params]] = MappingProxyType({}),
  live: str = 'params',
) -> Replay:
  """Answers about stored decisions and samples; see `types.Replay`.

  A question that several objectives ask alike is answered, and differentiated,
  once: alike are those of the same copy, capability and arguments, numbers by
  value and arrays by identity. Only `live` carries gradients.

  Args:
    policy: what is trained.
    copies: {name: all parameters of the policy}.
    exp: the microbatch.
    first: [] the old parameters are the current ones, and so are the answers,
      to the bit.
    score: (copies["params"], samples, exp, keys) -> RewardOut.
    learners: {label: (capabilities, parameters)}.
    live: "params", or the learner that is "self".
  """
  # The questions are kept beside the answers, so that no id comes back.
  known: dict[tuple, tuple[tuple, Any]] = {}

  def ask(which: str, op: str, *args: Any) -> Any:
    which = live if which == 'self' else which
    question = (which, op, *(_identity(x) for x in args))
    if question not in known:
      known[question] = args, answer(which, op, args)
    return known[question][1]

  def answer(which: str, op: str, args: tuple) -> Any:
    if which in learners:
      ops, params = learners[which]
    elif which in copies:
      ops, params = policy.ops, copies[which]
    else:
      beside = f', and learners {", ".join(learners)}' if learners else ''
      raise ConfigError(
        f'asks for the parameter copy {which!r}; this run keeps '
        f'{", ".join(copies)}{beside}'
      )
    if op == 'log_prob' and op not in ops:
      return ask(which, 'dist').log_prob(exp.traj.actions)
    function = capabilities.find(ops, op)
    if op in _OF_DECISIONS and not exp.traj.mask.shape[-1]:
      raise ConfigError(
        "asks for decisions, and data hold none: rollout.name='policy' has them"
      )
    x = function(params, exp.traj, *args)
    if which == live:
      return x
    x = jax.lax.stop_gradient(x)
    if which != 'old':
      return x
    # Where `first` is known when compiling, one of the two is not computed.
    now = jax.lax.stop_gradient(ask('params', op, *args))
    return tree.where(first, now, x)

  def score_samples(sample: Array, keys: Array) -> RewardOut:
    if score is None:
      raise ConfigError(
        'asks for gradients through rewards, which have to be on the device '
        'and differentiable, such as shapes_detector or jpeg_compressibility'
      )
    return score(copies['params'], sample, exp, keys)

  def asked(which: str, op: str) -> bool:
    return (which, op) in known

  return Replay(ask, asked, score_samples)


_OF_DECISIONS = ('dist', 'log_prob', 'velocity', 'foresee', 'value')


def _identity(x: Any) -> tuple:
  """What tells an argument from others: numbers are equal, arrays the same."""
  if isinstance(x, bool | int | float | str):
    return (type(x), x)
  return ('id', id(x))
