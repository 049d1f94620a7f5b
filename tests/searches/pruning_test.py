"""Cuts whose choice and cost are known by hand."""

import jax
import numpy as np
import pytest
from scipy import stats

from gen_rl import build, search, searches
from gen_rl.searches import pruning
from gen_rl.selection import Cost


def first(latents):
  return latents[:, 0]


def found(method, space, rows):
  return jax.jit(lambda rows: method.find(space, rows))(rows)


@pytest.mark.parametrize('chunk', [0, 8])
def test_cuts_by_true_ranks_lose_nothing(linear, chunk):
  method = pruning.pruned(8, (0, 2), (0.5, 0.5))
  out = found(method, linear.space(first, chunk), linear.rows)
  samples = linear.samples(8)
  best = samples[:, :, 0].argmax(1)
  np.testing.assert_array_equal(out.index, best)
  np.testing.assert_allclose(out.sample, samples[range(3), best], rtol=1e-5)
  # 8 for 1 step, 4 for 2 more, 2 for the last 2; all of each are judged
  assert out.cost == Cost(8 * 1 + 4 * 2 + 2 * 2, 8 + 4 + 2)
  assert list(dict.fromkeys(linear.seen)) == [8, 4, 2]
  assert method.width == 8 and method.relative


def test_best_of_n_has_no_cuts(linear):
  method = build.build(searches, dict(name='best_of_n', n=4))
  out = found(method, linear.space(first), linear.rows)
  np.testing.assert_array_equal(out.index, linear.samples(4)[..., 0].argmax(1))
  assert out.cost == Cost(4 * 5, 4) and linear.seen == [4]


def test_chunks_hold_candidates_that_are_compared(linear):
  """Two cuts to 6 and 4 of 8: chunks of 8 rows hold 6, then twice 4."""
  shown = []

  def worst_but_one(latents):
    shown.append(latents.shape[0])
    return -latents[:, 0]

  method = pruning.pruned(8, (0, 2), (0.75, 2 / 3))
  parts = found(method, linear.space(worst_but_one, 8), linear.rows)
  assert shown == [8, 6, 8, 4]
  whole = found(method, linear.space(worst_but_one), linear.rows)
  jax.tree.map(np.testing.assert_array_equal, parts, whole)


@pytest.mark.parametrize('chunk', [0, 3])
def test_several_rewards_by_the_sum_of_their_ranks(linear, chunk):
  """One has far larger scores, one wants little: ranks by numpy decide."""
  more = dict(
    large=(lambda x: 1e4 * x[:, 1], 0.1), little=(lambda x: x[:, 2], -9.0)
  )
  method = build.build(searches, dict(name='best_of_n', n=6, ranks=True))
  out = found(method, linear.space(first, chunk, more), linear.rows)
  signed = linear.samples(6)[..., :3] * [1, 1, -1]
  ranks = stats.rankdata(signed, axis=1).sum(-1) - 3  # from 0, of three
  np.testing.assert_array_equal(out.index, ranks.argmax(1))
  np.testing.assert_allclose(out.score, ranks.max(1) / (3 * 5), rtol=1e-6)
  assert method.ranks and not pruning.best_of_n(6).ranks
  # What is foreseen ranks as what comes: the best 4, who are ranked anew.
  pruned = pruning.pruned(6, (1,), (2 / 3,), ranks=True)
  cut = found(pruned, linear.space(first, chunk, more), linear.rows)
  kept = [np.sort(np.argsort(-r, kind='stable')[:4]) for r in ranks]
  again = [
    k[stats.rankdata(s[k], axis=0).sum(-1).argmax()]
    for k, s in zip(kept, signed, strict=True)
  ]
  np.testing.assert_array_equal(cut.index, again)


@pytest.mark.parametrize(
  'steps, keep',
  [((3, 1), (0.5, 0.5)), ((1, 1), (0.5, 0.5)), ((1, 3), (0.5,))],
)
def test_cuts_that_are_not_in_order(steps, keep):
  with pytest.raises(build.ConfigError, match='have to rise, each with'):
    pruning.pruned(8, steps, keep)


def test_cuts_that_keep_nothing_or_come_too_late():
  with pytest.raises(build.ConfigError, match='above 0 and at most 1'):
    build.build(searches, dict(name='pruned', keep=(0.0,)))
  method = pruning.pruned(8, (4,), (0.5,))
  method.check(6)
  with pytest.raises(build.ConfigError, match='eval.steps=5 is 3'):
    method.check(5)
  assert not pruning.pruned(4, (1,), (0.25,)).relative  # one goes on
  assert isinstance(method, search.Search)
