"""Advantages of single decisions; see the package."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int

from gen_rl.advantages.group import dr_grpo
from gen_rl.advantages.statistics import moments
from gen_rl.fields import NonNegative, Positive
from gen_rl.types import Advantage, Array, Metrics, PyTree, RewardOut


def turning_points(
  group_size: int,
  mode: Literal['turning', 'bonus', 'incremental'] = 'turning',
  eta: Positive = 1.0,
  consistent: bool = False,
  balanced: bool = False,
  eps: NonNegative = 1e-4,
  clip: Positive | None = 5.0,
) -> Advantage:
  """Step-wise advantages, equation (10).

  Args:
    group_size: samples per prompt, G.
    mode: 'turning' is the rule of the paper's text, 'bonus' that of its code,
      'incremental' a control. Another one, the same reward for all decisions,
      is `grpo`, which needs no unfinished samples.
    eta: of 'bonus'.
    consistent: turning points count only where what follows has the sign of
      the step itself, sign(d_j) = sign(R_k - R_j).
    balanced: as many of them raise the score of what follows as lower it,
      R_k - R_{j-1} > 0 and < 0, in the whole batch: those of largest effect.
    eps: added to the deviation, in reward units: late decisions change little.
    clip: bound on |A|; None for no bound.

  Returns:
    An Advantage that asks for `RewardOut.before` [b k] and gives adv [b k];
    a row without all of its scores is dropped. Metrics: those of a
    group-relative advantage, of the final score, and
    `advantage/turning_fraction`.

  Raises:
    ValueError: for group_size < 2.
  """
  outcome = dr_grpo(group_size)

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> tuple[Float32[Array, 'b k'], Float32[Array, ' b'], PyTree, Metrics]:
    scores = jnp.concatenate(
      [rewards.before, rewards.score[:, None]], 1
    ).astype(jnp.float32)
    valid = rewards.valid & jnp.isfinite(scores).all(1)
    scores = jnp.where(valid[:, None], scores, 0.0)
    step_rewards, turning = turning_rewards(
      scores, mode, eta, consistent, balanced
    )
    b, k = step_rewards.shape
    grouped = step_rewards.reshape(-1, group_size, k)
    valids = jnp.broadcast_to(valid.reshape(-1, group_size, 1), grouped.shape)
    count, mean, std, differ = moments(
      grouped.swapaxes(1, 2), valids.swapaxes(1, 2)
    )  # [P k 1]
    raw = (grouped.swapaxes(1, 2) - mean) / (std + eps)
    raw = jnp.where(differ & (count >= 2), raw, 0.0)
    adv = raw.swapaxes(1, 2).reshape(b, k) * valid[:, None]
    adv = adv if clip is None else jnp.clip(adv, -clip, clip)
    weight = (valid & (adv != 0).any(1)).astype(jnp.float32)
    _, _, _, metrics = outcome.update(
      rewards.replace(valid=valid, before=None), group, ()
    )
    metrics['advantage/turning_fraction'] = turning.mean(dtype=jnp.float32)
    return adv, weight, state, metrics

  return Advantage(init=lambda: (), update=update, stepwise=True)


def turning_rewards(
  scores: Float32[Array, 'b n'],
  mode: str,
  eta: float = 1.0,
  consistent: bool = False,
  balanced: bool = False,
) -> tuple[Float32[Array, 'b k'], Bool[Array, 'b k']]:
  """r_j of equation (10), and which decisions turn; scores are R_0 .. R_k."""
  after, before = scores[:, 1:], scores[:, :-1]
  change, total = after - before, scores[:, -1:] - scores[:, :1]
  trend = jnp.sign(change) * jnp.sign(total)
  earlier = jnp.concatenate([-jnp.ones_like(total), trend[:, :-1]], 1)
  turning = (earlier < 0) & (trend > 0)
  if consistent:
    turning &= jnp.sign(change) == jnp.sign(scores[:, -1:] - after)
  effect = scores[:, -1:] - before
  if balanced:
    turning = _balanced(turning, effect)
  rewards = {
    'turning': jnp.where(turning, effect, change),
    'bonus': total + jnp.where(turning, eta * change, 0.0),
    'incremental': change,
  }
  if mode not in rewards:
    raise ValueError(f'mode is {mode!r}; valid: {", ".join(rewards)}')
  return rewards[mode], turning


def _balanced(
  turning: Bool[Array, 'b k'], effect: Float32[Array, 'b k']
) -> Bool[Array, 'b k']:
  """As many of either sign: those of largest effect; of equals the first."""
  sides = jnp.stack([turning & (effect > 0), turning & (effect < 0)])
  sides = sides.reshape(2, -1)
  size = jnp.where(sides, jnp.abs(effect).reshape(-1), -1.0)
  place = jnp.argsort(jnp.argsort(-size, axis=1), axis=1)  # stable
  kept = sides & (place < sides.sum(1).min())
  return kept.any(0).reshape(turning.shape)
