"""Advantage against the past of a prompt; see the package."""

import jax.numpy as jnp
from jaxtyping import Int

from gen_rl.advantages.statistics import (
  Update,
  finish,
  moments,
  valid_scores,
)
from gen_rl.fields import Count, NonNegative, Positive
from gen_rl.types import Advantage, Array, PyTree, RewardOut


def history(
  group_size: int,
  num_prompts: Count,
  buffer: Count = 32,
  min_count: Count = 16,
  eps: NonNegative = 1e-6,
  clip: Positive | None = 5.0,
  drop_zero: bool = True,
) -> Advantage:
  """Advantage against the prompt's own past scores, equation (4).

  State: `scores` [num_prompts, buffer], a ring per prompt, and `count`
  [num_prompts] int32, scores ever written. A batch's valid scores are written
  first, in row order, and then every row is compared with its prompt's ring;
  it may come from several groups of a prompt, and of more than `buffer` new
  scores the last `buffer` stay.

  Args:
    group_size: samples per prompt, G; 1 is allowed. Used for metrics only.
    num_prompts: rings to keep. A prompt uses ring `prompt id % num_prompts`:
      exact when ids are 0 .. num_prompts - 1; otherwise prompts whose ids are
      equal modulo num_prompts share a history.
    buffer: scores kept per prompt.
    min_count: scores a prompt needs before its own statistics are used.
    eps: added to the deviation, in reward units.
    clip: bound on |A|; None for no bound.
    drop_zero: give rows of advantage 0 weight 0.

  Raises:
    ValueError: when min_count exceeds buffer, so no prompt could ever reach
      it, or a size is not positive.
  """
  if min(group_size, num_prompts, buffer, min_count) < 1:
    raise ValueError(
      'group_size, num_prompts, buffer and min_count must be at least 1, got '
      f'{group_size}, {num_prompts}, {buffer}, {min_count}.'
    )
  if min_count > buffer:
    raise ValueError(
      f'min_count is {min_count} and buffer {buffer}: a prompt would never '
      'hold enough scores to use its own statistics.'
    )

  def init():
    return dict(
      scores=jnp.zeros((num_prompts, buffer), jnp.float32),
      count=jnp.zeros((num_prompts,), jnp.int32),
    )

  def write(score, valid, slot, state):
    # rank: how many earlier valid rows of this batch go to the same ring;
    # invalid rows go to ring `num_prompts`, which does not exist
    b = score.shape[0]
    slot = jnp.where(valid, slot, num_prompts)
    order = jnp.argsort(slot, stable=True)
    ordered = slot[order]
    first = jnp.searchsorted(ordered, ordered, side='left')
    rank = (
      jnp.zeros(b, jnp.int32)
      .at[order]
      .set(jnp.arange(b, dtype=jnp.int32) - first.astype(jnp.int32))
    )
    new = jnp.zeros(num_prompts, jnp.int32).at[slot].add(1, mode='drop')
    stays = new.at[slot].get(mode='fill', fill_value=0) - rank <= buffer
    place = state['count'].at[slot].get(mode='fill', fill_value=0) + rank
    scores = (
      state['scores']
      .at[jnp.where(stays, slot, num_prompts), place % buffer]
      .set(score, mode='drop')
    )
    return dict(scores=scores, count=state['count'] + new)

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> Update:
    score, valid = valid_scores(rewards)
    slot = group.astype(jnp.int32) % num_prompts
    state = write(score, valid, slot, state)
    held = jnp.minimum(state['count'], buffer)[slot][:, None]  # [b 1]
    own = moments(state['scores'][slot], jnp.arange(buffer) < held)
    batch = moments(score[None], valid[None])
    _, mean, std, differ = (
      jnp.where(held >= min_count, x, y)[:, 0]
      for x, y in zip(own, batch, strict=True)
    )
    raw = jnp.where(differ, (score - mean) / (std + eps), 0.0)
    count, _, group_std, _ = moments(
      score.reshape(-1, group_size), valid.reshape(-1, group_size)
    )
    adv, weight, metrics = finish(
      raw, valid, valid, group_std, count, group_size, clip, drop_zero
    )
    return adv, weight, state, metrics

  return Advantage(init=init, update=update)
