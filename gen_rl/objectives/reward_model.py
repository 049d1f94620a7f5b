r"""Losses of reward models.

Noise-aware distillation (TTSnap, arXiv 2511.22242). A search that scores
unfinished samples shows its reward what they foresee, the estimate xhat_s of
`ode.segments`: blurred pictures that a reward of finished ones reads
wrongly. A copy of it learns to say of the estimate what the original says of
the sample that comes of it,

  L = (R_theta(xhat_s, c) - R_0(x, c))^2                                 (1)

which is least for R_theta = E[R_0(x, c) | xhat_s, c]. The authors go through
the noise levels s one by one, cleanest first, each from the weights of the one
before, and keep the weights of every level.

These are losses of a scored batch, not objectives of a policy.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from gen_rl.types import Array, Params, Reward, RewardInputs, Term


def noise_aware_distill(
  reward: Reward,
  params: Params,
  inputs: RewardInputs,
  target: Float[Array, ' b'],
  valid: Bool[Array, ' b'],
  key: Array,
) -> Term:
  """(1): value and mask [b 1].

  Args:
    reward: its `score` is R.
    params: theta, of the copy.
    inputs: media are decoded estimates.
    target: R_0 of the finished samples.
    valid: rows whose target is one.
    key: of the reward.

  Raises:
    ValueError: no gradient passes through the reward.
  """
  if not reward.differentiable:
    raise ValueError(
      f'reward {reward.name!r} is not differentiable: it cannot be distilled'
    )
  out = reward.score(params, inputs, key)
  mask = out.valid & valid
  error = jnp.where(mask, out.score - jnp.where(mask, target, 0.0), 0.0)
  return Term(jnp.square(error)[:, None], mask[:, None].astype(jnp.float32))
