r"""Rewards that read unfinished samples (TTSnap, arXiv 2511.22242).

A search that scores unfinished samples shows its reward what they foresee, the
estimate xhat_s = E[x0 | x_s]: blurred pictures that a reward of finished ones
reads wrongly. A copy of it learns to say of the estimate what the run's rewards
say of the sample x that comes of it,

  L = (R_theta(xhat_s, c) - R(x, c))^2                                   (1)

which is least for R_theta = E[R(x, c) | xhat_s, c]; an estimate that cannot be
scored counts as no error. What a search needs is the order of a prompt's
candidates, which a second term is about, of weight `pairs`: the mean over all
pairs (i, j) of a group with R(x_i) > R(x_j), at one level, of

  L = -log sigmoid((R_theta(xhat_i) - R_theta(xhat_j)) / temperature)      (2)

the authors' code has it with a weight of 0. The levels s are those of
the decisions that the policy stores: `policy.window` of them. The authors go
through the levels one by one, cleanest first, each from the weights of the one
before, and keep the weights of every level: runs in a row with a window of 1,
each with `export`, and the file of the one before as the reward's weights
(experiments/ttsnap).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from gen_rl import build, rewards, types
from gen_rl.build import ConfigError
from gen_rl.data import tokenizers
from gen_rl.fields import NonNegative, Positive
from gen_rl.rewards import combine
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.types import (
  Array,
  Experience,
  Learner,
  Metrics,
  Params,
  Replay,
  Reward,
  RowKeys,
  Term,
)


def noise_aware(
  reward: Mapping[str, Any],
  pairs: NonNegative = 0.0,
  temperature: Positive = 0.5,
  group_size: int = 1,
  end: int = -1,
  pad: int = 0,
  reader: tokenizers.Tokenizer | None = None,
) -> Learner:
  """A reward that learns to read what a policy foresees.

  Args:
    reward: spec of a function of `rewards`: R_theta, and where it begins.
    pairs: weight of (2). Not measured.
    temperature: of (2), in units of the reward.
    group_size: bound, G.
    end: token id, for rewards that ask for it.
    pad: token id, the same.
    reader: what judges read prompts with, the same.

  Returns:
    A Learner that offers `score`, R_theta of pictures [b k ...].

  Raises:
    ConfigError: the reward is not differentiable, or learns itself.
  """
  judge = build.build(rewards, reward, end=end, pad=pad, reader=reader)
  return of_reward(judge, pairs, temperature, group_size)


# The return type is spelled so that a config cannot ask for this function by
# name (learners.BUILDS).
def of_reward(
  judge: Reward,
  pairs: float = 0.0,
  temperature: float = 0.5,
  group_size: int = 1,
) -> types.Learner:
  """The same of a reward."""
  if (
    not judge.differentiable
    or judge.where != 'device'
    or judge.learner
    or judge.called_on != 'rows'
    or not jax.tree.leaves(judge.params)
  ):
    raise ConfigError(
      f'noise_aware: the reward {judge.name!r} has to be on the device, '
      'differentiable, to have parameters that are not trained otherwise, and '
      'to score a row by itself'
    )

  def init(key: Array) -> Params:
    del key
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), judge.params)

  def loss(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    if not exp.rewards.parts:
      raise ConfigError('noise_aware learns from rewards, and there are none')
    said, valid = replay.ask('self', 'score', replay.ask('params', 'foresee'),
                             exp.inputs, keys.own)  # fmt: skip
    # Not `valid`: masks of a whole minibatch must not need the networks.
    mask = jnp.broadcast_to(exp.rewards.valid[:, None], exp.traj.mask.shape)
    target = exp.rewards.score[:, None]
    fine = valid & mask
    target = jnp.where(fine, target, 0.0)
    said = jnp.where(fine, said, 0.0)
    value, metrics = jnp.square(said - target), {}
    if pairs:
      of_pairs = _of_pairs(said / temperature, target, fine, group_size)
      value, metrics = value + pairs * of_pairs, dict(pairs=of_pairs)
    return Term(value, mask.astype(jnp.float32), every_row=True), metrics

  ops = dict(score=_score(judge))
  return Learner(init, loss, ops, axes=judge.axes, compares=pairs > 0)


def _of_pairs(
  said: Float[Array, 'b k'],
  target: Float[Array, 'b k'],
  fine: Bool[Array, 'b k'],
  group_size: int,
) -> Float[Array, 'b k']:
  """(2) of each row's group, 0 where no two of its scores differ."""
  said, target, fine = (
    x.reshape(-1, group_size, x.shape[1]) for x in (said, target, fine)
  )
  lead = said[:, :, None] - said[:, None]  # [P G G k]
  better = target[:, :, None] > target[:, None]
  better &= fine[:, :, None] & fine[:, None]
  loss = jnp.where(better, -jax.nn.log_sigmoid(lead), 0.0).sum((1, 2))
  mean = loss / jnp.maximum(better.sum((1, 2)), 1)
  return jnp.repeat(mean, group_size, axis=0)


def _score(judge: Reward) -> Callable[..., tuple[Array, Array]]:
  """(params, traj, media [b k ...], inputs, keys [b]) -> (R [b k], valid)."""

  def score(params, traj, media, inputs, keys):
    _, own = params
    b, k = media.shape[:2]
    row = jnp.repeat(jnp.arange(b), k)
    inputs = jax.tree.map(lambda x: x[row], inputs_lib.joined(inputs, traj))
    inputs = inputs.replace(
      media=media.reshape(b * k, *media.shape[2:]), group_size=1
    )
    out = combine.answer(judge.name, judge, own, inputs, keys[row])
    return out.score.reshape(b, k), out.valid.reshape(b, k)

  return score
