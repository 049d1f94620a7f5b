r"""Rewards that compare the pictures of a prompt with each other.

Pref-GRPO (arXiv 2508.20751): a judge says of every two pictures i, j of a
prompt which one is better, and the reward is the share of comparisons won,

  W_ij = 1 if i wins, 0 if j wins, 1/2 for a tie,   W_ji = 1 - W_ij      (1)
  r_i  = sum_{j in V_i} W_ij / |V_i|                                     (2)

with V_i the others i was compared with: all G - 1 of its group, less those
that could not be scored and those of which the judge said nothing (the code of
the paper counts these as ties, and rounds r to three decimals). Without
ties the rewards of a group are 0, 1 / (G - 1), ..., 1 in some order, so that
their standard deviation is the same whatever is judged,

  sd(r) = sqrt((G + 1) / (12 (G - 1)))    .327, .314, .301 for G = 8, 12, 24
                                                                         (3)

where the deviation of pointwise scores may be next to nothing, and dividing by
it makes advantages of noise ("illusory advantage"). (3) alone does not prevent
that: ranks of noise spread as much as any. Ties do: they pull rewards to 1/2,
and a group of ties has no advantage. A cycle of wins leaves everyone at 1/2.

Here a judge compares scores s of another reward, with a zone of ties,

  W_ij = 1/2                       if |s_i - s_j| <= tie
         1[s_i > s_j]              else, at temperature 0
         1 with probability sigmoid((s_i - s_j) / temperature)  else    (4)

The mean of r within a group is 1/2 and says nothing of progress: log another
reward as well (config.monitors, and the parts of this one).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Key
import numpy as np

from gen_rl import build, rewards
from gen_rl.build import ConfigError
from gen_rl.fields import NonNegative
from gen_rl.types import Array, Params, PyTree, Reward, RewardInputs, RewardOut
from gen_rl.utils import rng

# (first [P ...], second [P ...], keys [P]) -> [P]: how far the first is the
# better one, 1, 0 or 1/2 (or between); NaN: no verdict.
Judge = Callable[[PyTree, PyTree, Array], Array]


def score_judge(tie: float = 0.0, temperature: float = 0.0) -> Judge:
  """Equation (4) on scores [P]; NaN where one of the two is."""

  def judge(first: Array, second: Array, keys: Array) -> Array:
    gap = first - second
    seen = gap
    if temperature:
      # sigmoid is the distribution function of the logistic distribution.
      noise = jax.vmap(lambda key: jax.random.logistic(key, ()))(keys)
      seen = gap + temperature * noise
    verdict = jnp.where(jnp.abs(gap) <= tie, 0.5, (seen > 0).astype(gap.dtype))
    return jnp.where(jnp.isnan(gap), jnp.nan, verdict)

  return judge


def pairwise_matrix(
  judge: Judge,
  items: PyTree,
  keys: Key[Array, 'P G'],
  swap: bool = False,
  chunk: int = 0,
) -> Float[Array, 'P G G']:
  """The comparisons of all pairs of every group, equation (1).

  The judge is asked G (G - 1) / 2 times for P pairs; its key for members i, j
  is that of i folded with j.

  Args:
    judge: see `Judge`.
    items: [P G ...] on every leaf: pictures, scores, embeddings.
    keys: of the rows.
    swap: ask again with the two in the other order and average, for judges
      that prefer a place. A pair needs both answers.
    chunk: pairs of a group that are judged at a time, for the memory of a
      large judge; 0: all.

  Returns:
    W, 1/2 on the diagonal; NaN where the judge has no verdict.
  """
  groups, size = keys.shape
  first, second = np.triu_indices(size, 1)

  def ask(i: Array, j: Array) -> Array:
    a, b = (jax.tree.map(lambda x, m=m: x[:, m], items) for m in (i, j))
    return judge(a, b, rng.step_keys(keys[:, i], j))

  def compare(pair: tuple[Array, Array]) -> Array:
    i, j = pair
    return (ask(i, j) + 1.0 - ask(j, i)) / 2.0 if swap else ask(i, j)

  pairs = jnp.asarray(first), jnp.asarray(second)
  if chunk:
    wins = jax.lax.map(compare, pairs, batch_size=chunk)
  else:
    wins = jax.vmap(compare)(pairs)
  matrix = jnp.full((groups, size, size), 0.5, jnp.float32)
  matrix = matrix.at[:, first, second].set(wins.T)
  return matrix.at[:, second, first].set(1.0 - wins.T)


def pairwise_win_rate(
  wins: Float[Array, 'P G G'], compared: Bool[Array, 'P G G'] | None = None
) -> tuple[Float[Array, 'P G'], Float[Array, 'P G']]:
  """Share of comparisons won, equation (2).

  Args:
    wins: W; the diagonal and pairs without a verdict (NaN) are left out.
    compared: False leaves a pair out; default: none.

  Returns:
    (r, |V|); r is 1/2 where there was no opponent.
  """
  counted = ~jnp.eye(wins.shape[-1], dtype=bool) & jnp.isfinite(wins)
  if compared is not None:
    counted &= compared
  opponents = counted.sum(-1).astype(jnp.float32)
  won = jnp.where(counted, wins, 0.0).sum(-1)
  rate = won / jnp.maximum(opponents, 1.0)
  return jnp.where(opponents > 0, rate, 0.5), opponents


def win_rate(
  reward: build.Spec, tie: NonNegative = 0.0, temperature: NonNegative = 0.0
) -> Reward:
  """Win rate in [0, 1] of a row in its group, judged by another reward.

  A row that reward could not score is not valid and nobody's opponent; nor is
  a row without opponents valid.

  Parts: `pointwise`, the score that was compared, and what its reward reports;
  `ties`, the share of a row's comparisons that were none.

  Args:
    reward: whose scores the judge compares: `dict(name=...)` with its keywords.
    tie: half the width of the zone of ties, in units of that reward.
    temperature: of the judge's verdicts, in those units; 0 makes no mistakes.

  Raises:
    ConfigError: as `build`; a negative `tie` or `temperature`; when scored,
      groups of one.
  """
  if tie < 0 or temperature < 0:
    raise ConfigError(
      f'tie={tie} and temperature={temperature} must not be negative'
    )
  inner = build.build(rewards, reward)
  judge = score_judge(tie, temperature)

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    size = int(inputs.group_size)
    if size < 2:
      raise ConfigError(
        'a win rate compares the samples of a prompt: data.group_size and '
        'eval.samples must be at least 2'
      )
    out = inner.score(params, inputs, key)
    seen = jnp.asarray(out.valid) & jnp.isfinite(out.score)
    points = jnp.where(seen, jnp.asarray(out.score, jnp.float32), jnp.nan)
    keys = rng.stream_keys(rng.per_row(key, len(points)), 'judge')
    wins = pairwise_matrix(
      judge, points.reshape(-1, size), keys.reshape(-1, size)
    )
    rate, opponents = pairwise_win_rate(wins)
    ties, _ = pairwise_win_rate(jnp.where(wins == 0.5, 1.0, 0.0 * wins))
    return RewardOut(
      score=rate.reshape(-1),
      parts=dict(out.parts) | dict(pointwise=out.score, ties=ties.reshape(-1)),
      valid=seen & (opponents.reshape(-1) > 0),
    )

  return inner._replace(
    name='win_rate',
    score=score,
    differentiable=False,
    verdict=False,
    called_on='batch' if inner.called_on == 'batch' else 'groups',
  )
