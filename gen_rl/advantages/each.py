"""Advantages of several rewards, each by itself; see the package."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Int

from gen_rl import advantages, build
from gen_rl.advantages.statistics import Update, moments, valid_scores
from gen_rl.fields import NonNegative
from gen_rl.types import Advantage, Array, PyTree, RewardOut


def per_reward(
  group_size: int,
  reward_weights: Mapping[str, float],
  each: build.Spec = 'grpo',
  whiten: bool = False,
  eps: NonNegative = 1e-4,
) -> Advantage:
  """Sum of the advantages of every reward by itself, equation (5).

  In a sum of scores, the reward that varies most within a group decides; here
  each has a say in proportion to its weight, whatever its unit.

  State: {label: state of its advantage}. A row has weight where any of its
  advantages gives it weight.

  Args:
    group_size: samples per prompt, G.
    reward_weights: {label: w_k}, those of the config's rewards.
    each: the advantage of one reward, a function of this module and its
      keywords; a clip in it bounds every A_ik.
    whiten: divide the sum by its deviation over the valid rows of the batch,
      with n - 1, after taking its mean off.
    eps: added to that deviation.

  Raises:
    ConfigError: as `build`; `each` wants rewards of single decisions, which
      there are of the whole score alone.
    ValueError: for group_size < 2, from most of `each`.
  """
  inner = {
    label: build.build(advantages, each, group_size=group_size)
    for label in reward_weights
  }
  if any(advantage.stepwise for advantage in inner.values()):
    name = each if isinstance(each, str) else each['name']
    raise build.ConfigError(
      f'per_reward: {name} takes rewards of single decisions, which there '
      'are of the weighted sum alone; give it as the advantage itself, or '
      'name one of whole samples, such as grpo, in `each`'
    )

  def init():
    return {label: advantage.init() for label, advantage in inner.items()}

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> Update:
    adv, weight, after, metrics = 0.0, 0.0, {}, {}
    for label, advantage in inner.items():
      alone = rewards.replace(score=rewards.parts[label], parts={})
      a, w, after[label], log = advantage.update(alone, group, state[label])
      adv += reward_weights[label] * a
      weight = jnp.maximum(weight, w)
      for name, value in log.items():
        _, _, name = name.partition('/')
        if name != 'invalid':
          metrics[f'advantage/{label}/{name}'] = value
    _, valid = valid_scores(rewards)
    if whiten:
      _, mean, std, differ = moments(adv[None, :, 0], valid[None], 1)
      keep = differ & (weight > 0)[:, None]
      adv = jnp.where(keep, (adv - mean) / (std + eps), 0.0)
    some = (adv[:, 0] != 0).reshape(-1, group_size).any(-1)
    metrics['advantage/zero_std_fraction'] = (~some).mean(dtype=jnp.float32)
    metrics['advantage/invalid'] = (~valid).mean(dtype=jnp.float32)
    return adv, weight, after, metrics

  return Advantage(init=init, update=update, mixes=True)
