r"""Matching losses: fit the model to the experience's samples.

With nll(x) the policy's matching loss of a sample (for flows, the mean squared
velocity error at a drawn time and noise):

  (1) flow_matching  L_i = nll(x_i)
  (2) rwr            L_i = min(exp(A_i / temperature), w_max) nll(x_i)

(2) is reward-weighted regression (Peters and Schaal, 2007; advantage-weighted
form, arXiv:1910.00177; for diffusion, arXiv:2302.12192 and the baseline of
DDPO, arXiv:2305.13301). Weights are not normalised over the batch: a row's
loss depends on that row alone, so microbatches add up to the batch.
"""

import jax
import jax.numpy as jnp

from gen_rl.types import Array, Experience, Metrics, Objective, Replay, Term


def flow_matching() -> Objective:
  """Matching loss of the samples, equation (1): supervised fine-tuning.

  Returns:
    Objective with value and mask [b 1], mask ones, and metric `nll` [b 1].
  """

  def objective(
    replay: Replay, exp: Experience, keys: Array
  ) -> tuple[Term, Metrics]:
    del exp
    value = replay.nll('params', keys)[:, None]
    metrics = dict(nll=jax.lax.stop_gradient(value))
    return Term(value=value, mask=jnp.ones_like(value)), metrics

  return objective


def rwr(temperature: float = 1.0, max_weight: float = 20.0) -> Objective:
  """Matching loss weighted by exp(advantage), equation (2).

  An advantage of 0 means weight 1 here, so build the advantage with
  `drop_zero=False` to keep average rows.

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
    replay: Replay, exp: Experience, keys: Array
  ) -> tuple[Term, Metrics]:
    nll = replay.nll('params', keys)[:, None]
    adv = jax.lax.stop_gradient(exp.adv).mean(-1, keepdims=True)
    # bounded before exp, which could overflow
    bound = jnp.log(jnp.float32(max_weight))
    weight = jnp.exp(jnp.minimum(adv / temperature, bound))
    metrics = dict(nll=jax.lax.stop_gradient(nll), weight=weight)
    return Term(value=weight * nll, mask=jnp.ones_like(nll)), metrics

  return objective
