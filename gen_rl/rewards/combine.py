"""The weighted sum of named rewards, and the split by where they run.

  (1)  score = sum_label weight[label] * score[label]
  (2)  valid = every part is valid and finite

(2) because a missing part cannot be told from a bad one: a row with it left
out would be compared with its group on a different scale. In a merged result
the score and the parts of an invalid row are 0, so that a mask applied later
never meets 0 * NaN.

Rewards are passed around as `{label: (Reward, weight)}`; a weight of 0 removes
the reward. Every part is logged under its label, and its own parts under
`label/part`.
"""

from collections.abc import Mapping
import math
import zlib

import jax
import jax.numpy as jnp

from gen_rl.types import Array, Metrics, Params, Reward, RewardInputs, RewardOut

Weighted = Mapping[str, tuple[Reward, float]]


def split(rewards: Weighted) -> tuple[dict, dict]:
  """Rewards scored inside the jitted step, and those scored outside of it.

  Returns:
    (device, other), both {label: (Reward, weight)} without the rewards of
    weight 0; `other` are the host (and, later, remote) ones.

  Raises:
    ValueError: a weight is not finite, or `where` is unknown.
  """
  device, other = {}, {}
  for label, (reward, weight) in rewards.items():
    if not math.isfinite(weight):
      raise ValueError(f'reward {label!r} has the weight {weight}')
    if reward.where not in ('device', 'host', 'remote'):
      raise ValueError(
        f'reward {label!r} runs in {reward.where!r}; it must be one of '
        'device, host, remote'
      )
    if weight != 0:
      (device if reward.where == 'device' else other)[label] = reward, weight
  return device, other


def weights(rewards: Weighted) -> dict[str, float]:
  """{label: weight}, what `merge` takes."""
  return {label: weight for label, (_, weight) in rewards.items() if weight}


def params(rewards: Weighted) -> dict[str, Params]:
  """{label: params}: hand them to a jitted function as an argument."""
  return {label: reward.params for label, (reward, w) in rewards.items() if w}


def row_key(key: Array, label: str) -> Array:
  """The key(s) of one reward: does not depend on which others there are."""
  fold = lambda k: jax.random.fold_in(k, zlib.crc32(label.encode()))
  return fold(key) if key.ndim == 0 else jax.vmap(fold)(key)


def merge(
  outs: Mapping[str, RewardOut], weights: Mapping[str, float]
) -> RewardOut:
  """Equations (1) and (2), pure; jax arrays from numpy ones too.

  Args:
    outs: {label: scored batch of b rows}.
    weights: {label: weight}, the same labels.

  Returns:
    score [b] float32; parts {label: [b], label/part: [b]}, unweighted; valid
    [b]; dense: the weighted sum of those parts that have one, or None.

  Raises:
    ValueError: the labels differ, or there are none.
  """
  if not weights or set(outs) != set(weights):
    raise ValueError(
      f'scores for {sorted(outs)} do not match the weights of '
      f'{sorted(weights)} (at least one is needed)'
    )
  parts = {}
  for label, out in outs.items():
    parts[label] = out.score
    parts |= {f'{label}/{name}': part for name, part in out.parts.items()}
  parts = {name: jnp.asarray(x, jnp.float32) for name, x in parts.items()}
  valid = jnp.stack(
    [
      jnp.asarray(out.valid) & jnp.isfinite(parts[label])
      for label, out in outs.items()
    ]
  ).all(0)
  dense = [
    weights[label] * jnp.asarray(out.dense, jnp.float32)
    for label, out in outs.items()
    if out.dense is not None
  ]
  dense = sum(dense) if dense else None
  if dense is not None:
    valid &= jnp.isfinite(dense).all((1, 2))
    dense = jnp.where(valid[:, None, None], dense, 0)
  # Part by part: where(valid) around the sum alone would leave a NaN in the
  # gradient.
  parts = {name: jnp.where(valid, x, 0) for name, x in parts.items()}
  score = sum(weights[label] * parts[label] for label in outs)
  return RewardOut(score, parts, valid, dense)


def combine(rewards: Weighted) -> Reward:
  """One reward that is the weighted sum of several.

  Its `params` are {label: params}, its key is folded with each label. It runs
  on the device if all parts do; it is differentiable if all parts are.

  Raises:
    ValueError: as `split`; or no reward has a weight.
  """
  device, other = split(rewards)
  used = device | other
  if not used:
    raise ValueError('no reward has a weight other than 0')
  w = weights(used)

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    outs = {
      label: reward.score(params[label], inputs, row_key(key, label))
      for label, (reward, _) in used.items()
    }
    return merge(outs, w)

  places = {reward.where for reward, _ in used.values()}
  return Reward(
    name='combine',
    params=params(used),
    score=score,
    where=next(p for p in ('remote', 'host', 'device') if p in places),
    differentiable=all(reward.differentiable for reward, _ in used.values()),
  )


def summarize(out: RewardOut) -> Metrics:
  """Means over the valid rows, and how many rows are not valid.

  Returns:
    reward/score, reward/<part>, reward/std: NaN when no row is valid.
    reward/invalid: a count.
  """
  valid = jnp.asarray(out.valid)
  count = valid.sum()

  def mean(x: Array) -> Array:
    return jnp.where(valid, x, 0).sum() / count

  average = mean(out.score)
  metrics = {f'reward/{name}': mean(x) for name, x in out.parts.items()}
  return metrics | {
    'reward/score': average,
    'reward/std': jnp.sqrt(mean(jnp.square(out.score - average))),
    'reward/invalid': (~valid).sum().astype(jnp.float32),
  }
