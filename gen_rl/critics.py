"""Rewards that are trained while the policy is: one step of each."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from gen_rl.train_state import TrainState
from gen_rl.types import Array, Critic, Metrics, PyTree
from gen_rl.utils import rng, tree


def step(
  critics: Mapping[str, Critic],
  tx: optax.GradientTransformation,
  state: TrainState,
  real: PyTree,
  fake: PyTree,
  keys: Array,
  valid: Array | bool = True,
) -> tuple[TrainState, Metrics]:
  """One optimizer step of every critic; the policy is not touched.

  Args:
    critics: {reward: critic}, parameters and optimizer states in state.aux.
    tx: their optimizer.
    state: with frozen parameters of the rewards.
    real: media [b ...] to learn from.
    fake: samples [b ...]; no gradient goes to the policy.
    keys: of the rows [b].
    valid: [b] or for all; the other rows, and those that are not finite, are
      left out of the loss.

  Returns:
    (state with new aux, {critic/<reward>: loss, critic/skipped: how many steps
    were not finite and left out}).
  """
  real, fake = jax.lax.stop_gradient((real, fake))
  valid = valid & tree.finite_rows((real, fake), keys.shape[0])
  real, fake = tree.zero_rows((real, fake), valid)
  aux, metrics, skipped = dict(state.aux), {}, jnp.zeros((), jnp.int32)
  for label, critic in critics.items():
    frozen = state.frozen['rewards'][label]
    row_keys = rng.stream_keys(keys, f'critic {label}')

    def loss(params, critic=critic, frozen=frozen, row_keys=row_keys):
      each = critic.loss(frozen, params, real, fake, row_keys)
      return jnp.where(valid, each, 0.0).sum() / jnp.maximum(valid.sum(), 1)

    held = aux[label]
    value, grads = jax.value_and_grad(loss)(held['params'])
    deltas, opt_state = tx.update(grads, held['opt_state'], held['params'])
    params = optax.apply_updates(held['params'], deltas)
    finite = jnp.isfinite(optax.tree.norm(deltas)) & jnp.isfinite(value)
    aux[label] = tree.where(
      finite, dict(params=params, opt_state=opt_state), held
    )
    skipped += 1 - finite.astype(jnp.int32)
    metrics[f'critic/{label}'] = value
  return state.replace(aux=aux), {**metrics, 'critic/skipped': skipped}
