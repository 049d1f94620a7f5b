r"""Policy gradients on stored decisions.

Per decision, with l and l' the log-probabilities of the stored action under
the current and the behaviour policy, A the advantage and
[1 - lo, 1 + hi] the trust interval:

  (1) r = exp(l - l')
  (2) L = max(-A r, -A clip(r, 1 - lo, 1 + hi))          PPO, 1707.06347
  (3) L = -A l                                           REINFORCE
  (6) L = (eta (s - s') - (A - A'))^2,                   REBEL, 2404.16767
      s = sum_k (l - l_old) of a row, s' of its partner
  (7) L = min(the L of (2), -c A) where A < 0            dual clip, 1912.09729

On policy (one update per rollout) l' = stop_gradient(l): r is exactly 1 and
the gradient of (2) is that of (3). (2) does not bound the loss of an action
that was bad and has become likely; (7) does, and gives it no gradient there. c
is 3 in verl; TRL's `delta`, which bounds r in the first branch of (2), is the
same number: for c > 1 + hi both bound -A r by -A c, and only where A < 0.

`ratio='guard'` (GRPO-Guard, arXiv:2510.22319). Let a Gaussian step have mean
m, standard deviation s (both policies share s), event size D, and let the
log-probability be the mean over the event, as in Flow-GRPO
(arXiv:2505.05470). With d = m - m' and z' = (a - m') / s, the standardised
action under the behaviour policy,

  (4) l - l' = mean(z' d) / s - mean(d^2) / (2 s^2)

whose second term is negative whatever was learned, and whose first has a
deviation of |d| / (s D), different at every noise level. GRPO-Guard adds the
second term back and multiplies by s. What remains needs no division by d's
scale and is computed as such, per row:

  (5) log r = s (l - l' + mean(d^2) / (2 s^2)) = mean(z' d)

and it divides the loss (2) by -dt = t - t_next, because d is a multiple of dt
times the change of velocity and would otherwise weigh long steps up. (5)
needs m', the mean of the behaviour policy. On policy m' = stop_gradient(m),
at no cost. Off policy it is `replay.ask(old, 'dist')`, and `old` has to name
the parameters that sampled: the same pass that recomputes old log-probs. A
stored log-probability would not do, for it holds mean(z'^2) only. Either
way log r = 0 exactly while the parameters are those that sampled. (5) is a
mean over the event even where the distribution sums its log-probability.

Metrics, unreduced [b k] and 0 where masked: `ratio`; `approx_kl`, the
estimate r - 1 - log r of KL(behaviour || current) (Schulman's k3);
`clip_fraction`, 1 where r is outside the trust interval; `log_ratio_abs_max`,
|log r|, meant to be reduced with max. Ratios of whole rows, and losses that
clip the weight of a gradient in place of the loss: `token_ratio`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from gen_rl.build import ConfigError
from gen_rl.fields import CopyName, Positive
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
)

# exp(20) is far outside any trust interval and far from overflow
_MAX_LOG_RATIO = 20.0


def log_ratios(
  replay: Replay, exp: Experience, on_policy: bool
) -> Float[Array, 'b k']:
  """Log r of equation (1), 0 where masked; gradients through l only."""
  new = replay.ask('params', 'log_prob')
  behaviour = new if on_policy else exp.traj.log_prob
  difference = new - jax.lax.stop_gradient(behaviour)
  return jnp.where(exp.traj.mask > 0, difference, 0.0)


def bounded_exp(
  log_ratio: Float[Array, 'b k'],
) -> tuple[Float[Array, 'b k'], Float[Array, 'b k']]:
  """(log r, r), with |log r| small enough for r to be finite."""
  log_ratio = jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  return log_ratio, jnp.exp(log_ratio)


def clipped(
  r: Float[Array, 'b k'], adv: Float[Array, 'b ...'], low: float, high: float
) -> tuple[Float[Array, 'b k'], Bool[Array, 'b k']]:
  """(L of equation (2), is r outside of the trust interval?)."""
  bounded = jnp.clip(r, 1.0 - low, 1.0 + high)
  outside = (r < 1.0 - low) | (r > 1.0 + high)
  return jnp.maximum(-adv * r, -adv * bounded), outside


def check_dual_clip(dual_clip: float | None, high: float) -> None:
  """Raises ValueError: c of equation (7) is within the trust interval."""
  if dual_clip is not None and dual_clip <= 1.0 + high:
    raise ValueError(
      f'dual_clip is {dual_clip}: it bounds ratios of actions that were bad, '
      f'beyond the trust interval, which ends at {1.0 + high}.'
    )


def dual_clipped(
  value: Float[Array, 'b k'], adv: Float[Array, 'b ...'], c: float | None
) -> Float[Array, 'b k']:
  """L of equation (7) from that of (2); None: no bound."""
  if c is None:
    return value
  return jnp.where(adv < 0, jnp.minimum(value, -adv * c), value)


def ratio_metrics(
  log_ratio: Float[Array, 'b k'],
  outside: Bool[Array, 'b k'],
  mask: Float[Array, 'b k'],
) -> Metrics:
  """The metrics of the module; `outside`: of the trust interval."""
  metrics = dict(
    ratio=jnp.exp(log_ratio),
    approx_kl=jnp.expm1(log_ratio) - log_ratio,
    clip_fraction=outside.astype(jnp.float32),
    log_ratio_abs_max=jnp.abs(log_ratio),
  )
  return {
    name: jax.lax.stop_gradient(jnp.where(mask > 0, x, 0.0))
    for name, x in metrics.items()
  }


def _per_event(x: Array, ndim: int) -> Array:
  """[b k] -> [b k 1 ... 1] with `ndim` dimensions."""
  return x.reshape(x.shape[:2] + (1,) * (ndim - 2))


def _standardised_shift(new, old, actions: Array, mask: Array) -> Array:
  """Equation (5): mean over the event of z' d, float32 [b k]."""
  for dist in (new, old):
    if not (hasattr(dist, 'mean') and hasattr(dist, 'std')):
      raise ValueError(
        "clipped_pg(ratio='guard') is defined for Gaussian steps; the policy "
        f"gives a {type(dist).__name__}. Use ratio='plain'."
      )
  mean, old_mean = (x.mean.astype(jnp.float32) for x in (new, old))
  actions = jax.lax.stop_gradient(actions.astype(jnp.float32))
  std = jax.lax.stop_gradient(old.std.astype(jnp.float32))
  ok = (mask > 0) & (std > 0)
  std = _per_event(jnp.where(ok, std, 1.0), mean.ndim)
  z = (actions - old_mean) / std
  shift = (z * (mean - old_mean)).mean(tuple(range(2, mean.ndim)))
  return jnp.where(ok, shift, 0.0)


def clipped_pg(
  clip: Positive = 1e-4,
  clip_high: Positive | None = None,
  ratio: Literal['plain', 'guard'] = 'plain',
  on_policy: bool = True,
  old: CopyName = 'old',
  dual_clip: Positive | None = None,
) -> Objective:
  """Clipped surrogate, equation (2).

  Args:
    clip: `lo`, and `hi` unless given. For log-probabilities averaged over an
      event of D values, log r shrinks with D: 1e-4 is for D ~ 1e5, and 1e-3
      to 1e-2 suits D ~ 1e3. Summed (tokens): 0.2.
    clip_high: `hi`; larger than `clip` lets unlikely actions grow (DAPO,
      arXiv:2503.14476).
    ratio: 'plain', equation (1), or 'guard', equation (5) with the loss
      divided by t - t_next. Guard is for Gaussian steps.
    on_policy: True when the parameters are those that sampled, so that the
      behaviour policy is the current one without gradient. Otherwise the
      stored `traj.log_prob` (plain) or `replay.ask(old, 'dist')` (guard).
    old: the copy that sampled; read by guard off policy only.
    dual_clip: c of equation (7), above 1 + hi; None: no bound.

  Returns:
    Objective with value and mask [b k] and metrics `ratio`, `approx_kl`,
    `clip_fraction`, `log_ratio_abs_max` [b k].

  Raises:
    ValueError: for an unknown `ratio`, a clip that is not positive, a
      dual_clip within the trust interval or, when called, guard on a
      distribution without mean and std.
  """
  high = clip if clip_high is None else clip_high
  if ratio not in ('plain', 'guard'):
    raise ValueError(f"ratio is {ratio!r}: it is either 'plain' or 'guard'.")
  if clip <= 0 or high <= 0:
    raise ValueError(f'clip and clip_high must be positive: {clip}, {high}.')
  check_dual_clip(dual_clip, high)

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    traj, mask = exp.traj, exp.traj.mask
    scale = jnp.ones_like(mask, jnp.float32)
    if ratio == 'guard':
      new = replay.ask('params', 'dist')
      behaviour = jax.lax.stop_gradient(
        new if on_policy else replay.ask(old, 'dist')
      )
      log_ratio = _standardised_shift(new, behaviour, traj.actions, mask)
      length = traj.times[..., 0] - traj.times[..., 1]
      ok = (mask > 0) & (length > 0)
      scale = jnp.where(ok, 1.0 / jnp.where(ok, length, 1.0), 0.0)
    else:
      log_ratio = log_ratios(replay, exp, on_policy)
    log_ratio, r = bounded_exp(log_ratio)
    adv = jax.lax.stop_gradient(exp.adv)
    value, outside = clipped(r, adv, clip, high)
    value = dual_clipped(value, adv, dual_clip)
    value = jnp.where(mask > 0, value * scale, 0.0)
    return Term(value, mask), ratio_metrics(log_ratio, outside, mask)

  return objective


def reinforce(on_policy: bool = True) -> Objective:
  """Score-function loss, equation (3); right on policy only.

  Args:
    on_policy: the parameters are those that sampled.

  Returns:
    Objective with value and mask [b k] and metric `log_prob` [b k].

  Raises:
    ConfigError: they are not.
  """
  if not on_policy:
    raise ConfigError(
      'reinforce has the gradient of the parameters that sampled: it takes '
      "updates=1, epochs=1 and behaviour='params'; clipped_pg takes others"
    )

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    mask = exp.traj.mask
    log_prob = jnp.where(mask > 0, replay.ask('params', 'log_prob'), 0.0)
    value = -jax.lax.stop_gradient(exp.adv) * log_prob
    metrics = dict(log_prob=jax.lax.stop_gradient(log_prob))
    return Term(value=value, mask=mask), metrics

  return objective


def rebel(group_size: int, eta: Positive = 1.0) -> Objective:
  """Regression of relative rewards, equation (6).

  Rows 2 j and 2 j + 1 of a group are partners. What is fitted is the
  difference of their log-ratios over the whole chain to the difference of
  their advantages: no clipping and no baseline, which cancels.

  Args:
    group_size: G, even.
    eta: 1 / eta is the weight of the KL to the policy that sampled.

  Returns:
    Objective with value [b 1], the pair's loss at both of its rows, and mask;
    metrics `log_ratio_gap` (s - s') and `advantage_gap`.

  Raises:
    ValueError: an odd group.
  """
  if group_size % 2:
    raise ValueError(
      f'rebel pairs the rows of a group: group_size={group_size} must be even.'
    )

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    mask = exp.traj.mask
    new, old = replay.ask('params', 'log_prob'), replay.ask('old', 'log_prob')
    log_ratio = jnp.where(mask > 0, new - jax.lax.stop_gradient(old), 0.0)
    adv = jax.lax.stop_gradient(exp.adv).mean(-1)

    def gap(x: Array) -> Array:
      pair = x.reshape(-1, 2)
      return jnp.repeat(pair[:, 0] - pair[:, 1], 2)[:, None]

    ratio_gap, adv_gap = gap(log_ratio.sum(-1)), gap(adv)
    value = jnp.square(eta * ratio_gap - adv_gap)
    metrics = dict(log_ratio_gap=ratio_gap, advantage_gap=adv_gap)
    kept = exp.weight.reshape(-1, 2).min(-1)
    some = (mask.sum(-1) > 0).reshape(-1, 2).all(-1)
    both = jnp.repeat(kept * some, 2)[:, None]
    return Term(value, both), jax.lax.stop_gradient(metrics)

  return objective
