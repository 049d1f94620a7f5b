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
  minibatch,
  objectives,
  optim,
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
    theta = replay.ask('params', 'dist')[name]
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
    ops=dict(dist=lambda params, traj: params),
  )


def data_step(policy, terms, tx, refs=(), trainable='', **kwargs):
  """Of pictures, each of them a decision that an objective may ask about."""
  of_data = rollout.data_rollout(
    lambda rows: (jnp.zeros((len(rows.group), *testing.SHAPE)), rows.cond)
  )

  def decided(params, rows, step):
    traj = of_data(params, rows, step)
    return traj.replace(mask=jnp.ones((len(rows.group), 1)))

  step = train_step.make(
    policy,
    terms,
    tx,
    rollout=decided,
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


@pytest.mark.parametrize('every', [1, 2])
def test_an_average_that_warms_up_and_rests_by_hand(every):
  """Also where the policy takes a step at every second minibatch only."""
  step, state = data_step(
    scalar_policy(),
    dict(x=(constant('a', [1] * 4, [1] * 4), 1.0)),
    optax.sgd(0.5),
    refs=('ema',),
    ema_decay=optim.average_decay(0.9, every=2, warmup=True),
    updates=2 * every,
    policy_every=every,
  )
  averages = []
  for _ in range(2):
    state, _ = step.train_step(state, testing.batch(), KEY)
    averages.append(float(state.refs['ema']['a']))
  # a: 1, .5, 0, -.5, -1. After the first update d = 2/11, after the third 4/13;
  # it rests after the second and the fourth.
  one = 2 / 11 + 9 / 11 * 0.5
  two = 4 / 13 * one - 9 / 13 * 0.5
  np.testing.assert_allclose(averages, [one, two], rtol=1e-6)


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


def test_noise_in_trained_parameters_alone_and_the_same_after_a_stop():
  tx = optim.adamw(lr=1e-2, temperature=1e-2, seed=5)
  step, state = testing.make_step(tx=tx, trainable='^up')
  frozen = jax.device_get(state.frozen['policy'])
  start = jax.device_get(state.params)
  state, _ = testing.run(step, state, 1)
  half = jax.tree.map(jnp.array, state)  # as it is read from a disk
  whole, _ = testing.run(step, state, 1)
  resumed, _ = testing.run(step, half, 1)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  jax.tree.map(np.testing.assert_array_equal, whole.frozen['policy'], frozen)
  moved = np.asarray(whole.params['up'] - start['up'])
  # Two steps of the noise, which is more than what Adam moves in them.
  assert 0.018 < moved.std() < 0.026


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
  assert minibatch.geometry_error(24, 2, 3) is None
  error = minibatch.geometry_error(24, 2, 5)
  assert '24 rows' in error and '1, 2, 3, 4, 6, 12' in error
  assert 'must divide 24' in minibatch.geometry_error(24, 7, 1)
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
  with pytest.raises(ConfigError, match="objective.v: asks for 'velocity'"):
    step.train_step(state, testing.batch(), KEY)


# --- copies of the parameters, whole groups, rewards of decisions


def test_copies_follow_by_their_schedule():
  # a falls by lr * slope = 0.5 a step: 1, 0.5, 0, -0.5
  terms = dict(x=(constant('a', [1] * 4, [1] * 4), 1.0))
  copies = dict(
    slow=optim.constant_decay(0.75),
    lagging=optim.ramp_decay(rate=0.25, limit=0.5, start=1),
  )
  step, state = data_step(
    scalar_policy(), terms, optax.sgd(0.5), refs=('slow', 'lagging', 'ref'),
    copies=copies,
  )  # fmt: skip
  seen = []
  for _ in range(4):
    state, _ = step.train_step(state, testing.batch(), KEY)
    seen.append([float(state.refs[n]['a']) for n in ('slow', 'lagging')])
  # slow: 3/4 c + 1/4 p. lagging: d = 0, 0, 1/4, 1/2 at steps 0 .. 3
  slow, lagging, expected = 1.0, 1.0, []
  for p, d in zip((0.5, 0.0, -0.5, -1.0), (0, 0, 0.25, 0.5)):
    slow, lagging = 0.75 * slow + 0.25 * p, d * lagging + (1 - d) * p
    expected.append([slow, lagging])
  np.testing.assert_allclose(seen, expected, rtol=1e-6)
  assert float(state.refs['ref']['a']) == 1.0


def test_the_behaviour_copy_samples_and_is_the_old_policy():
  """Samples and old log-probs are the copy's, whatever the parameters are."""
  policy = testing.make_policy()
  pg = objectives.clipped_pg(10.0, on_policy=False)
  step, state = testing.make_step(
    policy, dict(pg=(pg, 1.0)), behaviour='ref', tx=optax.sgd(0.0)
  )
  moved = jax.tree.map(lambda p: 1.3 * p, state.params)
  state = state.replace(params=moved)
  traj, _, _ = jax.device_get(step.sample(state, testing.batch(), KEY))
  rows = rollout.make_rows(testing.batch(), 4, KEY, jnp.int32(0))
  mine = policy.rollout(state.refs['ref'], rows, jnp.int32(0))
  np.testing.assert_allclose(traj.sample, mine.sample, atol=1e-5)
  log_ratio = (
    policy.ops['dist'](moved, mine).log_prob(mine.actions) - mine.log_prob
  )
  _, log = step.train_step(state, testing.batch(), KEY)
  assert log['pg/log_ratio_abs_max'] == pytest.approx(
    np.abs(log_ratio).max(), rel=1e-3
  )


def test_whole_groups_stay_together():
  """Minibatches of a shuffled batch hold whole groups, in their order."""
  seen = []

  def objective(replay, exp, keys):
    jax.debug.callback(lambda g: seen.append(np.asarray(g)), exp.traj.group)
    value = replay.ask('params', 'dist')['a'] * jnp.ones(
      (exp.weight.shape[0], 1)
    )
    return Term(value, jnp.ones_like(value)), {}

  batch = testing.batch(range(6))
  step, state = data_step(
    scalar_policy(), dict(x=(objective, 1.0)), optax.sgd(0.1), group_size=4,
    updates=3, whole_groups=True,
  )  # fmt: skip
  state, _ = step.train_step(state, batch, KEY)
  jax.effects_barrier()
  assert seen and all(len(g) == 8 for g in seen)
  for g in seen:
    np.testing.assert_array_equal(g.reshape(2, 4), g[::4, None].repeat(4, 1))
  orders = {tuple(g[::4]) for g in seen}
  assert sorted(sum(orders, ())) == list(range(6))
  error = minibatch.geometry_error(24, 2, 2, unit=4)
  assert '6 groups' in error and 'microbatches may be 1, 3' in error


def test_rows_of_a_group_share_their_group_key():
  keys = []

  def objective(replay, exp, row_keys):
    both = [jax.random.key_data(k) for k in row_keys]
    jax.debug.callback(lambda *k: keys.append(k), exp.traj.group, *both)
    value = replay.ask('params', 'dist')['a'] * jnp.ones(
      (exp.weight.shape[0], 1)
    )
    return Term(value, jnp.ones_like(value)), {}

  step, state = data_step(
    scalar_policy(), dict(x=(objective, 1.0)), optax.sgd(0.1), group_size=3,
    microbatches=2,
  )  # fmt: skip
  step.train_step(state, testing.batch(), KEY)
  jax.effects_barrier()
  own, shared = set(), {}
  for group, mine, theirs in keys:
    own |= {tuple(k) for k in np.asarray(mine)}
    for g, k in zip(np.asarray(group), np.asarray(theirs)):
      shared.setdefault(int(g), set()).add(tuple(k))
  assert len(own) == 12 and len(shared) == 4
  assert all(len(found) == 1 for found in shared.values())
  assert len(set.union(*shared.values())) == 4


def test_decisions_get_the_scores_of_their_completions():
  policy = testing.make_policy()
  step, state = testing.make_step(
    policy,
    dict(pg=(objectives.clipped_pg(1e-2), 1.0)),
    advantage=advantages.turning_points(4, 'incremental'),
  )
  traj, inputs, outs = jax.device_get(step.sample(state, testing.batch(), KEY))
  reward = testing.color_reward()
  rows = rollout.make_rows(testing.batch(), 4, KEY, jnp.int32(0))
  done = policy.ops['complete'](state.params, rows, jnp.int32(0), traj)
  for j in range(3):
    media = policy.decode(state.params, done[:, j])
    score = reward.score((), inputs.replace(media=media), KEY).score
    np.testing.assert_allclose(outs['color'].before[:, j], score, atol=1e-5)
  _, exp, log = jax.jit(step.collect)(state, testing.batch(), KEY)
  assert exp.adv.shape == (16, 3)
  assert np.abs(np.diff(exp.adv, axis=1)).max() > 0.1
  assert 0 <= log['advantage/turning_fraction'] <= 1
  with pytest.raises(ConfigError, match='scores every decision'):
    testing.make_step(
      policy, reward=testing.color_reward(where='host'),
      advantage=advantages.turning_points(4),
    )  # fmt: skip


@pytest.mark.parametrize(
  'on, cut, says',
  [
    ('batch', dict(microbatches=2), "'color' .* a batch, .* updates=1 x micro"),
    ('groups', {}, "'color' .* a group, .* takes group_size"),
  ],
)
def test_gradients_of_rewards_that_compare_rows(on, cut, says):
  reward = testing.color_reward()._replace(called_on=on)
  terms = dict(r=(objectives.reward_backprop(), 1.0))
  policy = testing.make_policy(deterministic=True)
  step, state = testing.make_step(policy, terms, reward=reward, **cut)
  with pytest.raises(ConfigError, match=says):
    step.train_step.trace(state, testing.batch(), KEY)
