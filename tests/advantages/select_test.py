"""Rows that are left out or count for more, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flow_grpo
from gen_rl import (
  advantages,
  assemble,
  build,
  checks,
  objectives,
  testing,
)
from gen_rl.advantages import select

SCORE = [0.0, 2.0, 4.0, 6.0, 1.0, 1.0, 1.0, 5.0]
PLAIN = [-3, -1, 1, 3, -1, -1, -1, 3]  # less their means 3 and 2
X = dict(x=1.0)
EACH = 'dr_grpo'
MADE = dict(
  extremes=dict(high=1.0, low=-1.0),
  pareto={},
  top_bottom=dict(n=1),
  unsolved=dict(threshold=2.5),
  weighted=dict(by='x'),
)


def make(name, size=4, weights=X, each=EACH, **kwargs):
  spec = dict(name=name, each=each, **kwargs)
  return build.build(advantages, spec, group_size=size, reward_weights=weights)


def run(advantage, score, valid=None, **parts):
  """(A [b], weight [b] that does not depend on it, metrics)."""
  out = testing.scored(score, valid)
  parts = {k: np.float32(v) for k, v in (parts or dict(x=score)).items()}
  out = out.replace(parts=parts)
  group = np.zeros(len(score), np.int32)
  adv, weight, _, metrics = jax.jit(advantage.update)(
    out, group, advantage.init()
  )
  return np.asarray(adv[:, 0]), np.asarray(weight), metrics


def test_weights_are_multiplied():
  """By the part; what is below 0 or no number has none."""
  by = [1.0, 0.5, 0.0, -1.0, np.nan, 2.0, np.inf, 3.0]
  adv, weight, metrics = run(
    make('weighted', by='x/sure'), SCORE, **{'x/sure': by}
  )
  np.testing.assert_array_equal(weight, [1, 0.5, 0, 0, 0, 2, 0, 3])
  np.testing.assert_array_equal(adv, [-3, -1, 0, 0, 0, -1, 0, 3])
  assert metrics['advantage/kept_rows'] == 0.5


def test_the_front_of_a_group_and_of_the_batch():
  """Points of the plane; equal ones are on it together."""
  a = [0.0, 1, 2, 2, 5, 5, 0, 0]
  b = [3.0, 2, 1, 0, 0, 0, 4, 9]
  weights = dict(a=1.0, b=1.0)
  found = {}
  for within in ('group', 'batch'):
    advantage = make('pareto', weights=weights, within=within)
    adv, found[within], _ = run(advantage, SCORE, a=a, b=b)
    np.testing.assert_array_equal(adv, PLAIN * found[within])
  np.testing.assert_array_equal(found['group'], [1, 1, 1, 0, 1, 1, 0, 1])
  np.testing.assert_array_equal(found['batch'], [0, 1, 1, 0, 1, 1, 0, 1])
  # of a negative weight less is better
  down = make('pareto', weights=dict(a=1.0, b=-1.0))
  _, weight, _ = run(down, SCORE, a=a, b=b)
  np.testing.assert_array_equal(weight, [0, 0, 0, 1, 1, 1, 0, 0])
  # an invalid row keeps nobody off, nor does one whose part is no number
  lost = np.arange(8) != 2
  _, weight, _ = run(make('pareto', weights=weights), SCORE, lost, a=a, b=b)
  np.testing.assert_array_equal(weight[:4], [1, 1, 0, 1])
  parts = {'a/one': [np.nan, *a[1:]], 'a/two': b}
  of = make('pareto', weights=dict(a=1.0), of=tuple(parts))
  _, weight, _ = run(of, SCORE, **parts)
  np.testing.assert_array_equal(weight[:4], [0, 1, 1, 0])


def test_a_front_of_one_reward_is_refused():
  for each in ('grpo', 'per_reward'):
    with pytest.raises(build.ConfigError, match='several rewards.*is x; name'):
      make('pareto', each=each)


def test_the_front_is_that_of_comparing_all_pairs():
  rng = np.random.default_rng(0)
  points = rng.integers(-3, 1, (40, 3)).astype(np.float32)
  valid = rng.random(40) < 0.8
  alive = np.flatnonzero(valid)
  expected = [
    i in alive
    and not any(
      (points[j] >= points[i]).all() and (points[j] > points[i]).any()
      for j in alive
    )
    for i in range(40)
  ]
  found = jax.jit(select.front)(points, valid)
  np.testing.assert_array_equal(found, expected)


def test_sides():
  advantage = make('extremes', high=3.0, low=-1.0)
  adv, weight, _ = run(advantage, SCORE)
  np.testing.assert_array_equal(weight, [1, 0, 0, 1, 0, 0, 0, 1])
  np.testing.assert_array_equal(adv, [-3, 0, 0, 3, 0, 0, 0, 3])
  _, weight, _ = run(make('extremes', high=1.0, low=None), SCORE)
  np.testing.assert_array_equal(weight, [0, 0, 1, 1, 0, 0, 0, 1])
  _, weight, _ = run(make('extremes', high=None, low=0.0), SCORE)
  np.testing.assert_array_equal(weight, [1, 1, 0, 0, 1, 1, 1, 0])
  with pytest.raises(build.ConfigError, match='low is 1 and high 0'):
    make('extremes', high=0.0, low=1.0)
  with pytest.raises(build.ConfigError, match='keeps no row'):
    make('extremes', high=None, low=None)


def test_ends_of_a_group():
  """Of the three equal ones the last is the worst."""
  _, weight, _ = run(make('top_bottom'), SCORE)
  np.testing.assert_array_equal(weight, [1, 0, 0, 1, 0, 0, 1, 1])
  adv, weight, _ = run(make('top_bottom', n=2), SCORE)
  np.testing.assert_array_equal(weight, 1)
  np.testing.assert_array_equal(adv, PLAIN)
  # of three that are valid
  valid = np.arange(8) != 3
  _, weight, _ = run(make('top_bottom'), SCORE, valid)
  np.testing.assert_array_equal(weight[:4], [1, 0, 1, 0])
  with pytest.raises(build.ConfigError, match='6 rows, and data.group_size is'):
    make('top_bottom', n=3)


def test_solved_groups():
  """Means 3 and 2, deviations 2.236 and 1.732."""
  adv, weight, _ = run(make('unsolved', threshold=2.5), SCORE)
  np.testing.assert_array_equal(weight, [0, 0, 0, 0, 1, 1, 1, 1])
  np.testing.assert_array_equal(adv, np.multiply(PLAIN, weight))
  for spread, kept in ((2.0, 1), (2.5, 0)):
    advantage = make('unsolved', threshold=2.5, spread=spread)
    _, weight, _ = run(advantage, SCORE)
    np.testing.assert_array_equal(weight[:4], kept)
  # of the valid rows alone: 2 of 0 2 4, of which the second is no better
  _, weight, _ = run(make('unsolved', threshold=2.5), SCORE, np.arange(8) != 3)
  np.testing.assert_array_equal(weight, [1, 0, 1, 0, 1, 1, 1, 1])
  by = make('unsolved', threshold=0.9, by='x/right')
  right = [0, 1, 1, 1, 1, 1, 1, 1]
  _, weight, _ = run(by, SCORE, **{'x/right': right})
  np.testing.assert_array_equal(weight, [1, 1, 1, 1, 0, 0, 0, 0])


def test_around_each_other():
  """The choice of B2-DiffuRL: ends of a group that are far from its past."""
  past = dict(name='history', num_prompts=1, min_count=2, eps=0.0)
  ends = dict(name='top_bottom', n=1, each=past)
  advantage = make('extremes', each=ends)
  # all 8 scores: mean 2.5, deviation 2.06
  adv, weight, metrics = run(advantage, SCORE)
  z = (np.array(SCORE) - 2.5) / np.std(SCORE)
  expected = np.array([1, 0, 0, 1, 0, 0, 1, 1])
  np.testing.assert_array_equal(weight, expected)
  np.testing.assert_allclose(adv, z * expected, rtol=1e-6)
  assert metrics['advantage/kept_rows'] == 0.5
  far = make('extremes', high=1.5, low=-1.2, each=ends)
  _, weight, _ = run(far, SCORE)
  np.testing.assert_array_equal(weight, [1, 0, 0, 1, 0, 0, 0, 0])


@pytest.mark.parametrize('name', MADE)
def test_of_any_rows(name):
  """Lost rows, ties, orders, shifts; the weight is never that of a lost row."""
  kwargs, weights = MADE[name], dict(x=1.0, y=1.0)
  advantage = make(name, weights=weights, **kwargs)
  score, valid = testing.ragged(3, 6, 4)
  clean = np.where(valid, score, 0.0)
  rng = np.random.default_rng(0)
  y = rng.random(24)
  adv, weight, metrics = run(advantage, clean, valid, x=clean, y=y)
  assert np.isfinite(adv).all() and (weight >= 0).all()
  assert (weight[~valid] == 0).all() and (adv[weight == 0] == 0).all()
  assert 0 < (weight > 0).sum() < valid.sum()
  assert all(np.isfinite(x) for x in metrics.values())
  lost = run(advantage, score, valid, x=score, y=y)
  np.testing.assert_array_equal(lost[0], adv)
  np.testing.assert_array_equal(lost[1], weight)
  order = np.arange(24).reshape(6, 4)[rng.permutation(6)]
  order = rng.permuted(order, axis=1).reshape(-1)
  moved = run(advantage, clean[order], valid[order], x=clean[order], y=y[order])
  testing.assert_close(moved[0], adv[order])
  testing.assert_close(moved[1], weight[order])
  if name not in ('weighted', 'unsolved'):  # which ask for the score itself
    shift = clean + 3
    np.testing.assert_array_equal(
      run(advantage, shift, valid, x=shift, y=y)[1], weight
    )
  equal = np.full(24, 2.0)
  _, none, _ = run(advantage, equal, x=equal, y=y)
  np.testing.assert_array_equal(none, 0)  # of `each`


@pytest.mark.parametrize('name', MADE)
def test_what_is_inside_stays(name):
  """Decisions of their own, values that are asked for, and refusals."""
  weights = dict(x=1.0, y=1.0)
  assert make(name, weights=weights, each='turning_points', **MADE[name])[2]
  gae = make(name, weights=weights, each='gae', **MADE[name])
  assert gae.values == 'value' and gae.selects and not gae.mixes
  out = testing.scored(SCORE)
  out = out.replace(parts=dict(x=out.score, y=out.score[::-1]))
  ones = np.ones((8, 3), np.float32)
  adv, weight, *_ = jax.jit(gae.update)(
    out, np.zeros(8, np.int32), (), ones, ones
  )
  assert adv.shape == (8, 3) and weight.shape == (8,)
  assert make(name, weights=weights, each='per_reward', **MADE[name]).mixes


def test_parts_that_are_not_there():
  for name in ('weighted', 'unsolved'):
    kwargs = {**MADE[name], 'by': 'y'}
    with pytest.raises(build.ConfigError, match="'y' is no reward with a weig"):
      make(name, **kwargs)
    advantage = make(name, **{**MADE[name], 'by': 'x/rigth'})
    with pytest.raises(build.ConfigError, match="did you mean 'x/right'"):
      run(advantage, SCORE, **{'x/right': SCORE})
  with pytest.raises(build.ConfigError, match="'y' is no reward"):
    make('pareto', of=('x', 'y/part'))


def test_what_does_not_go_with_a_choice():
  """One sentence before step 0, with other advantages inside, too."""
  c = flow_grpo.get_config('tiny')
  c.rewards.other = dict(name='saturation', weight=0.5)
  built = assemble.setup(c)
  assert len(built.rewards) == 2
  layout = assemble.make_layout(c, built)

  def said(advantage, mix='weighted_sum', objective='awm'):
    with c.unlocked():
      c.advantage = advantage
      c.mix = dict(name=mix)
      c.objective = dict(pg=dict(name=objective, weight=1.0))
    try:
      assemble.make_step(c, built, layout)
    except build.ConfigError as error:
      return str(error)
    return ''

  each = dict(name='per_reward')
  assert not said(dict(name='pareto', each=each))
  assert not said(dict(name='pareto', each='grpo'), 'product')
  assert 'the advantage pareto has one of each' in said(
    dict(name='pareto', each=each), 'product'
  )
  chosen = dict(name='top_bottom', n=1)
  assert 'rwr counts every row' in said(chosen, objective='rwr')
  assert not said(dict(name='grpo'), objective='rwr')


def test_all_mistakes_of_a_config_at_once():
  """The rewards are known there: of two a front is none of them."""
  c = flow_grpo.get_config('tiny')
  c.advantage = dict(name='pareto')
  c.aggregate = 'mean_of_all'
  said = str(checks.explain(build.ConfigError('first'), c))
  assert 'pareto compares several rewards' in said and 'mean_of_all' in said
  c.rewards.other = dict(name='saturation', weight=0.5)
  said = str(checks.explain(build.ConfigError('first'), c))
  assert 'pareto' not in said and 'mean_of_all' in said


def test_a_step_is_that_of_the_rows_that_are_left():
  """Weights of any unit; a value as of a loss that counts rows by them."""
  found = []
  for scale in (1.0, 1e-4):
    reward = testing.color_reward()

    def score(params, inputs, key, reward=reward, scale=scale):
      out = reward.score(params, inputs, key)
      sure = scale * (jnp.arange(len(out.score)) % 3)
      return out.replace(parts=dict(sure=sure.astype(jnp.float32)))

    step, state = testing.make_step(
      terms=dict(pg=(objectives.clipped_pg(1e-2, on_policy=True), 1.0)),
      reward=reward._replace(score=score),
      advantage=make('weighted', weights=dict(color=1.0), by='color/sure'),
      tx=testing.LINEAR,
      microbatches=2,
    )
    state, logs = testing.run(step, state, 1)
    found.append(state.params)
    assert 0.5 < logs[0]['advantage/kept_rows'] < 0.75
  testing.assert_same(*found)
