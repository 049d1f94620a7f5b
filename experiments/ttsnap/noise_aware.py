"""Rewards that read unfinished samples: the training loop. Not a program.

Not a config of gen_rl.main: its rows would be samples of another, frozen model
at every noise level, made once, which no rollout of data gives.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_rl.objectives import reward_model
from gen_rl.types import Array, Params, Reward, RewardInputs

BATCH, LR = 64, 1e-4


def distil(
  reward: Reward,
  decode: Callable[[Array], Array],
  latents: np.ndarray,
  info: dict[str, np.ndarray],
  target: np.ndarray,
  seed: int,
) -> tuple[list[Params], list[Params]]:
  """Parameters for every level: by TTSnap's curriculum, and all levels mixed.

  Both see every (row, level) once, in as many updates. The curriculum goes
  from the cleanest level to the noisiest, with a new optimizer at each; the
  other draws levels at random and has one set of parameters for all of them.

  Args:
    reward: the original, and where both start.
    decode: latents -> media.
    latents: [b levels h w c] estimates.
    info: {name: [b ...]} what the prompts ask for.
    target: [b] the original's score of what became of them.
    seed: of the order.
  """
  size, levels = latents.shape[:2]
  rng = np.random.default_rng(seed)

  def loss(params, latents, info, target):
    inputs = RewardInputs(decode(latents), info, 1)
    finite = jnp.isfinite(target)
    term = reward_model.noise_aware_distill(
      reward, params, inputs, target, finite, jax.random.key(0)
    )
    return (term.value * term.mask).sum() / jnp.maximum(term.mask.sum(), 1)

  def trainer(updates: int):
    """(optimizer, jitted update); TTSnap's AdamW, whose rate falls by half."""
    rate = optax.linear_schedule(LR, LR / 2, updates)
    tx = optax.chain(
      optax.clip_by_global_norm(5.0), optax.adamw(rate, weight_decay=0.01)
    )

    def update(params, state, *batch):
      gradient = jax.grad(loss)(params, *batch)
      change, state = tx.update(gradient, state, params)
      return optax.apply_updates(params, change), state

    return tx, jax.jit(update)

  def train(params, tx, update, row, level):
    """One pass over pairs of a row and a level."""
    state = tx.init(params)
    for i in range(0, len(row) - BATCH + 1, BATCH):
      r, s = row[i : i + BATCH], level[i : i + BATCH]
      part = jax.tree.map(lambda x, r=r: x[r], info)
      seen = latents[r, s].astype(np.float32)
      params, state = update(params, state, seen, part, target[r])
    return params

  aware, params, a_level = [], reward.params, trainer(size // BATCH)
  for s in reversed(range(levels)):
    params = train(params, *a_level, rng.permutation(size), np.full(size, s))
    aware.insert(0, params)
  every = rng.permutation(levels * size)
  whole = trainer(levels * size // BATCH)
  mixed = train(reward.params, *whole, every % size, every // size)
  return aware, [mixed] * levels
