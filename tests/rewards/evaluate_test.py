"""Host rewards that raise, hang, return NaN; device rewards under jit."""

import time

from absl import logging
import jax
import numpy as np
import pytest

from gen_rl.rewards import combine, evaluate, outcomes
from gen_rl.types import Reward, RewardInputs, RewardOut
from gen_rl.utils import tasks

KEY = jax.random.key(0)
INPUTS = RewardInputs(
  np.linspace(0, 1, 8 * 12, dtype=np.float32).reshape(8, 2, 2, 3),
  {'target': np.arange(8)},
  2,
)


def _host(score, name='host'):
  return Reward(name, (), score, where='host')


def _mean(params, inputs, key):
  score = inputs.media.mean((1, 2, 3)) + inputs.info['target']
  return RewardOut(score, {'target': inputs.info['target']}, score >= 0)


EXPECTED = _mean((), INPUTS, KEY).score


@pytest.fixture
def warnings(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda m, *a: lines.append(m % a))
  monkeypatch.setattr(evaluate, '_failures', {})
  return lines


@pytest.mark.parametrize('groups_per_call', [0, 1, 3])
def test_host_scores_in_row_order(groups_per_call):
  outs, metrics = evaluate.evaluate_host(
    {'a': (_host(_mean), 1.0)}, INPUTS, KEY, groups_per_call=groups_per_call
  )
  np.testing.assert_allclose(outs['a'].score, EXPECTED, rtol=1e-6)
  assert outs['a'].valid.all() and isinstance(outs['a'].score, np.ndarray)
  np.testing.assert_array_equal(outs['a'].parts['target'], np.arange(8))
  assert metrics['reward/invalid'] == 0


def test_failures_are_invalid_rows_and_counted(warnings):
  def raises(params, inputs, key):
    if 2 in inputs.info['target']:
      raise RuntimeError('no such font')
    return _mean(params, inputs, key)

  def hangs(params, inputs, key):
    if 4 in inputs.info['target']:
      time.sleep(5)
    return _mean(params, inputs, key)

  def nan(params, inputs, key):
    out = _mean(params, inputs, key)
    bad = inputs.info['target'] == 0
    return out.replace(score=np.where(bad, np.nan, out.score))

  rewards = {
    name: (_host(f, name), 1.0)
    for name, f in {
      'raises': raises,
      'hangs': hangs,
      'nan': nan,
      'good': _mean,
    }.items()
  }
  start = time.monotonic()
  for _ in range(2):
    outs, metrics = evaluate.evaluate_host(
      rewards, INPUTS, KEY, timeout=0.5, groups_per_call=1
    )
  assert time.monotonic() - start < 4  # nobody waits for the sleeper
  valid = {name: out.valid.astype(int).tolist() for name, out in outs.items()}
  assert valid == {
    'raises': [1, 1, 0, 0, 1, 1, 1, 1],
    'hangs': [1, 1, 1, 1, 0, 0, 1, 1],
    'nan': [0, 1, 1, 1, 1, 1, 1, 1],
    'good': 8 * [1],
  }
  assert metrics == {
    'reward/raises/invalid': 2,
    'reward/hangs/invalid': 2,
    'reward/nan/invalid': 1,
    'reward/good/invalid': 0,
    'reward/invalid': 5,
  }
  for out in outs.values():  # never a silent zero
    assert not np.any(out.score[~out.valid] == 0)
    np.testing.assert_allclose(
      out.score[out.valid], EXPECTED[out.valid], rtol=1e-6
    )
  # Each reason once, although it happened twice.
  assert len(warnings) == 3
  text = '\n'.join(warnings)
  for reason in (
    'raises failed: RuntimeError: no such font',
    'hangs failed: TimeoutError: no answer within 0.5 s',
    'nan failed: ValueError: 1 of 2 scores are not finite',
  ):
    assert reason in text
  merged = combine.merge(outs, combine.weights(rewards))
  assert np.asarray(merged.valid).sum() == 3
  assert np.isfinite(merged.score).all()


def test_hanging_calls_give_their_place_away(warnings):
  def hangs(params, inputs, key):
    if inputs.info['target'][0] < 4:
      time.sleep(5)
    return _mean(params, inputs, key)

  outs, _ = evaluate.evaluate_host(
    {'a': (_host(hangs), 1.0)},
    INPUTS,
    KEY,
    timeout=0.4,
    workers=1,
    groups_per_call=1,
  )
  assert outs['a'].valid.tolist() == 4 * [False] + 4 * [True]


def test_an_answer_that_is_none_ends_the_run():
  good = _mean((), INPUTS, KEY)
  wrong = good.replace(score=good.score[:, None])
  with pytest.raises(outcomes.RewardError, match=r"'a' .* shape \[8, 1\]"):
    evaluate.evaluate_host({'a': (_host(lambda *_: wrong), 1.0)}, INPUTS, KEY)
  device = Reward('a', (), lambda *_: wrong)
  with pytest.raises(outcomes.RewardError, match=r"'a' .* shape \[8, 1\]"):
    jax.jit(lambda x: evaluate.evaluate({'a': (device, 1.0)}, x, KEY))(INPUTS)


def test_whatever_is_raised_is_a_failure(warnings):
  class Mute(Exception):
    def __str__(self):
      raise RuntimeError

  errors = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Mute()]
  errors.append(ValueError('\x1b[31mred\r\n\nline'))

  def score(params, inputs, key):
    raise errors.pop(0)

  for _ in range(len(errors)):
    outs, _ = evaluate.evaluate_host({'a': (_host(score), 1.0)}, INPUTS, KEY)
    assert not outs['a'].valid.any()
  assert evaluate.failure('a') == r'ValueError: \x1b[31mred line'
  assert evaluate.failure('b') == '' and len(warnings) == 5


def test_what_a_reward_writes_is_seen_by_nobody_else():
  def writes(params, inputs, key):
    out = _mean(params, inputs, key)
    inputs.media[...] = 9
    inputs.info['target'][...] = 9
    return out

  rewards = {'a': (_host(writes), 1.0), 'b': (_host(_mean), 1.0)}
  outs, _ = evaluate.evaluate_host(rewards, INPUTS, KEY, workers=1)
  for out in outs.values():
    np.testing.assert_allclose(out.score, EXPECTED, rtol=1e-6)


def test_rewards_of_steps_of_several_shapes():
  def score(params, inputs, key):
    side = 2 + (inputs.info['target'][0] == 0)
    steps = np.ones((2, side), np.float32)
    return _mean(params, inputs, key).replace(steps=steps)

  with pytest.raises(outcomes.RewardError, match="'a' .* several shapes"):
    evaluate.evaluate_host(
      {'a': (_host(score), 1.0)}, INPUTS, KEY, groups_per_call=1
    )


def test_device_rewards_under_jit_with_params_as_arguments():
  def score(params, inputs, key):
    x = params * inputs.media.mean((1, 2, 3))
    return RewardOut(x, {}, x >= 0)

  rewards = {
    'a': (Reward('a', np.float32(2), score), 1.0),
    'off': (Reward('off', np.float32(np.nan), score), 0.0),
  }

  @jax.jit
  def step(params, media):
    inputs = INPUTS.replace(media=media)
    return evaluate.evaluate(rewards, inputs, KEY, params)

  media = INPUTS.media.copy()
  media[3] = np.nan
  for factor in (2, 5):
    outs = step({'a': np.float32(factor)}, media)
    assert list(outs) == ['a']
    want = factor * media.mean((1, 2, 3))
    np.testing.assert_allclose(outs['a'].score, want, rtol=1e-6)
    assert np.asarray(outs['a'].valid).tolist() == [
      True,
      True,
      True,
      False,
      True,
      True,
      True,
      True,
    ]


def test_places():
  host = {'h': (_host(_mean), 1.0)}
  with pytest.raises(ValueError, match="'h' runs on the host"):
    evaluate.evaluate(host, INPUTS, KEY)


def test_a_reward_for_some_tasks():
  """On the device and the host, beside what it says of where it applies."""
  task = np.array([tasks.task_code(name) for name in 'aabbccdd'], np.int32)
  inputs = INPUTS.replace(info=dict(INPUTS.info, task_code=task))

  def score(params, inputs, key):
    applies = inputs.info['target'] != 0
    return _mean(params, inputs, key).replace(applies=applies)

  own = _host(score)._replace(tasks=('a', 'c', 'nobody'))
  host, _ = evaluate.evaluate_host(dict(own=(own, 1.0)), inputs, KEY)
  own = own._replace(where='device')
  device = jax.jit(
    lambda x: evaluate.evaluate(
      dict(own=(own, 1.0)), inputs.replace(media=x), KEY
    )
  )(inputs.media)
  both = combine.combine(dict(own=(own, 2.0), all=(_host(_mean), 1.0)))
  where = np.array([0, 1, 0, 0, 1, 1, 0, 0], bool)
  for out in (host['own'], device['own']):
    np.testing.assert_array_equal(out.applies, where)
    np.testing.assert_allclose(out.score, where * EXPECTED, rtol=1e-6)
    assert np.asarray(out.valid).all()
  total = both.score(both.params, inputs, KEY).score
  np.testing.assert_allclose(total, (1 + 2 * where) * EXPECTED, rtol=1e-6)
  with pytest.raises(outcomes.RewardError, match='a, c, nobody, and these'):
    evaluate.evaluate_host(
      dict(own=(_host(score)._replace(tasks=own.tasks), 1.0)), INPUTS, KEY
    )


@pytest.mark.parametrize(
  'on, calls', [('rows', 4), ('groups', 4), ('batch', 1)]
)
def test_a_call_holds_what_a_reward_compares(on, calls):
  sizes = []

  def score(params, inputs, key):
    sizes.append(len(inputs.media))
    return _mean(params, inputs, key)

  reward = _host(score)._replace(called_on=on)
  outs, _ = evaluate.evaluate_host(
    dict(a=(reward, 1.0)), INPUTS, KEY, groups_per_call=1
  )
  assert sizes == [8 // calls] * calls
  np.testing.assert_allclose(outs['a'].score, EXPECTED, rtol=1e-6)
