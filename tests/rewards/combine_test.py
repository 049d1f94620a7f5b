"""The weighted sum by hand, masks, gradients, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.rewards import combine
from gen_rl.types import Learner, Reward, RewardInputs, RewardOut

KEY = jax.random.key(0)
INPUTS = RewardInputs(np.full((4, 2, 2, 3), 0.5, np.float32), {}, 2)


def _const(name, scores, valid=None, where='device', parts=None, **kw):
  scores = np.array(scores, np.float32)

  def score(params, inputs, key):
    good = np.ones(len(scores), bool) if valid is None else np.array(valid)
    return RewardOut(scores + params, parts or {}, good)

  return Reward(name, np.float32(0), score, where, **kw)


def test_weighted_sum_by_hand():
  a = _const('a', [1, 2, 3, 4], parts={'half': np.full(4, 0.5)})
  b = _const('b', [10, 20, 30, 40], valid=[True, True, True, False])
  reward = combine.combine({'x': (a, 2.0), 'y': (b, -0.1)})
  out = reward.score(reward.params, INPUTS, KEY)
  # 2 - 1, 4 - 2, 6 - 3; the last row is invalid as a whole
  np.testing.assert_allclose(out.score, [1, 2, 3, 0], rtol=1e-6)
  assert np.asarray(out.valid).tolist() == [True, True, True, False]
  assert sorted(out.parts) == ['x', 'x/half', 'y']
  np.testing.assert_allclose(out.parts['y'], [10, 20, 30, 0])  # unweighted
  metrics = combine.summarize(out)
  assert metrics['reward/score'] == pytest.approx(2)
  assert metrics['reward/x'] == pytest.approx(2)
  assert metrics['reward/y'] == pytest.approx(20)
  assert metrics['reward/std'] == pytest.approx(np.std([1, 2, 3]))
  assert metrics['reward/invalid'] == 1


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_score_that_is_not_finite_is_invalid(bad):
  a, b = _const('a', [1, 2, 3, 4]), _const('b', [1, bad, 1, 1])
  outs = {
    k: r.score(r.params, INPUTS, KEY) for k, r in {'a': a, 'b': b}.items()
  }
  out = jax.jit(lambda o: combine.merge(o, {'a': 1.0, 'b': 1.0}))(outs)
  assert np.asarray(out.valid).tolist() == [True, False, True, True]
  np.testing.assert_allclose(out.score, [2, 0, 4, 5])
  assert np.isfinite(out.parts['b']).all()


def test_invalid_rows_have_no_gradient():
  def total(x):
    score = jnp.sqrt(x)  # NaN and an infinite slope at x <= 0
    out = RewardOut(score, {}, x > 0)
    return combine.merge({'a': out}, {'a': 3.0}).score.sum()

  grad = jax.grad(total)(jnp.array([4.0, 1.0]))
  np.testing.assert_allclose(grad, [0.75, 1.5])


def test_rewards_of_steps_add_up():
  steps = np.arange(8, dtype=np.float32).reshape(4, 2)
  plain = RewardOut(np.ones(4), {}, np.ones(4, bool))
  outs = {'a': plain.replace(steps=steps), 'b': plain}
  out = combine.merge(outs, {'a': 0.5, 'b': 1.0})
  np.testing.assert_allclose(out.steps, steps / 2)
  assert combine.merge({'b': plain}, {'b': 1.0}).steps is None
  steps[2, 0] = np.nan
  out = combine.merge(outs, {'a': 0.5, 'b': 1.0})
  assert np.asarray(out.valid).tolist() == [True, True, False, True]
  assert np.isfinite(out.steps).all()


def test_split_and_places():
  device = _const('a', [0], differentiable=True)
  host = _const('b', [0], where='host')
  off = _const('c', [0])
  rewards = {'a': (device, 1.0), 'b': (host, 2.0), 'c': (off, 0.0)}
  on, out = combine.split(rewards)
  assert (list(on), list(out)) == (['a'], ['b'])
  assert combine.weights(rewards) == {'a': 1.0, 'b': 2.0}
  assert list(combine.params(rewards)) == ['a', 'b']
  assert combine.combine(rewards).where == 'host'
  assert not combine.combine(rewards).differentiable
  alone = combine.combine({'a': (device, 1.0)})
  assert alone.where == 'device' and alone.differentiable


def test_a_verdict_is_one_alone():
  verdict = _const('v', [1, 0, 0, 1], verdict=True)
  score = _const('s', [1, 2, 3, 4])
  assert combine.combine({'v': (verdict, 1.0)}).verdict
  assert combine.combine({'v': (verdict, 1.0), 's': (score, 0.0)}).verdict
  assert not combine.combine({'v': (verdict, 0.5)}).verdict
  assert not combine.combine({'v': (verdict, 1.0), 's': (score, 1.0)}).verdict
  assert not combine.combine({'v': (verdict, 1.0), 'w': (verdict, 1.0)}).verdict
  assert not combine.combine({'s': (score, 1.0)}).verdict


def test_scored_apart_is_scored_together():
  """split + merge, the way of the train step, is combine."""
  a, b = _const('a', [1, 2, 3, 4]), _const('b', [5, 6, 7, 8], where='host')
  rewards = {'a': (a, 0.3), 'b': (b, 0.7)}
  whole = combine.combine(rewards)
  device, host = combine.split(rewards)
  outs = {
    label: reward.score(reward.params, INPUTS, KEY)
    for label, (reward, _) in (device | host).items()
  }
  merged = combine.merge(outs, combine.weights(rewards))
  np.testing.assert_array_equal(
    merged.score, whole.score(whole.params, INPUTS, KEY).score
  )


def test_key_of_a_reward_ignores_the_others():
  def noisy(params, inputs, key):
    noise = jax.vmap(jax.random.normal)(key)
    return RewardOut(noise, {}, np.ones(4, bool))

  noisy = Reward('noisy', (), noisy)
  keys = jax.random.split(KEY, 4)
  other = _const('other', [1, 1, 1, 1])
  alone = combine.combine({'n': (noisy, 1.0)})
  both = combine.combine({'a': (other, 1.0), 'n': (noisy, 1.0)})
  twice = combine.combine({'n': (noisy, 1.0), 'm': (noisy, 1.0)})
  first = alone.score(alone.params, INPUTS, keys).score
  second = both.score(both.params, INPUTS, keys).parts['n']
  np.testing.assert_array_equal(first, second)
  parts = twice.score(twice.params, INPUTS, keys).parts
  assert not np.any(parts['n'] == parts['m'])


# two groups of three; advantages of the first follow monitor `a`, those of the
# second are the opposite; the last row could not be scored
WATCHED = dict(
  adv=[[1.0], [0.0], [-1.0], [2.0], [-2.0], [9.0]],
  a=[3.0, 2.0, 1.0, 10.0, 14.0, np.nan],
)


def test_monitors_by_hand():
  adv = jnp.array(WATCHED['adv'])
  valid = jnp.array([True] * 5 + [False])
  score = jnp.array(WATCHED['a'])
  a = RewardOut(score, {'half': score / 2}, jnp.isfinite(score))
  flat = RewardOut(jnp.full(6, 0.1), {}, jnp.ones(6, bool))
  metrics = combine.watch(dict(a=a, flat=flat), adv, valid, 3)
  # less the mean of a group: 1 0 -1 | -2 2; advantages 1 0 -1 2 -2, mean 0
  corr = (1 + 0 + 1 - 4 - 4) / np.sqrt((1 + 1 + 4 + 4) * (1 + 1 + 4 + 4))
  assert metrics['monitor/a/advantage_corr'] == pytest.approx(corr)  # -.6
  assert metrics['monitor/a'] == pytest.approx(6)
  assert metrics['monitor/a/half'] == pytest.approx(3)
  assert metrics['monitor/flat'] == pytest.approx(0.1)
  assert metrics['monitor/a/equal_share'] == 0
  assert metrics['monitor/flat/equal_share'] == 1
  # only the first group's scores are equal: 1 + 0 + 1 of 2 + 4 + 4
  half = RewardOut(jnp.array([7.0, 7, 7, 1, 2, 3]), {}, jnp.ones(6, bool))
  metrics |= combine.watch(dict(half=half), adv, valid, 3)
  assert metrics['monitor/half/equal_share'] == pytest.approx(0.2)
  # nothing to follow: neither 0 nor what rounding says
  assert np.isnan(metrics['monitor/flat/advantage_corr'])
  assert combine.watch({}, adv, valid, 3) == {}


def test_monitor_of_itself_and_of_decisions():
  score = jax.random.normal(KEY, (12,))
  out = RewardOut(score, {}, jnp.ones(12, bool))
  centred = score.reshape(-1, 4) - score.reshape(-1, 4).mean(-1, keepdims=True)
  adv = 3 * centred.reshape(-1, 1)
  corr = lambda adv: combine.watch(
    dict(m=out), adv, jnp.ones(12, bool), 4
  )['monitor/m/advantage_corr']  # fmt: skip
  assert corr(adv) == pytest.approx(1, abs=1e-6)
  assert corr(-adv + 5) == pytest.approx(-1, abs=1e-6)
  # every decision with an advantage of its own: their mean counts
  assert corr(adv * jnp.array([0.0, 1.0, 5.0])) == pytest.approx(1, abs=1e-6)


def test_says_what_is_wrong():
  a = _const('a', [0])
  with pytest.raises(ValueError, match='no reward has a weight'):
    combine.combine({'a': (a, 0.0)})
  with pytest.raises(ValueError, match="'a' has the weight nan"):
    combine.split({'a': (a, float('nan'))})
  with pytest.raises(ValueError, match='"device" or "host"'):
    combine.split({'a': (a._replace(where='moon'), 1.0)})
  with pytest.raises(ValueError, match="'a' needs"):
    combine.split({'a': (a._replace(needs=('saw',)), 1.0)})
  with pytest.raises(ValueError, match='do not match'):
    combine.merge({}, {'a': 1.0})


def test_a_trained_reward_without_its_learner():
  learner = Learner(lambda key: 0.0, lambda *_: 0.0, {})
  held = _const('a', [1] * 4, learner=learner)
  reward = combine.combine({'real': (held, 1.0)})
  with pytest.raises(ValueError, match="'real' is trained with the policy"):
    reward.score(reward.params, INPUTS, KEY)
