"""Advantages of the groups from which there is most to learn; see the package.

That more prompts are sampled than trained on costs their samples and, as
shapes are fixed, their share of the update.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Float32, Int

from gen_rl import advantages, build, selection
from gen_rl.advantages.statistics import valid_scores
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

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> tuple[Float32[Array, 'b k'], Float32[Array, ' b'], PyTree, Metrics]:
    adv, weight, state, metrics = inner.update(rewards, group, state)
    score, valid = valid_scores(rewards)
    kept = selection.informative_groups(score, valid, group_size, keep)
    of_group = kept.reshape(-1, group_size).max(1)
    metrics = {**metrics, 'advantage/kept_fraction': of_group.mean()}
    return jnp.where(kept[:, None] > 0, adv, 0.0), weight * kept, state, metrics

  return inner._replace(update=update)
