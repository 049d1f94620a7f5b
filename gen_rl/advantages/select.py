"""Advantages of some of the rows, and of some more than of others.

Each takes another advantage, `each`, and changes how much its rows count: what
is compared over a group or a batch is compared over all of it, as if nothing
were left out, and states see all scores. A row of weight 0 is in no mean of the
loss, and one of weight 1/2 is half a row of it (`gen_rl.aggregate`): to leave
rows out is not to learn less from the others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int

from gen_rl import advantages, build, types
from gen_rl.advantages.statistics import moments, valid_scores
from gen_rl.fields import Count, Positive
from gen_rl.types import Advantage, Array, Metrics, PyTree, RewardOut

# (rewards, adv [b k], weight [b] of `each`) -> [b], what the weight is
# multiplied by
Factor = Callable[[RewardOut, Array, Array], Array]


def weighted(
  group_size: int,
  reward_weights: Mapping[str, float],
  by: str,
  each: build.Spec = 'grpo',
) -> Advantage:
  """Rows count by what a reward says of them, equation (13).

  PrefPaint (arXiv:2410.21966) trusts a learned reward by how near the sample is
  to what it has learned from. A unit makes no difference: a mean over rows is
  over their weights. Rows of which it is no number, or below 0, are left out,
  and so are those that the reward is not about.

  Tested, not measured.

  Args:
    group_size: samples per prompt, G.
    reward_weights: {label: w_k}, those of the config's rewards.
    by: label of a reward or of a part of one, 'label/part'.
    each: the advantage of the rows, a function of this package and its
      keywords.

  Raises:
    ConfigError: as `build`; there is no such reward, or, when called, part.
  """
  _check(by, reward_weights)

  def factor(rewards: RewardOut, adv: Array, weight: Array) -> Array:
    del adv, weight
    x = jax.lax.stop_gradient(named(rewards, by))
    return jnp.where(jnp.isfinite(x) & (x > 0), x, 0.0)

  return selected(_inner(each, group_size, reward_weights), factor)


def pareto(
  group_size: int,
  reward_weights: Mapping[str, float],
  each: build.Spec = 'grpo',
  within: Literal['group', 'batch'] = 'group',
  of: Sequence[str] = (),
) -> Advantage:
  """Rows that no other one is better than in all rewards, equation (14).

  Parrot (arXiv:2401.05675) compares the rows of the whole batch, and their
  uncentred scores are their advantages. Of a few rewards and many prompts that
  front is a few rows of the easy ones (of three rewards, 8 of 504), so ours is
  of every group by default. A reward of negative weight is better where less.

  Tested, not measured.

  Args:
    group_size: samples per prompt, G.
    reward_weights: {label: w_k}, those of the config's rewards.
    each: the advantage of the rows, a function of this package and its
      keywords.
    within: whose front: of a prompt's group or of the batch.
    of: labels of rewards, or of parts, that are compared; (): all rewards.

  Raises:
    ConfigError: as `build`; fewer than two to compare, or no such reward.
  """
  names = tuple(of) or tuple(reward_weights)
  if len(names) < 2:
    raise build.ConfigError(
      f'pareto compares several rewards, and there is '
      f'{", ".join(names) or "none"}; name two or more of them or of their '
      'parts in `of`, or take `each` alone'
    )
  for name in of:
    _check(name, reward_weights)

  def factor(rewards: RewardOut, adv: Array, weight: Array) -> Array:
    del adv, weight
    points = jnp.stack(
      [
        named(rewards, name) * (-1 if reward_weights.get(name, 1) < 0 else 1)
        for name in names
      ],
      -1,
    )
    _, valid = valid_scores(rewards)
    n = len(valid) if within == 'batch' else group_size
    best = jax.vmap(front)(
      points.reshape(-1, n, len(names)), valid.reshape(-1, n)
    )
    return best.reshape(-1).astype(jnp.float32)

  return selected(_inner(each, group_size, reward_weights), factor)


def extremes(
  group_size: int,
  reward_weights: Mapping[str, float],
  high: float | None = 0.5,
  low: float | None = -0.5,
  each: build.Spec = 'grpo',
) -> Advantage:
  """Rows whose advantage is large enough on its side, equation (15).

  B2-DiffuRL (arXiv:2503.11240) keeps the best row of a group if it is above its
  prompt's past by half a deviation, and the worst if it is below by that: with
  each=dict(name='top_bottom', n=1, each=dict(name='history', ...)).

  Args:
    group_size: samples per prompt, G.
    reward_weights: {label: w_k}, those of the config's rewards.
    high: rows of at least this advantage stay, in its units (of `grpo`,
      deviations); None: none does.
    low: so do rows below this one; None: none does.
    each: the advantage of the rows, a function of this package and its
      keywords. Where every decision has its own, their mean counts.

  Raises:
    ConfigError: as `build`; no side, or one that begins beyond the other.
  """
  if high is None and low is None:
    raise build.ConfigError(
      'extremes keeps no row: high and low are None; set one of the two'
    )
  if high is not None and low is not None and low > high:
    raise build.ConfigError(
      f'extremes leaves nothing out: low is {low:g} and high {high:g}; low has '
      'to be at most high'
    )

  def factor(rewards: RewardOut, adv: Array, weight: Array) -> Array:
    del rewards, weight
    mean = adv.mean(-1)
    up = False if high is None else mean >= high
    down = False if low is None else mean < low
    return (up | down).astype(jnp.float32)

  return selected(_inner(each, group_size, reward_weights), factor)


def top_bottom(
  group_size: int,
  reward_weights: Mapping[str, float],
  n: Count = 1,
  each: build.Spec = 'grpo',
) -> Advantage:
  """The n best and the n worst rows of every group, equation (16).

  Of equal scores the earlier row counts as the better. `best_worst` makes
  labels of the one best and the one worst; here both have the advantages of
  `each`.

  Args:
    group_size: samples per prompt, G.
    reward_weights: {label: w_k}, those of the config's rewards.
    n: rows of each side; where fewer than 2 n are valid, all of them stay.
    each: the advantage of the rows, a function of this package and its
      keywords.

  Raises:
    ConfigError: as `build`; groups of fewer than 2 n rows.
  """
  if group_size < 2 * n:
    raise build.ConfigError(
      f'top_bottom: n={n} best and as many worst are {2 * n} rows, and '
      f'data.group_size is {group_size}; n is to be at most {group_size // 2}'
    )

  def factor(rewards: RewardOut, adv: Array, weight: Array) -> Array:
    del adv, weight
    score, valid = valid_scores(rewards)
    ranked = jnp.where(valid, score, -jnp.inf).reshape(-1, group_size)
    place = jnp.argsort(jnp.argsort(-ranked, 1, stable=True), 1)
    count = valid.reshape(-1, group_size).sum(1, keepdims=True)
    ends = (place < n) | (place >= count - n)
    return (ends.reshape(-1) & valid).astype(jnp.float32)

  return selected(_inner(each, group_size, reward_weights), factor)


def unsolved(
  group_size: int,
  reward_weights: Mapping[str, float],
  threshold: float,
  spread: Positive | None = None,
  by: str | None = None,
  each: build.Spec = 'grpo',
) -> Advantage:
  """Leaves out the groups that are right already, equation (17).

  What is left to tell their rows apart may be the noise of the reward: where
  all are right but for it, `grpo` divides by it. The published code of
  MotionEdit (arXiv:2512.10284) has threshold=0.9 and spread=0.05.

  Tested, not measured.

  Args:
    group_size: samples per prompt, G.
    reward_weights: {label: w_k}, those of the config's rewards.
    threshold: groups of a mean score above it are left out.
    spread: only if their deviation is below this, too; None: whatever it is.
    by: label of a reward or of a part of one, 'label/part', in place of the
      score that is trained on.
    each: the advantage of the rows, a function of this package and its
      keywords.

  Raises:
    ConfigError: as `build`; there is no such reward, or, when called, part.
  """
  if by is not None:
    _check(by, reward_weights)

  def factor(rewards: RewardOut, adv: Array, weight: Array) -> Array:
    del adv, weight
    _, valid = valid_scores(rewards)
    score = rewards.score if by is None else named(rewards, by)
    valid &= jnp.isfinite(score)
    score = jnp.where(valid, score, 0.0).astype(jnp.float32)
    _, mean, std, _ = moments(
      score.reshape(-1, group_size), valid.reshape(-1, group_size)
    )
    solved = mean > threshold
    if spread is not None:
      solved &= std < spread
    return 1.0 - jnp.repeat(solved[:, 0], group_size).astype(jnp.float32)

  return selected(_inner(each, group_size, reward_weights), factor)


# The return type is spelled so that a config cannot ask for this function by
# name (advantages.BUILDS).
def selected(inner: Advantage, factor: Factor) -> types.Advantage:
  """`inner`, whose rows count `factor` times as much.

  Its metrics, and `advantage/kept_rows`, the share of rows with a weight.
  """

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree, *asked: Any
  ) -> tuple[Float32[Array, 'b k'], Float32[Array, ' b'], PyTree, Metrics]:
    adv, weight, state, metrics = inner.update(rewards, group, state, *asked)
    weight = weight * jax.lax.stop_gradient(factor(rewards, adv, weight))
    kept = weight > 0
    metrics = {**metrics, 'advantage/kept_rows': kept.mean(dtype=jnp.float32)}
    return jnp.where(kept[:, None], adv, 0.0), weight, state, metrics

  return inner._replace(update=update, selects=True)


def front(
  points: Float[Array, 'n k'], valid: Bool[Array, ' n']
) -> Bool[Array, ' n']:
  """Which points no other one dominates: is as good in all, better in one.

  Equal points are on it together; a point that is not valid, or no number,
  neither is on it nor keeps others from it.
  """
  valid = valid & jnp.isfinite(points).all(-1)
  points = jnp.where(valid[:, None], points, 0.0)
  n = len(points)
  as_good, better = jnp.ones((n, n), bool), jnp.zeros((n, n), bool)
  for x in points.T:  # [n n] at a time: [i j] compares j with i
    as_good &= x[None] >= x[:, None]
    better |= x[None] > x[:, None]
  return valid & ~(as_good & better & valid[None]).any(1)


def named(rewards: RewardOut, by: str) -> Array:
  """Scores [b] of a reward, or of a part of one.

  Raises:
    ConfigError: there is no such part, listing those there are.
  """
  if by in rewards.parts:
    return rewards.parts[by]
  raise build.ConfigError(
    f'config.advantage names {by!r}, which is no reward with a weight and no '
    f'part of one{build.did_you_mean(by, rewards.parts)}; there are '
    f'{", ".join(rewards.parts)}'
  )


def _check(by: str, labels: Mapping[str, float]) -> None:
  """Raises ConfigError where there is no such reward; parts show later."""
  label = by.partition('/')[0]
  if label not in labels:
    raise build.ConfigError(
      f'config.advantage names {by!r}, and {label!r} is no reward with a '
      f'weight{build.did_you_mean(label, labels)}; there are '
      f'{", ".join(labels) or "none"}'
    )


def _inner(
  each: build.Spec, group_size: int, reward_weights: Mapping[str, float]
) -> types.Advantage:
  return build.build(
    advantages, each, group_size=group_size, reward_weights=reward_weights
  )
