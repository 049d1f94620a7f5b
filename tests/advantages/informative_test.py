"""Groups that are left out, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import advantages, build, testing
from gen_rl.advantages.informative import informative_groups

run = testing.advantages_of

# deviations 1, 0, 2 and 1/2 of the groups
SCORE = [0.0, 2.0, 7.0, 7.0, 1.0, 5.0, 1.0, 2.0]


def make(keep, each='grpo'):
  return advantages.informative(2, dict(x=1.0), keep, each)


def update(advantage, rewards, state):
  group = np.zeros(len(SCORE), np.int32)
  return jax.jit(advantage.update)(rewards, group, state)


def test_only_the_groups_that_differ_most():
  each = dict(name='dr_grpo')
  adv, weight, metrics = run(make(2, each), SCORE)
  np.testing.assert_array_equal(adv, [-1, 1, 0, 0, -2, 2, 0, 0])
  np.testing.assert_array_equal(weight, [1, 1, 0, 0, 1, 1, 0, 0])
  assert metrics['advantage/kept_fraction'] == 0.5
  adv, weight, metrics = run(make(4, each), SCORE)
  plain, kept, _ = run(advantages.dr_grpo(2), SCORE)
  np.testing.assert_array_equal(adv, plain)
  np.testing.assert_array_equal(weight, kept)
  assert metrics['advantage/kept_fraction'] == 0.75


def test_what_is_compared_over_the_batch_is_compared_over_all_of_it():
  each = dict(name='grpo', std='global')
  adv, *_ = run(make(1, each), SCORE)
  plain, *_ = run(advantages.grpo(2, std='global'), SCORE)
  np.testing.assert_array_equal(adv, np.where(np.arange(8) // 2 == 2, plain, 0))


def test_state_and_steps_of_what_is_inside():
  each = dict(name='history', num_prompts=2, buffer=4, min_count=2)
  advantage = make(1, each)
  *_, state, _ = update(advantage, testing.scored(SCORE), advantage.init())
  # scores of groups that are left out are remembered, too
  assert int(state['count'][0]) == 8
  stepwise = make(1, 'turning_points')
  assert stepwise.stepwise
  out = testing.scored(SCORE).replace(before=np.zeros((8, 3), np.float32))
  adv, weight, *_ = update(stepwise, out, ())
  assert adv.shape == (8, 3)
  np.testing.assert_array_equal(weight, np.arange(8) // 2 == 2)


def test_of_several_rewards():
  each = dict(name='per_reward', each='dr_grpo')
  advantage = advantages.informative(2, dict(a=2.0), 1, each)
  out = testing.scored(SCORE).replace(parts=dict(a=np.float32(SCORE)))
  adv, *_ = update(advantage, out, advantage.init())
  np.testing.assert_array_equal(adv[:, 0], [0, 0, 0, 0, -4, 4, 0, 0])


def test_a_step_trains_on_the_groups_that_are_kept():
  """The update is that of a run that sampled only these."""
  advantage = advantages.informative(4, dict(color=1.0), keep=1)
  step, state = testing.make_step(advantage=advantage, tx=testing.LINEAR)
  key = jax.random.key(testing.SEED)
  _, exp, log = jax.jit(step.collect)(state, testing.batch(), key)
  kept = np.flatnonzero(np.asarray(exp.weight))
  assert set(kept // 4) == {kept[0] // 4}
  assert log['advantage/kept_fraction'] == 0.25
  one, _ = testing.run(step, state, 1)
  alone, state = testing.make_step(tx=testing.LINEAR)
  only, _ = testing.run(alone, state, 1, testing.batch((int(kept[0] // 4),)))
  testing.assert_close(one.params, only.params)


def test_errors_name_what_is_wrong():
  with pytest.raises(build.ConfigError, match="no 'gpro'.*did you mean 'grpo'"):
    make(1, 'gpro')
  with pytest.raises(ValueError, match='keep is 5: of 4 groups'):
    run(make(5), SCORE)


def test_informative_groups_by_hand():
  """Deviations 0, 1, 2, 1, and 8 of a group with one row that counts."""
  score = np.float32([3, 3, 0, 2, 1, 5, 2, 0, np.nan, 16])
  valid = np.array([True] * 8 + [True, True])

  def kept(keep, valid=valid):
    weight = informative_groups(jnp.asarray(score), jnp.asarray(valid), 2, keep)
    assert weight.dtype == jnp.float32
    return np.asarray(weight).astype(int).tolist()

  assert kept(1) == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
  # the first of the two equal ones
  assert kept(2) == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
  # equal scores are never kept, nor is a lone row
  assert kept(5) == kept(3) == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
  # an invalid row neither counts nor is trained on
  lost = valid & (np.arange(10) != 4)
  assert kept(2, lost) == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
  for keep in (0, 6):
    with pytest.raises(ValueError, match='of 5 groups, 1 to 5 can be kept'):
      kept(keep)


def test_an_invalid_row_of_an_informative_group_gets_no_weight():
  score = jnp.array([0.0, 1.0, 50.0, 1.0, 1.0, 2.0])
  valid = jnp.array([True, True, False, True, True, True])
  weight = informative_groups(score, valid, 3, 1)
  # deviations .5 (without the 50) and .471
  np.testing.assert_array_equal(weight, [1, 1, 0, 0, 0, 0])
