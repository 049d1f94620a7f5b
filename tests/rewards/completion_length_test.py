"""Rewards of lengths, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, rewards
from gen_rl.build import ConfigError
from gen_rl.rewards import combine
from gen_rl.types import RewardInputs

END = 9


def rows_of(*lengths, k=10):
  """Completions of n ids and an end token, where there is place for it."""
  place = jnp.arange(k)
  n = jnp.array(lengths)[:, None]
  return jnp.where(place < n, 5, jnp.where(place == n, END, 0))


def scored(spec, media, answer=None):
  reward = build.build(rewards, spec)
  info = {} if answer is None else dict(answer=jnp.asarray(answer, jnp.int32))
  return jax.jit(
    lambda media, info: reward.score(
      reward.params, RewardInputs(media, info, 1), jax.random.key(0)
    )
  )(media, info)


def test_soft_punishment():
  # L = n + 1 from 8 - 4 on: 0 at 4, -1/4 a token, -1 at 8 and beyond
  spec = dict(name='length_shaping', longest=8, buffer=4, end=END)
  out = scored(spec, rows_of(0, 2, 3, 4, 5, 6, 7, 8, 10))
  np.testing.assert_allclose(
    out.score, [0, 0, 0, -0.25, -0.5, -0.75, -1, -1, -1]
  )
  np.testing.assert_array_equal(
    out.parts['length'], [1, 3, 4, 5, 6, 7, 8, 9, 10]
  )
  assert out.valid.all()
  # DAPO's numbers: at 18,432 of 20,480 half of the buffer of 4,096 is used
  spec = dict(name='length_shaping', longest=20480, buffer=4096, end=END)
  out = scored(spec, rows_of(18431, 16383, 20480, k=20480))
  np.testing.assert_array_equal(out.score, [-0.5, 0, -1])


def test_gate():
  """The answer has 4 ids: the band is 2 to 8 of them."""
  inner = dict(name='length_shaping', longest=100, buffer=50, end=END)
  spec = dict(name='length_gate', reward=inner, end=END)
  tell = dict(name='exact_match', end=END)
  answer = [[5, 5, 5, 5]] * 5
  out = scored(spec | dict(reward=tell), rows_of(1, 2, 4, 8, 9), answer)
  np.testing.assert_array_equal(out.score, [0, 0, 1, 0, 0])
  np.testing.assert_array_equal(out.parts['in_band'], [0, 1, 1, 1, 0])
  np.testing.assert_array_equal(
    out.parts['length_ratio'], [0.25, 0.5, 1, 2, 2.25]
  )
  assert 'finished' in out.parts
  # what is right stays in the band, and not beyond it
  narrow = spec | dict(reward=tell, low=1.5)
  np.testing.assert_array_equal(scored(narrow, rows_of(4), answer[:1]).score, 0)
  out = scored(spec, rows_of(4, 4), [[5] * 4, [-1] * 4])
  np.testing.assert_array_equal(out.valid, [True, False])


def test_truncated_rows_are_left_out():
  answer = [[5, 5]] * 3
  media = rows_of(2, 3, 10)
  spec = dict(name='exact_match', end=END)
  assert scored(spec, media, answer).valid.all()
  out = scored(dict(name='drop_truncated', reward=spec, end=END), media, answer)
  np.testing.assert_array_equal(out.score, [1, 0, 0])
  np.testing.assert_array_equal(out.valid, [True, True, False])
  # one such reward of a sum is enough
  merged = combine.merge(
    dict(a=out, b=scored(spec, media, answer)), dict(a=1.0, b=1.0)
  )
  np.testing.assert_array_equal(merged.valid, [True, True, False])


def test_a_wrapped_reward_that_fails_stays_invalid():
  inner = dict(name='choice_accuracy', choices=(5,), end=END)
  for name in ('length_gate', 'drop_truncated'):
    spec = dict(name=name, reward=inner, end=END)
    out = scored(spec, rows_of(1, 1), [[5], [6]])
    np.testing.assert_array_equal(out.valid, [True, False])


@pytest.mark.parametrize(
  'spec, match',
  [
    (dict(name='length_shaping', longest=4, buffer=5, end=9), 'buffer <= lon'),
    (dict(name='length_shaping', longest=4, buffer=0, end=9), 'at least 1'),
    (dict(name='length_gate', reward='ranked', end=-1), 'from 0 on'),
    (
      dict(name='length_gate', reward='ranked', end=9, low=3.0),
      'low=3.0, high=2.0',
    ),
    (dict(name='drop_truncated', reward='rank', end=9), "mean 'ranked'"),
  ],
)
def test_what_cannot_be_is_refused(spec, match):
  with pytest.raises(ConfigError, match=match):
    build.build(rewards, spec)


def test_a_gate_needs_an_answer():
  spec = dict(name='length_gate', reward='ranked', end=END)
  with pytest.raises(ConfigError, match='they have nothing'):
    scored(spec, rows_of(2))
