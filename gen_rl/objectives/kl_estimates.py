r"""KL divergences estimated from the actions that were taken.

Where the closed form (`regularize.kl`) is too much, a softmax over a large
vocabulary for both policies, the log-probabilities of the stored actions do:
l under the current policy p, q under a frozen copy, x = l - q, and
(Schulman, "Approximating KL divergence", 2020)

  (1) k1 = x,   k2 = x^2 / 2,   k3 = exp(-x) - 1 + x

For actions of p the means of k1 and k3 are KL(p || q), that of k2 nearly; k1
may be negative. As a loss another thing counts: the mean gradient, taken with
the actions held fixed.

                        value          gradient
       k1               KL(p || q)     0
       k2               nearly that    d KL(p || q)
       k3               KL(p || q)     d KL(q || p)
       k3+              that of k3     that of k2

So k1 is a metric and no loss, and k3, GRPO's (arXiv 2402.03300) and most
wide-spread, pulls the reference's probabilities up rather than the policy's
down: both end at p = q. k3+ is verl's name, for k2 + sg[k3 - k2].

Off policy, for actions of p' with l' = log p'(a), r = exp(l - l') and
`ratio=True`,

  (2) r k1,   sg[r] k2,   r k3,   sg[r] k2 + sg[r (k3 - k2)]

of which all four have the gradient of KL(p || q); on policy, too, where r is 1
and the gradient of r k is that of k and k d log p.

All of this is token by token: an action is not charged for the divergences it
leads to. With `path=True` it is,

  (3) d L_t = d k_t + sg[sum_{j > t} k1_j] d l_t   (times r_t, as in (2))

whose mean is the gradient of the divergence of whole rows, where that of k_t is
the gradient of a token's. For k1 with `ratio` it is the penalty in the reward
of PPO and REINFORCE++ (arXiv 2501.03262), sg[sum_{j >= t} k1_j] d l_t.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gen_rl.fields import CopyName
from gen_rl.objectives import policy_gradient
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
)

# Of the exponential in k3, in nats: beyond it k3 grows linearly, so that an
# action the policy has all but given up is still pulled back.
MAX_EXPONENT = 20.0
ESTIMATORS = ('k1', 'k2', 'k3', 'k3+')


def _expm1(x: Array) -> Array:
  """exp(x) - 1, which goes on along its tangent where it would overflow."""
  over = jax.nn.relu(x - MAX_EXPONENT)
  bounded = jnp.minimum(x, MAX_EXPONENT)
  return jnp.expm1(bounded) + jnp.exp(MAX_EXPONENT) * over


def sampled_kl(
  ref: CopyName = 'ref',
  estimator: Literal['k1', 'k2', 'k3', 'k3+'] = 'k3',
  ratio: bool = False,
  path: bool = False,
  on_policy: bool = True,
) -> Objective:
  """KL divergence to a frozen copy from stored actions, equation (1).

  Args:
    ref: name of the copy, 'ref', 'old' or 'ema'.
    estimator: of equation (1). 'k1' is a loss with `ratio` only.
    ratio: equation (2), for several updates per rollout, and for k3 as an
      estimate of the divergence whose value it has.
    path: equation (3).
    on_policy: as of `clipped_pg`; read by `ratio` only.

  Returns:
    Objective with value and mask [b k], in nats, and metric `kl`, the value
    without r.

  Raises:
    ValueError: for an unknown estimator.
  """
  if estimator not in ESTIMATORS:
    raise ValueError(
      f'estimator is {estimator!r}; valid: {", ".join(ESTIMATORS)}.'
    )

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    mask = exp.traj.mask
    new = jnp.where(mask > 0, replay.ask('params', 'log_prob'), 0.0)
    frozen = jax.lax.stop_gradient(replay.ask(ref, 'log_prob'))
    difference = jnp.where(mask > 0, new - frozen, 0.0)
    k1 = difference
    k2 = 0.5 * jnp.square(k1)
    k3 = _expm1(-k1) + k1
    kl = dict(k1=k1, k2=k2, k3=k3).get(
      estimator, k2 + jax.lax.stop_gradient(k3 - k2)
    )
    r = jnp.ones_like(kl)
    if ratio:
      log_ratio = policy_gradient.log_ratios(replay, exp, on_policy)
      _, r = policy_gradient.bounded_exp(log_ratio)
    if estimator in ('k2', 'k3+'):
      r = jax.lax.stop_gradient(r)
    value = r * kl
    if path:
      later = jnp.cumsum(k1[:, ::-1], 1)[:, ::-1] - k1
      surrogate = new - jax.lax.stop_gradient(new)
      value += jax.lax.stop_gradient(later * r) * surrogate
    metrics = dict(kl=jax.lax.stop_gradient(kl))
    return Term(value, mask, every_row=True), metrics

  return objective
