r"""Matching losses: fit the model to the experience's samples.

With nll(x) the policy's matching loss of a sample (for flows, the mean squared
velocity error at a drawn time and noise):

  (1) flow_matching  L_i = nll(x_i)
  (2) rwr            L_i = min(exp(A_i / temperature), w_max) nll(x_i)
  (3) awm            L_ik = max(-A_i r, -A_i clip(r, 1 - eps, 1 + eps)),
                     r = exp(m(nll_old(x_i, k)) - m(nll(x_i, k)))
  (4) nft            L_ik = (C / beta) (p l+ + (1 - p) l-),
                     p = clip(A_i / (2 C) + 1/2, 0, 1)

(2) is reward-weighted regression (Peters and Schaal, 2007; advantage-weighted
form, arXiv:1910.00177; for diffusion, arXiv:2302.12192 and the baseline of
DDPO, arXiv:2305.13301). Weights are not normalised over the batch: a row's
loss depends on that row alone, so microbatches add up to the batch.

(3) is advantage-weighted matching (arXiv:2509.25050): the policy gradient with
the matching error of draw k (a time and a noise) in place of a log-probability,
so that pretraining and RL share one loss; on policy its gradient is
A_i d m(nll). m weighs times and errors, see `awm`. (4) is DiffusionNFT
(arXiv:2509.16117): with v_old of the policy that sampled x_i, it bends the
velocity towards it or away from it,

  (5) v+ = beta v + (1 - beta) v_old,   v- = (1 + beta) v_old - beta v
  (6) l+- = mean((x0+- - x_i)^2) / max(mean |x0+- - x_i|, 1e-5),
      x0+- = x_t - t v+-,

with the denominators held fixed. At v = v_old and p = 1/2 the two gradients
cancel; the fixed point is v_old + (2 / beta) times the direction in which
better samples differ. Neither stores a trajectory: any solver samples, and
only samples and rewards are needed.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gen_rl.diffusion import process
from gen_rl.fields import Count, Positive
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
)


def flow_matching() -> Objective:
  """Matching loss of the samples, equation (1): supervised fine-tuning.

  Returns:
    Objective with value and mask [b 1], mask ones, and metric `nll` [b 1].
  """

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del exp
    value = replay.ask('params', 'nll', keys.own)[:, None]
    metrics = dict(nll=jax.lax.stop_gradient(value))
    term = Term(value=value, mask=jnp.ones_like(value), every_row=True)
    return term, metrics

  return objective


def nll() -> Objective:
  """Mean of the policy's own `nll` of the samples: maximum likelihood.

  Of tokens and labels, whose nll is a cross entropy. `flow_matching` is the
  same of policies whose nll is a matching loss.

  Returns:
    Objective with value and mask [b 1] and metric `nll`.
  """
  return flow_matching()


def rwr(temperature: Positive = 1.0, max_weight: Positive = 20.0) -> Objective:
  """Matching loss weighted by exp(advantage), equation (2).

  An advantage of 0 means weight 1 here: average rows count.

  Args:
    temperature: in units of the advantage; small imitates the best only.
    max_weight: bound on a row's weight.

  Returns:
    Objective with value and mask [b 1], mask ones, and metrics `nll` and
    `weight` [b 1]. Step-wise advantages [b k] are averaged over k.

  Raises:
    ValueError: when temperature or max_weight is not positive.
  """
  if temperature <= 0 or max_weight <= 0:
    raise ValueError(
      'temperature and max_weight must be positive, got '
      f'{temperature} and {max_weight}.'
    )

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    nll = replay.ask('params', 'nll', keys.own)[:, None]
    adv = jax.lax.stop_gradient(exp.adv).mean(-1, keepdims=True)
    # bounded before exp, which could overflow
    bound = jnp.log(jnp.float32(max_weight))
    weight = jnp.exp(jnp.minimum(adv / temperature, bound))
    metrics = dict(nll=jax.lax.stop_gradient(nll), weight=weight)
    term = Term(weight * nll, jnp.ones_like(nll), every_row=True)
    return term, metrics

  return objective


def _row_advantage(exp: Experience) -> Array:
  """Advantages [b 1]; step-wise ones are averaged."""
  return jax.lax.stop_gradient(exp.adv).mean(-1, keepdims=True)


# m of equation (3), of an error and its time.
_WEIGHTED = {
  'uniform': lambda error, t, power: error,
  't': lambda error, t, power: t * error,
  't2': lambda error, t, power: t**2 * error,
  'huber': lambda error, t, power: t * (jnp.sqrt(error + 1e-10) - 1e-5),
  'ghuber': lambda error, t, power: (
    t / power * ((error + 1e-10) ** power - 1e-10**power)
  ),
}


def awm(
  draws: Count = 1,
  clip: Positive = 0.2,
  max_log_ratio: Positive = 20.0,
  weighting: Literal['uniform', 't', 't2', 'huber', 'ghuber'] = 'uniform',
  power: Positive = 0.25,
) -> Objective:
  """Advantage-weighted matching, equation (3).

  Args:
    draws: times and noises per sample, k.
    clip: eps, in units of the ratio; it acts off policy only.
    max_log_ratio: bound on |log r| before the exponential.
    weighting: m, of an error e at time t: 'uniform' is e, 't' t e, 't2' t^2 e,
      'huber' t sqrt(e) and 'ghuber' (t / p) e^p, as all configs of the paper's
      code have it, with p = 0.25; the last two are 0 at e = 0, with a slope.
    power: p of 'ghuber'.

  Returns:
    Objective with value and mask [b k] and metrics `nll`, `ratio`,
    `log_ratio_abs_max`.

  Raises:
    ValueError: another weighting, or a power that is not positive.
  """
  if weighting not in _WEIGHTED or power <= 0:
    raise ValueError(
      f'awm: weighting is {weighting!r} and power {power}; weightings are '
      f'{", ".join(_WEIGHTED)}, and a power is positive'
    )

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    at = replay.ask('params', 'noised', keys.own, draws)
    nll = process.matching_error(replay.ask('params', 'velocity_at', at), at)
    old = process.matching_error(replay.ask('old', 'velocity_at', at), at)
    new, before = (_WEIGHTED[weighting](e, at.t, power) for e in (nll, old))
    log_ratio = jnp.clip(before - new, -max_log_ratio, max_log_ratio)
    ratio = jnp.exp(log_ratio)
    adv = _row_advantage(exp)
    value = jnp.maximum(
      -adv * ratio, -adv * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    )
    metrics = dict(nll=nll, ratio=ratio, log_ratio_abs_max=jnp.abs(log_ratio))
    metrics = jax.lax.stop_gradient(metrics)
    return Term(value=value, mask=jnp.ones_like(value)), metrics

  return objective


def nft(
  beta: Positive = 1.0,
  draws: Count = 1,
  max_adv: Positive = 5.0,
  mode: Literal['all', 'positive', 'negative'] = 'all',
) -> Objective:
  """DiffusionNFT, equation (4).

  Args:
    beta: how far the implicit positive and negative policies lie from the one
      that sampled; small values take large steps.
    draws: times and noises per sample, k.
    max_adv: C, the advantage at which p is 0 or 1.
    mode: 'positive' and 'negative' keep one of the two branches of (4): what
      does the other one add?

  Returns:
    Objective with value and mask [b k] and metrics `positive`, `negative` (the
    l+ and l- of (6)), `optimality` (p) and `old_distance`, the mean squared
    distance of v from v_old.

  Raises:
    ValueError: beta or max_adv is not positive.
  """
  if beta <= 0 or max_adv <= 0:
    raise ValueError(
      f'nft: beta and max_adv must be positive, got {beta} and {max_adv}.'
    )

  def branch(x0: Array, target: Array) -> Array:
    error = x0 - target
    scale = process.event_mean(jnp.abs(jax.lax.stop_gradient(error)))
    return process.event_mean(jnp.square(error)) / jnp.maximum(scale, 1e-5)

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    at = replay.ask('params', 'noised', keys.own, draws)
    v = replay.ask('params', 'velocity_at', at)
    old = jax.lax.stop_gradient(replay.ask('old', 'velocity_at', at))
    target = at.x0[:, None]
    positive = branch(
      process.x0_from_velocity(at.x, beta * v + (1.0 - beta) * old, at.t),
      target,
    )
    negative = branch(
      process.x0_from_velocity(at.x, (1.0 + beta) * old - beta * v, at.t),
      target,
    )
    p = jnp.clip(_row_advantage(exp) / (2.0 * max_adv) + 0.5, 0.0, 1.0)
    up = p if mode != 'negative' else jnp.zeros_like(p)
    down = 1.0 - p if mode != 'positive' else jnp.zeros_like(p)
    value = max_adv / beta * (up * positive + down * negative)
    metrics = dict(
      positive=positive,
      negative=negative,
      optimality=jnp.broadcast_to(p, value.shape),
      old_distance=process.event_mean(jnp.square(v - old)),
    )
    metrics = jax.lax.stop_gradient(metrics)
    return Term(value=value, mask=jnp.ones_like(value)), metrics

  return objective
