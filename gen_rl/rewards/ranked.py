"""The order in which data comes, as a reward.

Preference data needs no judge: its groups come sorted. The advantage
`best_worst` turns this score into labels.
"""

import jax.numpy as jnp

from gen_rl.rewards import combine
from gen_rl.types import Reward, RewardInputs, RewardOut


def ranked() -> Reward:
  """Score 1 for the first row of a group down to 0 for the last.

  For rollouts of data whose groups are sorted, best first; of samples of a
  policy it would say nothing.
  """

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    b, size = combine.rows_of(inputs), inputs.group_size
    place = jnp.arange(b) % size
    value = 1.0 - place.astype(jnp.float32) / max(size - 1, 1)
    return RewardOut(value, {}, jnp.ones(b, bool))

  return Reward('ranked', (), score, called_on='groups')
