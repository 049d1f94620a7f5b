"""The step: what it computes, and what it refuses.

Invariants over objectives and geometries are in tests/invariants/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import (
  advantages,
  objectives,
  rollout,
  testing,
  train_state,
  train_step,
)
from gen_rl.build import ConfigError
from gen_rl.policies import denoising
from gen_rl.types import Term

KEY = jax.random.key(0)


def constant(name, values, mask):
  """An objective with slope `values` in the parameter `name`."""

  def objective(replay, exp, keys):
    theta = replay.dist('params')[name]
    index = exp.traj.group
    m = jnp.asarray(mask, jnp.float32)[index][:, None]
    v = jnp.asarray(values, jnp.float32)[index][:, None]
    return Term(v * theta, m), dict(value=v, value_max=v)

  return objective


def scalar_policy():
  """Parameters {a, b, c}; `dist` hands them to the objective as they are."""
  policy = denoising.denoising(testing.perceptron(), steps=2)
  return policy._replace(
    init=lambda key: dict(a=jnp.float32(1), b=jnp.float32(2), c=jnp.float32(3)),
    dist=lambda params, traj: params,
    velocity=None,
  )


def data_step(policy, terms, tx, refs=(), trainable='', **kwargs):
  step = train_step.make(
    policy,
    terms,
    tx,
    rollout=rollout.data_rollout(
      lambda rows: (jnp.zeros((len(rows.group), *testing.SHAPE)), rows.cond)
    ),
    **kwargs,
  )
  state = train_state.create(
    policy.init(KEY), tx, None, refs=refs, trainable=trainable
  )
  return step, state


@pytest.mark.parametrize('microbatches', [1, 2, 4])
def test_loss_is_the_weighted_sum_of_masked_means(microbatches):
  # a: mean of 1 and 3 (mask 1 1 0 0); b: mean of 2, 4, 6, 8; weights 1, 10
  terms = dict(
    x=(constant('a', [1, 3, 7, 9], [1, 1, 0, 0]), 1.0),
    y=(constant('b', [2, 4, 6, 8], [1, 1, 1, 1]), 10.0),
    z=(constant('c', [5, 5, 5, 5], [0, 0, 0, 0]), 1.0),
  )
  step, state = data_step(
    scalar_policy(), terms, optax.sgd(0.1), microbatches=microbatches
  )
  state, log = step.train_step(state, testing.batch(), KEY)
  np.testing.assert_allclose(state.params['a'], 1 - 0.1 * 2, rtol=1e-6)
  np.testing.assert_allclose(state.params['b'], 2 - 0.1 * 10 * 5, rtol=1e-6)
  np.testing.assert_allclose(state.params['c'], 3)  # nothing to divide by
  assert log['x/loss'] == pytest.approx(2)  # unweighted, at a = 1
  assert log['y/loss'] == pytest.approx(10)  # 5 b
  assert log['x/value'] == pytest.approx(2)
  assert log['x/value_max'] == 3  # of the unmasked
  assert log['y/value_max'] == 8
  assert log['optim/grad_norm'] == pytest.approx(np.hypot(2, 50))
  assert log['optim/update_norm'] == pytest.approx(np.hypot(0.2, 5))
  assert int(state.step) == 1


def test_minibatches_are_a_partition_of_the_rows():
  """sgd on a sum: after an epoch, every row has moved the parameter once."""
  terms = dict(x=(constant('a', [1, 10, 100, 1000], [1] * 4), 1.0))
  step, state = data_step(
    scalar_policy(), terms, optax.sgd(1.0), updates=4, epochs=3
  )
  state, _ = step.train_step(state, testing.batch(), KEY)
  # one row at a time the mean is the row itself
  np.testing.assert_allclose(state.params['a'], 1 - 3 * 1111)
  assert int(state.step) == 1


def test_ema_and_reference_by_hand():
  terms = dict(x=(constant('a', [1] * 4, [1] * 4), 1.0))
  step, state = data_step(
    scalar_policy(),
    terms,
    optax.sgd(0.5),
    refs=('ref', 'ema'),
    ema_decay=0.9,
    updates=2,
  )
  state, _ = step.train_step(state, testing.batch(), KEY)
  # a: 1, .5, 0; ema: 1, .9 + .05 = .95, .855 + 0
  np.testing.assert_allclose(state.params['a'], 0, atol=1e-7)
  np.testing.assert_allclose(state.refs['ema']['a'], 0.855, rtol=1e-6)
  assert state.refs['ref']['a'] == 1
  assert state.refs['ema']['b'] == 2


def test_only_trainable_parameters_move_and_carry_optimizer_state():
  terms = dict(
    x=(constant('a', [1] * 4, [1] * 4), 1.0),
    y=(constant('b', [1] * 4, [1] * 4), 1.0),
  )
  step, state = data_step(
    scalar_policy(), terms, optax.adam(0.1), trainable='^a$', refs=('ema',),
    ema_decay=0.5,
  )  # fmt: skip
  assert set(state.params) == {'a'} and set(state.refs['ema']) == {'a'}
  assert set(state.opt_state[0].mu) == {'a'}
  state, _ = step.train_step(state, testing.batch(), KEY)
  full = train_state.full_params(state)
  assert full['a'] != 1 and full['b'] == 2 and full['c'] == 3
  assert train_state.full_params(state, 'ema')['a'] == pytest.approx(0.95)


def test_what_a_state_is_made_of_outlives_it():
  """The state is donated; the base and the rewards' nets are still used."""
  params = scalar_policy().init(KEY)
  reward_params = dict(net=jnp.arange(3.0))
  terms = dict(x=(constant('a', [1] * 4, [1] * 4), 1.0))
  step, _ = data_step(scalar_policy(), terms, optax.sgd(0.1))
  state = train_state.create(
    params, optax.sgd(0.1), None, trainable='a|b', reward_params=reward_params
  )
  state, _ = step.train_step(state, testing.batch(), KEY)
  assert state.params['a'] != 1
  assert [float(params[name]) for name in 'abc'] == [1, 2, 3]
  np.testing.assert_array_equal(reward_params['net'], [0, 1, 2])


def test_data_rows_can_be_trained_on_in_minibatches():
  """The identity rollout has no log-probs to recompute."""
  policy = denoising.denoising(testing.perceptron(), steps=2)
  step, state = data_step(
    policy, dict(fm=(objectives.flow_matching(), 1.0)), optax.sgd(0.1),
    updates=2,
  )  # fmt: skip
  before = jax.device_get(state.params)
  state, log = step.train_step(state, testing.batch(), KEY)
  assert np.isfinite(log['fm/loss'])
  assert np.abs(state.params['up'] - before['up']).max() > 0


def test_flow_matching_learns_a_point():
  """The loss of data that is one picture falls towards 0."""
  policy = denoising.denoising(testing.perceptron(64), steps=2)
  step, state = data_step(
    policy, dict(fm=(objectives.flow_matching(), 1.0)), optax.adam(1e-2)
  )
  batch = testing.batch(range(32))
  losses = []
  for _ in range(60):
    state, log = step.train_step(state, batch, KEY)
    losses.append(float(log['fm/loss']))
  assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_policy_gradient_learns_a_colour():
  policy = denoising.denoising(testing.perceptron(), steps=4, noise=0.8)
  tx = optax.adam(1e-2)
  advantage = advantages.grpo(8)
  step = train_step.make(
    policy,
    dict(pg=(objectives.clipped_pg(1e-2), 1.0)),
    tx,
    rewards=dict(color=(testing.color_reward(), 1.0)),
    advantage=advantage,
    group_size=8,
  )
  state = train_state.create(
    policy.init(KEY), tx, advantage, reward_params=dict(color=())
  )
  scores = []
  for _ in range(60):
    state, log = step.train_step(state, testing.batch(), KEY)
    scores.append(float(log['reward/score']))
  assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.05


def test_geometry_error_names_what_would_do():
  assert train_step.geometry_error(24, 2, 3) is None
  error = train_step.geometry_error(24, 2, 5)
  assert '24 rows' in error and '1, 2, 3, 4, 6, 12' in error
  assert 'must divide 24' in train_step.geometry_error(24, 7, 1)
  step, state = data_step(
    scalar_policy(),
    dict(x=(constant('a', [1] * 4, [1] * 4), 1.0)),
    optax.sgd(0.1),
    microbatches=3,
  )
  with pytest.raises(ConfigError, match='microbatches may be 1, 2, 4'):
    step.train_step(state, testing.batch(), KEY)


def test_what_is_missing_is_named():
  policy, tx = scalar_policy(), optax.sgd(0.1)
  with pytest.raises(ConfigError, match='go together'):
    train_step.make(policy, {}, tx, advantage=advantages.grpo(2))
  step, state = data_step(policy, dict(kl=(objectives.kl('teacher'), 1.0)), tx)
  with pytest.raises(ConfigError, match="'teacher'.*keeps old, params"):
    step.train_step(state, testing.batch(), KEY)
  step, state = data_step(policy, dict(v=(objectives.velocity_kl(), 1.0)), tx,
                          refs=('ref',))  # fmt: skip
  with pytest.raises(ConfigError, match='does not predict velocities'):
    step.train_step(state, testing.batch(), KEY)
