"""How scores become one, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flow_grpo
from gen_rl import assemble, build, mixers, objectives, testing
from gen_rl.build import ConfigError
from gen_rl.rewards import combine
from gen_rl.types import RewardOut

WEIGHTS = dict(a=1.0, b=2.0)
ALL = dict(
  base_bonus=mixers.base_bonus('a'),
  gated=mixers.gated('a'),
  group_range=mixers.group_range(),
  log_tame=mixers.log_tame(),
  product=mixers.product(),
  tiered=mixers.tiered(dict(a=1, b=2)),
  weighted_sum=mixers.weighted_sum(),
)


def out(score, valid=None, applies=None, **kwargs):
  score = jnp.asarray(score, jnp.float32)
  valid = jnp.ones(len(score), bool) if valid is None else jnp.asarray(valid)
  applies = None if applies is None else jnp.asarray(applies)
  parts = kwargs.pop('parts', {})
  return RewardOut(score, parts, valid, applies=applies, **kwargs)


def merged(mix, *outs, size=1, weights=WEIGHTS):
  outs = dict(zip(weights, outs, strict=True))
  merge = jax.jit(lambda outs: combine.merge(outs, weights, mix, size))
  return np.asarray(merge(outs).score)


def test_all_are_tested():
  assert sorted(ALL) == build.names(mixers)


def test_a_product():
  """Of 0.5^1 0.4^2, of 1^1 floor^2, and of the one that applies."""
  a = out([0.5, 1.0, 0.25])
  b = out([0.4, 0.0, 0.0], applies=[True, True, False])
  found = merged(mixers.product(floor=0.1), a, b)
  np.testing.assert_allclose(found, [0.5 * 0.16, 0.01, 0.25], rtol=1e-5)
  gone = merged(mixers.product(), out([0.5, 1.0, 1.0], (False, True, True)), b)
  assert gone[0] == 0  # of a row without a score nothing is left
  huge = merged(mixers.product(), out([1e15]), out([1e15]))
  np.testing.assert_allclose(huge, [1e15], rtol=1e-4)


def test_a_gate():
  """2 b counts where a is at least 0.5, or does not apply."""
  a = out([0.4, 0.5, 0.0], applies=[True, True, False])
  b = out([3.0, 3.0, 3.0])
  found = merged(mixers.gated('a', 0.5, closed=-1.0), a, b)
  np.testing.assert_allclose(found, [0.4 - 1, 0.5 + 6, 6], rtol=1e-6)
  with pytest.raises(ConfigError, match="gate names 'c', .* there are a, b"):
    merged(mixers.gated('c'), a, b)


def test_a_part_opens_and_adds_nothing():
  """A row whose part is no number could not be scored."""
  parts = dict(right=np.float32([0, 1, np.nan, 0]))
  a = out([1.0, 1, 1, 0], parts=parts, applies=[True, True, True, False])
  b = out([3.0, 3.0, 3.0, 3.0])
  found = merged(mixers.gated('a/right'), a, b)
  np.testing.assert_allclose(found, [0, 7, 0, 6])
  valid = combine.merge(dict(a=a, b=b), WEIGHTS, mixers.gated('a/right')).valid
  np.testing.assert_array_equal(valid, [True, True, False, True])
  found = merged(mixers.base_bonus('a/right', 0.5), a, b)
  # (a + 2 b) / 3 = 7 / 3 of those that apply, 3 of b alone
  np.testing.assert_allclose(found, [0, 0.5 + 7 / 6, 0, 0.5 + 1.5], rtol=1e-6)
  with pytest.raises(ConfigError, match="did you mean 'a/right'"):
    merged(mixers.gated('a/rigth'), a, b)


def test_a_bonus_on_a_base():
  """FIRM's Exec (0.6 + 0.4 Cons): nothing for a copy of the input."""
  a, b = out([0.0, 0.5, 1.0, 1.0]), out([1.0, 1.0, 0.0, 0.5])
  found = merged(mixers.base_bonus('a', 0.4), a, b)
  np.testing.assert_allclose(found, [0, 0.5, 0.6, 0.8], rtol=1e-6)
  # what does not apply is 1; the weight of b is its share of the bonus
  c = out([0.25, 0.25, 0.25, 0.25], applies=[True, False, True, False])
  b = out([1.0, 1.0, 1.0, 0.0], applies=[True, True, False, False])
  a = out([1.0, 1.0, 0.0, 0.5], applies=[True, True, False, True])
  weights = dict(a=3.0, b=2.0, c=1.0)
  found = merged(mixers.base_bonus('a', 0.4), a, b, c, weights=weights)
  expected = [3 * (0.6 + 0.4 * 2.25 / 3), 3, 3 * (0.6 + 0.4 * 0.25), 1.5]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  with pytest.raises(ConfigError, match='2 rewards or more, and there is a al'):
    merged(mixers.base_bonus('a'), a, weights=dict(a=1.0))


def test_the_reward_with_the_larger_spread_is_tamed():
  """a has h = 1/2, b h = 3/5 and then 1: above the mean of both."""
  a, b = out([1.0, 3.0]), out([2.0, 8.0])
  found = merged(mixers.log_tame(), a, b)
  expected = [1 + 2 * np.log(3), 3 + 2 * np.log(9)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  found = merged(mixers.log_tame(0.4), a, b)
  expected = [np.log(2) + 2 * np.log(3), np.log(4) + 2 * np.log(9)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(merged(mixers.log_tame(0.7), a, b), [5, 19])
  # below 0 the function is odd
  found = merged(mixers.log_tame(0.4), out([1.0, -3.0]), out([0.0, 0.0]))
  np.testing.assert_allclose(found, [np.log(2), -np.log(4)], rtol=1e-6)
  # none of several equal ones is above their mean
  same = out([0.3, 0.7, 0.1])
  weights = dict(a=1.0, b=1.0, c=1.0)
  found = merged(mixers.log_tame(), same, same, same, weights=weights)
  np.testing.assert_allclose(found, 3 * same.score, rtol=1e-6)


def test_spreads_of_those_that_apply_and_of_groups():
  a = out([1.0, 3.0, 0.0, 1.0], valid=[True, True, False, True])
  b = out([2.0, 8.0, 1.0, 1.0], applies=[True, True, True, False])
  # a: mean 5/3, sd .943, h .566; b of its two: .6
  found = merged(mixers.log_tame(), a, b)
  expected = [1 + 2 * np.log(3), 3 + 2 * np.log(9), 0, 1]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # by itself a group of equal scores has nothing to tame
  mix = mixers.log_tame(0.4, within='group')
  found = merged(mix, out([1.0, 3, 5, 5]), out([7.0, 7, 2, 8]), size=2)
  expected = [np.log(2) + 14, np.log(4) + 14, 5 + np.log(9), 5 + 2 * np.log(9)]
  expected[2] = 5 + 2 * np.log(3)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_places_in_the_range_of_a_group():
  """Halves where scores are equal; an invalid row is no end of a range."""
  a = out([1.0, 3.0, 2.0, 5.0, 5.0, 5.0])
  b = out(
    [0.0, 90.0, 10.0, 7.0, 8.0, 0.0],
    valid=[True, False, True, True, True, True],
    applies=[True] * 5 + [False],
  )
  found = merged(mixers.group_range(), a, b, size=3)
  expected = [0, 0, 1 + 2, 0.5, 0.5 + 2, 0.5]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_tiers():
  """Format, verdict, tool: 0 .3 1 1.5, and what is not met ends it."""
  weights = dict(form=0.3, right=0.7, tool=0.5)
  tiers = mixers.tiered(dict(form=1, right=2, tool=3))
  form = out([0.0, 1, 1, 1, 0], applies=[True] * 4 + [False])
  right, tool = out([1.0, 0, 1, 1, 1]), out([1.0, 1, 0, 1, 1])
  found = merged(tiers, form, right, tool, weights=weights)
  np.testing.assert_allclose(found, [0, 0.3, 1.0, 1.5, 1.2], rtol=1e-6)
  # two of a tier have both to be met, each at its own threshold
  own = mixers.tiered(dict(form=1, right=1, tool=7), 0.5, dict(right=1.5))
  found = merged(own, form, right, tool, weights=weights)
  np.testing.assert_allclose(found, [0.7, 0.3, 1, 1, 0.7], rtol=1e-6)
  with pytest.raises(ConfigError, match='leaves out right; every reward'):
    merged(
      mixers.tiered(dict(form=1)), form, right, weights=dict(form=1, right=1)
    )
  with pytest.raises(ConfigError, match="'from', .*did you mean 'form'"):
    mixers.tiered(dict(form=1), thresholds=dict(**{'from': 0.1}))


def test_a_tier_that_is_met_never_costs():
  rng = np.random.default_rng(0)
  low, high = rng.random((2, 64))
  high = np.maximum(low, high)
  more = out(rng.random(64))
  mix = mixers.tiered(dict(a=1, b=2), 0.6)
  assert (merged(mix, out(high), more) >= merged(mix, out(low), more)).all()


@pytest.mark.parametrize('name', ALL)
def test_of_any_rows(name):
  """Finite scores and gradients; rows and groups in any order; lost rows."""
  mix, size = ALL[name], 4
  rng = np.random.default_rng(1)
  a, b = rng.random((2, 24)).astype(np.float32)
  a[:8], b[4:12] = 0.0, 0.0  # a group of zeros, and of equal scores
  valid = rng.random(24) < 0.8
  valid[12:16] = False
  about = rng.random(24) < 0.8  # what b is

  @jax.jit
  def total(a, b, valid, about):
    outs = dict(a=out(a, valid), b=out(b, applies=about))
    score = combine.merge(outs, WEIGHTS, mix, size).score
    return score.sum(), score

  graded = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  (_, score), grads = graded(a, b, valid, about)
  assert np.isfinite(score).all() and np.isfinite(grads).all()
  assert np.abs(grads[0]).sum() > 0
  lost = np.where(valid, a, np.nan)
  (_, same), same_grads = graded(lost, b, valid, about)
  np.testing.assert_array_equal(same, score)
  np.testing.assert_array_equal(same_grads, grads)
  # members among themselves, and groups
  order = np.arange(24).reshape(6, 4)[rng.permutation(6)]
  order = rng.permuted(order, axis=1).reshape(-1)
  _, moved = total(*(x[order] for x in (a, b, valid, about)))
  testing.assert_close(moved, score[order])


def test_which_do_not_see_the_unit_of_a_score():
  rng = np.random.default_rng(2)
  a, b = rng.random((2, 12))
  mix = mixers.group_range(eps=0.0)
  found = merged(mix, out(a), out(b), size=3)
  other = merged(mix, out(7 * a - 2), out(b), size=3)
  np.testing.assert_allclose(found, other, atol=1e-5)


def test_a_gradient_by_hand():
  """d (a (.6 + .4 b)) and, with the range held fixed, 1 and 2 over it."""

  def grads(mix, a, b, size=1):
    def total(a, b):
      outs = dict(a=out(a), b=out(b))
      return combine.merge(outs, WEIGHTS, mix, size).score.sum()

    a, b = jnp.float32(a), jnp.float32(b)
    return testing.grad(total, argnums=(0, 1))(a, b)

  da, db = grads(mixers.base_bonus('a', 0.4), [0.0, 0.5], [1.0, 0.25])
  np.testing.assert_allclose(da, [1, 0.7], rtol=1e-6)
  np.testing.assert_allclose(db, [0, 0.2], rtol=1e-6)
  da, db = grads(mixers.group_range(0.0), [0.0, 4.0], [3.0, 3.0], 2)
  np.testing.assert_allclose(da, [0.25, 0.25])
  np.testing.assert_allclose(db, [0, 0])
  da, db = grads(mixers.log_tame(0.1), [0.0, 1.0], [-1.0, 1.0])
  np.testing.assert_allclose(da, [1, 0.5])
  np.testing.assert_allclose(db, [1, 1])


def test_the_default_is_the_weighted_sum():
  a, b = out([1.0, 2.0, 3.0]), out([0.5, 0.0, 1.0])
  np.testing.assert_allclose(merged(None, a, b), [2, 2, 5])
  np.testing.assert_array_equal(
    merged(mixers.weighted_sum(), a, b), merged(None, a, b)
  )


def test_rewards_of_decisions_are_summed():
  a = out([1.0, 2.0, 3.0], steps=jnp.ones((3, 2)))
  with pytest.raises(ConfigError, match='weighted_sum'):
    merged(mixers.product(), a, out([1.0, 1.0, 1.0]))


def test_what_compares_rows_has_to_see_them():
  reward = testing.color_reward()
  rewards = dict(a=(reward, 1.0), b=(reward, 1.0))
  assert combine.combine(rewards).called_on == 'rows'
  mix = mixers.group_range()
  assert combine.combine(rewards, mix).called_on == 'groups'
  assert combine.widest(rewards, mixers.log_tame()) == 'batch'


def test_gradients_need_the_rows_that_are_compared():
  """Said when the step is traced, before anything is drawn."""
  terms = dict(pg=(objectives.reward_backprop(), 1.0))
  for mix, updates, says in (
    (mixers.group_range(), 1, 'config.mix compares the rows of a group'),
    (mixers.log_tame(0.1), 2, 'config.mix compares the rows of a batch'),
    (mixers.log_tame(0.1), 1, None),
    (mixers.product(), 2, None),
  ):
    step, state = testing.make_step(terms=terms, mix=mix, updates=updates)
    traced = lambda step=step, state=state: step.train_step.trace(
      state, testing.batch(), jax.random.key(0)
    )
    if says:
      with pytest.raises(ConfigError, match=says):
        traced()
    else:
      traced()


def test_a_step_trains_on_what_is_mixed():
  step, state = testing.make_step(mix=mixers.group_range())
  collect = jax.jit(step.collect)
  _, exp, _ = collect(state, testing.batch(), jax.random.key(0))
  score = np.asarray(exp.rewards.score).reshape(4, 4)
  np.testing.assert_allclose(score.min(1), 0)
  np.testing.assert_allclose(score.max(1), 1, rtol=1e-5)


def test_a_search_compares_no_whole_batch():
  config = flow_grpo.get_config('tiny')
  config.eval.search = dict(name='best_of_n', n=2)
  config.mix = dict(name='log_tame', threshold=0.1)
  built = assemble.setup(config)
  with pytest.raises(ConfigError, match='config.mix compares the rows of a wh'):
    assemble.make_evaluator(config, built)
