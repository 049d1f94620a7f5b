"""Critics: trained on every rollout, apart from the policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import (
  advantages,
  critics,
  objectives,
  testing,
  train_state,
  train_step,
)
from gen_rl.build import ConfigError
from gen_rl.types import Critic, Reward, RewardOut
from gen_rl.utils import tree

KEY = jax.random.key(0)


def brightness():
  """A critic of one number, the threshold between real and fake brightness."""

  def loss(frozen, params, real, fake, keys):
    mean = lambda x: x.mean((1, 2, 3))
    return frozen * jnp.square(params - (mean(real) + mean(fake)) / 2)

  def score(params, inputs, key):
    _, threshold = params
    value = inputs.media.mean((1, 2, 3)) - threshold
    return RewardOut(value, {}, jnp.ones(len(value), bool))

  critic = Critic(lambda key: jnp.float32(0.0), loss)
  return Reward('brightness', jnp.float32(2.0), score, critic=critic)


def make(reward=None, **kwargs):
  reward = reward or brightness()
  policy, tx = testing.make_policy(), optax.sgd(0.1)
  advantage = advantages.grpo(4)
  kwargs = (
    dict(
      critic_tx=optax.sgd(0.1),
      reals=lambda rows: (
        jnp.ones((len(rows.group), *testing.SHAPE)),
        rows.cond,
      ),
    )
    | kwargs
  )
  step = train_step.make(
    policy, dict(pg=(objectives.clipped_pg(1e-2), 1.0)), tx,
    rewards=dict(real=(reward, 1.0)), advantage=advantage, group_size=4,
    **kwargs,
  )  # fmt: skip
  state = train_state.create(
    policy.init(KEY), tx, advantage, reward_params=dict(real=reward.params),
    critics=dict(real=reward.critic), critic_tx=optax.sgd(0.1), key=KEY,
  )  # fmt: skip
  return step, state


def test_a_step_by_hand():
  """Real media are white: 1. Loss 2 (p - (1 + fake) / 2)^2, lr 0.1."""
  step, state = make()
  _, inputs, outs = step.sample(state, testing.batch(), KEY)
  fake = float(inputs.media.mean())
  np.testing.assert_allclose(  # scored before the critic moves
    outs['real'].score, inputs.media.mean((1, 2, 3)), rtol=1e-6
  )
  state, log = step.train_step(state, testing.batch(), KEY)
  moved = 0.1 * 2 * 2 * (1 + fake) / 2
  assert float(state.aux['real']['params']) == pytest.approx(moved, rel=1e-4)
  assert log['critic/skipped'] == 0
  first = float(log['critic/real'])
  for _ in range(20):
    state, log = step.train_step(state, testing.batch(), KEY)
  assert log['critic/real'] < 0.2 * first


def test_the_critic_and_the_policy_leave_each_other_alone():
  reward = brightness()
  step, state = make(reward)
  before = jax.device_get(state.params)
  after, _ = step.train_step(state, testing.batch(), KEY)
  # A critic with much to say about the samples says nothing to the policy.
  loud = reward.critic._replace(loss=lambda *a: 1e6 * reward.critic.loss(*a))
  step, state = make(reward._replace(critic=loud))
  loud_after, _ = step.train_step(state, testing.batch(), KEY)
  assert tree.equal(after.params, loud_after.params)
  assert not tree.equal(after.params, before)


def test_a_critic_step_that_is_not_finite_is_left_out():
  reward = brightness()
  broken = reward.critic._replace(
    loss=lambda *a: jnp.nan * reward.critic.loss(*a)
  )
  _, state = make(reward)
  real = fake = jnp.ones((16, *testing.SHAPE))
  keys = jax.random.split(KEY, 16)
  new, log = critics.step(
    dict(real=broken), optax.sgd(0.1), state, real, fake, keys
  )
  assert log['critic/skipped'] == 1
  assert tree.equal(new.aux, state.aux)


def test_rows_without_a_score_or_numbers_teach_a_critic_nothing():
  """By hand: one of 16 is NaN, one was not scored; 14 fakes of 1 are left."""
  reward = brightness()
  _, state = make(reward)
  fake = jnp.ones((16, *testing.SHAPE)).at[3].set(jnp.nan).at[5].set(9.0)
  new, log = critics.step(
    dict(real=reward.critic),
    optax.sgd(0.1),
    state,
    jnp.ones_like(fake),
    fake,
    jax.random.split(KEY, 16),
    jnp.arange(16) != 5,
  )
  assert log['critic/skipped'] == 0
  assert float(log['critic/real']) == pytest.approx(2.0)  # 2 (0 - 1)^2
  assert float(new.aux['real']['params']) == pytest.approx(0.4)  # 0.1 * 4


def test_what_a_critic_needs():
  for kwargs in (dict(reals=None), dict(critic_tx=None)):
    with pytest.raises(ConfigError, match='the reward real is trained'):
      make(**kwargs)
