"""Win rates against tables worked by hand, and the judge's probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import advantages, build, rewards, testing
from gen_rl.build import ConfigError
from gen_rl.rewards import evaluate, jpeg, pairwise
from gen_rl.types import Reward, RewardInputs, RewardOut
from gen_rl.utils import rng

NAN = np.nan


@functools.partial(jax.jit, static_argnums=(0, 1))
def row_keys(groups, size, seed=0):
  keys = rng.row_keys(jax.random.key(seed), 0, jnp.arange(groups), size)
  return keys.reshape(groups, size)


win_rate = jax.jit(pairwise.pairwise_win_rate)


def matrix(scores, seed=0, swap=False, chunk=0, **judge):
  scores = np.asarray(scores, np.float32)
  judge = pairwise.score_judge(**judge)
  run = lambda scores, keys: pairwise.pairwise_matrix(
    judge, scores, keys, swap, chunk
  )
  return jax.jit(run)(scores, row_keys(*scores.shape, seed))


def rates(scores, **judge):
  return win_rate(matrix(scores, **judge))


def advantage(rate):
  """GRPO's of one group."""
  adv, weight, _ = testing.advantages_of(
    advantages.grpo(len(rate), eps=0.0), np.asarray(rate)
  )
  return adv, weight


# --- tables

# scores, tie zone, rates
TABLE = [
  # a strict order: wins over 3 others
  ([0.0, 3.0, 1.0, 2.0], 0.0, [0, 1, 1 / 3, 2 / 3]),
  # equal scores tie at any zone: 1/2 + 0, 1/2 + 0, 2 + 1/2, 2 + 1/2
  ([5.0, 5.0, 7.0, 7.0], 0.0, [0.5 / 3, 0.5 / 3, 2.5 / 3, 2.5 / 3]),
  # .10 and .12 tie, the others do not: 0, 1.5, 1.5, 3
  ([0.0, 0.1, 0.12, 0.5], 0.05, [0, 0.5, 0.5, 1]),
  # ties need not be transitive: 0 ~ .04 ~ .08, but .08 beats 0
  ([0.0, 0.04, 0.08], 0.05, [0.25, 0.5, 0.75]),
  ([0.0, 0.04, 0.08], 0.1, [0.5, 0.5, 0.5]),
  # two of a kind
  ([1.0, 2.0], 0.0, [0, 1]),
  ([1.0, 2.0], 1.0, [0.5, 0.5]),
]


@pytest.mark.parametrize('scores, tie, expected', TABLE)
def test_rates_by_hand(scores, tie, expected):
  rate, opponents = rates([scores], tie=tie)
  np.testing.assert_allclose(rate[0], expected, rtol=1e-6)
  np.testing.assert_array_equal(opponents[0], len(scores) - 1)


def test_matrix_by_hand():
  # row beats column
  wins = matrix([[0.0, 0.1, 0.12, 0.5]], tie=0.05)
  np.testing.assert_array_equal(
    wins[0],
    [
      [0.5, 0.0, 0.0, 0.0],
      [1.0, 0.5, 0.5, 0.0],
      [1.0, 0.5, 0.5, 0.0],
      [1.0, 1.0, 1.0, 0.5],
    ],
  )


@pytest.mark.parametrize('size, sd', [(8, 0.327), (12, 0.314), (24, 0.301)])
def test_a_strict_order_has_a_fixed_deviation(size, sd):
  for seed, unit in ((0, 1.0), (1, 1e-3)):
    scores = unit * np.random.default_rng(seed).permutation(size)
    rate = np.asarray(rates([scores])[0][0])
    exact = ((size + 1) / (12 * (size - 1))) ** 0.5
    assert np.std(rate) == pytest.approx(exact, rel=1e-5)
    assert np.std(rate) == pytest.approx(sd, abs=5e-4)
    # The best is half a range above the mean, whatever the unit.
    adv, _ = advantage(rate)
    assert adv.max() == pytest.approx(0.5 / exact, rel=1e-5)
    assert adv.argmax() == scores.argmax()


def test_ties_shrink_the_deviation():
  scores = [np.arange(8.0)]
  sds = [np.std(rates(scores, tie=tie)[0]) for tie in (0, 1, 2, 4, 7)]
  assert sds == sorted(sds, reverse=True) and sds[-1] == 0
  # tie 1: neighbours tie; 0.5 1.5 2 ... for the k-th: k, but .5 at the ends
  by_hand = np.array([0.5, 1, 2, 3, 4, 5, 6, 6.5]) / 7
  np.testing.assert_allclose(rates(scores, tie=1.0)[0][0], by_hand, rtol=1e-6)


@pytest.mark.parametrize('size', [3, 5, 7])
def test_a_cycle_has_no_advantage(size):
  # i beats the (size - 1) / 2 that follow
  ahead = (np.arange(size) - np.arange(size)[:, None]) % size
  wins = np.where(ahead == 0, 0.5, ahead <= size // 2)
  rate, _ = win_rate(jnp.asarray(wins[None], jnp.float32))
  np.testing.assert_array_equal(rate, 0.5)
  adv, weight = advantage(rate[0])
  np.testing.assert_array_equal(adv, 0)
  np.testing.assert_array_equal(weight, 0)


def test_rates_see_order_only():
  scores = np.random.default_rng(0).normal(size=(3, 6))
  np.testing.assert_array_equal(rates(scores)[0], rates(np.exp(scores))[0])


# --- what takes no part


def test_rows_that_could_not_be_scored_are_nobodys_opponents():
  rate, opponents = rates([[1, NAN, 2, 3], [NAN, NAN, 7, NAN]])
  np.testing.assert_array_equal(rate[0], [0, 0.5, 0.5, 1])
  np.testing.assert_array_equal(opponents[0], [2, 0, 2, 2])
  np.testing.assert_array_equal(opponents[1], 0)
  np.testing.assert_array_equal(rate[1], 0.5)


def test_chosen_opponents_and_missing_verdicts():
  wins = np.array(matrix([[0.0, 1.0, 2.0]]))
  compared = np.ones((1, 3, 3), bool)
  compared[0, 2, 1] = False  # 2 does not get its win over 1
  rate, opponents = win_rate(jnp.asarray(wins), jnp.asarray(compared))
  np.testing.assert_array_equal(rate[0], [0, 0.5, 1])
  np.testing.assert_array_equal(opponents[0], [2, 2, 1])
  wins[0, 0, 1] = wins[0, 1, 0] = NAN
  rate, opponents = win_rate(jnp.asarray(wins))
  np.testing.assert_array_equal(rate[0], [0, 0, 1])
  np.testing.assert_array_equal(opponents[0], [1, 1, 2])


# --- judges


def test_both_orders_undo_a_preference_for_a_place():
  first_wins = lambda first, second, keys: jnp.ones(first.shape)
  items, keys = jnp.zeros((1, 3)), row_keys(1, 3)
  wins = pairwise.pairwise_matrix(first_wins, items, keys)
  np.testing.assert_array_equal(
    wins[0], [[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]]
  )
  wins = pairwise.pairwise_matrix(first_wins, items, keys, swap=True)
  np.testing.assert_array_equal(wins, 0.5)
  silent = lambda first, second, keys: jnp.where(first > second, 1.0, NAN)
  wins = pairwise.pairwise_matrix(
    silent, jnp.array([[2.0, 1.0]]), keys[:, :2], swap=True
  )
  np.testing.assert_array_equal(np.isnan(wins[0]), ~np.eye(2, dtype=bool))


def test_chunks_and_trees_of_items():
  x = jax.random.uniform(jax.random.key(3), (2, 5, 4, 4, 3))
  items = dict(picture=x, asked=jnp.arange(2.0)[:, None] * jnp.ones(5))

  def judge(first, second, keys):
    assert first['picture'].shape == (2, 4, 4, 3) and keys.shape == (2,)
    value = lambda x: x['picture'].mean((1, 2, 3)) * (1 - 2 * x['asked'])
    return (value(first) > value(second)).astype(jnp.float32)

  keys = row_keys(2, 5)
  whole = pairwise.pairwise_matrix(judge, items, keys)
  mean = np.asarray(x.mean((2, 3, 4)))
  by_hand = mean[:, :, None] > mean[:, None]
  by_hand = np.stack([by_hand[0], by_hand[1].T]).astype(np.float32)
  by_hand[:, range(5), range(5)] = 0.5
  np.testing.assert_array_equal(whole, by_hand)
  for chunk in (1, 4):
    part = pairwise.pairwise_matrix(judge, items, keys, chunk=chunk)
    np.testing.assert_array_equal(part, whole)


def test_a_judge_that_errs():
  n, gap, temperature = 20_000, 0.03, 0.02
  scores = np.tile([gap, 0.0], (n, 1))
  wins = np.asarray(matrix(scores, temperature=temperature))
  assert set(wins[:, 0, 1]) == {0, 1}
  np.testing.assert_array_equal(wins + wins.transpose(0, 2, 1), 1)
  p = 1 / (1 + np.exp(-gap / temperature))  # .8176
  error = (p * (1 - p) / n) ** 0.5
  assert wins[:, 0, 1].mean() == pytest.approx(p, abs=4 * error)
  # Within the zone of ties it is asked in vain.
  tied = matrix(scores[:50], temperature=temperature, tie=0.05)
  np.testing.assert_array_equal(tied, 0.5)


def test_verdicts_are_the_rows_own():
  scores = np.random.default_rng(0).normal(size=(4, 6))
  both = dict(temperature=1.0, tie=0.1)
  wins = matrix(scores, **both)
  np.testing.assert_array_equal(wins, matrix(scores, **both))
  assert np.any(wins != matrix(scores, seed=1, **both))
  judge = pairwise.score_judge(**both)
  order = np.array([2, 0])
  some = pairwise.pairwise_matrix(
    judge, jnp.asarray(scores[order], jnp.float32), row_keys(4, 6)[order]
  )
  np.testing.assert_array_equal(some, wins[order])


# --- the reward

BYTES = dict(name='jpeg_compressibility')


def pictures(groups=3, size=4):
  """Noise of growing amplitude in each group, in another order in each."""
  rng_ = np.random.default_rng(0)
  noise = rng_.uniform(-0.5, 0.5, (groups, size, 16, 16, 3))
  amplitude = np.linspace(0.1, 1, size)
  order = np.stack([rng_.permutation(size) for _ in range(groups)])
  media = 0.5 + amplitude[order][..., None, None, None] * noise
  return np.float32(media.reshape(-1, 16, 16, 3)), order


def test_reward_of_a_reward():
  media, order = pictures()
  reward = build.build(rewards, dict(name='win_rate', reward=BYTES))
  assert (reward.where, reward.differentiable) == ('device', False)
  inputs = RewardInputs(jnp.asarray(media), {}, 4)
  keys = row_keys(3, 4).reshape(-1)
  # as in a run: under jit
  outs = jax.jit(
    lambda media, keys: evaluate.evaluate(
      {'wins': (reward, 1.0)}, RewardInputs(media, {}, 4), keys
    )
  )(jnp.asarray(media), keys)
  out = outs['wins']
  # less noise, smaller file, higher score
  np.testing.assert_allclose(out.score, 1 - order.reshape(-1) / 3, rtol=1e-6)
  assert out.valid.all() and not out.parts['ties'].any()
  bytes_of = jpeg.jpeg_compressibility().score
  plain = jax.jit(lambda x: bytes_of((), RewardInputs(x, {}, 4), keys))(
    inputs.media
  )
  np.testing.assert_allclose(out.parts['pointwise'], plain.score, rtol=1e-6)
  assert set(plain.parts) <= set(out.parts)
  wide = build.build(rewards, dict(name='win_rate', reward=BYTES, tie=1e9))
  out = jax.jit(
    lambda x: wide.score(wide.params, RewardInputs(x, {}, 4), jax.random.key(0))
  )(inputs.media)
  np.testing.assert_array_equal(out.score, 0.5)
  np.testing.assert_array_equal(out.parts['ties'], 1)


@pytest.mark.parametrize('groups_per_call', [0, 1])
def test_on_the_host_groups_stay_whole(groups_per_call):
  media, order = pictures()
  spec = dict(name='win_rate', reward=dict(name='host_jpeg_compressibility'))
  reward = build.build(rewards, spec)
  assert reward.where == 'host'
  outs, metrics = evaluate.evaluate_host(
    {'wins': (reward, 1.0)}, RewardInputs(media, {}, 4), jax.random.key(0),
    groups_per_call=groups_per_call,
  )  # fmt: skip
  assert metrics['reward/invalid'] == 0
  np.testing.assert_allclose(
    outs['wins'].score, 1 - order.reshape(-1) / 3, rtol=1e-6
  )


def test_invalid_rows_and_their_groups(monkeypatch):
  score = jnp.array([1.0, 9.0, 2.0, 3.0, 1.0, 1.0, 1.0, NAN])
  valid = jnp.array([True, False, True, True, True, False, False, True])
  inner = Reward('inner', (), lambda *_: RewardOut(score, {}, valid))
  monkeypatch.setattr(build, 'build', lambda *_: inner)
  reward = pairwise.win_rate(dict(name='inner'))
  out = reward.score((), RewardInputs((), {}, 4), jax.random.key(0))
  # the 9 could not be scored; the second group has one row left
  np.testing.assert_array_equal(
    out.valid, [True, False, True, True, False, False, False, False]
  )
  np.testing.assert_array_equal(out.score[jnp.array([0, 2, 3])], [0, 0.5, 1])
  assert np.isfinite(out.score).all()


def test_says_what_is_wrong():
  with pytest.raises(ConfigError, match='jpeg_compressibility'):
    pairwise.win_rate(dict(name='jpeg_compresibility'))
  with pytest.raises(ConfigError, match='negative'):
    pairwise.win_rate(BYTES, tie=-1.0)
  reward = pairwise.win_rate(BYTES)
  with pytest.raises(ConfigError, match='at least 2'):
    reward.score(
      (), RewardInputs(jnp.zeros((2, 8, 8, 3)), {}, 1), jax.random.key(0)
    )
