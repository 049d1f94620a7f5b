"""All that an update sees, as one pytree.

A checkpoint holds what moves: neither `frozen` nor copies that stay as they
began, which are made anew from the config.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_rl.types import Advantage, Array, Learner, Params, PyTree
from gen_rl.utils import tree


class TrainState(struct.PyTreeNode):
  """Float32 throughout; `params` are the trainable leaves only.

  Everything random is a function of (seed, step), so there is no key here.
  """

  step: Array  # [] int32, rollouts done
  params: Params  # trained
  # {"policy": untrained leaves, "rewards": {label: params}}, and "learners"
  # of those that are not rewards
  frozen: PyTree
  opt_state: PyTree
  refs: dict[str, Params]  # copies of `params`: "ref", "ema"
  adv_state: PyTree  # of the advantage
  aux: dict[str, PyTree]  # {learner: {"params", "opt_state"}}
  skipped: Array  # [] int32, updates dropped because not finite
  skipped_in_a_row: Array  # [] int32


class Taught(NamedTuple):
  """A learner and how it is trained."""

  learner: Learner
  tx: optax.GradientTransformation
  every: int = 1  # minibatches from one of its optimizer steps to the next


def create(
  params: Params,
  tx: optax.GradientTransformation,
  advantage: Advantage | None,
  *,
  trainable: str = '',
  refs: Iterable[str] = (),
  reward_params: Mapping[str, Params] | None = None,
  learners: Mapping[str, Taught] | None = None,
  key: Array | None = None,
) -> TrainState:
  """The state before the first step.

  Args:
    params: all parameters of the policy.
    tx: the optimizer.
    advantage: its state is made here; None for data batches.
    trainable: regular expression on parameter names; '' trains all.
    refs: names of the parameter copies to keep.
    reward_params: {label: params} of the device rewards.
    learners: {label: what is trained beside the policy}; those of rewards have
      the reward's label.
    key: their parameters are drawn from.
  """
  # Copies throughout: the state is donated to the step, which deletes its
  # buffers, while the caller may still evaluate with what he gave, and one
  # buffer cannot be donated twice.
  train, rest = tree.split(params, trainable)

  @jax.jit  # a program, and not one for every shape
  def started(train):
    copy = lambda: jax.tree.map(jnp.copy, train)
    return copy(), {name: copy() for name in refs}, tx.init(train)

  train, copies, opt_state = started(train)
  # What is on the host stays there until each device is given its part.
  rest, reward_params = jax.tree.map(_copy, (rest, reward_params or {}))
  aux, frozen = {}, dict(policy=rest, rewards=reward_params)
  for i, (label, taught) in enumerate((learners or {}).items()):
    drawn = jax.jit(taught.learner.init)(jax.random.fold_in(key, i))
    aux[label] = dict(params=drawn, opt_state=jax.jit(taught.tx.init)(drawn))
    if label not in reward_params:
      held = jax.tree.map(_copy, taught.learner.params)
      frozen.setdefault('learners', {})[label] = held
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=train,
    frozen=frozen,
    opt_state=opt_state,
    refs=copies,
    adv_state=() if advantage is None else advantage.init(),
    aux=aux,
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
  )


def _copy(x: Any) -> Any:
  return x.copy() if isinstance(x, np.ndarray) else jnp.array(x)


def full_params(state: TrainState, which: str = 'params') -> Params:
  """All parameters of the policy, with the trained ones from copy `which`."""
  part = state.params if which == 'params' else state.refs[which]
  return tree.merge(part, state.frozen['policy'])
