r"""Advantages: how much better a sample did than its baseline.

With r_i the score of row i, g its group (the G samples of one prompt), V_g
the valid rows of the group, n_g = |V_g|, mu_g and sd_g their mean and
standard deviation:

  (1) grpo      A_i = (r_i - mu_g) / (sd + eps),  sd = sd_g, or the standard
                deviation of all valid scores of the batch (`std='global'`)
  (2) rloo      A_i = r_i - mean_{j in V_g, j != i} r_j
                    = n_g / (n_g - 1) (r_i - mu_g)
  (3) dr_grpo   A_i = r_i - mu_g
  (4) history   A_i = (r_i - mu_p) / (sd_p + eps), mu_p and sd_p over the last
                `buffer` scores of the same prompt, this batch included; over
                the valid scores of the batch while the prompt has fewer than
                `min_count`

and, where `clip` is given, A_i is clipped to [-clip, clip].

Sources: (1) GRPO, arXiv:2402.03300, as used by Flow-GRPO, arXiv:2505.05470
(batch-wide deviation, clip 5); (2) Ahmadian et al., arXiv:2402.14740; (3) Liu
et al., arXiv:2503.20783; (4) DDPO, arXiv:2305.13301 (per-prompt tracker).

Every factory returns a `types.Advantage`. Its `update` takes
(rewards: RewardOut, group: prompt id [b] int32, state) and returns

  adv      [b 1] float32, 0 for rows of weight 0
  weight   [b] float32, 0 drops the row from the loss
  state    the next state
  metrics  `advantage/std_mean`: mean within-group standard deviation, in
           reward units, over groups with two valid rows or more;
           `advantage/zero_std_fraction`: share of groups where no row has an
           advantage; `advantage/clip_fraction`: share of valid rows that were
           clipped; `advantage/invalid`: share of rows that are invalid

A row is invalid when `rewards.valid` says so or its score is not finite. Such
a row enters no statistic and gets weight 0; so does a lone valid row of a
group (it is its own baseline; not in `history`), and, with `drop_zero`, any
row whose advantage is 0, as Flow-GRPO drops them. Groups of equal scores have
advantage exactly 0: equality is tested on the scores, since the rounding
error of a mean divided by eps would pass for a signal. Rows are prompt-major
[P*G]; two groups of one prompt in a batch are two groups, except in
`history`. No gradient flows through an advantage.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int

from gen_rl.types import Advantage, Array, Metrics, PyTree, RewardOut

# What `update` returns: (adv, weight, state, metrics).
_Update = tuple[Float32[Array, 'b 1'], Float32[Array, ' b'], PyTree, Metrics]


def _valid_scores(
  rewards: RewardOut,
) -> tuple[Float32[Array, ' b'], Bool[Array, ' b']]:
  """Scores with 0 where invalid, and which are valid."""
  score = jax.lax.stop_gradient(rewards.score.astype(jnp.float32))
  valid = rewards.valid.astype(bool) & jnp.isfinite(score)
  return jnp.where(valid, score, 0.0), valid


def _moments(
  score: Float32[Array, '*p n'], valid: Bool[Array, '*p n'], ddof: int = 0
) -> tuple[
  Float32[Array, '*p 1'],
  Float32[Array, '*p 1'],
  Float32[Array, '*p 1'],
  Bool[Array, '*p 1'],
]:
  """Statistics of the valid entries along the last axis, which is kept.

  Returns count, mean, standard deviation (two-pass; 0 when count <= ddof) and
  whether the entries differ.
  """
  count = valid.sum(-1, keepdims=True).astype(jnp.float32)
  total = jnp.where(valid, score, 0.0).sum(-1, keepdims=True)
  mean = total / jnp.maximum(count, 1.0)
  square = jnp.where(valid, score - mean, 0.0) ** 2
  var = square.sum(-1, keepdims=True) / jnp.maximum(count - ddof, 1.0)
  high = jnp.where(valid, score, -jnp.inf).max(-1, keepdims=True)
  low = jnp.where(valid, score, jnp.inf).min(-1, keepdims=True)
  differ = high > low
  std = jnp.where(differ, jnp.sqrt(var), 0.0)
  return count, mean, std, differ


def _finish(
  raw: Float32[Array, ' b'],
  keep: Bool[Array, ' b'],
  valid: Bool[Array, ' b'],
  std: Float32[Array, 'P 1'],
  count: Float32[Array, 'P 1'],
  group_size: int,
  clip: float | None,
  drop_zero: bool,
) -> tuple[Float32[Array, 'b 1'], Float32[Array, ' b'], Metrics]:
  """Clips and weighs raw advantages; `std`, `count` of each group."""
  raw = jnp.where(keep, raw, 0.0)
  adv = raw if clip is None else jnp.clip(raw, -clip, clip)
  signal = keep & (adv != 0)
  weight = (signal if drop_zero else keep).astype(jnp.float32)
  clipped = jnp.zeros_like(keep) if clip is None else jnp.abs(raw) > clip
  some = signal.reshape(-1, group_size).any(-1)
  pairs = count >= 2
  metrics = {
    'advantage/std_mean': jnp.where(pairs, std, 0.0).sum()
    / jnp.maximum(pairs.sum(), 1),
    'advantage/zero_std_fraction': 1.0 - some.mean(dtype=jnp.float32),
    'advantage/clip_fraction': clipped.sum() / jnp.maximum(valid.sum(), 1),
    'advantage/invalid': 1.0 - valid.mean(dtype=jnp.float32),
  }
  return adv[:, None], weight, metrics


def _group_relative(group_size, advantage, ddof, clip, drop_zero) -> Advantage:
  """`advantage(centred [P G], count, std, score, valid) -> [P G]`."""
  if group_size < 2:
    raise ValueError(
      f'group_size is {group_size}: a group-relative advantage compares the '
      'samples of one prompt and needs at least 2.'
    )

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> _Update:
    del group  # rows are prompt-major
    score, valid = _valid_scores(rewards)
    scores = score.reshape(-1, group_size)
    valids = valid.reshape(-1, group_size)
    count, mean, std, differ = _moments(scores, valids, ddof)
    # `differ` implies two valid rows, so a lone row never has an advantage
    raw = advantage(scores - mean, count, std, score, valid)
    raw = jnp.where(differ, raw, 0.0).reshape(-1)
    keep = (valids & (count >= 2)).reshape(-1)
    adv, weight, metrics = _finish(
      raw, keep, valid, std, count, group_size, clip, drop_zero
    )
    return adv, weight, state, metrics

  return Advantage(init=lambda: (), update=update)


def grpo(
  group_size: int,
  std: Literal['group', 'global'] = 'group',
  eps: float = 1e-4,
  clip: float | None = 5.0,
  ddof: int = 0,
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
    return centred / (_moments(score, valid, ddof)[2] + eps)

  return _group_relative(group_size, advantage, ddof, clip, drop_zero)


def rloo(
  group_size: int, clip: float | None = None, drop_zero: bool = True
) -> Advantage:
  """Leave-one-out advantage in reward units, equation (2).

  Unbiased: the baseline of a row does not depend on the row.

  Raises:
    ValueError: for group_size < 2.
  """

  def advantage(centred, count, std, score, valid):
    del std, score, valid
    return centred * count / jnp.maximum(count - 1.0, 1.0)

  return _group_relative(group_size, advantage, 0, clip, drop_zero)


def dr_grpo(
  group_size: int, clip: float | None = None, drop_zero: bool = True
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


def history(
  group_size: int,
  num_prompts: int,
  buffer: int = 32,
  min_count: int = 16,
  eps: float = 1e-6,
  clip: float | None = 5.0,
  drop_zero: bool = True,
) -> Advantage:
  """Advantage against the prompt's own past scores, equation (4).

  State: `scores` [num_prompts, buffer], a ring per prompt, and `count`
  [num_prompts] int32, scores ever written. A batch's valid scores are written
  first, in row order, and then every row is compared with its prompt's ring;
  it may come from several groups of a prompt, and of more than `buffer` new
  scores the last `buffer` stay.

  Args:
    group_size: samples per prompt, G; 1 is allowed. Used for metrics only.
    num_prompts: rings to keep. A prompt uses ring `prompt id % num_prompts`:
      exact when ids are 0 .. num_prompts - 1; otherwise prompts whose ids are
      equal modulo num_prompts share a history.
    buffer: scores kept per prompt.
    min_count: scores a prompt needs before its own statistics are used.
    eps: added to the deviation, in reward units.
    clip: bound on |A|; None for no bound.
    drop_zero: give rows of advantage 0 weight 0.

  Raises:
    ValueError: when min_count exceeds buffer, so no prompt could ever reach
      it, or a size is not positive.
  """
  if min(group_size, num_prompts, buffer, min_count) < 1:
    raise ValueError(
      'group_size, num_prompts, buffer and min_count must be at least 1, got '
      f'{group_size}, {num_prompts}, {buffer}, {min_count}.'
    )
  if min_count > buffer:
    raise ValueError(
      f'min_count is {min_count} and buffer {buffer}: a prompt would never '
      'hold enough scores to use its own statistics.'
    )

  def init():
    return dict(
      scores=jnp.zeros((num_prompts, buffer), jnp.float32),
      count=jnp.zeros((num_prompts,), jnp.int32),
    )

  def write(score, valid, slot, state):
    # rank: how many earlier valid rows of this batch go to the same ring;
    # invalid rows go to ring `num_prompts`, which does not exist
    b = score.shape[0]
    slot = jnp.where(valid, slot, num_prompts)
    order = jnp.argsort(slot, stable=True)
    ordered = slot[order]
    first = jnp.searchsorted(ordered, ordered, side='left')
    rank = (
      jnp.zeros(b, jnp.int32)
      .at[order]
      .set(jnp.arange(b, dtype=jnp.int32) - first.astype(jnp.int32))
    )
    new = jnp.zeros(num_prompts, jnp.int32).at[slot].add(1, mode='drop')
    stays = new.at[slot].get(mode='fill', fill_value=0) - rank <= buffer
    place = state['count'].at[slot].get(mode='fill', fill_value=0) + rank
    scores = (
      state['scores']
      .at[jnp.where(stays, slot, num_prompts), place % buffer]
      .set(score, mode='drop')
    )
    return dict(scores=scores, count=state['count'] + new)

  def update(
    rewards: RewardOut, group: Int[Array, ' b'], state: PyTree
  ) -> _Update:
    score, valid = _valid_scores(rewards)
    slot = group.astype(jnp.int32) % num_prompts
    state = write(score, valid, slot, state)
    held = jnp.minimum(state['count'], buffer)[slot][:, None]  # [b 1]
    own = _moments(state['scores'][slot], jnp.arange(buffer) < held)
    batch = _moments(score[None], valid[None])
    _, mean, std, differ = (
      jnp.where(held >= min_count, x, y)[:, 0]
      for x, y in zip(own, batch, strict=True)
    )
    raw = jnp.where(differ, (score - mean) / (std + eps), 0.0)
    count, _, group_std, _ = _moments(
      score.reshape(-1, group_size), valid.reshape(-1, group_size)
    )
    adv, weight, metrics = _finish(
      raw, valid, valid, group_std, count, group_size, clip, drop_zero
    )
    return adv, weight, state, metrics

  return Advantage(init=init, update=update)
