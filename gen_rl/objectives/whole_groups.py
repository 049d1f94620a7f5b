r"""Matching losses that compare all rows of a group at once.

Neither stores a trajectory: any solver samples, and samples and rewards are all
that is needed, as of `matching`. With m_i the matching error of row i (mean
over the event of the squared velocity error at a drawn time and noise, both the
same for the G rows of a group), A_i its advantage, and per group and draw

  (1) dgpo  L = -log sigmoid(h) / beta,
            h = -(beta / G) sum_i A_i (m_i - m_ref_i)
  (2) crd   L_i = (C / beta) (beta (r_i - sg mean r) - (p_i - mean p))^2,
            r_i = m_old_i / w_old_i - m_i / w_i,  p_i = clip(A_i / (2 C) + 1/2)

(1) is direct group preference optimisation (DGPO, arXiv:2510.08425): DPO of a
group's better half against its worse one, advantages for labels. Where they sum
to zero the noise of m that all rows share cancels. Its gradient is
sigmoid(-h) mean_i A_i grad m_i. (2) is centred reward distillation (CRD,
arXiv:2603.14128): the policy's own reward, how much better than the copy that
sampled it foresees a sample, is fitted to the true one. Both are known up to a
constant of the prompt, which a group's mean takes away. w is the mean absolute
error at that time, held fixed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gen_rl.diffusion import process
from gen_rl.fields import CopyName, Count, Positive
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Noised,
  Objective,
  Replay,
  RowKeys,
  Term,
)


def dgpo(
  group_size: int,
  beta: Positive = 100.0,
  draws: Count = 1,
  clip: Positive | None = None,
  ref: CopyName = 'ref',
  old: CopyName = 'old',
) -> Objective:
  """Direct group preference optimisation, equation (1).

  Args:
    group_size: G.
    beta: inverse temperature, per unit of m; a small one weighs all groups
      alike, a large one those that are not yet in order.
    draws: times and noises per group, k.
    clip: eps: a row has no gradient where exp(m_old - m) is above 1 + eps and
      it was good, or below 1 - eps and it was bad. None: all have one.
    ref: the copy that is compared with.
    old: the copy that sampled, read by `clip`.

  Returns:
    Objective with value and mask [b k], the group's loss at each of its rows;
    metrics `margin` (h), `shift` (m - m_ref) and `clip_fraction`.
  """

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    at = replay.ask('params', 'noised', keys.group, draws)

    def error(which: str) -> Float[Array, 'b k']:
      return process.matching_error(replay.ask(which, 'velocity_at', at), at)

    m, frozen = error('params'), jax.lax.stop_gradient(error(ref))
    adv = _advantages(exp)
    outside = jnp.zeros(m.shape, bool)
    if clip is not None:
      r = jnp.exp(jax.lax.stop_gradient(error(old) - m))
      outside = jnp.where(adv > 0, r > 1.0 + clip, r < 1.0 - clip)
      m = jnp.where(outside, jax.lax.stop_gradient(m), m)
    shift = m - frozen
    margin = -beta * _group_mean(adv * shift, group_size)
    value = -jax.nn.log_sigmoid(margin) / beta
    metrics = dict(
      margin=margin, shift=shift, clip_fraction=outside.astype(jnp.float32)
    )
    mask = jnp.broadcast_to(exp.weight[:, None] > 0, value.shape)
    return Term(value, mask.astype(jnp.float32)), jax.lax.stop_gradient(metrics)

  return objective


def crd(
  group_size: int,
  beta: Positive = 1.0,
  draws: Count = 1,
  max_adv: Positive = 5.0,
  old: CopyName = 'old',
) -> Objective:
  """Centred reward distillation, equation (2), of groups weighed evenly.

  Args:
    group_size: G.
    beta: how much of the policy's own reward is worth one of p.
    draws: times and noises per group, k.
    max_adv: C, the advantage at which p is 0 or 1.
    old: the copy that sampled.

  Returns:
    Objective with value and mask [b k]; metrics `own` (r less its mean),
    `wanted` (p less its mean) and `old_distance`, the mean squared distance of
    the velocity from the old one.
  """

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    at = replay.ask('params', 'noised', keys.group, draws)
    v = replay.ask('params', 'velocity_at', at)
    before = jax.lax.stop_gradient(replay.ask(old, 'velocity_at', at))
    own = _scaled_error(before, at) - _scaled_error(v, at)
    p = jnp.clip(_advantages(exp) / (2.0 * max_adv) + 0.5, 0.0, 1.0)
    kept = jnp.broadcast_to(exp.weight[:, None] > 0, own.shape)
    kept = kept.astype(jnp.float32)
    own -= jax.lax.stop_gradient(_mean_of(own, kept, group_size))
    wanted = p - _mean_of(jnp.broadcast_to(p, own.shape), kept, group_size)
    value = max_adv / beta * jnp.square(beta * own - wanted)
    metrics = dict(
      own=own,
      wanted=wanted,
      old_distance=process.event_mean(jnp.square(v - before)),
    )
    return Term(value, kept), jax.lax.stop_gradient(metrics)

  return objective


def _advantages(exp: Experience) -> Float[Array, 'b 1']:
  """A of each row, a mean over its decisions; 0 where it says nothing."""
  adv = jax.lax.stop_gradient(exp.adv).mean(-1, keepdims=True)
  return jnp.where(exp.weight[:, None] > 0, adv, 0.0)


def _group_mean(x: Float[Array, 'b k'], size: int) -> Float[Array, 'b k']:
  """Each group's mean, at all of its rows."""
  mean = x.reshape(-1, size, x.shape[1]).mean(1)
  return jnp.repeat(mean, size, axis=0)


def _mean_of(
  x: Float[Array, 'b k'], kept: Float[Array, 'b k'], size: int
) -> Float[Array, 'b k']:
  """`_group_mean` over the rows that are kept."""
  share = _group_mean(kept, size)
  return _group_mean(x * kept, size) / jnp.where(share > 0, share, 1.0)


def _scaled_error(v: Array, at: Noised) -> Float[Array, 'b k']:
  """Error over scale, m / w, of velocities [b k ...] at noised samples."""
  error = v - (at.x1 - at.x0[:, None])
  scale = process.event_mean(jnp.abs(jax.lax.stop_gradient(error)))
  return process.event_mean(jnp.square(error)) / jnp.maximum(scale, 1e-5)
