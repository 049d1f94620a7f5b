"""Advantages within a group: hand-worked tables, and numpy per group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import advantages, testing
from gen_rl.types import RewardOut

run = testing.advantages_of

# --- hand-worked tables

# group 0: scores 1 2 3 6: mean 3, deviations -2 -1 0 3, variance 14 / 4
# group 1: scores 4 4 4 4
TABLE = [1.0, 2.0, 3.0, 6.0, 4.0, 4.0, 4.0, 4.0]


def test_grpo_table():
  adv, weight, metrics = run(advantages.grpo(4, eps=0.0), TABLE)
  sd = 3.5**0.5
  np.testing.assert_allclose(
    adv, [-2 / sd, -1 / sd, 0, 3 / sd, 0, 0, 0, 0], rtol=1e-6
  )
  np.testing.assert_array_equal(weight, [1, 1, 0, 1, 0, 0, 0, 0])
  np.testing.assert_allclose(metrics['advantage/std_mean'], sd / 2, rtol=1e-6)
  assert metrics['advantage/zero_std_fraction'] == 0.5
  assert metrics['advantage/clip_fraction'] == 0
  assert metrics['advantage/invalid'] == 0


def test_grpo_global_table():
  # all eight: mean 3.5, squares 6.25 2.25 .25 6.25 and 4 x .25 = 16 / 8 = 2
  adv, *_ = run(advantages.grpo(4, std='global', eps=0.5), TABLE)
  sd = 2**0.5 + 0.5
  np.testing.assert_allclose(
    adv, [-2 / sd, -1 / sd, 0, 3 / sd, 0, 0, 0, 0], rtol=1e-6
  )


def test_grpo_pair_and_ddof():
  # for two samples A = -1, 1 with ddof 0 and -1/sqrt 2, 1/sqrt 2 with ddof 1
  adv, *_ = run(advantages.grpo(2, eps=0.0), [0.0, 0.3])
  np.testing.assert_allclose(adv, [-1, 1], rtol=1e-6)
  adv, *_ = run(advantages.grpo(2, eps=0.0, ddof=1), [0.0, 0.3])
  np.testing.assert_allclose(adv, [-(0.5**0.5), 0.5**0.5], rtol=1e-6)


def test_rloo_table():
  # 1 - (2+3+6)/3, 2 - (1+3+6)/3, 3 - (1+2+6)/3, 6 - (1+2+3)/3
  adv, *_ = run(advantages.rloo(4), TABLE)
  np.testing.assert_allclose(
    adv, [-8 / 3, -4 / 3, 0, 4, 0, 0, 0, 0], rtol=1e-6, atol=1e-6
  )


def test_dr_grpo_table_and_clip():
  adv, *_ = run(advantages.dr_grpo(4), TABLE)
  np.testing.assert_allclose(adv, [-2, -1, 0, 3, 0, 0, 0, 0])
  adv, _, metrics = run(advantages.dr_grpo(4, clip=1.5), TABLE)
  np.testing.assert_allclose(adv, [-1.5, -1, 0, 1.5, 0, 0, 0, 0])
  assert metrics['advantage/clip_fraction'] == 2 / 8


def test_invalid_table():
  # group 0 loses its 6 (NaN): 1 2 3; group 1 keeps one row: no baseline
  score = [1.0, 2.0, 3.0, np.nan, 5.0, np.nan, 0.0, np.inf]
  valid = [True, True, True, False, True, False, False, True]
  adv, weight, metrics = run(advantages.dr_grpo(4), score, valid)
  np.testing.assert_allclose(adv, [-1, 0, 1, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(weight, [1, 0, 1, 0, 0, 0, 0, 0])
  assert metrics['advantage/invalid'] == 4 / 8
  assert metrics['advantage/zero_std_fraction'] == 0.5
  np.testing.assert_allclose(
    metrics['advantage/std_mean'], (2 / 3) ** 0.5, rtol=1e-6
  )
  adv, *_ = run(advantages.rloo(4), score, valid)
  np.testing.assert_allclose(adv, [-1.5, 0, 1.5, 0, 0, 0, 0, 0])


def test_drop_zero_off_keeps_rows_that_have_a_baseline():
  score = TABLE + [1.0, np.nan, np.nan, np.nan]
  valid = [True] * 9 + [False] * 3
  _, weight, _ = run(advantages.grpo(4, drop_zero=False), score, valid)
  np.testing.assert_array_equal(weight, [1] * 8 + [0] * 4)


def test_nothing_valid():
  group = jnp.zeros(4, jnp.int32)
  for advantage in (
    advantages.grpo(2),
    advantages.grpo(2, std='global'),
    advantages.rloo(2),
    advantages.history(2, 3),
  ):
    adv, weight, metrics = run(advantage, [np.nan] * 4, [False] * 4, group)
    np.testing.assert_array_equal(adv, 0)
    np.testing.assert_array_equal(weight, 0)
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics['advantage/invalid'] == 1


@pytest.mark.parametrize('value', [0.1, 1e4 / 3, -7.7e-3])
@pytest.mark.parametrize('group_size', [3, 7])
def test_equal_scores_are_exactly_zero(value, group_size):
  """The mean of equal float32 numbers is often not that number."""
  adv, weight, metrics = run(
    advantages.grpo(group_size, eps=0.0), [value] * group_size
  )
  np.testing.assert_array_equal(adv, 0)
  np.testing.assert_array_equal(weight, 0)
  assert metrics['advantage/zero_std_fraction'] == 1


# --- numpy, group by group, ragged


@pytest.mark.parametrize('std', ['group', 'global'])
@pytest.mark.parametrize('ddof', [0, 1])
@pytest.mark.parametrize('seed', range(3))
def test_grpo_equals_numpy_per_group(std, ddof, seed):
  groups, size = 9, 6
  score, valid = testing.ragged(seed, groups, size)
  adv, weight, metrics = run(
    advantages.grpo(size, std=std, ddof=ddof, eps=1e-4, clip=1.2), score, valid
  )
  stds, clipped = [], 0
  for p in range(groups):
    rows = [i for i in range(p * size, (p + 1) * size) if valid[i]]
    expected = dict.fromkeys(range(p * size, (p + 1) * size), 0.0)
    if len(rows) > 1:
      mine = score[rows].astype(np.float64)
      stds.append(np.std(mine, ddof=ddof))
      by = stds[-1] if std == 'group' else np.std(score[valid], ddof=ddof)
      for i, r in zip(rows, mine, strict=True):
        expected[i] = (r - np.mean(mine)) / (by + 1e-4)
        clipped += abs(expected[i]) > 1.2
    for i, a in expected.items():
      np.testing.assert_allclose(adv[i], np.clip(a, -1.2, 1.2), atol=2e-6)
      assert weight[i] == (a != 0)
  np.testing.assert_allclose(
    metrics['advantage/std_mean'], np.mean(stds), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics['advantage/clip_fraction'], clipped / valid.sum(), rtol=1e-6
  )


@pytest.mark.parametrize('seed', range(3))
def test_rloo_equals_explicit_leave_one_out(seed):
  groups, size = 8, 5
  score, valid = testing.ragged(seed, groups, size)
  adv, *_ = run(advantages.rloo(size), score, valid)
  for i in range(groups * size):
    start = i // size * size
    others = [
      score[j] for j in range(start, start + size) if j != i and valid[j]
    ]
    expected = score[i] - np.mean(others) if valid[i] and others else 0.0
    np.testing.assert_allclose(adv[i], expected, atol=5e-6)


def test_shift_and_scale_invariance():
  score = np.random.default_rng(0).normal(size=24)
  a, *_ = run(advantages.grpo(6, eps=0.0), score)
  b, *_ = run(advantages.grpo(6, eps=0.0), 3 * score + 8)
  np.testing.assert_allclose(a, b, atol=2e-5)


def test_invalid_row_equals_absent_row():
  a, *_ = run(advantages.grpo(3), [1.0, 2.0, 4.0])
  b, *_ = run(
    advantages.grpo(5),
    [1.0, np.nan, 2.0, 4.0, 1e30],
    [True, False, True, True, False],
  )
  np.testing.assert_allclose(b[[0, 2, 3]], a, rtol=1e-6)


def test_no_gradient():
  def f(score):
    adv, *_ = advantages.grpo(4).update(
      RewardOut(score=score, parts={}, valid=jnp.ones(8, bool)),
      jnp.zeros(8, jnp.int32),
      (),
    )
    return (adv**2).sum()

  grad = jax.jit(jax.grad(f))
  np.testing.assert_array_equal(grad(np.float32(TABLE)), 0)


def test_sharded_equals_local():
  devices = jax.device_count()
  groups, size = 4 * devices, 6
  score, valid = testing.ragged(0, groups, size)
  group = np.arange(groups * size, dtype=np.int32) // size % 5
  mesh = jax.make_mesh(
    (devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.NamedSharding(mesh, jax.P('data'))
  for advantage in (
    advantages.grpo(size, std='global'),
    advantages.history(size, 5, buffer=20, min_count=10),
  ):
    arguments = testing.scored(score, valid), group
    update = jax.jit(advantage.update)
    local = update(*arguments, advantage.init())
    sharded = update(*jax.device_put(arguments, rows), advantage.init())
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      local,
      sharded,
    )


# --- preferences


def test_best_worst():
  adv, weight, _ = run(advantages.best_worst(4), TABLE)
  np.testing.assert_array_equal(adv, [-1, 0, 0, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(weight, [1, 0, 0, 1, 0, 0, 0, 0])
  # Ties go to the first; invalid rows are neither.
  adv, weight, _ = run(
    advantages.best_worst(4), [5, 1, 1, 9.0], [True, True, True, False]
  )
  np.testing.assert_array_equal(adv, [1, -1, 0, 0])
  adv, weight, _ = run(advantages.best_worst(2), [1, 5.0], [True, False])
  np.testing.assert_array_equal(weight, [0, 0])


# --- the lead of the best


def test_best_margin_table():
  adv, weight, _ = run(advantages.best_margin(4), TABLE)
  np.testing.assert_array_equal(adv, [0, 0, 0, 3, 0, 0, 0, 0])
  np.testing.assert_array_equal(weight, [0, 0, 0, 1, 0, 0, 0, 0])
  # Two are best; the best is invalid; nobody to compare with.
  score = [5.0, 1, 5, 2, 1, 4, np.nan, 9, 3, 1, 1, 1]
  valid = [True] * 6 + [False, False, True, False, False, False]
  adv, weight, _ = run(advantages.best_margin(4), score, valid)
  np.testing.assert_array_equal(adv, [0] * 5 + [3] + [0] * 6)
  _, weight, _ = run(advantages.best_margin(4, drop_zero=False), score, valid)
  np.testing.assert_array_equal(weight, [1] * 6 + [0] * 6)


@pytest.mark.parametrize('size', [2, 3])
def test_best_margin_is_the_gradient_of_the_expected_best(size):
  """Over all groups of three actions: E sum_i A_i d log p_i = d E max."""
  theta, reward = np.float32([0.5, -0.2, 0.1]), np.float32([1.0, 4.0, -2.0])
  actions = np.stack(np.meshgrid(*[range(3)] * size), -1).reshape(-1, size)
  adv, _, _ = run(advantages.best_margin(size), reward[actions.reshape(-1)])

  def expected_best(theta):
    p = jnp.exp(jax.nn.log_softmax(theta)[actions].sum(1))
    return (p * reward[actions].max(1)).sum()

  def surrogate(theta):
    log_p = jax.nn.log_softmax(theta)[actions]
    p = jax.lax.stop_gradient(jnp.exp(log_p.sum(1)))
    return (p * (adv.reshape(-1, size) * log_p).sum(1)).sum()

  np.testing.assert_allclose(
    jax.jit(jax.grad(surrogate))(theta),
    jax.jit(jax.grad(expected_best))(theta),
    atol=1e-6,
  )


def test_errors_name_the_choices():
  with pytest.raises(ValueError, match='at least 2'):
    advantages.grpo(1)
  with pytest.raises(ValueError, match="'group' or 'global'"):
    advantages.grpo(4, std='batch')


def test_scst_table():
  adv, weight, _ = run(advantages.scst(4), TABLE)
  np.testing.assert_allclose(adv, [0, 1, 2, 5, 0, 0, 0, 0])
  np.testing.assert_array_equal(weight, [0, 1, 1, 1, 0, 0, 0, 0])
  valid = np.array([1, 1, 0, 1, 1, 1, 1, 1], bool)
  adv, *_ = run(advantages.scst(4), TABLE, valid)
  np.testing.assert_allclose(adv, [0, 1, 0, 5, 0, 0, 0, 0])
  adv, weight, _ = run(advantages.scst(4), TABLE, ~(np.arange(8) == 0))
  assert not np.any(adv) and not np.any(weight)
