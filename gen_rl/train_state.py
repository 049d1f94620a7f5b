"""All that training changes, as one pytree: what a checkpoint holds."""

from collections.abc import Iterable

from flax import struct
import jax
import jax.numpy as jnp
import optax

from gen_rl.types import Advantage, Array, Params, PyTree
from gen_rl.utils import tree


class TrainState(struct.PyTreeNode):
  """Float32 throughout; `params` are the trainable leaves only.

  Everything random is a function of (seed, step), so there is no key here.
  """

  step: Array  # [] int32, rollouts done
  params: Params  # trained
  frozen: PyTree  # {"policy": untrained leaves, "rewards": {label: params}}
  opt_state: PyTree
  refs: dict[str, Params]  # copies of `params`: "ref", "ema"
  adv_state: PyTree  # of the advantage
  skipped: Array  # [] int32, updates dropped because not finite
  skipped_in_a_row: Array  # [] int32


def create(
  params: Params,
  tx: optax.GradientTransformation,
  advantage: Advantage | None,
  *,
  trainable: str = '',
  refs: Iterable[str] = (),
  reward_params: PyTree = (),
) -> TrainState:
  """The state before the first step.

  Args:
    params: all parameters of the policy.
    tx: the optimizer.
    advantage: its state is made here; None for data batches.
    trainable: regular expression on parameter names; '' trains all.
    refs: names of the parameter copies to keep.
    reward_params: {label: params} of the device rewards.
  """
  # Copies throughout: the state is donated to the step, which deletes its
  # buffers, while the caller may still evaluate with what he gave, and one
  # buffer cannot be donated twice.
  params, reward_params = jax.tree.map(jnp.array, (params, reward_params))
  train, rest = tree.split(params, trainable)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=train,
    frozen=dict(policy=rest, rewards=reward_params),
    opt_state=tx.init(train),
    refs={name: jax.tree.map(jnp.copy, train) for name in refs},
    adv_state=() if advantage is None else advantage.init(),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
  )


def full_params(state: TrainState, which: str = 'params') -> Params:
  """All parameters of the policy, with the trained ones from copy `which`."""
  part = state.params if which == 'params' else state.refs[which]
  return tree.merge(part, state.frozen['policy'])
