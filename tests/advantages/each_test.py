"""Several rewards, each by itself, against hand-worked tables."""

import jax
import numpy as np
import pytest

from gen_rl import advantages, build, testing

TABLE = [1.0, 2.0, 3.0, 6.0, 4.0, 4.0, 4.0, 4.0]


def update(advantage, parts, valid=None, state=None):
  b = len(next(iter(parts.values())))
  parts = {k: np.asarray(x, np.float32) for k, x in parts.items()}
  out = testing.scored(np.full(b, 1e6), valid).replace(parts=parts)
  state = advantage.init() if state is None else state
  return jax.jit(advantage.update)(out, np.zeros(b, np.int32), state)


def test_per_reward_table():
  # a: TABLE; b: in a group of equal and one of 0 0 8 8, deviation 4: -1 -1 1 1
  b = [5.0, 5.0, 5.0, 5.0, 0.0, 0.0, 8.0, 8.0]
  advantage = advantages.per_reward(
    4, dict(a=0.4, b=0.6), each=dict(name='grpo', eps=0.0)
  )
  adv, weight, _, metrics = update(advantage, dict(a=TABLE, b=b, other=b))
  sd = 3.5**0.5
  np.testing.assert_allclose(
    adv[:, 0],
    [-0.8 / sd, -0.4 / sd, 0, 1.2 / sd, -0.6, -0.6, 0.6, 0.6],
    rtol=1e-6,
  )
  np.testing.assert_array_equal(weight, [1, 1, 0, 1, 1, 1, 1, 1])
  assert metrics['advantage/zero_std_fraction'] == 0
  assert metrics['advantage/a/zero_std_fraction'] == 0.5
  np.testing.assert_allclose(metrics['advantage/b/std_mean'], 2)
  # the unit of a reward does not matter, its weight does
  scaled, *_ = update(advantage, dict(a=TABLE, b=1e3 * np.array(b)))
  np.testing.assert_allclose(scaled, adv, rtol=1e-6)


def test_per_reward_of_one_is_that_advantage():
  score, valid = testing.ragged(0, 6, 4)
  clean = np.where(valid, score, 0.0)  # as `combine.merge` leaves them
  for name, each in dict(
    grpo=advantages.grpo(4), rloo=advantages.rloo(4),
    dr_grpo=advantages.dr_grpo(4),
  ).items():  # fmt: skip
    expected, kept, _ = testing.advantages_of(each, clean, valid)
    alone = advantages.per_reward(4, dict(x=1.0), each=name)
    adv, weight, *_ = update(alone, dict(x=clean), valid)
    np.testing.assert_array_equal(adv[:, 0], expected)
    np.testing.assert_array_equal(weight, kept)


@pytest.mark.parametrize(
  'second, expected', [((1.0, 0.0), 0.5**0.5), ((1.0, 1.0), 2**0.5)]
)
def test_decoupled_rewards_tell_two_successes_from_one(second, expected):
  """The example of GDPO: a sum of scores gives .707 to both."""
  parts = dict(a=[0.0, second[0]], b=[0.0, second[1]])
  each = dict(name='grpo', ddof=1, eps=0.0)
  advantage = advantages.per_reward(2, dict(a=1.0, b=1.0), each)
  adv, *_ = update(advantage, parts)
  np.testing.assert_allclose(adv[:, 0], [-expected, expected], rtol=1e-6)
  summed, *_ = testing.advantages_of(
    advantages.grpo(2, ddof=1, eps=0.0), np.add(parts['a'], parts['b'])
  )
  np.testing.assert_allclose(summed, [-(0.5**0.5), 0.5**0.5], rtol=1e-6)


def test_decisions_of_single_rewards_are_refused():
  for each in ('turning_points', dict(name='turning_points')):
    with pytest.raises(build.ConfigError, match='turning_points takes rewards'):
      advantages.per_reward(2, dict(a=1.0), each)


def test_whitened():
  # a: -1 1 | -1 1 | 0 0, b: 0 0 | -1 1 | -1 1; the sum: -1 1 -2 2 -1 1
  parts = dict(a=[0.0, 1, 0, 5, 3, 3], b=[2.0, 2, 0, 1, 0, 9])
  each = dict(name='grpo', eps=0.0)
  advantage = advantages.per_reward(2, dict(a=1.0, b=1.0), each, True, eps=0.0)
  adv, weight, *_ = update(advantage, parts)
  sd = (12 / 5) ** 0.5  # torch's std, which GDPO's code takes
  np.testing.assert_allclose(
    adv[:, 0], np.array([-1, 1, -2, 2, -1, 1]) / sd, rtol=1e-6
  )
  np.testing.assert_array_equal(weight, 1)
  adv, weight, *_ = update(advantage, dict(a=np.ones(4), b=np.ones(4)))
  np.testing.assert_array_equal(adv, 0)
  np.testing.assert_array_equal(weight, 0)


def test_per_reward_keeps_every_history_and_drops_invalid_rows():
  each = dict(name='history', num_prompts=2, buffer=4, min_count=2, eps=0.0)
  advantage = advantages.per_reward(2, dict(a=1.0, b=-2.0), each)
  valid = np.array([True, False])
  parts = dict(a=[1.0, 0.0], b=[4.0, 0.0])
  _, weight, state, metrics = update(advantage, parts, valid)
  assert int(state['a']['count'][0]) == int(state['b']['count'][0]) == 1
  np.testing.assert_array_equal(weight, 0)
  assert metrics['advantage/invalid'] == 0.5
  # rings 1 3 and 4 2: +1 and -1, times 1 and -2
  parts = dict(a=[3.0, 0.0], b=[2.0, 0.0])
  adv, *_ = update(advantage, parts, valid, state)
  np.testing.assert_allclose(adv[:, 0], [3, 0], rtol=1e-6)
