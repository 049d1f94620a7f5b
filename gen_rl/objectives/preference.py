r"""Preference objectives: raise some rows of a group above others.

Labels y come as the advantage, +1 preferred, -1 not, 0 neither (of weight 0):
`advantages.best_worst` makes them from scores. With m the matching error of a
row (mean over the event of the squared velocity error at a drawn time and
noise, both the same for all rows of a group), m_ref that of a frozen copy and
d = m - m_ref, per group and draw

  (1) dpo  L = -log sigmoid(beta h),  h = -c sum_i y_i d_i,  c = 1 / 2
  (2) kto  L_i = w (1 - sigmoid(y_i (g_i - q))),  g = -beta d,
           q = max(0, mean of g over the group), held fixed
  (3) ipo  L = (h - 1 / (2 beta))^2

(1) with one preferred and one other row is Diffusion-DPO (arXiv:2311.12908,
eq. 14, with its T and weight in beta); with one picture under a right and a
wrong prompt it is TDPO (arXiv:2509.25771). (2) is Diffusion-KTO
(arXiv:2404.04465), TKTO likewise. KTO's reference point q is a mean over a
batch of mismatched pairs; here it is that of the row's group, so that a
microbatch needs no other.

Both noised rows see one draw: different ones would bury d in noise.

With error='nll' m is the negative log-likelihood of all decisions of a row, a
sum over its tokens, and c = 1: (1) and (2) are then DPO (arXiv:2305.18290) and
KTO (arXiv:2402.01306) of a policy that says tokens, and (3) is IPO
(arXiv:2310.12036, its tau is beta). Of a policy that denoises the decisions are
those of the chain that was sampled, as in D3PO (arXiv:2311.13231). A beta is
per nat of a whole row, about 0.1 where that of matching errors is in the
hundreds. Both log-likelihoods of a pair may fall together: `preferred_shift` is
above 0.

beta: the paper's (14) has beta_p T w(lambda) before sums |.|^2 over the D
dimensions of errors of the noise, its code -beta / 2 before their means, so
beta = 2 D beta_p T w, one number at all times: that is the published 2000 to
5000 for SD1.5, and ours with error='noise'. An error of the velocity at the
time s is 1 / (1 - s)^2 that of the noise, from the same prediction
(`process.matching_error`): with error='velocity' a beta is worth
beta / (1 - s)^2 of theirs, most near the noise, where SD1.5's last level has
s = .936 and the factor is 244.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.fields import CopyName, Count, NonNegative, Positive
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
)

Error = Literal['velocity', 'noise', 'nll']


def _labels(exp: Experience) -> Float32[Array, 'b 1']:
  """Labels y in {-1, 0, 1}; 0 where the row is dropped."""
  y = jnp.sign(jax.lax.stop_gradient(exp.adv[:, :1]))
  return jnp.where(exp.weight[:, None] > 0, y, 0.0)


def _check_draws(error: Error, draws: int) -> None:
  if error == 'nll' and draws != 1:
    raise ConfigError(
      f"draws={draws}: with error='nll' nothing is drawn; leave draws at 1"
    )


def _shifts(
  replay: Replay,
  exp: Experience,
  keys: RowKeys,
  draws: int,
  ref: str,
  of: Error,
) -> Float32[Array, 'b k']:
  """Shifts d = m - m_ref; a group shares its times and noises."""
  if of == 'nll':
    said, frozen = (
      jnp.where(exp.traj.mask > 0, replay.ask(which, 'log_prob'), 0.0)
      for which in ('params', ref)
    )
    gain = said - jax.lax.stop_gradient(frozen)
    return -gain.sum(-1, keepdims=True)
  at = replay.ask('params', 'noised', keys.group, draws)
  error, frozen = (
    process.matching_error(replay.ask(which, 'velocity_at', at), at, of)
    for which in ('params', ref)
  )
  return error - jax.lax.stop_gradient(frozen)


def dpo(
  group_size: int,
  beta: Positive = 2000.0,
  draws: Count = 1,
  loser_cap: Positive | None = None,
  ref: CopyName = 'ref',
  error: Error = 'velocity',
) -> Objective:
  """Direct preference optimisation, equation (1).

  Args:
    group_size: G, rows that are compared.
    beta: inverse temperature, per unit of m.
    draws: times and noises per group, k.
    loser_cap: bound on d of rows that are not preferred, in units of m: beyond
      it nothing is gained by making them worse (TDPO). None: no bound.
    ref: the frozen copy.
    error: what m is: an error of the velocity or the noise, or the negative
      log-likelihood.

  Returns:
    Objective with value and mask [b k], the group's loss at each of its
    labelled rows; metrics `implicit_accuracy` (the copy's judgement agrees),
    `margin` (the argument of the sigmoid), `preferred_shift` and
    `other_shift` (d of the two kinds of rows, 0 for the other kind: half their
    mean).

  Raises:
    ConfigError: several draws of what is not drawn.
  """

  def loss(margin: Array) -> Array:
    return -jax.nn.log_sigmoid(margin)

  return _pairs(loss, group_size, beta, draws, loser_cap, ref, error)


def ipo(
  group_size: int,
  beta: Positive = 0.1,
  draws: Count = 1,
  ref: CopyName = 'ref',
  error: Error = 'nll',
) -> Objective:
  """Identity preference optimisation, equation (3): pairs at a finite distance.

  Where all comparisons agree (1) has no minimum, and the policy leaves the copy
  as far behind as it can.

  Args:
    group_size: G, rows that are compared.
    beta: tau: 1 / (2 beta) is the h that pairs are drawn to, in units of m.
    draws: times and noises per group, k.
    ref: the frozen copy.
    error: as of `dpo`.

  Returns:
    As `dpo`; `margin` is beta h, 1/2 where all is learned.

  Raises:
    ConfigError: several draws of what is not drawn.
  """

  def loss(margin: Array) -> Array:
    return jnp.square((margin - 0.5) / beta)

  return _pairs(loss, group_size, beta, draws, None, ref, error)


def _pairs(
  loss: Callable[[Array], Array],
  group_size: int,
  beta: float,
  draws: int,
  loser_cap: float | None,
  ref: str,
  error: Error,
) -> Objective:
  """A loss of beta h."""
  _check_draws(error, draws)
  half = 1.0 if error == 'nll' else 0.5

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    y = _labels(exp)
    shift = _shifts(replay, exp, keys, draws, ref, error)
    counted = shift
    if loser_cap is not None:
      counted = jnp.where(y < 0, jnp.minimum(shift, loser_cap), shift)
    grouped = (y * counted).reshape(-1, group_size, draws)
    margin = -half * beta * grouped.sum(1)
    margin = jnp.repeat(margin, group_size, axis=0)
    value = loss(margin)
    metrics = dict(
      implicit_accuracy=(margin > 0).astype(jnp.float32),
      margin=margin,
      preferred_shift=jnp.where(y > 0, shift, 0.0),
      other_shift=jnp.where(y < 0, shift, 0.0),
    )
    mask = jnp.broadcast_to(jnp.abs(y), value.shape)
    return Term(value, mask), jax.lax.stop_gradient(metrics)

  return objective


def kto(
  group_size: int,
  beta: Positive = 2000.0,
  draws: Count = 1,
  preferred_weight: NonNegative = 1.0,
  other_weight: NonNegative = 1.0,
  ref: CopyName = 'ref',
  error: Error = 'velocity',
) -> Objective:
  """Kahneman-Tversky optimisation, equation (2): rows need no partner.

  Args:
    group_size: G, the rows that share a reference point.
    beta: inverse temperature, per unit of m.
    draws: times and noises per group, k.
    preferred_weight: w of rows with y = 1.
    other_weight: w of rows with y = -1.
    ref: the frozen copy.
    error: as of `dpo`.

  Returns:
    Objective with value and mask [b k]; metrics `implicit_accuracy`, `gain`
    (y (g - q)), `preferred_shift`, `other_shift` as of `dpo`.

  Raises:
    ConfigError: several draws of what is not drawn.
  """
  _check_draws(error, draws)

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    y = _labels(exp)
    shift = _shifts(replay, exp, keys, draws, ref, error)
    g = -beta * shift
    labelled = jnp.abs(y).reshape(-1, group_size, 1)
    count = jnp.maximum(labelled.sum(1), 1.0)
    mean = (labelled * g.reshape(-1, group_size, draws)).sum(1) / count
    q = jax.lax.stop_gradient(jnp.maximum(mean, 0.0))
    gain = y * (g - jnp.repeat(q, group_size, axis=0))
    weight = jnp.where(y > 0, preferred_weight, other_weight)
    value = weight * jax.nn.sigmoid(-gain)
    metrics = dict(
      implicit_accuracy=(y * g > 0).astype(jnp.float32),
      gain=gain,
      preferred_shift=jnp.where(y > 0, shift, 0.0),
      other_shift=jnp.where(y < 0, shift, 0.0),
    )
    mask = jnp.broadcast_to(jnp.abs(y), value.shape)
    return Term(value, mask), jax.lax.stop_gradient(metrics)

  return objective
