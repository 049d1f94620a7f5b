"""Advantages against the other samples of a prompt; see the package."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Int

from gen_rl.advantages.statistics import (
  Update,
  finish,
  moments,
  valid_scores,
)
from gen_rl.fields import NonNegative, Positive, between
from gen_rl.types import Advantage, Array, PyTree, RewardOut


def _group_relative(group_size, advantage, ddof, clip, drop_zero) -> Advantage:
  """`advantage(centred [P G], count, std, score, valid) -> [P G]`."""
  if group_size < 2:
    raise ValueError(
      f'group_size is {group_size}: a group-relative advantage compares the '
      'samples of one prompt and needs at least 2.'
    )

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> Update:
    del group  # rows are prompt-major
    score, valid = valid_scores(rewards)
    scores = score.reshape(-1, group_size)
    valids = valid.reshape(-1, group_size)
    count, mean, std, differ = moments(scores, valids, ddof)
    # `differ` implies two valid rows, so a lone row never has an advantage
    raw = advantage(scores - mean, count, std, score, valid)
    raw = jnp.where(differ, raw, 0.0).reshape(-1)
    keep = (valids & (count >= 2)).reshape(-1)
    adv, weight, metrics = finish(
      raw, keep, valid, std, count, group_size, clip, drop_zero
    )
    return adv, weight, state, metrics

  return Advantage(init=lambda: (), update=update)


def grpo(
  group_size: int,
  std: Literal['group', 'global'] = 'group',
  eps: NonNegative = 1e-4,
  clip: Positive | None = 5.0,
  ddof: Annotated[int, between(0, 1)] = 0,
  drop_zero: bool = True,
) -> Advantage:
  """Group-relative advantage, equation (1).

  Args:
    group_size: samples per prompt, G.
    std: 'group' divides by the deviation of the prompt's own scores, 'global'
      by that of all scores of the batch (Flow-GRPO's image configs).
    eps: added to the deviation, in reward units.
    clip: bound on |A|; None for no bound.
    ddof: 0 divides the variance by n (Flow-GRPO), 1 by n - 1 (most language
      model code); at G = 2 the deviations differ by sqrt(2).
    drop_zero: give rows of advantage 0 weight 0.

  Raises:
    ValueError: for group_size < 2, or an unknown `std`.
  """
  if std not in ('group', 'global'):
    raise ValueError(f"std is {std!r}: it is either 'group' or 'global'.")

  def advantage(centred, count, group_std, score, valid):
    del count
    if std == 'group':
      return centred / (group_std + eps)
    return centred / (moments(score, valid, ddof)[2] + eps)

  return _group_relative(group_size, advantage, ddof, clip, drop_zero)


def rloo(
  group_size: int, clip: Positive | None = None, drop_zero: bool = True
) -> Advantage:
  """Leave-one-out advantage in reward units, equation (2).

  Unbiased: the baseline of a row does not depend on the row.

  Tested, not measured.

  Raises:
    ValueError: for group_size < 2.
  """

  def advantage(centred, count, std, score, valid):
    del std, score, valid
    return centred * count / jnp.maximum(count - 1.0, 1.0)

  return _group_relative(group_size, advantage, 0, clip, drop_zero)


def dr_grpo(
  group_size: int, clip: Positive | None = None, drop_zero: bool = True
) -> Advantage:
  """Centred scores in reward units, equation (3).

  Without the division, prompts that are nearly always right or wrong are not
  weighted up.

  Raises:
    ValueError: for group_size < 2.
  """

  def advantage(centred, count, std, score, valid):
    del count, std, score, valid
    return centred

  return _group_relative(group_size, advantage, 0, clip, drop_zero)


def best_worst(group_size: int) -> Advantage:
  """Labels for preferences, equation (6); all other rows are dropped.

  Ties go to the first row; a group of equal scores has no preference.

  Raises:
    ValueError: for group_size < 2.
  """

  def advantage(centred, count, std, score, valid):
    del count, std, score
    valid = valid.reshape(centred.shape)
    best = jnp.argmax(jnp.where(valid, centred, -jnp.inf), 1)
    worst = jnp.argmin(jnp.where(valid, centred, jnp.inf), 1)
    members = jnp.arange(group_size)
    is_best, is_worst = (members == i[:, None] for i in (best, worst))
    return is_best.astype(jnp.float32) - is_worst.astype(jnp.float32)

  return _group_relative(group_size, advantage, 0, None, True)


def best_margin(
  group_size: int, clip: Positive | None = None, drop_zero: bool = True
) -> Advantage:
  """The best row's lead over the second, equation (7), in reward units.

  With `drop_zero` the loss is a mean over best rows, one of a group; without,
  over all rows, and its gradient that of the expected best of the G samples,
  over G. Nobody leads where two rows are best.

  Tested, not measured.

  Raises:
    ValueError: for group_size < 2.
  """

  def advantage(centred, count, std, score, valid):
    del count, std
    scores = jnp.where(valid, score, -jnp.inf).reshape(centred.shape)
    top, _ = jax.lax.top_k(scores, 2)
    return jnp.where(scores == top[:, :1], top[:, :1] - top[:, 1:], 0.0)

  return _group_relative(group_size, advantage, 0, clip, drop_zero)


def scst(
  group_size: int, clip: Positive | None = None, drop_zero: bool = True
) -> Advantage:
  """Self-critical: the lead over the first row of the group, equation (11).

  The first row is what the policy says without chance (policy.greedy_first);
  it has no advantage itself, and a group without its score has none.

  Tested, not measured.

  Raises:
    ValueError: for group_size < 2.
  """

  def advantage(centred, count, std, score, valid):
    del count, std
    scores, valids = (x.reshape(centred.shape) for x in (score, valid))
    lead = jnp.where(valids, scores - scores[:, :1], 0.0)
    return jnp.where(valids[:, :1], lead, 0.0)

  return _group_relative(group_size, advantage, 0, clip, drop_zero)
