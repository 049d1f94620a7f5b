r"""Policy gradients for rows of many tokens: ratios of rows, clipped weights.

With l_t, l'_t, A and the trust interval [1 - lo, 1 + hi] as in
`policy_gradient`, m_t the mask of a row and L = sum_t m_t its length:

  (1) s = exp(sum_t m_t (l_t - l'_t) / L)                GSPO, 2507.18071
  (2) L_row = max(-A s, -A clip(s, 1 - lo, 1 + hi))
  (3) s_t = sg[s] exp(l_t - sg[l_t])                     GSPO-token
  (4) L_t = max(-A_t s_t, -A_t clip(s_t, 1 - lo, 1 + hi))
  (5) L_t = -sg[clip(r_t, floor, cap)] A_t l_t           CISPO, 2506.13585

sg holds a value fixed, r_t = exp(l_t - l'_t). What is rewarded is a row, and so
(1) weighs rows: the ratio of its probabilities, to the power 1 / L, which makes
rows of all lengths comparable and the interval narrow. Its value is that of
(3), and so is the gradient where A_t is the same for all tokens and (4) is
averaged over a row's tokens first (config.aggregate='seq_mean_token_mean').

(2) and (4) give a clipped row no gradient. (5) bounds the weight of a token's
gradient and drops none: rare tokens on which a solution turns, whose ratio is
the first to leave an interval, go on being learned from. Its value says
nothing: it is the log-probability.

On policy (one update per rollout) l' = sg[l]: every ratio is exactly 1, and
the gradients are REINFORCE's, averaged as said.
"""

import jax
import jax.numpy as jnp

from gen_rl.fields import NonNegative, Positive
from gen_rl.objectives import policy_gradient
from gen_rl.types import (
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
)


def gspo(
  clip: Positive = 3e-4,
  clip_high: Positive = 4e-4,
  tokens: bool = False,
  on_policy: bool = True,
  dual_clip: Positive | None = None,
) -> Objective:
  """Clipped surrogate on the ratios of whole rows, equation (2) or (4).

  Args:
    clip: `lo`; the paper's, for log-ratios that are means over thousands of
      tokens. The mean over k independent ones shrinks with the root of k.
    clip_high: `hi`.
    tokens: the token-wise form (4), which an advantage per token needs.
    on_policy: as of `clipped_pg`.
    dual_clip: as of `clipped_pg`, on the ratio of the row (TRL's `delta` at the
      level of sequences); the paper has none.

  Returns:
    Objective with value and mask [b 1], one loss per row, or [b k] token-wise;
    metrics of `policy_gradient` of the ratio of rows, of that shape.

  Raises:
    ValueError: a clip is not positive, or a dual_clip within the trust
      interval; when called, an advantage per token
      without `tokens`.
  """
  if clip <= 0 or clip_high <= 0:
    raise ValueError(
      f'clip and clip_high must be positive: {clip}, {clip_high}.'
    )
  policy_gradient.check_dual_clip(dual_clip, clip_high)

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    mask = exp.traj.mask
    if exp.adv.shape[1] != 1 and not tokens:
      raise ValueError(
        f'the advantage has shape {exp.adv.shape}, one for each decision; '
        'gspo weighs whole rows: use gspo(tokens=True).'
      )
    log_ratio = policy_gradient.log_ratios(replay, exp, on_policy)
    length = mask.sum(-1, keepdims=True)
    mean = log_ratio.sum(-1, keepdims=True) / jnp.maximum(length, 1.0)
    if tokens:
      own = log_ratio - jax.lax.stop_gradient(log_ratio)
      mean = jax.lax.stop_gradient(mean) + own
    else:
      mask = (length > 0).astype(jnp.float32)
    mean, s = policy_gradient.bounded_exp(mean)
    adv = jax.lax.stop_gradient(exp.adv)
    value, outside = policy_gradient.clipped(s, adv, clip, clip_high)
    value = policy_gradient.dual_clipped(value, adv, dual_clip)
    metrics = policy_gradient.ratio_metrics(mean, outside, mask)
    return Term(jnp.where(mask > 0, value, 0.0), mask), metrics

  return objective


def cispo(
  cap: Positive = 5.0, floor: NonNegative = 0.0, on_policy: bool = True
) -> Objective:
  """Policy gradient with clipped importance weights, equation (5).

  Tested, not measured.

  Args:
    cap: largest weight: 1 + hi of the paper, `epsilon_high` of TRL.
    floor: smallest weight, 1 - lo; 0, as the paper trains, is none.
    on_policy: as of `clipped_pg`.

  Returns:
    Objective with value and mask [b k] and the metrics of `policy_gradient`;
    `clip_fraction` is 1 where a weight was clipped.

  Raises:
    ValueError: not 0 <= floor < 1 < cap.
  """
  if not 0 <= floor < 1 < cap:
    raise ValueError(
      f'floor is {floor} and cap {cap}: weights of 1 are those of the policy '
      'that sampled, so 0 <= floor < 1 < cap.'
    )

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    mask = exp.traj.mask
    log_ratio = policy_gradient.log_ratios(replay, exp, on_policy)
    log_ratio, r = policy_gradient.bounded_exp(jax.lax.stop_gradient(log_ratio))
    log_prob = jnp.where(mask > 0, replay.ask('params', 'log_prob'), 0.0)
    adv = jax.lax.stop_gradient(exp.adv)
    value = -jnp.clip(r, floor, cap) * adv * log_prob
    outside = (r < floor) | (r > cap)
    metrics = policy_gradient.ratio_metrics(log_ratio, outside, mask)
    return Term(jnp.where(mask > 0, value, 0.0), mask), metrics

  return objective
