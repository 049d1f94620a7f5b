"""Advantages against the whole batch; see the package."""

import jax.numpy as jnp
from jaxtyping import Int

from gen_rl.advantages.statistics import (
  Update,
  finish,
  moments,
  valid_scores,
)
from gen_rl.fields import NonNegative, Positive
from gen_rl.types import Advantage, Array, PyTree, RewardOut


def reinforce_pp(
  group_size: int,
  baseline: bool = False,
  eps: NonNegative = 1e-8,
  clip: Positive | None = None,
  drop_zero: bool = False,
) -> Advantage:
  """Scores whitened over the batch, equation (8).

  Unlike `grpo(std='group')` it does not make every prompt's scores equally
  wide; unlike `grpo(std='global')`, `baseline` divides by the deviation of
  what is left when every group's mean is taken off.

  Every row counts once. Published code whitens after the score has been
  written to all of a row's tokens, so that long rows count more. The penalty
  for leaving the reference, which the paper has in the reward of every token,
  is an objective here: sampled_kl('k1', ratio=True, path=True); it is not
  whitened.

  Tested, not measured.

  Args:
    group_size: samples per prompt, G; 1 is allowed without `baseline`.
    baseline: REINFORCE++-baseline, which compares with the group first.
    eps: added to the deviation, in reward units.
    clip: bound on |A|; None for no bound.
    drop_zero: give rows of advantage 0 weight 0.

  Raises:
    ValueError: for `baseline` in groups of one.
  """
  if baseline and group_size < 2:
    raise ValueError(
      f'group_size is {group_size}: with a baseline, reinforce_pp compares the '
      'samples of one prompt and needs at least 2.'
    )

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> Update:
    del group  # rows are prompt-major
    score, valid = valid_scores(rewards)
    scores = score.reshape(-1, group_size)
    count, mean, std, differ = moments(scores, valid.reshape(scores.shape))
    value, keep = score, valid
    if baseline:
      value = jnp.where(differ, scores - mean, 0.0).reshape(-1)
      keep &= jnp.repeat(count[:, 0] >= 2, group_size)
    _, mean, whole, differ = moments(value[None], keep[None])
    raw = jnp.where(differ, (value - mean) / (whole + eps), 0.0)[0]
    adv, weight, metrics = finish(
      raw, keep, valid, std, count, group_size, clip, drop_zero
    )
    return adv, weight, state, metrics

  return Advantage(init=lambda: (), update=update)
