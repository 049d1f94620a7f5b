r"""What a policy expects to earn: a value network, for actor and critic.

A network of `gen_rl.models` is read as

  (1) V(s_j, c) = mean over the event of net(s_j, t_j, c)      that denoises
                = mean over the vocabulary of its logits       that says tokens

at the state s_j of every stored decision, and trained to say the return that
followed,

  (2) L = 1/2 (V_j - R_j)^2,   R_j = A_j + V_j^old

with A_j generalized advantages (`gen_rl.advantages.returns`, arXiv 1506.02438)
and V^old what it said when the rollout was judged. With `clip` (PPO, arXiv
1707.06347, as in its published code) it is the larger one of (2) and of the
same with V_j held within `clip` of V_j^old.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gen_rl import build, models
from gen_rl.advantages import returns
from gen_rl.build import ConfigError
from gen_rl.fields import Fraction, Positive
from gen_rl.models.parts.layers import Net, TokenNet
from gen_rl.types import (
  Array,
  Experience,
  Learner,
  Metrics,
  Params,
  Replay,
  RowKeys,
  Term,
  Trajectory,
)


def value(
  model: Mapping[str, Any],
  gamma: Fraction = 1.0,
  lam: Fraction = 0.95,
  clip: Positive | None = None,
  vocab: int = 0,
  length: int = 0,
) -> Learner:
  """A value network; `advantages.gae` with its label asks it.

  Args:
    model: spec of a network of `models` that sees what the policy sees.
    gamma: discount of a decision.
    lam: lambda of the returns (2).
    clip: range of (2) in units of the reward; None: no bound.
    vocab: token ids.
    length: prompt length in tokens.

  Returns:
    A Learner that offers `value`; metrics `value`, V, and `target`, R of (2).

  Raises:
    ConfigError: a network that neither denoises nor says tokens; when called,
      an advantage that asks for no values.
  """
  net = build.build(models, model, vocab=vocab, length=length)
  if not isinstance(net, Net | TokenNet):
    raise ConfigError(
      f'value: the network {model["name"]!r} is none that denoises or says '
      'tokens'
    )

  def value_of(params: tuple[Params, Params], traj: Trajectory) -> Array:
    _, own = params
    if isinstance(net, TokenNet):
      return net.score(own, traj.cond, traj.actions).mean(-1)
    b, k = traj.mask.shape
    prompt = jax.tree.map(
      lambda c: jnp.repeat(c, k, axis=0), net.encode(own, traj.cond)
    )
    flat = traj.states.reshape(b * k, *traj.states.shape[2:])
    out = net.apply(own, flat, traj.times[..., 0].reshape(-1), prompt)
    return out.astype(jnp.float32).reshape(b, k, -1).mean(-1)

  def loss(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    if not isinstance(exp.values, jax.Array):
      raise ConfigError(
        'there is nothing to learn: no advantage asks for values; '
        "advantage.name='gae' does"
      )
    mask = exp.traj.mask
    adv = returns.generalized(
      returns.rewards(exp.rewards, mask), exp.values, mask, gamma, lam
    )
    target = jax.lax.stop_gradient(adv + exp.values)
    said = replay.ask('self', 'value')
    error = jnp.square(said - target)
    if clip is not None:
      near = exp.values + jnp.clip(said - exp.values, -clip, clip)
      error = jnp.maximum(error, jnp.square(near - target))
    term = Term(jnp.where(mask > 0, error / 2, 0.0), mask, every_row=True)
    return term, dict(value=jax.lax.stop_gradient(said), target=target)

  return Learner(net.init, loss, dict(value=value_of), axes=net.axes)
