"""Monitors: scored beside the rewards, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import advantages, testing, train_step
from gen_rl.build import ConfigError
from gen_rl.rewards import combine, evaluate
from gen_rl.types import Reward, RewardOut


def red(fail=False):
  """A monitor: how red; with `fail`, it can score nothing."""

  def score(params, inputs, key):
    mean = inputs.media.mean((1, 2))
    valid = jnp.full(len(mean), not fail)
    return RewardOut(mean[:, 0] + params, dict(green=mean[:, 1]), valid)

  return Reward('red', jnp.float32(0), score)


def test_monitors_are_logged_and_change_nothing():
  plain, logs = testing.run(*testing.make_step())
  monitors = dict(red=(red(), 1.0), blind=(red(fail=True), 1.0))
  watched, more = testing.run(*testing.make_step(monitors=monitors))
  for a, b in zip(
    jax.tree.leaves(plain.params), jax.tree.leaves(watched.params)
  ):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(logs, more):
    new = set(b) - set(a)
    assert new == {
      f'monitor/{label}{name}'
      for label in ('red', 'blind')
      for name in ('', '/green', '/advantage_corr', '/equal_share')
    }
    # the reward's part `red` is the same number
    assert b['monitor/red'] == pytest.approx(a['reward/color/red'], rel=1e-5)
    assert abs(b['monitor/red/advantage_corr']) <= 1
    assert np.isnan(b['monitor/blind'])
    assert b['reward/invalid'] == 0


def test_monitor_of_the_reward_itself_is_what_the_advantage_is_about():
  step, state = testing.make_step(
    advantage=advantages.dr_grpo(4),
    monitors=dict(same=(testing.color_reward(), 1.0)),
  )
  _, logs = testing.run(step, state)
  assert logs[0]['monitor/same/advantage_corr'] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize('watched', ['host', 'device'])
def test_monitors_beside_a_host_reward(watched):
  host = testing.color_reward(where='host')
  monitor = red()._replace(where=watched)
  step, state = testing.make_step(
    reward=host, monitors=dict(red=(monitor, 1.0))
  )
  key = jax.random.key(testing.SEED)
  traj, inputs, outs = step.sample(state, testing.batch(), key)
  assert list(outs) == ['red'] * (watched == 'device')
  called = combine.split(dict(color=(host, 1.0), red=(monitor, 1.0)))[1]
  more, _ = evaluate.evaluate_host(called, inputs, key)
  _, split = step.learn(state, traj, inputs, {**outs, **more}, key)
  _, (fused, *_) = testing.run(
    *testing.make_step(monitors=dict(red=(red(), 1.0)))
  )
  assert set(fused) == set(split)
  for name in ('monitor/red', 'monitor/red/advantage_corr', 'reward/score'):
    assert split[name] == pytest.approx(fused[name], rel=1e-3)


def test_monitors_need_rewards_and_labels_of_their_own():
  watched = dict(red=(red(), 1.0))
  with pytest.raises(ConfigError, match='there are none'):
    train_step.make(testing.make_policy(), {}, optax.sgd(0.1), monitors=watched)
  with pytest.raises(ConfigError, match='color: a reward and a monitor'):
    testing.make_step(monitors=dict(color=(red(), 1.0)))
