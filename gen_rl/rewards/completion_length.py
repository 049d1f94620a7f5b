"""Rewards of how long a completion is, and gates by it.

With n ids before the end token of a completion [k], L = n + 1 with that token
(k where there is none: the row is truncated), and m ids of `info['answer']`,

  (1) length_shaping  clip((longest - buffer - L) / buffer, -1, 0)
  (2) length_gate     another reward where low <= n / m <= high, else 0
      drop_truncated  another reward whose truncated rows are not valid

(1) is DAPO's soft punishment (arXiv 2503.14476), `drop_truncated` its other way
with rows that are too long, to leave them out; (2) is the gate of BalCapRL
(arXiv 2605.07394) on rewards that short or long captions would collect.
"""

from collections.abc import Callable

import jax.numpy as jnp

from gen_rl import build, rewards
from gen_rl.build import ConfigError
from gen_rl.fields import Count, NonNegative, Positive
from gen_rl.rewards import token_rows
from gen_rl.types import Array, Params, Reward, RewardInputs, RewardOut


def length_shaping(longest: Count, buffer: Count, end: int) -> Reward:
  """Equation (1), in [-1, 0]. Part: `length`, L.

  Args:
    longest: tokens from which on the score is -1; at most the k of the policy,
      or nothing is ever punished in full.
    buffer: tokens over which it falls from 0.
    end: id of the end token.

  Raises:
    ConfigError: not 0 < buffer <= longest; as `rules.exact_match`.
  """
  token_rows.check_ids(end=end)
  if not 0 < buffer <= longest:
    raise ConfigError(
      f'longest={longest}, buffer={buffer}: it takes 0 < buffer <= longest'
    )

  def verdict(tokens, n, finished, inputs):
    del tokens, inputs
    length = n + finished
    value = jnp.clip((longest - buffer - length) / buffer, -1.0, 0.0)
    return value, jnp.ones(n.shape, bool), dict(length=length)

  return Reward('length_shaping', (), token_rows.scorer(end, verdict))


def length_gate(
  reward: build.Spec, end: int, low: NonNegative = 0.5, high: Positive = 2.0
) -> Reward:
  """Equation (2): a reward that is 0 outside of a band of lengths.

  Parts: those of the reward, `length_ratio`, n / m, and `in_band`.

  Tested, not measured.

  Args:
    reward: what is gated: `dict(name=...)` with its keywords.
    end: id of the end token.
    low: shortest, in lengths of the answer (the reference, of captions).
    high: longest.

  Raises:
    ConfigError: as `build` and `rules.exact_match`; not 0 <= low <= high.
  """
  token_rows.check_ids(end=end)
  if not 0 <= low <= high:
    raise ConfigError(f'low={low}, high={high}: it takes 0 <= low <= high')

  def gate(out: RewardOut, inputs: RewardInputs) -> RewardOut:
    n, _ = token_rows.lengths(token_rows.completions(inputs), end)
    m = token_rows.sizes(token_rows.answers(inputs))
    ratio = (n / jnp.maximum(m, 1)).astype(jnp.float32)
    inside = (low <= ratio) & (ratio <= high)
    parts = dict(length_ratio=ratio, in_band=inside.astype(jnp.float32))
    return out.replace(
      score=jnp.where(inside, out.score, 0.0),
      parts={**out.parts, **parts},
      valid=out.valid & (m > 0),
    )

  return _wrapped('length_gate', reward, gate)


def drop_truncated(reward: build.Spec, end: int) -> Reward:
  """A reward whose truncated rows are not valid (DAPO's overlong filtering).

  They enter no group statistics and no loss. One such reward of a sum is
  enough. Part: `finished`, is there an end token?

  Tested, not measured.

  Args:
    reward: `dict(name=...)` with its keywords.
    end: id of the end token.

  Raises:
    ConfigError: as `build` and `rules.exact_match`.
  """
  token_rows.check_ids(end=end)

  def drop(out: RewardOut, inputs: RewardInputs) -> RewardOut:
    _, finished = token_rows.lengths(token_rows.completions(inputs), end)
    parts = {**out.parts, 'finished': finished.astype(jnp.float32)}
    return out.replace(parts=parts, valid=out.valid & finished)

  return _wrapped('drop_truncated', reward, drop)


def _wrapped(
  name: str,
  reward: build.Spec,
  change: Callable[[RewardOut, RewardInputs], RewardOut],
) -> Reward:
  """The reward of a spec with its answers changed."""
  inner = build.build(rewards, reward)

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    return change(inner.score(params, inputs, key), inputs)

  return inner._replace(name=name, score=score, differentiable=False)
