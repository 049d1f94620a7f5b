"""A pool of candidates: whom it chooses, and that they are drawn exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import flow_grpo
from gen_rl import assemble, fits, initial, rollout, schema, setups, testing
from gen_rl.build import ConfigError
from gen_rl.data import feeds
from gen_rl.step import explore
from gen_rl.step.recipe import Pool

NAN = float('nan')
KEY = jax.random.key(testing.SEED)


def chosen(score, keep, valid=None):
  out = testing.scored(np.float32(score).reshape(-1), valid)
  members = jax.jit(explore.best_worst, static_argnums=(2, 3))(
    out.score, out.valid, len(score[0]), keep
  )
  return members.tolist()


def test_best_and_worst_by_hand():
  scores = [[3, 1, 2, 5, 4], [0, 9, 8, 7, 6]]
  assert chosen(scores, 3) == [[1, 3, 4], [0, 1, 2]]  # two best, the worst
  assert chosen(scores, 2) == [[1, 3], [0, 1]]
  assert chosen(scores, 5) == [[0, 1, 2, 3, 4]] * 2
  # Of equal ones the last are better; a group of them is chosen at its ends.
  assert chosen([[1, 1, 1, 1, 0, 1]], 4) == [[0, 3, 4, 5]]
  assert chosen([[7, 7, 7, 7, 7]], 3) == [[0, 3, 4]]


def test_rows_without_a_score_fill_up():
  valid = np.array([True, False, True, False, True, False])
  score = [[3, NAN, 1, NAN, 2, NAN]]
  assert chosen(score, 2, valid) == [[0, 2]]
  assert chosen(score, 3, valid) == [[0, 2, 4]]
  assert chosen(score, 5, valid) == [[0, 1, 2, 3, 4]]


def agree(cheap, exact, keep, valid=None):
  """Metrics of the best and worst `keep` of scores [P G']."""
  size = len(cheap[0])
  out = testing.scored(np.float32(cheap).reshape(-1), valid)

  def metrics(out, exact):
    members = explore.best_worst(out.score, out.valid, size, keep)
    at = jnp.take_along_axis(exact, members, 1).reshape(-1)
    seen = explore.seen(out, members)
    return explore.agreement(seen, testing.scored(at), keep)

  return jax.jit(metrics)(out, jnp.float32(exact))


def test_rank_correlation_of_one_group_is_spearmans():
  cheap, exact = [[4, 1, 1, 3, 0, 7]], [[2, 2, 0, 5, 1, 5]]  # with ties
  found = agree(cheap, exact, 6)
  expected = stats.spearmanr(cheap[0], exact[0]).statistic
  assert found['explore/rank_corr'] == pytest.approx(expected, rel=1e-5)
  # The whole pool is chosen: nothing to take back.
  r = stats.pearsonr(cheap[0], exact[0]).statistic
  assert found['explore/pool_corr'] == pytest.approx(r, rel=1e-5)
  slope = stats.linregress(cheap[0], exact[0]).slope
  assert found['explore/slope'] == pytest.approx(slope, rel=1e-5)
  assert found['explore/score'] == pytest.approx(16 / 6)


def test_what_a_choice_does_to_a_correlation_is_taken_back():
  """Of 8 in 64 normal candidates, over groups of different means."""
  rng = np.random.default_rng(0)
  cheap = rng.normal(size=(400, 64))
  exact = 0.6 * cheap + 0.8 * rng.normal(size=cheap.shape)  # r = 0.6
  shift = 5 * rng.normal(size=(400, 1))
  found = agree(cheap + shift, exact + 3 * shift, 8)
  assert found['explore/rank_corr'] > 0.75
  assert found['explore/pool_corr'] == pytest.approx(0.6, abs=0.02)
  assert found['explore/slope'] == pytest.approx(0.6, abs=0.02)


def test_rows_that_were_not_scored_say_nothing():
  valid = np.array([[True, True, True, False]] * 2)
  cheap = np.float32([[1, 2, 4, NAN], [0, 2, 1, NAN]])
  exact = [[3, 6, 12, 99], [1, 7, 4, -99]]
  found = agree(cheap, exact, 4, valid.reshape(-1))
  assert found['explore/slope'] == pytest.approx(3, rel=1e-5)
  for name in ('rank_corr', 'pool_corr'):
    assert found[f'explore/{name}'] == pytest.approx(1, rel=1e-5)
  assert found['explore/invalid'] == 1 / 4
  assert found['explore/score'] == pytest.approx((7 / 3 + 1) / 2)


def test_chosen_rows_are_those_of_a_full_draw():
  """Drawn again by the policy itself, or kept; of the same noise to the bit."""
  policy = testing.make_policy()
  drawn = {}
  for name, size, pool in (
    ('all', 6, None),
    ('again', 3, Pool(6, policy)),
    ('kept', 3, Pool(6)),
  ):
    step, state = testing.make_step(policy, group_size=size, pool=pool)
    drawn[name] = step.sample(state, testing.batch(), KEY)
  whole = drawn.pop('all')
  score = np.asarray(whole[2]['color'].score).reshape(4, 6)
  members = np.sort(np.argsort(score, 1)[:, [0, -2, -1]], 1)
  at = (members + 6 * np.arange(4)[:, None]).reshape(-1)
  expected = jax.tree.map(lambda x: np.asarray(x)[at], whole)
  for traj, inputs, outs in drawn.values():
    pool = outs.pop(explore.POOL)
    assert inputs.group_size == 3
    found = traj, inputs.replace(group_size=6), outs
    testing.assert_same(found, expected)
    np.testing.assert_array_equal(inputs.member, members.reshape(-1))
    noise = (x.states[:, 0] for x in (traj, expected[0]))
    np.testing.assert_array_equal(*noise)
    testing.assert_same(pool.score, outs['color'].score)
    testing.assert_same(pool.parts['mean'], np.repeat(score.mean(1), 3))


def test_a_step_of_a_cheap_pool():
  """Ratios are 1: what is trained on was drawn by what is trained."""
  pool = Pool(8, testing.make_policy(steps=2))
  step, state = testing.make_step(pool=pool)
  _, (log,) = testing.run(step, state, 1)
  assert log['pg/ratio'] == 1
  for name in ('rank_corr', 'pool_corr', 'slope'):
    assert 0.2 < log[f'explore/{name}'] < 1
  assert log['explore/score'] != log['reward/score']


def test_what_a_pool_cannot_be():
  kept = testing.color_reward(where='host')
  with pytest.raises(ConfigError, match='color is scored on the host'):
    testing.make_step(reward=kept, pool=Pool(8))
  with pytest.raises(ConfigError, match='has to hold the group of 4'):
    testing.make_step(pool=Pool(2))


def tiny(**changes):
  config = flow_grpo.get_config('tiny')
  config.explore.size = 4
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config


def test_ways_to_be_cheap():
  """Fewer steps, and narrower numbers, by the same parameters."""
  config = tiny()
  built = assemble.setup(config)
  assert setups.pool(config, built) == Pool(4)  # the policy itself
  key = jax.random.key(0)
  rows = jax.eval_shape(
    lambda: rollout.make_rows(_prompts(config, built), 4, key, jnp.int32(0))
  )
  params = initial.shapes(config, built.policy)
  programs = []
  for changes in (dict(tail=0.1), dict(tail=1.0)):
    config.explore.policy = changes
    config.explore.dtype = 'bfloat16' if changes['tail'] == 1 else ''
    policy = setups.pool(config, built).policy
    traj = jax.make_jaxpr(policy.rollout)(params, rows, jnp.int32(0))
    programs.append(str(traj))
  cheap, narrow = programs
  assert 'while' in cheap and 'bf16' not in cheap
  assert 'while' not in narrow and 'bf16' in narrow
  config.explore.policy = dict(steps=3, deterministic=True)
  assert setups.pool(config, built).policy
  config.explore.policy = dict(steps=3)
  with pytest.raises(ConfigError, match='config.explore.policy: .* window'):
    setups.pool(config, built)


def _prompts(config, built):
  return next(feeds.training(config, built))[0]


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'explore.size': 2}, 'must be above data.group_size=2'),
    ({'explore.size': 0, 'explore.dtype': 'bfloat16'}, 'there is none'),
    ({'explore.policy': dict(stepz=3)}, "config.explore.policy: .*'stepz'"),
    ({'explore.policy': dict(steps=0)}, 'explore.policy: steps .* is 0'),
    ({'rollout.name': 'shapes_pictures'}, 'data are not drawn'),
  ],
)
def test_what_is_wrong_is_said(changes, says):
  with pytest.raises(ConfigError, match=says):
    schema.check(tiny(**changes))


def test_pools_are_cut_over_devices():
  config = tiny(microbatches=1)
  config.data.prompts_per_step, config.explore.size = 4, 6
  assert fits.rows(config, 8) == []
  config.explore.size = 5
  (error,) = fits.rows(config, 8)
  assert 'explore.size=5 candidates of 4 prompts' in error
  assert 'a multiple of 2 would' in error
