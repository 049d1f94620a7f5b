"""What fails is dropped and counted, and leaves no trace in the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, optim, testing
from gen_rl.utils import tree

KEY = jax.random.key(testing.SEED)


# --- rewards that are invalid


def test_invalid_rewards_are_dropped_and_counted():
  """A prompt whose scores are NaN leaves no trace in the parameters."""

  def spoil(score, channel):
    return jnp.where(channel == 1, jnp.nan, score)

  batch = testing.batch((0, 1, 2))
  step, state = testing.make_step(
    reward=testing.color_reward(spoil), tx=testing.LINEAR
  )
  state, (log,) = testing.run(step, state, 1, batch)
  assert log['reward/invalid'] == 4
  assert log['optim/skipped'] == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  assert np.isfinite(log['reward/score']) and np.isfinite(log['pg/loss'])
  # The other prompts alone give the same update: sums and counts agree.
  step, state_alone = testing.make_step(tx=testing.LINEAR)
  state_alone, (log_alone,) = testing.run(
    step, state_alone, 1, testing.batch((0, 2))
  )
  assert log['reward/score'] == pytest.approx(log_alone['reward/score'])
  testing.assert_close(state.params, state_alone.params)


def test_all_rewards_invalid_changes_nothing():
  step, state = testing.make_step(
    reward=testing.color_reward(lambda score, channel: score * jnp.nan)
  )
  before = jax.device_get(state.params)
  state, (log,) = testing.run(step, state, 1)
  assert log['reward/invalid'] == 16
  assert tree.equal(state.params, before)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_row_that_is_not_finite_changes_nothing_for_the_others():
  """Under every objective, guided: the update is that without its score.

  What is not finite may be what a reward sees, or a state on the way.
  """
  lost = jnp.array([6, 9])
  policy = testing.make_policy(guidance_scale=3.0)

  def rollout(params, rows, step):
    traj = policy.rollout(params, rows, step)
    return traj.replace(
      states=traj.states.at[lost[0], 1].set(jnp.nan),
      sample=traj.sample.at[lost[1]].set(jnp.inf),
    )

  def unscored(score, channel):
    return score.at[lost].set(jnp.nan)

  settings = dict(terms=testing.terms(), tx=testing.LINEAR, whole_groups=True)
  want, want_log = testing.run(
    *testing.make_step(
      policy, reward=testing.color_reward(unscored), **settings
    ),
    1,
  )
  broken = policy._replace(rollout=rollout)
  state, log = testing.run(
    *testing.make_step(broken, microbatches=2, **settings), 1
  )
  assert log[0]['reward/invalid'] == 2 and log[0]['optim/skipped'] == 0
  testing.assert_close(state.params, want.params)
  # (Shares of margins above 0 would do no good: here all of them are rounding.)
  for name, value in want_log[0].items():
    if name.endswith('/loss'):
      np.testing.assert_allclose(log[0][name], value, rtol=1e-4, atol=1e-5)


# --- rows whose scores say nothing


def test_equal_scores_train_the_regularizers_alone():
  """Every group is solved: no policy gradient, and the KL term pulls on."""
  step, state = testing.make_step(
    reward=testing.color_reward(lambda score, channel: 0.0 * score + 1.0),
    tx=testing.LINEAR,
  )
  away = jax.tree.map(lambda p: 1.2 * p, state.params)
  state, (log,) = testing.run(step, state.replace(params=away), 1)
  assert log['advantage/zero_std_fraction'] == 1
  assert log['pg/loss'] == 0 and log['kl/loss'] > 0
  assert log['optim/grad_norm'] > 0
  # Decisions there were, in every row: three of four steps are noisy.
  assert log['pg/decisions'] == log['kl/decisions'] == 3


# --- updates that are not finite


def test_a_non_finite_update_is_skipped_and_counted():
  def explode(replay, exp, keys):
    term, metrics = objectives.reinforce()(replay, exp, keys)
    return term.replace(value=term.value * jnp.inf), metrics

  step, state = testing.make_step(terms=dict(pg=(explode, 1.0)))
  before = jax.device_get(state)
  for i in (1, 2):
    state, log = step.train_step(state, testing.batch(), KEY)
    assert int(log['optim/skipped']) == i
    assert int(log['optim/skipped_in_a_row']) == i
  state = jax.device_get(state)
  assert int(state.step) == 2
  for part in ('params', 'opt_state', 'refs'):
    assert tree.equal(getattr(state, part), getattr(before, part))
  # a good update ends the row, and the count stays
  good, _ = testing.make_step(terms=dict(pg=(objectives.reinforce(), 1.0)))
  state, (log,) = testing.run(good, state, 1)
  assert int(log['optim/skipped']) == 2
  assert int(log['optim/skipped_in_a_row']) == 0
  assert not tree.equal(state.params, before.params)


def test_one_bad_minibatch_of_two_is_skipped():
  """The other one counts, and its parameters are kept."""

  def explode(replay, exp, keys):
    term, metrics = objectives.reinforce()(replay, exp, keys)
    hit = exp.traj.group == 3  # two of the eight rows
    return term.replace(value=term.value / (1.0 - hit[:, None])), metrics

  step, state = testing.make_step(
    terms=dict(pg=(explode, 1.0)), group_size=2, updates=4
  )
  before = jax.device_get(state.params)
  state, (log,) = testing.run(step, state, 1)
  assert 1 <= int(log['optim/skipped']) <= 2
  assert not tree.equal(state.params, before)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_an_update_that_overflows_is_skipped_though_its_gradient_is_finite():
  step, state = testing.make_step(
    tx=optim.adamw(lr=1e39)
  )  # infinite in float32
  before = jax.device_get(state)
  state, (log,) = testing.run(step, state, 1)
  assert np.isfinite(log['optim/grad_norm'])
  assert log['optim/skipped'] == 1
  assert tree.equal(state.params, before.params)
  assert tree.equal(state.refs, before.refs)
