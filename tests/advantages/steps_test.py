"""Decisions with rewards of their own, against hand-worked tables."""

import jax
import numpy as np
import pytest

from gen_rl import advantages, testing
from gen_rl.build import ConfigError

# R_0 .. R_3. Row 0: d = -1, 3, 1, Delta = 3: trends - + +: turns at 2.
# Row 1: d = 1, -2, 0, Delta = -1: trends - + 0: turns at 2.
# Row 2: d = 2, -1, 1, Delta = 2: trends + - +: turns at 1 and 3.
# Row 3: d = 0, 0, 0: no trend, no turn.
SCORES = np.array(
  [[0, -1, 2, 3], [0, 1, -1, -1], [0, 2, 1, 2], [4, 4, 4, 4]], np.float32
)
TURNS = [[0, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]


turning_rewards = jax.jit(
  advantages.turning_rewards,
  static_argnames=('mode', 'consistent', 'balanced'),
)


def update(advantage, rewards):
  group = np.zeros(len(SCORES), np.int32)
  return jax.jit(advantage.update)(rewards, group, ())


@pytest.mark.parametrize(
  ('mode', 'expected'),
  [
    ('incremental', [[-1, 3, 1], [1, -2, 0], [2, -1, 1], [0, 0, 0]]),
    # At a turn R_3 - R_{j-1}: 3 - -1, -1 - 1, 2 - 0 and 2 - 1.
    ('turning', [[-1, 4, 1], [1, -2, 0], [2, -1, 1], [0, 0, 0]]),
    ('bonus', [[3, 6, 3], [-1, -3, -1], [4, 2, 3], [0, 0, 0]]),
  ],
)
def test_turning_rewards(mode, expected):
  rewards, turning = turning_rewards(SCORES, mode)
  np.testing.assert_array_equal(turning, TURNS)
  np.testing.assert_array_equal(rewards, expected)


def test_consistent_turning_points():
  # Row 0 at 2: the rest goes on up (3 - 2). Row 1 at 2: nothing follows, 0.
  # Row 2 at 1: the rest is 2 - 2 = 0; at 3: nothing follows.
  _, turning = turning_rewards(SCORES, 'turning', consistent=True)
  np.testing.assert_array_equal(turning, [[0, 1, 0], [0] * 3, [0] * 3, [0] * 3])


def test_balanced_turning_points():
  # Effects R_3 - R_{j-1} at the turns: 4; -2; 2 and 1. One of them is negative,
  # so that the largest of the others stays alone.
  rewards, turning = turning_rewards(SCORES, 'turning', balanced=True)
  np.testing.assert_array_equal(
    turning, [[0, 1, 0], [0, 1, 0], [0] * 3, [0] * 3]
  )
  np.testing.assert_array_equal(rewards[2], [2, -1, 1])
  # Without a negative one there is none.
  _, turning = turning_rewards(SCORES[2:], 'bonus', balanced=True)
  assert not turning.any()


def test_turning_points_normalise_each_decision_by_itself():
  advantage = advantages.turning_points(2, 'incremental', eps=0.0)
  assert advantage.stepwise
  rewards = testing.scored(SCORES[:, -1]).replace(before=SCORES[:, :-1])
  adv, weight, _, metrics = update(advantage, rewards)
  # of two the deviation is half the difference; 0 where they agree
  np.testing.assert_allclose(
    adv, [[-1, 1, 1], [1, -1, -1], [1, -1, 1], [-1, 1, -1]], rtol=1e-6
  )
  np.testing.assert_array_equal(weight, 1)
  assert metrics['advantage/turning_fraction'] == pytest.approx(4 / 12)


def test_turning_points_drop_rows_that_were_not_scored():
  before = SCORES[:, :-1].copy()
  before[0, 1] = np.nan
  rewards = testing.scored(SCORES[:, -1]).replace(before=before)
  advantage = advantages.turning_points(4)
  adv, weight, _, metrics = update(advantage, rewards)
  assert np.isfinite(adv).all() and (adv[0] == 0).all()
  np.testing.assert_array_equal(weight, [0, 1, 1, 1])
  assert metrics['advantage/invalid'] == 0.25
  with pytest.raises(ValueError, match='incremental'):
    turning_rewards(SCORES, 'sideways')
  with pytest.raises(ConfigError, match='dr_grpo'):
    advantages.per_reward(4, dict(a=1.0), each='drgrpo')
