"""Advantages against the whole batch, by hand and against numpy."""

import numpy as np
import pytest

from gen_rl import advantages, testing

run = testing.advantages_of

# means 3 and 4 of the groups, 3.5 of all; centred: -2 -1 0 3 | 0 0 0 0
TABLE = [1.0, 2.0, 3.0, 6.0, 4.0, 4.0, 4.0, 4.0]


def test_reinforce_pp_table():
  # deviation of all: sqrt(2), worked in group_test
  adv, weight, metrics = run(advantages.reinforce_pp(4, eps=0.0), TABLE)
  sd = 2**0.5
  np.testing.assert_allclose(
    adv, np.subtract(TABLE, 3.5) / sd, rtol=1e-6, atol=1e-7
  )
  np.testing.assert_array_equal(weight, 1)
  assert metrics['advantage/zero_std_fraction'] == 0
  # and no group is needed
  alone, *_ = run(advantages.reinforce_pp(1, eps=0.0), TABLE)
  np.testing.assert_array_equal(alone, adv)


def test_with_a_baseline():
  # centred squares: 4 + 1 + 0 + 9 = 14 over 8 rows
  advantage = advantages.reinforce_pp(4, baseline=True, eps=0.5)
  adv, weight, metrics = run(advantage, TABLE)
  sd = (14 / 8) ** 0.5 + 0.5
  np.testing.assert_allclose(
    adv, np.array([-2, -1, 0, 3, 0, 0, 0, 0]) / sd, rtol=1e-6
  )
  np.testing.assert_array_equal(weight, 1)
  assert metrics['advantage/zero_std_fraction'] == 0.5
  # unlike grpo's, which divides by the deviation of the scores: sqrt(2)
  other, *_ = run(advantages.grpo(4, std='global', eps=0.5), TABLE)
  np.testing.assert_allclose(adv[3] / other[3], (2**0.5 + 0.5) / sd, rtol=1e-6)
  _, weight, _ = run(
    advantages.reinforce_pp(4, baseline=True, drop_zero=True), TABLE
  )
  np.testing.assert_array_equal(weight, [1, 1, 0, 1, 0, 0, 0, 0])
  adv, *_ = run(
    advantages.reinforce_pp(4, baseline=True, eps=0.0, clip=1.0), TABLE
  )
  assert adv[3] == 1 and adv[0] == -1


@pytest.mark.parametrize('baseline', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_reinforce_pp_equals_numpy(baseline, seed):
  groups, size = 6, 5
  score, valid = testing.ragged(seed, groups, size)
  adv, weight, _ = run(advantages.reinforce_pp(size, baseline), score, valid)
  value, used = score.astype(np.float64), valid.copy()
  if baseline:
    for p in range(groups):
      rows = np.arange(p * size, (p + 1) * size)
      rows = rows[valid[rows]]
      if len(rows):
        value[rows] -= score[rows].astype(np.float64).mean()
      used[rows] &= len(rows) > 1
  expected = np.zeros(len(score))
  expected[used] = (value[used] - value[used].mean()) / value[used].std()
  np.testing.assert_allclose(adv, expected, atol=3e-6)
  np.testing.assert_array_equal(weight, used)


@pytest.mark.parametrize('baseline', [False, True])
def test_equal_scores_and_none(baseline):
  """No deviation to divide by: 0 and not the rounding error over eps."""
  advantage = advantages.reinforce_pp(3, baseline)
  adv, *_ = run(advantage, [0.1] * 6)
  np.testing.assert_array_equal(adv, 0)
  adv, weight, metrics = run(advantage, [np.nan] * 6, [False] * 6)
  np.testing.assert_array_equal(adv, 0)
  np.testing.assert_array_equal(weight, 0)
  assert all(np.isfinite(x) for x in metrics.values())


def test_a_baseline_needs_a_group():
  with pytest.raises(ValueError, match='at least 2'):
    advantages.reinforce_pp(1, baseline=True)
