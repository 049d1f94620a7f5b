"""Rewards that learn to read what is foreseen: by hand, and in a step."""

import contextlib

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import optax
import pytest

from configs import flow_grpo
from gen_rl import advantages, assemble, testing, train_state, train_step
from gen_rl.build import ConfigError
from gen_rl.learners import noise_aware
from gen_rl.train_state import Taught
from gen_rl.types import (
  Experience,
  Replay,
  Reward,
  RewardInputs,
  RewardOut,
  RowKeys,
  Trajectory,
)
from gen_rl.utils import tree

KEY = jax.random.key(0)


def linear(differentiable=True):
  """Score w * mean of the picture + b; a picture with a negative is invalid."""

  def score(params, inputs, key):
    mean = inputs.media.mean((1, 2, 3))
    seen = params['w'] * mean + params['b'] + 0 * inputs.info['channel']
    return RewardOut(seen, {}, (inputs.media >= 0).all((1, 2, 3)))

  start = dict(w=jnp.float32(2.0), b=jnp.float32(1.0))
  return Reward('linear', start, score, differentiable=differentiable)


def experience(target, valid):
  b = len(target)
  blank, none = jnp.zeros((b, 2)), jnp.zeros(b)
  traj = Trajectory(
    cond=(), states=(), actions=blank, times=jnp.zeros((b, 2, 2)), noise=blank,
    log_prob=blank, mask=blank, sample=none, group=none.astype(int),
  )  # fmt: skip
  score = jnp.float32(target)
  rewards = RewardOut(score, dict(r=score), jnp.array(valid))
  inputs = RewardInputs((), dict(channel=jnp.zeros(b, jnp.int32)), 1)
  return Experience(traj, none[:, None], none, rewards, inputs)


def loss(params, means, target, valid, pairs=0.0, group_size=1):
  """Of pictures [b 2 ...], grey of these means."""
  learner = noise_aware.of_reward(linear(), pairs, 0.5, group_size)
  assert learner.compares == (pairs > 0)
  media = jnp.broadcast_to(
    jnp.float32(means)[..., None, None, None], (len(means), 2, 2, 2, 3)
  )
  exp = experience(target, valid)

  def ask(which, op, *args):
    if which == 'self':
      return learner.ops[op](((), params), exp.traj, *args)
    return media

  keys = jax.random.split(KEY, len(means))
  term, _ = learner.loss(Replay(ask), exp, RowKeys(keys, keys))
  return (term.value * term.mask).sum() / term.mask.sum(), term


@pytest.fixture
def taught():
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_by_hand(taught):
  """1.5 and 2 against 1; a row without a target counts nothing.

  An estimate that cannot be scored is no error.
  """
  params = dict(w=jnp.float32(2), b=jnp.float32(1))
  means = [[0.25, 0.5], [0.5, 0.5], [-1.0, 0.0]]
  (_, term), gradient = taught(
    params, jnp.float32(means), jnp.float32([1.0, jnp.nan, 2.0]),
    jnp.array([True, False, True]),
  )  # fmt: skip
  np.testing.assert_allclose(term.value, [[0.25, 1], [0, 0], [0, 1]])
  np.testing.assert_array_equal(term.mask, [[1, 1], [0, 0], [1, 1]])
  # of (0.5^2 + 1^2 + (-1)^2) / 4: dw is 2 (0.5 0.25 + 1 0.5) / 4, db 2 0.5 / 4
  np.testing.assert_allclose(gradient['w'], 1.25 / 4, rtol=1e-6)
  np.testing.assert_allclose(gradient['b'], 1.0 / 4, rtol=1e-6)


def test_the_minimum_is_the_conditional_mean(taught):
  """Two pictures that look alike and end as 0 and 1 are worth 1/2."""
  params = dict(w=jnp.float32(0.3), b=jnp.float32(0))
  means = jnp.float32([[0.2, 0.2], [0.2, 0.2], [0.8, 0.8], [0.8, 0.8]])
  target = jnp.float32([0, 1, 1, 1])
  for _ in range(400):
    _, gradient = taught(params, means, target, target >= 0)
    params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
  w, b = float(params['w']), float(params['b'])
  np.testing.assert_allclose([0.2 * w + b, 0.8 * w + b], [0.5, 1], atol=1e-3)


def test_pairs_by_hand():
  """Of scores 1 + 2 mean; a group of three, and one in which none is better.

  Of the three one has no target; of the other two the better one leads by
  1 / 0.5 at the first level, and is as far behind at the second.
  """
  params = dict(w=jnp.float32(2), b=jnp.float32(1))
  means = [[1.0, 0.0], [0.5, 0.5], [0.9, 0.9]] + [[0.1, 0.2]] * 3
  target = jnp.float32([3, 1, jnp.nan, 4, 4, 4])
  valid = jnp.array([True, True, False, True, True, True])
  run = jax.jit(lambda pairs: loss(
    params, jnp.float32(means), target, valid, pairs, 3
  ), static_argnums=0)  # fmt: skip
  (_, with_pairs), (_, alone) = run(10.0), run(0.0)
  softplus = lambda x: np.log1p(np.exp(x))
  want = np.zeros((6, 2))
  want[:3] = 10 * softplus(-2.0), 10 * softplus(2.0)
  np.testing.assert_allclose(with_pairs.value - alone.value, want, atol=1e-5)
  np.testing.assert_array_equal(with_pairs.mask, alone.mask)


def test_a_step_without_objectives():
  """Pictures foreseen at the stored states, x - t v; the policy stays."""
  reward, policy = linear(), testing.make_policy(window=2, deterministic=True)
  tx, advantage = optax.sgd(0.1), advantages.grpo(4)
  learners = dict(aware=Taught(noise_aware.of_reward(reward), optax.sgd(0.01)))
  step = train_step.make(
    policy, {}, tx, rewards=dict(r=(reward, 1.0)), advantage=advantage,
    group_size=4, learners=learners,
  )  # fmt: skip
  state = train_state.create(
    policy.init(KEY), tx, advantage, reward_params=dict(r=reward.params),
    learners=learners, key=KEY,
  )  # fmt: skip
  before = jax.device_get(state)
  traj, _, outs = step.sample(state, testing.batch(), KEY)
  v = jax.jit(policy.ops['velocity'])(state.params, traj)
  t = np.asarray(traj.times)[..., 0, None, None, None]
  seen = np.clip((np.asarray(traj.states) - t * v + 1) / 2, 0, 1)
  said = 2 * seen.mean((2, 3, 4)) + 1
  want = np.square(said - np.asarray(outs['r'].score)[:, None]).mean()
  state, log = step.train_step(state, testing.batch(), KEY)
  np.testing.assert_allclose(log['learner/aware/loss'], want, rtol=1e-4)
  assert log['optim/skipped'] == 0
  assert tree.equal(jax.device_get(state.params), before.params)
  assert not tree.equal(jax.device_get(state.aux), before.aux)


def test_pairs_keep_groups_together():
  config = flow_grpo.get_config('proxy,tiny')  # 4 groups of 2
  config.microbatches = 8
  spec = dict(name='noise_aware', reward=dict(name='shapes_detector'))
  for more, fits in ({}, True), (dict(pairs=1.0), False):
    config.learners.aware = config_dict.create(**spec, **more)
    built = assemble.setup(config)
    layout = assemble.make_layout(config, built, jax.devices()[:1])
    expected = pytest.raises(ConfigError, match='4 groups')
    with contextlib.nullcontext() if fits else expected:
      assemble.make_step(config, built, layout)


def test_rewards_that_cannot():
  with pytest.raises(ConfigError, match="'linear' has to be .* differentiable"):
    noise_aware.of_reward(linear(False))
  for change in (dict(called_on='groups'), dict(params=())):
    with pytest.raises(ConfigError, match='score a row by itself'):
      noise_aware.of_reward(linear()._replace(**change))
