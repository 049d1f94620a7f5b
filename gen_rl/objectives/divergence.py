r"""A policy gradient whose trust region is a divergence, not a ratio (DPPO).

With r the ratio of a stored action's probabilities under the current and the
behaviour policy and A its advantage, a decision's loss is

  (1) L = -A r,  0 where KL(behaviour || current) >= delta and A (r - 1) > 0

(2) of `policy_gradient` bounds r of the one action that was drawn, which says
little of how far the policy has moved: of a Gaussian step over D values log r
is mostly the draw's. (1) has the divergence itself, which such steps have in
closed form, and holds back only what goes further away: what comes back, and
what is near, learns as it would unclipped. Of steps that denoise it is
Flow-DPPO (arXiv:2606.11025), of tokens DPPO with the KL of whole distributions.

The KL is summed or averaged over the event as the policy's log-probabilities
are, and so is delta: 1e-5 is the published one for means, as in Flow-GRPO.
"""

import jax
import jax.numpy as jnp

from gen_rl.fields import CopyName, Positive
from gen_rl.objectives import policy_gradient
from gen_rl.types import Experience, Metrics, Objective, Replay, RowKeys, Term


def divergence_pg(
  threshold: Positive = 1e-5, on_policy: bool = True, old: CopyName = 'old'
) -> Objective:
  """Equation (1). On policy, one update a rollout, it is REINFORCE.

  Args:
    threshold: delta, per decision, in nats of the event's sum or mean.
    on_policy: as of `policy_gradient.clipped_pg`.
    old: the copy that sampled, read off policy.

  Returns:
    Objective with value and mask [b k]; metrics of `policy_gradient`, of which
    `clip_fraction` is the share that is held back, and `moved`, the KL.
  """

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    mask = exp.traj.mask
    log_ratio = policy_gradient.log_ratios(replay, exp, on_policy)
    log_ratio, r = policy_gradient.bounded_exp(log_ratio)
    new = replay.ask('params', 'dist')
    behaviour = new if on_policy else replay.ask(old, 'dist')
    moved = jax.lax.stop_gradient(behaviour.kl(new))
    moved = jnp.where(mask > 0, moved, 0.0)
    adv = jax.lax.stop_gradient(exp.adv)
    away = adv * jax.lax.stop_gradient(log_ratio) > 0
    held = (moved >= threshold) & away
    value = jnp.where((mask > 0) & ~held, -adv * r, 0.0)
    metrics = policy_gradient.ratio_metrics(log_ratio, held, mask)
    return Term(value, mask), metrics | dict(moved=moved)

  return objective
