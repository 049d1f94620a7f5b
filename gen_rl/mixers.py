r"""How the scores of several rewards become one: functions `config.mix` names.

With r_k the score of reward k, w_k its weight, and K those that apply to a row,

  weighted_sum   sum_{k in K} w_k r_k                                    (1)
  product        prod_{k in K} max(r_k, floor)^{w_k}                     (2)
  gated          sum_{k in K} w_k r_k  where r_gate >= threshold, or the gate
                 does not apply;  w_gate r_gate + closed  elsewhere      (3)

A row is valid where all rewards that apply to it could score it, whatever mixes
them (`rewards.combine`).
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.fields import Positive
from gen_rl.types import Array

# (scores {label: [b]}, used {label: bool [b]}, weights {label: w}, G) -> [b];
# scores are 0 where a reward is not used.
Mixer = Callable[
  [
    Mapping[str, Array],
    Mapping[str, Array],
    Mapping[str, float | Array],
    int,
  ],
  Array,
]
__all__ = ('gated', 'product', 'weighted_sum')


def weighted_sum() -> Mixer:
  """(1)."""

  def mix(scores, used, weights, group_size):
    del used, group_size
    return sum(weights[k] * scores[k] for k in scores)

  return mix


def product(floor: Positive = 1e-3) -> Mixer:
  """(2): none makes up for another; of scores from 0 to 1, say.

  Tested, not measured.

  Args:
    floor: smaller scores count as this one.
  """

  def mix(scores, used, weights, group_size):
    del group_size
    logs = [
      jnp.where(used[k], weights[k] * jnp.log(jnp.maximum(r, floor)), 0.0)
      for k, r in scores.items()
    ]
    return jnp.exp(sum(logs))

  return mix


def gated(gate: str, threshold: float = 0.5, closed: float = 0.0) -> Mixer:
  """(3): the others count where one of them says that they may.

  Tested, not measured.

  Args:
    gate: label of a reward.
    threshold: of its score.
    closed: what the others are worth together where the gate is closed.
  """

  def mix(scores, used, weights, group_size):
    del group_size
    if gate not in scores:
      raise ConfigError(
        f'config.mix.gate is {gate!r}, which is no reward with a weight; '
        f'there are {", ".join(scores)}'
      )
    others = sum(weights[k] * r for k, r in scores.items() if k != gate)
    opened = ~used[gate] | (scores[gate] >= threshold)
    return weights[gate] * scores[gate] + jnp.where(opened, others, closed)

  return mix
