r"""A classifier that a network holds: does a sample say what was asked?

At a noised copy x_t = (1 - t) x0 + t x1 of a sample, a network v that also
knows what there is without a prompt, v_u, foresees the noise
eps = E[x1 | x_t] = x_t + (1 - t) v, and by Bayes' rule

  (1) grad_{x_t} log p(c | x_t) = grad log p(x_t | c) - grad log p(x_t)
                                = (eps_u - eps_c) / t,
      eps_u - eps_c = (1 - t) (v_u - v_c)

which is where classifier-free guidance takes a sample. As a reward with a
gradient and without a value (Rewards Are Enough, R0, arXiv:2503.13070) it draws
a sample that is made in a few calls towards its prompt, by the judgement of the
frozen network,

  (2) L = -<d / |d|, x0>,   d = mean over draws of t, x1 of (eps_u - eps_c)

of each row with d held fixed, through x0 alone. What other rewards' directions
are with `reward_backprop(per_reward=True)`, of length 1, this one is, too, so
that weights compare. d = 0 says nothing and has no gradient.
"""

import jax
import jax.numpy as jnp

from gen_rl.diffusion import process
from gen_rl.fields import CopyName, Count
from gen_rl.types import Experience, Metrics, Objective, Replay, RowKeys, Term


def implicit_guidance(
  last: Count = 1, draws: Count = 1, ref: CopyName = 'ref'
) -> Objective:
  """Equation (2), beside `reward_backprop`.

  The network has to know prompts and none: pretrained with `policy.null_prob`,
  or released with guidance. Times are those of matching losses.

  Tested, not measured.

  Args:
    last: network calls that are trained, the last ones (DRaFT-K); as many as a
      sample takes, or more: all of the window's and the last.
    draws: noised copies of a sample.
    ref: the copy of the parameters that judges.

  Returns:
    Objective with value and mask [b 1]; metric `slope`, |d|.
  """

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    calls = exp.traj.mask.shape[1] + 1
    first = max(calls - last, 0)
    live = jnp.broadcast_to(
      jnp.arange(calls) >= first, (len(exp.weight), calls)
    )
    sample = replay.ask('params', 'finish', live, False, None, first)
    at = replay.ask('params', 'noised', keys.own, draws)
    asked = replay.ask(ref, 'velocity_at', at)
    free = replay.ask(ref, 'velocity_at', at, True)
    apart = process.expand(1.0 - at.t, free) * (free - asked)  # eps_u - eps_c
    toward, length = _unit(jax.lax.stop_gradient(apart.mean(1)))
    value = -_dot(toward, sample)
    mask = jnp.ones_like(value)
    return Term(value, mask, every_row=True), dict(slope=length)

  return objective


def _unit(d: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(d / |d|, |d| [b 1]) of rows [b ...]; 0 where that is 0 or not finite."""
  length = jnp.sqrt(_dot(d, d))
  some = jnp.isfinite(length) & (length > 0)
  inverse = jnp.where(some, 1.0 / jnp.where(some, length, 1.0), 0.0)[:, 0]
  some = process.expand(inverse, d) > 0
  return jnp.where(some, d, 0.0) * process.expand(inverse, d), length


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """Of each row, [b 1]."""
  return (a * b).reshape(len(a), -1).sum(-1, keepdims=True)
