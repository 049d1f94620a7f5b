"""Advantages against hand-worked tables, numpy per group, and a deque."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import advantages
from gen_rl.build import ConfigError
from gen_rl.types import RewardOut


def rewards_out(score, valid=None):
  score = jnp.asarray(score, jnp.float32)
  valid = jnp.ones(score.shape, bool) if valid is None else jnp.asarray(valid)
  return RewardOut(score=score, parts={}, valid=valid)


def run(advantage, score, valid=None, group=None):
  group = jnp.zeros(len(score), jnp.int32) if group is None else group
  adv, weight, _, metrics = advantage.update(
    rewards_out(score, valid), group, advantage.init()
  )
  assert adv.shape == (len(score), 1) and weight.shape == (len(score),)
  assert adv.dtype == weight.dtype == jnp.float32
  return np.asarray(adv[:, 0]), np.asarray(weight), metrics


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


def ragged(seed, groups, size):
  rng = np.random.default_rng(seed)
  score = rng.normal(3, 2, groups * size).astype(np.float32)
  valid = rng.random(groups * size) < 0.7
  valid[:size] = False  # an empty group
  valid[size + 1 : 2 * size] = False
  valid[size] = True  # a lone row
  return np.where(valid, score, np.nan), valid


@pytest.mark.parametrize('std', ['group', 'global'])
@pytest.mark.parametrize('ddof', [0, 1])
@pytest.mark.parametrize('seed', range(3))
def test_grpo_equals_numpy_per_group(std, ddof, seed):
  groups, size = 9, 6
  score, valid = ragged(seed, groups, size)
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
  score, valid = ragged(seed, groups, size)
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

  np.testing.assert_array_equal(jax.grad(f)(jnp.asarray(TABLE)), 0)


def test_sharded_equals_local():
  devices = jax.device_count()
  groups, size = 4 * devices, 6
  score, valid = ragged(0, groups, size)
  group = jnp.arange(groups * size, dtype=jnp.int32) // size % 5
  mesh = jax.make_mesh(
    (devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.NamedSharding(mesh, jax.P('data'))
  for advantage in (
    advantages.grpo(size, std='global'),
    advantages.history(size, 5, buffer=20, min_count=10),
  ):
    arguments = rewards_out(score, valid), group
    local = advantage.update(*arguments, advantage.init())
    sharded = jax.jit(advantage.update)(
      *jax.device_put(arguments, rows), advantage.init()
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      local,
      sharded,
    )


# --- history


class DequeTracker:
  """Per-prompt statistics as a deque per prompt and numpy, in float64."""

  def __init__(self, buffer, min_count, eps):
    self.stats = collections.defaultdict(
      lambda: collections.deque(maxlen=buffer)
    )
    self.min_count, self.eps = min_count, eps

  def update(self, prompts, scores):
    for prompt, score in zip(prompts, scores, strict=True):
      self.stats[prompt].append(score)
    out = []
    for prompt, score in zip(prompts, scores, strict=True):
      past = list(self.stats[prompt])
      if len(past) < self.min_count:
        past = scores
      out.append((score - np.mean(past)) / (np.std(past) + self.eps))
    return np.array(out)


@pytest.mark.parametrize('buffer,min_count', [(32, 16), (7, 7), (3, 2), (5, 1)])
def test_history_equals_deque(buffer, min_count):
  """Repeated prompts, groups larger than the buffer, ids modulo, NaN rows."""
  num_prompts, groups, size = 6, 5, 4
  advantage = advantages.history(
    size, num_prompts, buffer, min_count, eps=1e-3, clip=None
  )
  tracker = DequeTracker(buffer, min_count, eps=1e-3)
  state = advantage.init()
  update = jax.jit(advantage.update)
  rng = np.random.default_rng(buffer)
  for _ in range(12):
    prompts = np.repeat(rng.integers(0, num_prompts, groups), size)
    score = rng.normal(prompts, 1 + prompts).astype(np.float32)
    valid = rng.random(groups * size) < 0.8
    ids = prompts + num_prompts * rng.integers(0, 3)
    adv, weight, state, _ = update(
      rewards_out(np.where(valid, score, np.nan), valid),
      jnp.asarray(ids, jnp.int32),
      state,
    )
    expected = np.zeros(groups * size)
    expected[valid] = tracker.update(
      prompts[valid], score[valid].astype(np.float64)
    )
    np.testing.assert_allclose(adv[:, 0], expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(weight, valid & (adv[:, 0] != 0))
  for prompt, held in tracker.stats.items():
    count = min(int(state['count'][prompt]), buffer)
    np.testing.assert_array_equal(
      np.sort(state['scores'][prompt][:count]), np.sort(np.float32(held))
    )


def test_history_table():
  # first batch: fewer than 3 scores held, so batch mean 1, deviation 1
  advantage = advantages.history(2, 4, buffer=4, min_count=3, eps=0.0)
  state = advantage.init()
  group = jnp.array([2, 2], jnp.int32)
  adv, _, state, _ = advantage.update(rewards_out([0.0, 2.0]), group, state)
  np.testing.assert_allclose(adv[:, 0], [-1, 1])
  # second: ring 0 2 4 6, mean 3, variance 5
  adv, _, state, _ = advantage.update(rewards_out([4.0, 6.0]), group, state)
  np.testing.assert_allclose(adv[:, 0], [1 / 5**0.5, 3 / 5**0.5], rtol=1e-6)
  # third: the 0 and the 2 leave: 4 6 8 14, mean 8, variance 14
  adv, *_ = advantage.update(rewards_out([8.0, 14.0]), group, state)
  np.testing.assert_allclose(adv[:, 0], [0, 6 / 14**0.5], atol=1e-7)


def test_history_equal_scores_and_lone_rows():
  # three prompts, one sample each: the batch is the baseline
  advantage = advantages.history(1, 8, buffer=2, min_count=2)
  state = advantage.init()
  group = jnp.array([0, 1, 2], jnp.int32)
  adv, weight, state, _ = advantage.update(
    rewards_out([0.1, 0.2, 0.3]), group, state
  )
  sd = np.std([0.1, 0.2, 0.3])
  np.testing.assert_allclose(adv[0, 0], -0.1 / sd, rtol=1e-3)
  # the same scores again: every ring holds two equal scores
  adv, weight, *_ = advantage.update(rewards_out([0.1, 0.2, 0.3]), group, state)
  np.testing.assert_array_equal(adv, 0)
  np.testing.assert_array_equal(weight, 0)


def test_history_state_is_fixed_shape_and_scans():
  advantage = advantages.history(2, 4, buffer=4, min_count=2)

  def body(state, score):
    adv, _, state, _ = advantage.update(
      rewards_out(score), jnp.array([0, 0, 3, 3]), state
    )
    return state, adv

  state, adv = jax.lax.scan(body, advantage.init(), jnp.ones((5, 4)))
  assert adv.shape == (5, 4, 1)
  np.testing.assert_array_equal(state['count'], [10, 0, 0, 10])


# --- one reward at a time


def update(advantage, parts, valid=None, state=None):
  b = len(next(iter(parts.values())))
  parts = {k: jnp.asarray(x, jnp.float32) for k, x in parts.items()}
  out = rewards_out(np.full(b, 1e6), valid).replace(parts=parts)
  state = advantage.init() if state is None else state
  return advantage.update(out, jnp.zeros(b, jnp.int32), state)


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
  score, valid = ragged(0, 6, 4)
  clean = np.where(valid, score, 0.0)  # as `combine.merge` leaves them
  for name, each in dict(
    grpo=advantages.grpo(4), rloo=advantages.rloo(4),
    dr_grpo=advantages.dr_grpo(4),
  ).items():  # fmt: skip
    expected, kept, _ = run(each, clean, valid)
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
  summed, *_ = run(
    advantages.grpo(2, ddof=1, eps=0.0), np.add(parts['a'], parts['b'])
  )
  np.testing.assert_allclose(summed, [-(0.5**0.5), 0.5**0.5], rtol=1e-6)


def test_whitened():
  # a: -1 1 | -1 1 | 0 0, b: 0 0 | -1 1 | -1 1; the sum: -1 1 -2 2 -1 1
  parts = dict(a=[0.0, 1, 0, 5, 3, 3], b=[2.0, 2, 0, 1, 0, 9])
  each = dict(name='grpo', eps=0.0)
  advantage = advantages.per_reward(2, dict(a=1.0, b=1.0), each, True, eps=0.0)
  adv, weight, *_ = update(advantage, parts)
  sd = (12 / 6) ** 0.5
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


# --- arguments


def test_errors_name_the_choices():
  with pytest.raises(ValueError, match='at least 2'):
    advantages.grpo(1)
  with pytest.raises(ValueError, match="'group' or 'global'"):
    advantages.grpo(4, std='batch')
  with pytest.raises(ValueError, match='never'):
    advantages.history(4, 10, buffer=8, min_count=9)
  with pytest.raises(ValueError, match='at least 1'):
    advantages.history(4, 0)


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


# --- decisions with rewards of their own

# R_0 .. R_3. Row 0: d = -1, 3, 1, Delta = 3: trends - + +: turns at 2.
# Row 1: d = 1, -2, 0, Delta = -1: trends - + 0: turns at 2.
# Row 2: d = 2, -1, 1, Delta = 2: trends + - +: turns at 1 and 3.
# Row 3: d = 0, 0, 0: no trend, no turn.
SCORES = jnp.array(
  [[0, -1, 2, 3], [0, 1, -1, -1], [0, 2, 1, 2], [4, 4, 4, 4]], jnp.float32
)
TURNS = [[0, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
  ('mode', 'expected'),
  [
    ('incremental', [[-1, 3, 1], [1, -2, 0], [2, -1, 1], [0, 0, 0]]),
    # At a turn R_3 - R_{j-1}: 3 - -1, -1 - 1, 2 - 0 and 2 - 1.
    ('turning', [[-1, 4, 1], [1, -2, 0], [2, -1, 1], [0, 0, 0]]),
    ('bonus', [[3, 6, 3], [-1, -3, -1], [4, 2, 3], [0, 0, 0]]),
    ('outcome', [[3, 3, 3], [-1, -1, -1], [2, 2, 2], [4, 4, 4]]),
  ],
)
def test_turning_rewards(mode, expected):
  rewards, turning = advantages.turning_rewards(SCORES, mode)
  np.testing.assert_array_equal(turning, TURNS)
  np.testing.assert_array_equal(rewards, expected)


def test_consistent_turning_points():
  # Row 0 at 2: the rest goes on up (3 - 2). Row 1 at 2: nothing follows, 0.
  # Row 2 at 1: the rest is 2 - 2 = 0; at 3: nothing follows.
  _, turning = advantages.turning_rewards(SCORES, 'turning', consistent=True)
  np.testing.assert_array_equal(turning, [[0, 1, 0], [0] * 3, [0] * 3, [0] * 3])


def test_turning_points_normalise_each_decision_by_itself():
  advantage = advantages.turning_points(2, 'incremental', eps=0.0)
  assert advantage.stepwise
  rewards = rewards_out(SCORES[:, -1]).replace(before=SCORES[:, :-1])
  group = jnp.zeros(4, jnp.int32)
  adv, weight, _, metrics = advantage.update(rewards, group, ())
  # of two the deviation is half the difference; 0 where they agree
  np.testing.assert_allclose(
    adv, [[-1, 1, 1], [1, -1, -1], [1, -1, 1], [-1, 1, -1]], rtol=1e-6
  )
  np.testing.assert_array_equal(weight, 1)
  assert metrics['advantage/turning_fraction'] == pytest.approx(4 / 12)


def test_turning_points_drop_rows_that_were_not_scored():
  before = SCORES[:, :-1].at[0, 1].set(jnp.nan)
  rewards = rewards_out(SCORES[:, -1]).replace(before=before)
  advantage = advantages.turning_points(4)
  adv, weight, _, metrics = advantage.update(
    rewards, jnp.zeros(4, jnp.int32), ()
  )
  assert np.isfinite(adv).all() and (adv[0] == 0).all()
  np.testing.assert_array_equal(weight, [0, 1, 1, 1])
  assert metrics['advantage/invalid'] == 0.25
  with pytest.raises(ValueError, match='incremental'):
    advantages.turning_rewards(SCORES, 'sideways')
  with pytest.raises(ConfigError, match='dr_grpo'):
    advantages.per_reward(4, dict(a=1.0), each='drgrpo')
