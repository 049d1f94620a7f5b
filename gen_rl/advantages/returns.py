"""Advantages of decisions by values; see the package."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int

from gen_rl.fields import Fraction, NonNegative, Positive
from gen_rl.types import (
  Advantage,
  AnyArray,
  Array,
  Metrics,
  PyTree,
  RewardOut,
)


def gae(
  values: str = 'value',
  gamma: Fraction = 1.0,
  lam: Fraction = 0.95,
  whiten: bool = True,
  eps: NonNegative = 1e-8,
  clip: Positive | None = None,
) -> Advantage:
  """Generalized advantage estimation, equation (12).

  Args:
    values: whom to ask for V: a learner (`learners.value`), or 'params' of a
      policy that has values itself.
    gamma: discount of a decision.
    lam: lambda, 1 is the return less the value, 0 one step.
    whiten: bring them to mean 0 and deviation 1, over the trained decisions of
      the batch, as PPO does.
    eps: added to that deviation.
    clip: bound on |A|; None for no bound.

  Returns:
    An Advantage that gives adv [b k]. Rows that were not scored have weight 0.
    Metrics: `advantage/value` and `advantage/return`, means over decisions,
    `advantage/explained`, 1 - var(R - V) / var(R), and `advantage/invalid`.
  """

  def update(
    out: RewardOut,
    group: Int[Array, ' b'],
    state: PyTree,
    mask: Float[Array, 'b k'],
    value: Float32[Array, 'b k'],
  ) -> tuple[Float32[Array, 'b k'], Float32[Array, ' b'], PyTree, Metrics]:
    del group
    valid = out.valid & jnp.isfinite(out.score)
    counted = jnp.where(valid[:, None], mask, 0.0)
    earned = jnp.where(valid[:, None], rewards(out, mask), 0.0)
    adv = generalized(earned, value, counted, gamma, lam)
    target = adv + value
    metrics = {
      'advantage/value': _mean(value, counted),
      'advantage/return': _mean(target, counted),
      'advantage/explained': 1.0
      - _variance(adv, counted) / jnp.maximum(_variance(target, counted), eps),
      'advantage/invalid': 1.0 - valid.mean(dtype=jnp.float32),
    }
    if whiten:
      spread = jnp.sqrt(_variance(adv, counted)) + eps
      adv = (adv - _mean(adv, counted)) / spread
    adv = adv if clip is None else jnp.clip(adv, -clip, clip)
    adv = jnp.where(counted > 0, adv, 0.0)
    return adv, valid.astype(jnp.float32), state, metrics

  return Advantage(init=lambda: (), update=update, values=values)


def rewards(
  out: RewardOut, mask: Float[AnyArray, 'b k']
) -> Float32[Array, 'b k']:
  """r_j of equation (12): `steps`, and the score at the last decision."""
  k = mask.shape[1]
  last = k - 1 - jnp.argmax(mask[:, ::-1] > 0, 1)
  at_last = jnp.arange(k) == last[:, None]
  earned = jnp.where(at_last, out.score.astype(jnp.float32)[:, None], 0.0)
  return earned if out.steps is None else earned + out.steps


def generalized(
  earned: Float[AnyArray, 'b k'],
  value: Float[AnyArray, 'b k'],
  mask: Float[AnyArray, 'b k'],
  gamma: float,
  lam: float,
) -> Float32[Array, 'b k']:
  """A_j of equation (12), 0 where the mask is; what lies there is passed over.

  Args:
    earned: r_j.
    value: V_j.
    mask: 1 where the policy decided.
    gamma: discount.
    lam: lambda.
  """

  def back(carry, at):
    value_after, adv_after = carry
    r, v, m = at
    adv = r + gamma * value_after - v + gamma * lam * adv_after
    carry = jnp.where(m, v, value_after), jnp.where(m, adv, adv_after)
    return carry, jnp.where(m, adv, 0.0)

  zero = jnp.zeros(value.shape[0], jnp.float32)
  columns = (earned.T, value.T, mask.T > 0)
  _, adv = jax.lax.scan(back, (zero, zero), columns, reverse=True)
  return adv.T


def _mean(x: Array, mask: Array) -> Array:
  return jnp.where(mask > 0, x, 0.0).sum() / jnp.maximum(mask.sum(), 1.0)


def _variance(x: Array, mask: Array) -> Array:
  return _mean(jnp.square(x - _mean(x, mask)), mask)
