"""Answers that are none, and rewards that never score a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.rewards import combine, outcomes
from gen_rl.types import RewardOut

ONES = np.ones(3, bool)
GOOD = RewardOut(np.arange(3.0), {}, ONES)


@pytest.mark.parametrize(
  'out, message',
  [
    (None, 'NoneType, not with RewardOut'),
    (np.ones(3), r'float64 of shape \[3\], not with RewardOut'),
    ((np.ones(3), {}, ONES), 'tuple, not with RewardOut'),
    (GOOD.replace(score=np.ones((3, 1))), r'a score of shape \[3, 1\]'),
    (GOOD.replace(score=np.float32(1)), r'a score of shape \[\]'),
    (GOOD.replace(score=np.ones(0)), r'a score of shape \[0\]'),
    (GOOD.replace(score=[[1], [2, 3], []]), 'is list and no array'),
    (GOOD.replace(score=np.array(['1'] * 3)), 'a score of type <U1'),
    (GOOD.replace(score=[None] * 3), 'a score of type object'),
    (GOOD.replace(score=np.ones(3) * 1j), 'a score of type complex128'),
    (GOOD.replace(score=np.ones(3, 'm8[s]')), 'a score of type timedelta64'),
    (GOOD.replace(parts=None), 'parts that are NoneType'),
    (GOOD.replace(parts={1: np.ones(3)}), 'parts that are dict'),
    (GOOD.replace(parts={'p': np.ones((3, 2))}), r"the part 'p' of shape"),
    (GOOD.replace(parts={'p': ['x'] * 3}), "the part 'p' of type"),
    (GOOD.replace(valid=None), r'valid of shape \[\]'),
    (GOOD.replace(valid=np.bool_(True)), r'valid of shape \[\]'),
    (GOOD.replace(valid=np.full(3, np.nan)), 'valid of type float64'),
    (GOOD.replace(valid=np.array(['False'] * 3)), 'valid of type <U5'),
    (GOOD.replace(valid=[2, 0, 1]), 'valid of type int64'),
    (GOOD.replace(steps='x'), r'steps of shape \[\]'),
    (GOOD.replace(steps=np.ones((2, 4))), r'steps of shape \[2, 4\]'),
    (GOOD.replace(applies=np.ones(2)), r'applies of shape \[2\]'),
  ],
)
def test_answers_that_are_none(out, message):
  with pytest.raises(outcomes.RewardError, match=message) as error:
    outcomes.checked('judge', out, 3)
  text = str(error.value)
  assert "the reward 'judge' answered" in text and '\n' not in text


@pytest.mark.parametrize(
  'score, valid, want',
  [
    ([0.5, 1, 2], [1, 0, 1], [1, 0, 1]),
    (np.array([True, False, True]), ONES, [1, 1, 1]),
    (np.array([1, np.nan, np.inf]), ONES, [1, 0, 0]),
    (np.array([1, 1e300, 2e15]), np.ones(3), [1, 0, 0]),
    (np.ma.masked_array([1.0, 2, 3], [0, 1, 0]), ONES, [1, 0, 1]),
    (np.array([1, 2, 3], jnp.bfloat16), ONES, [1, 1, 1]),
    (jnp.array([1, jnp.nan, 3]), ONES, [1, 0, 1]),
  ],
)
def test_answers_that_are_some(score, valid, want):
  out = outcomes.checked('judge', RewardOut(score, {}, valid), 3)
  assert out.score.dtype == np.float32 and out.valid.dtype == bool
  assert out.valid.astype(int).tolist() == want
  good = out.valid
  np.testing.assert_array_equal(out.score[good], np.asarray(score)[good])


def test_a_reward_that_does_not_apply_has_not_failed():
  """Two rewards for two tasks share a run; by hand."""
  nan = np.nan
  one = RewardOut(np.array([1, nan, 4, nan, nan]), {}, ONES[[0] * 5])
  one = one.replace(applies=np.array([1, 0, 1, 1, 0]))
  two = RewardOut(np.array([nan, 3, 5, nan, nan]), {}, ONES[[0] * 5])
  two = two.replace(
    applies=np.array([0, 1, 1, 0, 0]), parts={'p': np.arange(5.0)}
  )
  outs = {
    label: outcomes.checked(label, out, 5)
    for label, out in dict(one=one, two=two).items()
  }
  merged = jax.jit(lambda x: combine.merge(x, dict(one=2.0, two=10.0)))(outs)
  # The fourth failed; to the last no reward applies.
  assert merged.valid.tolist() == [True, True, True, False, False]
  assert merged.score.tolist() == [2, 30, 58, 0, 0]
  assert merged.parts['two'].tolist() == [0, 3, 5, 0, 0]
  metrics = combine.summarize(merged, outs)
  # Over the rows they apply to: (1 + 4) / 2, (3 + 5) / 2, (1 + 2) / 2.
  assert metrics['reward/one'] == 2.5 and metrics['reward/two'] == 4
  assert metrics['reward/two/p'] == 1.5 and metrics['reward/score'] == 30
  counts = [
    (metrics[f'{name}/scored'], metrics[f'{name}/invalid'])
    for name in ('reward/one', 'reward/two', 'reward')
  ]
  assert counts == [(2, 1), (2, 0), (3, 2)]


def _logged(one, two, both):
  """Metrics of (scored, invalid) of two rewards and of both together."""
  names = {'reward/one': one, 'reward/two': two, 'reward': both}
  return {
    f'{name}/{kind}': np.float32(x)
    for name, pair in names.items()
    for kind, x in zip(('scored', 'invalid'), pair, strict=True)
  }


def test_updates_without_a_scored_row_are_counted():
  counts, seen = {}, []
  for logged in (
    _logged((4, 0), (0, 4), (0, 4)),
    _logged((0, 4), (0, 4), (0, 4)),
    _logged((0, 0), (0, 4), (0, 4)),  # `one` was for none of these rows
    _logged((1, 3), (0, 1), (1, 3)),
  ):
    counts = outcomes.silent(counts, logged, ['one', 'two'])
    seen.append(tuple(counts[label] for label in ('one', 'two', '')))
  assert seen == [(0, 1, 1), (1, 2, 2), (1, 3, 3), (0, 4, 0)]
  assert outcomes.silent({}, {}, ()) == {}  # training on data
  outcomes.check_heard(counts, 5, 4, {})
  reasons = dict(two='OSError: no such host')
  with pytest.raises(outcomes.RewardError, match="'two' .OSError: no such h"):
    outcomes.check_heard(counts, 4, 4, reasons)
  with pytest.raises(outcomes.RewardError, match='by all rewards'):
    outcomes.check_heard({'one': 0, '': 3}, 3, 4, reasons)
