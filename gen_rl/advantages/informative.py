"""Advantages of the groups from which there is most to learn; see the package.

That more prompts are sampled than trained on costs their samples and, as
shapes are fixed, their share of the update.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int

from gen_rl import advantages, build
from gen_rl.advantages.select import selected
from gen_rl.advantages.statistics import moments, valid_scores
from gen_rl.fields import Count
from gen_rl.types import Advantage, Array, Metrics, PyTree, RewardOut


def informative(
  group_size: int,
  reward_weights: Mapping[str, float],
  keep: Count,
  each: build.Spec = 'grpo',
) -> Advantage:
  """Drops all groups but the `keep` whose scores differ most, equation (9).

  As many are trained on at every step, while there are as many whose scores
  differ at all. What the advantage compares over a whole batch, it compares
  over all groups.

  Tested, not measured.

  Args:
    group_size: samples per prompt, G.
    reward_weights: {label: w_k}, those of the config's rewards.
    keep: groups B, of the prompts_per_step that are sampled.
    each: the advantage of the rows, a function of this package and its
      keywords.

  Returns:
    An Advantage with the metrics of `each` and `advantage/kept_fraction`, the
    share of groups that are trained on.

  Raises:
    ConfigError: as `build`.
    ValueError: when called, fewer than `keep` groups.
  """
  inner = build.build(
    advantages, each, group_size=group_size, reward_weights=reward_weights
  )

  def kept(rewards: RewardOut) -> Float32[Array, ' b']:
    return informative_groups(*valid_scores(rewards), group_size, keep)

  of_rows = selected(inner, lambda rewards, adv, weight: kept(rewards))

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree, *asked: Any
  ) -> tuple[Float32[Array, 'b k'], Float32[Array, ' b'], PyTree, Metrics]:
    *out, metrics = of_rows.update(rewards, group, state, *asked)
    of_group = kept(rewards).reshape(-1, group_size).max(1)
    return *out, {**metrics, 'advantage/kept_fraction': of_group.mean()}

  return of_rows._replace(update=update)


def informative_groups(
  score: Float[Array, ' b'],
  valid: Bool[Array, ' b'],
  group_size: int,
  keep: int,
) -> Float32[Array, ' b']:
  """Weights of rows: 1 in the groups whose scores differ most, else 0.

  DAPO (arXiv 2503.14476) samples until it has B groups that are neither all
  right nor all wrong. In a fixed shape: sample more than B, keep the B of the
  largest standard deviation. A group of equal scores is never kept, so there
  may be fewer; of equal deviations the first ones stay.

  Args:
    score: of rows, groups one after the other.
    valid: rows that count; the others get weight 0.
    group_size: G.
    keep: B, at most the number of groups.

  Raises:
    ValueError: `keep` is not between 1 and the number of groups.
  """
  groups = score.shape[0] // group_size
  if not 1 <= keep <= groups:
    raise ValueError(
      f'keep is {keep}: of {groups} groups, 1 to {groups} can be kept.'
    )
  valid = valid & jnp.isfinite(score)
  shape = groups, group_size
  _, _, std, differ = moments(
    jnp.where(valid, score, 0.0).reshape(shape), valid.reshape(shape)
  )
  spread = jnp.where(differ, std, -1.0)[:, 0]
  place = jnp.argsort(jnp.argsort(-spread, stable=True))
  kept = differ[:, 0] & (place < keep)
  return (jnp.repeat(kept, group_size) & valid).astype(jnp.float32)
