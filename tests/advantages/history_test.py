"""A prompt's own past: a hand-worked table, and a deque."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import advantages, testing


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
      testing.scored(np.where(valid, score, np.nan), valid),
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
  group, update = np.array([2, 2], np.int32), jax.jit(advantage.update)
  adv, _, state, _ = update(testing.scored([0.0, 2.0]), group, state)
  np.testing.assert_allclose(adv[:, 0], [-1, 1])
  # second: ring 0 2 4 6, mean 3, variance 5
  adv, _, state, _ = update(testing.scored([4.0, 6.0]), group, state)
  np.testing.assert_allclose(adv[:, 0], [1 / 5**0.5, 3 / 5**0.5], rtol=1e-6)
  # third: the 0 and the 2 leave: 4 6 8 14, mean 8, variance 14
  adv, *_ = update(testing.scored([8.0, 14.0]), group, state)
  np.testing.assert_allclose(adv[:, 0], [0, 6 / 14**0.5], atol=1e-7)


def test_history_equal_scores_and_lone_rows():
  # three prompts, one sample each: the batch is the baseline
  advantage = advantages.history(1, 8, buffer=2, min_count=2)
  state = advantage.init()
  group, update = np.array([0, 1, 2], np.int32), jax.jit(advantage.update)
  adv, weight, state, _ = update(testing.scored([0.1, 0.2, 0.3]), group, state)
  sd = np.std([0.1, 0.2, 0.3])
  np.testing.assert_allclose(adv[0, 0], -0.1 / sd, rtol=1e-3)
  # the same scores again: every ring holds two equal scores
  adv, weight, *_ = update(testing.scored([0.1, 0.2, 0.3]), group, state)
  np.testing.assert_array_equal(adv, 0)
  np.testing.assert_array_equal(weight, 0)


def test_history_state_is_fixed_shape_and_scans():
  advantage = advantages.history(2, 4, buffer=4, min_count=2)

  def body(state, score):
    adv, _, state, _ = advantage.update(
      testing.scored(score), jnp.array([0, 0, 3, 3]), state
    )
    return state, adv

  state, adv = jax.lax.scan(body, advantage.init(), jnp.ones((5, 4)))
  assert adv.shape == (5, 4, 1)
  np.testing.assert_array_equal(state['count'], [10, 0, 0, 10])


def test_errors_name_the_choices():
  with pytest.raises(ValueError, match='never'):
    advantages.history(4, 10, buffer=8, min_count=9)
  with pytest.raises(ValueError, match='at least 1'):
    advantages.history(4, 0)
