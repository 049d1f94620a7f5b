"""One score of several named rewards, and the split by where they run.

  (1)  score = mix({label: score, weight}), by default the weighted sum
  (2)  valid = every score that applies is valid and finite, and one applies

(2) because a missing part cannot be told from a bad one: a row with it left
out would be compared with its group on a different scale. In a merged result
the score and the parts of an invalid row are 0, so that a mask applied later
never meets 0 * NaN.

Rewards are passed around as `{label: (Reward, weight)}`; a weight of 0 removes
the reward. Every part is logged under its label, and its own parts under
`label/part`.

Monitors are rewards that are scored beside them and not trained on: a gold
oracle, or what a reward is suspected to prefer (`watch`).
"""

from collections.abc import Mapping
import functools
import math
import operator
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from gen_rl import mixers, types
from gen_rl.build import ConfigError, did_you_mean
from gen_rl.rewards import outcomes
from gen_rl.types import (
  AnyArray,
  Array,
  Axes,
  Learner,
  Metrics,
  Params,
  Reward,
  RewardInputs,
  RewardOut,
)
from gen_rl.utils.tasks import TASK, task_code

Weighted = Mapping[str, tuple[Reward, float]]


def split(rewards: Weighted) -> tuple[dict, dict]:
  """Rewards scored inside the jitted step, and those scored outside of it.

  Returns:
    (device, host), both {label: (Reward, weight)} without the rewards of
    weight 0.

  Raises:
    ValueError: a weight is not finite; `where` or what it needs is unknown.
  """
  device, host = {}, {}
  for label, (reward, weight) in rewards.items():
    if not math.isfinite(weight):
      raise ValueError(f'reward {label!r} has the weight {weight}')
    if reward.where not in ('device', 'host'):
      raise ValueError(
        f'reward {label!r} has where={reward.where!r}; it must be "device" or '
        '"host" (one that asks a server is scored on the host)'
      )
    if not set(reward.needs) <= {'said', 'seen'}:
      raise ValueError(
        f'reward {label!r} needs {reward.needs}; it can need "said" and "seen"'
      )
    if weight != 0:
      (device if reward.where == 'device' else host)[label] = reward, weight
  return device, host


def weights(rewards: Weighted) -> dict[str, float]:
  """{label: weight}, what `merge` takes."""
  return {label: weight for label, (_, weight) in rewards.items() if weight}


def params(rewards: Weighted) -> dict[str, Params]:
  """{label: params}: hand them to a jitted function as an argument."""
  return {label: reward.params for label, (reward, w) in rewards.items() if w}


def axes(rewards: Weighted) -> dict[str, Axes]:
  """{label: axes of its parameters} of the rewards whose axes are known."""
  return {label: r.axes for label, (r, w) in rewards.items() if w and r.axes}


def applies(outs: Mapping[str, RewardOut]) -> AnyArray | bool:
  """The rows [b] that one of these answers is about, or True: all."""
  some = [out.applies for out in outs.values()]
  if any(x is None for x in some):
    return True
  return functools.reduce(operator.or_, some)


def widest(rewards: Weighted, mix: mixers.Mixer | None = None) -> str:
  """What a call of all of these has to hold, see `Reward.called_on`."""
  order = ('rows', 'groups', 'batch')
  used = [r.called_on for r, weight in rewards.values() if weight]
  used.append(mix.called_on if mix else 'rows')
  return max(used, key=order.index)


def learners(rewards: Weighted) -> dict[str, Learner]:
  """{label: learner} of the rewards that are trained."""
  return {
    label: reward.learner
    for label, (reward, weight) in rewards.items()
    if weight and reward.learner is not None
  }


def rows_of(inputs: RewardInputs) -> int:
  """B."""
  return len(jax.tree.leaves(inputs)[0])


def given(label: str, reward: Reward, params: Params) -> Params:
  """The parameters a reward is scored with, checked.

  Raises:
    ValueError: the reward is trained, and its learner's parameters are not
      among them.
  """
  whole = isinstance(params, tuple) and len(params) == 2
  if reward.learner is not None and not whole:
    raise ValueError(
      f'the reward {label!r} is trained with the policy: it scores with '
      "(its parameters, its learner's), which a checkpoint holds"
    )
  return params


def answer(
  label: str, reward: Reward, params: Params, inputs: RewardInputs, key: Array
) -> RewardOut:
  """What a reward says of b rows, checked; of its tasks' prompts alone.

  Raises:
    RewardError: it says something else; or it is for some tasks, and the
      prompts have none.
  """
  out = reward.score(given(label, reward, params), inputs, key)
  if reward.tasks and isinstance(out, RewardOut):
    if TASK not in inputs.info:
      raise outcomes.RewardError(
        f'the reward {label!r} is for the tasks {", ".join(reward.tasks)}, and '
        'these prompts have no tasks'
      )
    task = inputs.info[TASK]
    xp = np if isinstance(task, np.ndarray) else jnp
    applies = xp.isin(task, np.array([*map(task_code, reward.tasks)]))
    if out.applies is not None:
      applies = applies & out.applies
    out = out.replace(applies=applies)
  return outcomes.checked(label, out, rows_of(inputs))


def row_key(key: Array, label: str) -> Array:
  """The key(s) of one reward: does not depend on which others there are."""
  fold = lambda k: jax.random.fold_in(k, zlib.crc32(label.encode()))
  return fold(key) if key.ndim == 0 else jax.vmap(fold)(key)


def merge(
  outs: Mapping[str, RewardOut],
  weights: Mapping[str, float | Array],
  mix: mixers.Mixer | None = None,
  group_size: int = 1,
) -> RewardOut:
  """Equations (1) and (2), pure; jax arrays from numpy ones too.

  Args:
    outs: {label: scored batch of b rows}.
    weights: {label: weight}, the same labels.
    mix: a function of `mixers`; None: the weighted sum.
    group_size: neighbours that are of one prompt.

  Returns:
    score [b] float32; parts {label: [b], label/part: [b]}, unweighted, 0 where
    the reward does not apply; valid [b]; steps: the weighted sum of those that
    have some, or None; before: the weighted sum, or None unless all have it.

  Raises:
    ConfigError: rewards of decisions, or of samples finished before, that are
      not summed; too few rewards for the mixer, or not those it names.
    RewardError: a reward answered with something else than scores of b rows.
    ValueError: the labels differ, or there are none.
  """
  if not weights or set(outs) != set(weights):
    raise ValueError(
      f'scores for {sorted(outs)} do not match the weights of '
      f'{sorted(weights)} (at least one is needed)'
    )
  summed, mix = mix is None, mix or mixers.weighted_sum()
  b = len(next(iter(outs.values())).valid)
  outs = {label: outcomes.checked(label, x, b) for label, x in outs.items()}
  parts, used = {}, {}
  for label, out in outs.items():
    named = {label: out.score}
    named |= {f'{label}/{name}': part for name, part in out.parts.items()}
    parts |= {name: jnp.asarray(x) for name, x in named.items()}
    used |= dict.fromkeys(named, outcomes.scored(out))
  valid = jnp.stack([jnp.asarray(out.valid) for out in outs.values()]).all(0)
  valid &= jnp.stack([used[label] for label in outs]).any(0)
  _check_mixed(mix, parts, outs)
  for name in mix.reads.values():
    valid &= ~used[name] | jnp.isfinite(parts[name])
  steps = []
  for label, out in outs.items():
    if out.steps is not None:
      applies = True if out.applies is None else out.applies[:, None]
      steps.append(weights[label] * jnp.where(applies, out.steps, 0))
  steps = sum(steps) if steps else None
  if steps is not None:
    valid &= jnp.isfinite(steps).all(1)
    steps = jnp.where(valid[:, None], steps, 0)
  # Part by part: where(valid) around the sum alone would leave a NaN in the
  # gradient.
  parts = {
    name: jnp.where(valid & used[name], x, 0) for name, x in parts.items()
  }
  used = {name: valid & x for name, x in used.items()}
  score = mix.mix(parts, used, weights, group_size)
  score = jnp.where(valid, score, 0)
  before = [
    weights[label] * jnp.asarray(out.before)
    for label, out in outs.items()
    if out.before is not None
  ]
  before = sum(before) if len(before) == len(outs) else None
  if not summed and not (steps is None and before is None):
    raise ConfigError(
      'rewards of decisions are summed: they go with mix.name="weighted_sum"'
    )
  return RewardOut(score, parts, valid, steps, before)


def _check_mixed(
  mix: mixers.Mixer, parts: Mapping[str, Array], outs: Mapping[str, RewardOut]
) -> None:
  """Raises ConfigError for a mixer that lacks what it mixes."""
  if len(outs) < mix.rewards:
    raise ConfigError(
      f'config.mix mixes {mix.rewards} rewards or more, and there is '
      f'{", ".join(outs)} alone'
    )
  for key, name in mix.reads.items():
    if name not in parts:
      raise ConfigError(
        f'config.mix.{key} names {name!r}, which is no reward with a weight '
        f'and no part of one{did_you_mean(name, parts)}; there are '
        f'{", ".join(parts)}'
      )


# The return type is spelled so that a config cannot ask for this function by
# name (rewards.BUILDS).
def combine(rewards: Weighted, mix: mixers.Mixer | None = None) -> types.Reward:
  """One reward that several are mixed to.

  Its `params` are {label: params}, its key is folded with each label. It runs
  on the device if all parts do; it is differentiable if all parts are, and a
  verdict if it is one of weight 1 and nothing else.

  Args:
    rewards: {label: (Reward, weight)}.
    mix: see `merge`.

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
      label: answer(label, reward, params[label], inputs, row_key(key, label))
      for label, (reward, _) in used.items()
    }
    return merge(outs, w, mix, inputs.group_size)

  places = {reward.where for reward, _ in used.values()}
  return Reward(
    name='combine',
    params=params(used),
    score=score,
    where='host' if 'host' in places else 'device',
    differentiable=all(reward.differentiable for reward, _ in used.values()),
    verdict=len(used) == 1
    and all(r.verdict and k == 1 for r, k in used.values()),
    called_on=widest(used, mix),
    needs=sorted({name for r, _ in used.values() for name in r.needs}),
  )


def summarize(
  out: RewardOut, outs: Mapping[str, RewardOut] | None = None
) -> Metrics:
  """Means over the valid rows, and how many rows are not valid.

  Args:
    out: merged.
    outs: {label: answer} it was merged of, which say where they apply; a part
      is averaged over those rows alone.

  Returns:
    reward/score, reward/<part>, reward/std: NaN when no row is valid.
    What `outcomes.count` says, of the merged one where `outs` are not given.
  """
  valid = jnp.asarray(out.valid)
  outs = outs or {}
  used = {
    name: valid & outcomes.scored(x)
    for label, x in outs.items()
    for name in (label, *(f'{label}/{part}' for part in x.parts))
  }

  def mean(x: Array, rows: Array = valid) -> Array:
    return jnp.where(rows, x, 0).sum() / rows.sum()

  average = mean(out.score)
  metrics = {
    f'reward/{name}': mean(x, used.get(name, valid))
    for name, x in out.parts.items()
  }
  return metrics | {
    'reward/score': average,
    'reward/std': jnp.sqrt(mean(jnp.square(out.score - average))),
    **outcomes.count(outs, valid),
  }


def watch(
  outs: Mapping[str, RewardOut],
  adv: Float[Array, 'b ...'],
  valid: Bool[Array, ' b'],
  group_size: int,
) -> Metrics:
  """What monitors say: rewards that are scored and not trained on.

  With x the score of a monitor less its group's mean and A the advantage of a
  row (its mean, where every decision has its own), over all rows of the batch
  that were scored by the monitor and by the reward,

    (3)  corr = sum x (A - mean A) / sqrt(sum x^2 sum (A - mean A)^2)

  says how much of the advantage is about what the monitor measures: 1 where
  training pushes towards nothing else, 0 where it is all about other things,
  such as the noise of the reward. And of the groups whose members the monitor
  cannot tell apart (all scores equal, x = 0),

    (4)  share = sum_{those groups} A^2 / sum A^2

  is how much of the advantage is about nothing it measures for certain.

  Args:
    outs: {label: a scored batch, prompt-major groups}.
    adv: what is trained on.
    valid: rows with a reward.
    group_size: G.

  Returns:
    monitor/<label>, monitor/<label>/<part>: means over the rows the monitor
      could score; NaN where there are none.
    monitor/<label>/advantage_corr: (3); NaN where either side is constant.
    monitor/<label>/equal_share: (4); NaN where no row has an advantage.
  """
  adv = adv.reshape(len(adv), -1).mean(-1)
  metrics = {}
  for label, out in outs.items():
    for name, x in {label: out.score, **out.parts}.items():
      name = label if name == label else f'{label}/{name}'
      seen = outcomes.scored(out)
      metrics[f'monitor/{name}'] = jnp.where(seen, x, 0).sum() / seen.sum()
    used = valid & outcomes.scored(out)
    groups = used.reshape(-1, group_size)
    score = out.score.reshape(-1, group_size)
    count = jnp.maximum(groups.sum(-1, keepdims=True), 1)
    mean = jnp.where(groups, score, 0).sum(-1, keepdims=True) / count
    high = jnp.where(groups, score, -jnp.inf).max(-1, keepdims=True)
    low = jnp.where(groups, score, jnp.inf).min(-1, keepdims=True)
    differ = groups & (high > low)
    # Equal scores are exactly at their mean, whatever rounding says.
    x = jnp.where(differ, score - mean, 0).reshape(-1)
    mean = jnp.where(used, adv, 0).sum() / jnp.maximum(used.sum(), 1)
    y = jnp.where(used, adv - mean, 0)
    scale = jnp.sqrt(jnp.square(x).sum() * jnp.square(y).sum())
    metrics[f'monitor/{label}/advantage_corr'] = (x * y).sum() / scale
    square = jnp.where(used, jnp.square(adv), 0)
    equal = jnp.where(differ.reshape(-1), 0, square)
    metrics[f'monitor/{label}/equal_share'] = equal.sum() / square.sum()
  return metrics
