r"""Regularizers: stay near a reference, or stay random.

With p the current policy and q the frozen copy named `ref`, at the stored
states:

  (1) kl           KL(p || q), in closed form per decision: the reverse KL
  (2) velocity_kl  mean over the event of (v_p - v_q)^2
  (3) entropy      -H(p)

For Gaussian steps with means m and a shared deviation s, (1) is
(m_p - m_q)^2 / (2 s^2), averaged or summed over the event as the distribution
reduces its log-probability. All three use the states as given: the gradient
through the states visited is left out, as in the papers below.

Flow-GRPO (arXiv:2505.05470) divides its published KL by the squared diffusion
coefficient s^2 / (-dt) and not by s^2, so its beta multiplies

  (4) (-dt) KL(p || q),   -dt = t - t_next,

and `kl(scale='dt')` with weight beta is the published loss for the Flow-SDE
step. Its CPS step divides by s^2 proper: `scale='exact'`. With T equal steps
the exact KL at the same beta is T times stronger.

(2) is the KL rate up to the noise level: for m = x + c v, with c set by times
and noise alone, d m = c d v. c differs between transitions (it is dt for an
Euler step, dt (1 + s^2 (1 - t) / (2 t)) for Flow-SDE with diffusion
coefficient s) and is 0 / 0 where steps are noise-free, so the velocity
difference is not recovered from means; it is asked for as
`replay.ask(which, 'velocity')`, [b k ...]. It weighs all noise levels alike and
is defined for noise-free steps too.

What is left out matters when beta is read as the price of a nat: an action
that leads where the policy is far from the reference pays nothing for it, and
training does not end at the optimum of E[r] - beta KL(paths). With
`kl(path=True)` the gradient is that of the KL divergence between whole paths,

  (5) d sum_k KL_k = sum_k (d KL_k + (sum_{j > k} KL_j) d log p(a_k)),

right on policy and for log-probabilities and KL that are sums over the event.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.fields import CopyName, Index, NonNegative
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
)


def _term(value: Array, mask: Array, name: str) -> tuple[Term, Metrics]:
  """Zeroes masked decisions, and reports the value [b k] as the metric."""
  value = jnp.where(mask > 0, value, 0.0)
  term = Term(value=value, mask=mask, every_row=True)
  return term, {name: jax.lax.stop_gradient(value)}


def kl(
  ref: CopyName = 'ref',
  kind: Literal['reverse', 'forward'] = 'reverse',
  scale: Literal['exact', 'dt'] = 'exact',
  path: bool = False,
) -> Objective:
  """Closed-form KL divergence to a frozen copy, equation (1).

  Args:
    ref: name of the copy, 'ref', 'old' or 'ema'.
    kind: 'reverse' is KL(params || ref), 'forward' KL(ref || params). Equal for
      Gaussians of one deviation, not for categoricals.
    scale: 'exact', or 'dt' for Flow-GRPO's published form, equation (4).
    path: charge an action for the divergences that follow, equation (5). The
      value stays that of equation (1).

  Returns:
    Objective with value and mask [b k], in nats ('exact'), and metric `kl`.

  Raises:
    ValueError: for an unknown kind or scale.
  """
  if kind not in ('reverse', 'forward'):
    raise ValueError(f"kind is {kind!r}: it is either 'reverse' or 'forward'.")
  if scale not in ('exact', 'dt'):
    raise ValueError(f"scale is {scale!r}: it is either 'exact' or 'dt'.")

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    new = replay.ask('params', 'dist')
    frozen = jax.lax.stop_gradient(replay.ask(ref, 'dist'))
    value = new.kl(frozen) if kind == 'reverse' else frozen.kl(new)
    if scale == 'dt':
      value = value * (exp.traj.times[..., 0] - exp.traj.times[..., 1])
    mask = exp.traj.mask
    term, metrics = _term(value, mask, 'kl')
    if path:
      kept = metrics['kl']
      later = jnp.cumsum(kept[:, ::-1], 1)[:, ::-1] - kept
      log_prob = jnp.where(mask > 0, replay.ask('params', 'log_prob'), 0.0)
      surrogate = log_prob - jax.lax.stop_gradient(log_prob)
      term = term.replace(value=term.value + later * surrogate)
    return term, metrics

  return objective


def velocity_kl(
  ref: CopyName = 'ref',
  draws: Index = 0,
  paired: bool = False,
  guidance_scale: NonNegative = 1.0,
) -> Objective:
  """Squared velocity difference to a frozen copy, equation (2).

  Needs velocities: those at the stored states (after guidance, if the policy
  samples with it), or with `draws` those of the net itself.

  Args:
    ref: name of the copy, 'ref', 'old' or 'ema'.
    draws: 0 compares at the stored states; k > 0 at the samples noised to k
      drawn times, the same as those of a matching loss with as many draws.
    paired: the rows of a group share these times and noises, as for losses of
      whole groups (`dpo`, `dgpo`, `crd`), whose draws they then are.
    guidance_scale: w; with draws, q's velocity is v_u + w (v - v_u), v_u that
      of no prompt: who samples without guidance is kept near who has it, as in
      centred reward distillation (arXiv:2603.14128).

  Returns:
    Objective with value and mask [b k], in squared latent units, and metric
    `velocity_kl`.

  Raises:
    ConfigError: guidance or pairs of what is not drawn; when called, if the
      policy has no velocity.
  """
  if not draws and (paired or guidance_scale != 1.0):
    raise ConfigError(
      f'velocity_kl: paired={paired} and guidance_scale={guidance_scale:g} are '
      'of drawn times, and draws is 0, the stored states; set draws'
    )

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    if draws:
      own = keys.group if paired else keys.own
      at = replay.ask('params', 'noised', own, draws)
      new, frozen = (replay.ask(c, 'velocity_at', at) for c in ('params', ref))
      if guidance_scale != 1.0:
        free = replay.ask(ref, 'velocity_at', at, True)
        frozen = free + guidance_scale * (frozen - free)
      mask = jnp.ones_like(at.t)
    else:
      new, frozen = (replay.ask(c, 'velocity') for c in ('params', ref))
      mask = exp.traj.mask
    difference = new.astype(jnp.float32) - jax.lax.stop_gradient(frozen)
    value = process.event_mean(jnp.square(difference))
    return _term(value, mask, 'velocity_kl')

  return objective


def entropy() -> Objective:
  """Negative entropy, equation (3): a positive weight keeps the policy random.

  The entropy of a Gaussian step depends on its deviation alone, so where the
  deviation is not learned this term has no gradient.

  Tested, not measured.

  Returns:
    Objective with value -H and mask [b k], in nats, and metric `entropy`, +H.
  """

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    term, metrics = _term(
      replay.ask('params', 'dist').entropy(), exp.traj.mask, 'entropy'
    )
    return term.replace(value=-term.value), metrics

  return objective
