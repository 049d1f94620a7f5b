r"""Which rows of a larger pool are worth drawing exactly.

Of a prompt's G' candidates, drawn cheaply, those are drawn again that there is
most to learn from (Sol-RL, arXiv 2604.06916): the

  (1)  k best and G - k worst of G' by the cheap score c,  k = ceil(G / 2)

from the same keys: they start from the same noise, and meet the same on their
way where their steps are the same. Cheap draws choose and are thrown away; of a
pool that the policy itself draws, the chosen ones are kept.

What is compared and trained on are the exact rows: means and deviations of an
advantage are those of the G exact scores e, as in the authors' code. The policy
gradient of rows that were chosen by what they are is not that of the expected
reward: it sharpens the contrast of the two ends.

How well the cheap scores foretell the exact ones, within groups g:

  (2)  rank_corr = sum_g cov_g(rank c, rank e)
                   / sqrt(sum_g var_g(rank c) sum_g var_g(rank e))
  (3)  slope = sum_g cov_g(c, e) / sum_g var_g(c)
  (4)  pool_corr = r u / sqrt(1 + r^2 (u^2 - 1)),
       u^2 = sum_g var_g(c of the pool) / sum_g var_g(c of the chosen)

(2), Spearman's, is of the chosen rows. These lie further apart than the pool
does, so it is above what it would be there. (3) does not mind a choice by c: 1
where exact draws differ as much as the cheap ones said, 0 where the choice was
luck. (4) is Pearson's correlation r of the chosen rows, (2) without ranks, with
the choice taken back (Thorndike's correction, for a linear relation of equal
scatter).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from gen_rl.types import Array, Metrics, RewardOut

# Of what rewards said of the pool's draws, beside {label: answer}; no label.
POOL = '/pool'


def best_worst(
  score: Float[Array, ' b'], valid: Bool[Array, ' b'], size: int, keep: int
) -> Int[Array, 'P {keep}']:
  """Members (1) of every group, in ascending order.

  Of equal scores the last ones count as better. Rows that are not valid are
  chosen where too few others are left, the first ones first.

  Args:
    score: cheap, of groups one after the other.
    valid: rows that were scored.
    size: G'.
    keep: G, at most G'.
  """
  score, valid = score.reshape(-1, size), valid.reshape(-1, size)
  order = jnp.argsort(jnp.where(valid, score, jnp.inf), -1, stable=True)
  below = jnp.argsort(order, -1)  # valid rows that are worse
  above = valid.sum(-1, keepdims=True) - 1 - below
  best = (keep + 1) // 2
  # Above 0 for k best and G - k worst; of few valid rows all are far above.
  merit = jnp.maximum(best - above, keep - best - below)
  merit = jnp.where(valid, merit, -size - 1)
  _, members = jax.lax.top_k(merit, keep)
  return jnp.sort(members, -1).astype(jnp.int32)


def seen(out: RewardOut, members: Int[Array, 'P G']) -> RewardOut:
  """What was said of the pool's draws of the chosen rows [P G].

  Args:
    out: merged, of the pool.
    members: of `best_worst`.

  Returns:
    Scores; parts are of the whole pool of a row's prompt: `mean` and `var` of
    the valid scores, and the share that is `invalid`.
  """
  groups, keep = members.shape
  score, valid = (x.reshape(groups, -1) for x in (out.score, out.valid))
  mean, var = _moments(score, valid)
  of_pool = dict(mean=mean, var=var, invalid=1.0 - valid.mean(-1))
  take = lambda x: jnp.take_along_axis(x, members, -1).reshape(-1)
  parts = {name: jnp.repeat(x, keep) for name, x in of_pool.items()}
  return RewardOut(take(score), parts, take(valid))


def agreement(cheap: RewardOut, exact: RewardOut, group_size: int) -> Metrics:
  """Metrics of an exploring step, of rows with both scores.

  Args:
    cheap: of `seen`.
    exact: merged, of the rows that are trained on.
    group_size: G.

  Returns:
    explore/score: mean of the whole pool by cheap draws (reward/score is that
      of the best and the worst); explore/invalid: the share of the pool that
      was not scored; explore/rank_corr, explore/slope, explore/pool_corr: (2),
      (3) and (4), NaN where no group differs.
  """
  per_group = lambda x: x.reshape(-1, group_size)
  both = per_group(cheap.valid & exact.valid)
  c, e = per_group(cheap.score), per_group(exact.score)

  def spread(x: Array, y: Array) -> Array:
    return jnp.where(both, _centred(x, both) * _centred(y, both), 0).sum()

  ranks = _ranks(c, both), _ranks(e, both)
  cov, var = spread(c, e), spread(c, c)
  r = cov / jnp.sqrt(var * spread(e, e))
  pool = per_group(cheap.parts['var'])[:, :1] * both
  u2 = jnp.where(both, pool, 0).sum() / var
  metrics = dict(
    score=cheap.parts['mean'].mean(),
    invalid=cheap.parts['invalid'].mean(),
    rank_corr=spread(*ranks)
    / jnp.sqrt(spread(ranks[0], ranks[0]) * spread(ranks[1], ranks[1])),
    slope=cov / var,
    pool_corr=r * jnp.sqrt(u2 / (1 + r**2 * (u2 - 1))),
  )
  return {f'explore/{name}': x for name, x in metrics.items()}


def _moments(x: Array, valid: Array) -> tuple[Array, Array]:
  """(mean, variance) [P] of the valid ones of [P n], 0 where there are none."""
  count = jnp.maximum(valid.sum(-1), 1)
  mean = jnp.where(valid, x, 0).sum(-1) / count
  apart = jnp.where(valid, x - mean[:, None], 0)
  return mean, jnp.square(apart).sum(-1) / count


def _centred(x: Array, valid: Array) -> Array:
  return x - _moments(x, valid)[0][:, None]


def _ranks(x: Array, valid: Array) -> Array:
  """Ranks [P n] among the valid ones of a group, from 0; equal ones share."""
  of, other = x[:, :, None], x[:, None]
  below = jnp.where(other < of, 1.0, jnp.where(other == of, 0.5, 0.0))
  return jnp.where(valid[:, None], below, 0.0).sum(-1) - 0.5
