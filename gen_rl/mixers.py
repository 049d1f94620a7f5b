r"""How the scores of several rewards become one: functions `config.mix` names.

With r_k the score of reward k, w_k its weight, and K those that apply to a row,

  weighted_sum   sum_{k in K} w_k r_k                                    (1)
  product        prod_{k in K} max(r_k, floor)^{w_k}                     (2)
  gated          sum_{k in K} w_k r_k  where r_gate >= threshold, or the gate
                 does not apply;  w_gate r_gate + closed  elsewhere      (3)
  base_bonus     w_b r_b (1 - s + s B),  B the weighted mean of the others,
                 sum_{k in K, k != b} w_k r_k / sum_{k in K, k != b} |w_k| (4)
  log_tame       sum_{k in K} w_k t_k,  t_k = sign(r_k) log(1 + |r_k|)
                 where h_k > delta, r_k elsewhere;
                 h_k = sd_k / (|mean_k| + 1e-6)                          (5)
  group_range    sum_{k in K} w_k (r_k - low_k) / (high_k - low_k + eps) (6)
  tiered         sum_{k in K} w_k r_k, of the tiers up to the first in which
                 some r_j, j in K, is below its threshold                (7)

(4) FIRM, arXiv:2603.12247; (5) PaCo-RL, arXiv:2512.04784; (6) the hybrid reward
of DP2O-SR, arXiv:2510.18851; (7) is a general form of the rewards of
ARM-Thinker, arXiv:2512.05111, whose table is one of its cases, but for what a
wrong answer gains by a call of a tool.

What does not apply counts as 0 where scores are added, as 1 where they are
multiplied, and opens what waits for it. Where a label is asked for, a part of a
reward, 'label/part', is one too: it has no weight, and adds nothing itself.

Gradients (objectives that take them of rewards) are finite, and those of the
formula with its conditions, spreads and ranges held fixed: what opens a gate
or a tier is pushed by its own weight alone.

A row is valid where all rewards that apply to it could score it, and so could
those parts that are named, whatever mixes them (`rewards.combine`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen_rl.advantages.statistics import moments
from gen_rl.build import ConfigError, did_you_mean
from gen_rl.fields import Fraction, Index, NonNegative, Positive
from gen_rl.types import Array

_LARGEST = 1e15  # of a product, see `rewards.outcomes`


class Mixer(NamedTuple):
  """A way to mix, and what it has to see for that."""

  # (scores {label or label/part: [b]}, used {the same: bool [b]}, weights
  # {label: w}, G) -> [b]; scores are 0 where a reward is not used.
  mix: Callable[
    [
      Mapping[str, Array],
      Mapping[str, Array],
      Mapping[str, float | Array],
      int,
    ],
    Array,
  ]
  # What a call has to hold, as `Reward.called_on`.
  called_on: Literal['rows', 'groups', 'batch'] = 'rows'
  # {its key: a label or label/part that has to be there}
  reads: Mapping[str, str] = MappingProxyType({})
  rewards: int = 1  # that there have to be, with a weight


__all__ = (
  'base_bonus',
  'gated',
  'group_range',
  'log_tame',
  'product',
  'tiered',
  'weighted_sum',
)


def weighted_sum() -> Mixer:
  """(1)."""

  def mix(scores, used, weights, group_size):
    del used, group_size
    return sum(weights[k] * scores[k] for k in weights)

  return Mixer(mix)


def product(floor: Positive = 1e-3) -> Mixer:
  """(2): none makes up for another; of scores from 0 to 1, say.

  Tested, not measured.

  Args:
    floor: smaller scores count as this one.
  """

  def mix(scores, used, weights, group_size):
    del group_size
    logs = [
      jnp.where(used[k], w * jnp.log(jnp.maximum(scores[k], floor)), 0.0)
      for k, w in weights.items()
    ]
    return jnp.exp(jnp.minimum(sum(logs), jnp.log(_LARGEST)))

  return Mixer(mix)


def gated(gate: str, threshold: float = 0.5, closed: float = 0.0) -> Mixer:
  """(3): the others count where one of them says that they may.

  Tested, not measured.

  Args:
    gate: label of a reward, or of a part.
    threshold: of its score.
    closed: what the others are worth together where the gate is closed.
  """

  def mix(scores, used, weights, group_size):
    del group_size
    own = weights.get(gate, 0.0) * scores[gate]
    others = sum(w * scores[k] for k, w in weights.items() if k != gate)
    opened = ~used[gate] | (scores[gate] >= threshold)
    return own + jnp.where(opened, others, closed)

  return Mixer(mix, reads=dict(gate=gate))


def base_bonus(base: str, share: Fraction = 0.4) -> Mixer:
  """(4): what is good beside the base pays as far as the base is reached.

  Of scores from 0 to 1: where the base is 0 all is, so that the easy one of two
  aims, such as changing nothing, earns nothing alone. FIRM has a share of 0.4
  for edits (kept beside done) and of 0.6 for pictures (quality beside what was
  asked). The bonus has no gradient where the base is 0.

  Tested, not measured.

  Args:
    base: b, label of a reward, or of a part, whose weight is 1.
    share: s, of the base that the bonus decides on.
  """

  def mix(scores, used, weights, group_size):
    del group_size
    others = [k for k in weights if k != base]
    total = sum(weights[k] * scores[k] for k in others)
    whole = sum(jnp.abs(weights[k]) * used[k] for k in others)
    some = whole > 0
    bonus = jnp.where(some, total / jnp.where(some, whole, 1.0), 1.0)
    own = jnp.where(used[base], scores[base], 1.0)
    return weights.get(base, 1.0) * own * (1 - share + share * bonus)

  return Mixer(mix, reads=dict(base=base), rewards=1 if '/' in base else 2)


def log_tame(
  threshold: Positive | None = None, within: Literal['batch', 'group'] = 'batch'
) -> Mixer:
  """(5): rewards whose spread is large for their mean are added as logarithms.

  PaCo-RL has scores of at least 0, where t is log(1 + r); below 0 ours is the
  odd function that goes on from there, and h is of the mean's size. A reward
  that is alone is above no mean of spreads, nor is one of several equal ones.

  Tested, not measured.

  Args:
    threshold: delta; None: the mean of the h_k there are.
    within: whose mean and deviation: of the rows of the batch, as PaCo-RL has
      it, or of a prompt's, which `best_of` can choose by.
  """

  def mix(scores, used, weights, group_size):
    shape = (1, -1) if within == 'batch' else (-1, group_size)
    spreads, there = [], []
    for k in weights:
      r = jax.lax.stop_gradient(scores[k]).reshape(shape)
      count, mean, std, _ = moments(r, used[k].reshape(shape))
      spreads.append(std / (jnp.abs(mean) + 1e-6))
      there.append(count > 0)
    delta = threshold
    if delta is None:  # not above it by the rounding of a mean
      delta = sum(spreads) / jnp.maximum(sum(there), 1) * (1 + 1e-5)
    total = 0.0
    for (k, w), spread in zip(weights.items(), spreads, strict=True):
      r = scores[k].reshape(shape)
      total += w * jnp.where(spread > delta, _log(r), r)
    return total.reshape(-1)

  called_on = 'batch' if within == 'batch' else 'groups'
  return Mixer(mix, called_on, rewards=1 if threshold else 2)


def _log(x: Array) -> Array:
  """sign(x) log(1 + |x|), whose slope at 0 is 1."""
  positive = x >= 0
  up = jnp.log1p(jnp.where(positive, x, 0.0))
  return jnp.where(positive, up, -jnp.log1p(jnp.where(positive, 0.0, -x)))


def group_range(eps: NonNegative = 1e-8) -> Mixer:
  """(6): each score by its place between the lowest and highest of its group.

  Rewards of any unit have one range, within every prompt; 1/2 where a group's
  scores are equal. A reward of which less is better has a negative weight. A
  score is relative: its mean over prompts tells nothing, and evaluations log it
  all the same.

  Tested, not measured.

  Args:
    eps: added to the range, in units of the reward.
  """

  def mix(scores, used, weights, group_size):
    total = 0.0
    for k, w in weights.items():
      r, on = (x.reshape(-1, group_size) for x in (scores[k], used[k]))
      fixed = jax.lax.stop_gradient(r)
      high = jnp.where(on, fixed, -jnp.inf).max(-1, keepdims=True)
      low = jnp.where(on, fixed, jnp.inf).min(-1, keepdims=True)
      differ = high > low
      low = jnp.where(differ, low, 0.0)
      width = jnp.where(differ, high - low + eps, 1.0)
      place = jnp.where(differ, (r - low) / width, 0.5)
      total += w * jnp.where(on, place, 0.0)
    return total.reshape(-1)

  return Mixer(mix, 'groups')


def tiered(
  tiers: Mapping[str, Index],
  threshold: float = 0.5,
  thresholds: Mapping[str, float] | None = None,
) -> Mixer:
  """(7): a tier counts where all of those before it are met.

  Of scores and weights of at least 0, a row that meets a tier never has less
  than one that does not, and else the same scores. With the weights .3, .7 and
  .5 of verdicts, format=1, answer=2 and tool=3 pay 0 for a wrong format, .3 for
  a wrong answer, 1 for a right one and 1.5 where a tool was of use to it.

  Tested, not measured.

  Args:
    tiers: {label of a reward or a part: its tier}; the lowest number is first,
      and every reward with a weight has one.
    threshold: what a score has to reach for its tier to be met.
    thresholds: {label: the same of its own}.

  Raises:
    ConfigError: no tiers, or a threshold of something that is in none.
  """
  own = dict(thresholds or {})
  if not tiers:
    raise ConfigError('tiers is empty; it is {label of a reward: its tier}')
  if lost := [k for k in own if k not in tiers]:
    raise ConfigError(
      f'thresholds names {lost[0]!r}, which is in no tier'
      f'{did_you_mean(lost[0], tiers)}; there are {", ".join(tiers)}'
    )

  def mix(scores, used, weights, group_size):
    del group_size
    if left := [k for k in weights if k not in tiers]:
      raise ConfigError(
        f'config.mix.tiers leaves out {", ".join(left)}; every reward with a '
        'weight has a tier'
      )
    total, opened = 0.0, True
    for tier in sorted(set(tiers.values())):
      here = [k for k, place in tiers.items() if place == tier]
      worth = sum(weights.get(k, 0.0) * scores[k] for k in here)
      total += jnp.where(opened, worth, 0.0)
      for k in here:
        met = scores[k] >= own.get(k, threshold)
        opened &= ~used[k] | met
    return total

  return Mixer(mix, reads={f'tiers.{k}': k for k in tiers})
