"""Searches on a linear flow, whose samples and their ranks are known.

With v = SLOPE x every step multiplies a state by a number: samples and
estimates are ordered as the noise is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import rollout, search, selection, testing
from gen_rl.models.parts.layers import Net
from gen_rl.policies import ode
from gen_rl.selection import Cost

KEY = jax.random.key(0)
SLOPE = 0.5
STEPS = 5
GAIN = (1 - SLOPE / STEPS) ** STEPS  # sample / noise


def linear_segments():
  net = Net(
    lambda key: (), lambda params, x, t, cond: SLOPE * x, (6,), lambda c: c
  )
  return ode.segments(net, STEPS)


def rows_of(prompts=3, n=8):
  return rollout.make_rows(testing.batch(range(prompts)), n, KEY, jnp.int32(0))


def first(latents, rows):
  """Score: the first coordinate."""
  del rows
  return latents[:, 0]


def best_of_n(segments, params, score, rows, n):
  run = lambda params, rows: search.best_of_n(segments, params, score, rows, n)
  return jax.jit(run)(params, rows)


def pruned_search(segments, params, cuts, score, rows, n, **options):
  run = lambda params, rows: search.pruned_search(
    segments, params, cuts, score, rows, n, **options
  )
  return jax.jit(run)(params, rows)


def noise_of(rows, n=8):
  noise = linear_segments().noise(rows)
  return np.asarray(noise).reshape(-1, n, 6)


def test_best_of_n_on_a_linear_flow():
  rows, segments = rows_of(), linear_segments()
  found = best_of_n(segments, (), first, rows, 8)
  noise = noise_of(rows)
  best = noise[:, :, 0].argmax(1)
  np.testing.assert_array_equal(found.index, best)
  expected = noise[np.arange(3), best] * GAIN
  np.testing.assert_allclose(found.sample, expected, rtol=1e-5)
  np.testing.assert_allclose(found.score, expected[:, 0], rtol=1e-5)
  assert found.cost == Cost(8 * STEPS, 8)


@pytest.mark.parametrize('keep', [(4, 2), (1, 1), (8, 3)])
def test_pruning_by_true_ranks_finds_the_best(keep):
  rows, segments = rows_of(), linear_segments()
  cuts = [search.Cut(s, k, first) for s, k in zip((1, 3), keep, strict=True)]
  found = pruned_search(segments, (), cuts, first, rows, 8)
  whole = best_of_n(segments, (), first, rows, 8)
  np.testing.assert_array_equal(found.index, whole.index)
  np.testing.assert_allclose(found.sample, whole.sample, rtol=1e-5)
  assert found.cost == selection.search_cost(STEPS, 8, (1, 3), keep)


def test_pruning_by_false_ranks():
  """A cut that keeps the three worst leaves the third worst to be chosen."""
  rows, segments = rows_of(), linear_segments()
  worst = lambda latents, rows: -latents[:, 0]
  cuts = [search.Cut(2, 3, worst)]
  found = pruned_search(segments, (), cuts, first, rows, 8)
  third = np.argsort(noise_of(rows)[:, :, 0], 1)[:, 2]
  np.testing.assert_array_equal(found.index, third)
  # 8 candidates up to the estimate of step 2, 3 calls, then 3 for 2 steps
  assert found.cost == Cost(8 * 3 + 3 * 2, 8 + 3)


@pytest.fixture(scope='module')
def net():
  net = testing.perceptron()
  return ode.segments(net, 4, 2.0), net.init(KEY)


@pytest.fixture(scope='module')
def verify():
  policy = testing.make_policy()
  return search.verifier(policy, (), testing.color_reward(), ())


def test_cuts_that_keep_all_are_best_of_n(net, verify):
  segments, params = net
  rows = rows_of(2, 6)
  cuts = [search.Cut(s, 6, verify) for s in (0, 2)]
  pruned = pruned_search(segments, params, cuts, verify, rows, 6)
  whole = best_of_n(segments, params, verify, rows, 6)
  jax.tree.map(np.testing.assert_array_equal, pruned, whole)
  assert pruned.cost == whole.cost == Cost(24, 6)


def test_pruned_search_is_its_table(net, verify):
  """Tables of uninterrupted sampling give the same choice."""
  segments, params = net
  n, steps, keep = 12, (0, 2), (7, 3)
  rows = rows_of(4, n)
  corner = lambda latents, rows: latents[:, 0, 0, 0]  # not what is wanted
  cuts = [search.Cut(s, k, corner) for s, k in zip(steps, keep, strict=True)]
  found = pruned_search(segments, params, cuts, verify, rows, n)
  run = jax.jit(
    lambda params, rows: segments.run(
      params, segments.noise(rows), rows.cond, 0, 4
    )
  )
  x, foreseen = run(params, rows)
  final = np.asarray(jax.jit(verify)(x, rows)).reshape(4, n)
  table = [corner(foreseen[s], rows).reshape(4, n) for s in steps]
  index = selection.prune_table(table, keep, final)
  np.testing.assert_array_equal(found.index, index)
  at = np.arange(4) * n + np.asarray(index)
  np.testing.assert_allclose(found.sample, x[at], atol=1e-5)
  np.testing.assert_allclose(found.score, final.reshape(-1)[at], atol=1e-5)
  assert (found.index != final.argmax(1)).any()


@pytest.mark.parametrize('chunk', [1, 5, 8, 100])
def test_chunks_change_nothing(net, verify, chunk):
  segments, params = net
  rows = rows_of(3, 8)
  cuts = [search.Cut(1, 5, verify)]
  args = segments, params, cuts, verify, rows, 8
  whole = pruned_search(*args)
  parts = pruned_search(*args, chunk=chunk)
  np.testing.assert_array_equal(parts.index, whole.index)
  testing.assert_close(parts.sample, whole.sample)


def test_what_cannot_be_scored_is_not_chosen(net):
  segments, params = net
  rows = rows_of(2, 4)
  policy = testing.make_policy()

  def judge(spoil):
    return search.verifier(policy, (), testing.color_reward(spoil), ())

  plain = best_of_n(segments, params, judge(None), rows, 4)
  spoiled = judge(
    lambda out, channel: jnp.where(jnp.isin(out, plain.score), jnp.nan, out)
  )
  second = best_of_n(segments, params, spoiled, rows, 4)
  assert (second.score < plain.score).all()
  nothing = judge(lambda out, channel: jnp.full_like(out, jnp.nan))
  found = best_of_n(segments, params, nothing, rows, 4)
  np.testing.assert_array_equal(found.index, 0)
  np.testing.assert_array_equal(found.score, -np.inf)


def test_several_verifiers_vote_by_rank():
  """Second best by both beats best by one and worst by the other."""
  rows, segments = rows_of(1, 3), linear_segments()
  order = np.argsort(np.asarray(linear_segments().noise(rows))[:, 0])
  a, b = np.zeros((2, 3), np.float32)
  a[order], b[order] = [1e6, 2e6, 3e6], [0.1, 0.3, 0.2]
  both = lambda latents, rows: jnp.stack([a, b], -1)
  # ranks 0 1 2 and 0 2 1: a tie between the upper two, the first one wins
  found = best_of_n(segments, (), both, rows, 3)
  assert found.index[0] == min(int(order[1]), int(order[2]))
  np.testing.assert_allclose(found.score, 3 / 4)


def test_neighbours_keep_norm_and_angle():
  z = jax.random.normal(KEY, (3, 4, 5))
  keys = jax.random.split(KEY, 3 * 50)
  around = jax.jit(lambda keys, z: search.neighbours(keys, z, 50, 0.9))
  near = np.asarray(around(keys, z)).reshape(3, 50, 20)
  z = np.asarray(z).reshape(3, 1, 20)
  norm = np.linalg.norm(z, axis=-1)
  np.testing.assert_allclose(np.linalg.norm(near, axis=-1), norm + 0 * near[
    ..., 0], rtol=1e-5)  # fmt: skip
  cosine = (near * z).sum(-1) / norm**2
  np.testing.assert_allclose(cosine, 0.9, rtol=1e-5)
  # the directions off the pivot are spread evenly: their mean is short
  off = near - 0.9 * z
  unit = off / np.linalg.norm(off, axis=-1, keepdims=True)
  assert (np.linalg.norm(unit.mean(1), axis=-1) < 3 / 50**0.5).all()


def test_zero_order_search_never_gets_worse_and_climbs():
  rows, segments = rows_of(3, 4), linear_segments()
  found, trace = jax.jit(
    lambda rows: search.zero_order_search(
      segments, (), first, rows, 4, rounds=30, patience=3
    )
  )(rows)
  assert trace.shape == (31, 3)
  assert (np.diff(trace, axis=0) >= 0).all()
  start = best_of_n(segments, (), first, rows, 4)
  np.testing.assert_allclose(trace[0], start.score, rtol=1e-6)
  np.testing.assert_allclose(trace[-1], found.score)
  np.testing.assert_allclose(found.sample[:, 0], found.score)
  # 31 rounds of 4 candidates of 5 steps
  assert found.cost == Cost(31 * 4 * STEPS, 31 * 4)
  # On the sphere a first coordinate is at most |z|; walking along gets much
  # nearer to that than chance: the best of 124 of 6 dimensions has 0.9 or so.
  norm = np.linalg.norm(found.sample, axis=-1)
  assert (found.score / norm > 0.9).all()
  assert (found.index >= 4).all() and (found.index < 124).all()


def test_no_rounds_are_best_of_n(net, verify):
  segments, params = net
  rows = rows_of(2, 6)
  found, trace = jax.jit(
    lambda params, rows: search.zero_order_search(
      segments, params, verify, rows, 6, rounds=0
    )
  )(params, rows)
  whole = best_of_n(segments, params, verify, rows, 6)
  jax.tree.map(np.testing.assert_array_equal, found, whole)
  assert found.cost == whole.cost and trace.shape == (1, 2)


def test_a_stalled_pivot_is_given_up_and_the_best_is_kept():
  """Nothing beats the first pivot: neighbours, then fresh noise, in turns."""
  rows, segments = rows_of(2, 4), linear_segments()
  start = np.asarray(linear_segments().noise(rows))[::4] * np.float32(GAIN)

  def only_the_first(latents, rows):
    same = jnp.isclose(latents[:, None], start[None], rtol=1e-4).all(-1)
    return same.any(-1).astype(jnp.float32)

  walker = search.zero_order(segments, (), only_the_first, rows, 4, cosine=0.8)
  walk, update = jax.jit(walker.init)(), jax.jit(walker.update)
  begin = walk
  np.testing.assert_array_equal(walk.score, 1)
  pivots = [walk.pivot]
  for _ in range(4):
    walk = update(walk)
    pivots.append(walk.pivot)
  # one round without a move, then a fresh pivot of score 0; its neighbours
  # score 0 too, so it is given up in turn
  same = [bool((a == b).all()) for a, b in zip(pivots, pivots[1:])]
  assert same == [True, False, True, False]
  np.testing.assert_array_equal(walk.pivot_score, 0)
  for name in ('score', 'sample', 'noise', 'index'):
    np.testing.assert_array_equal(getattr(walk, name), getattr(begin, name))
  assert int(walk.round) == 4


def test_moving_walks_stay_on_the_sphere():
  rows, segments = rows_of(2, 4), linear_segments()
  walker = search.zero_order(segments, (), first, rows, 4, cosine=0.8)
  before = jax.jit(walker.init)()
  after = jax.jit(walker.update)(before)
  moved = np.asarray(after.pivot_score > before.pivot_score)
  assert moved.any()
  a, b = np.asarray(before.pivot)[moved], np.asarray(after.pivot)[moved]
  norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
  np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
  np.testing.assert_allclose((a * b).sum(-1) / norms[0] ** 2, 0.8, rtol=1e-5)


def test_searches_that_cannot_be():
  rows, segments = rows_of(2, 4), linear_segments()

  def pruned(*cuts, n=4):
    cuts = [search.Cut(step, keep, first) for step, keep in cuts]
    pruned_search(segments, (), cuts, first, rows, n)

  with pytest.raises(ValueError, match='8 rows are not 3 candidates'):
    pruned(n=3)
  with pytest.raises(ValueError, match='must rise within 0..4'):
    pruned((2, 3), (2, 2))
  with pytest.raises(ValueError, match='must rise within 0..4'):
    pruned((STEPS, 2))
  with pytest.raises(ValueError, match='may add any or leave none'):
    pruned((1, 2), (2, 3))
  with pytest.raises(ValueError, match='may add any or leave none'):
    pruned((1, 0))
  both = lambda latents, rows: latents[:, :2]
  with pytest.raises(ValueError, match='takes one verifier'):
    search.zero_order(segments, (), both, rows, 4).init()
