"""Order statistics, ranks, cuts and the ledger: by hand and by enumeration."""

import itertools

import numpy as np
import pytest

from gen_rl import selection
from gen_rl.selection import Cost

RNG = np.random.default_rng(0)


def test_best_of_n_curve_against_every_subset():
  """The mean over all C(7, n) subsets, ties broken by a coin."""
  scores = RNG.normal(size=(3, 7))
  scores[1] = [2, 2, 1, 0, 2, 1, 0]
  values = RNG.normal(size=(3, 7))
  curve = selection.bon_curve(scores, values)
  maximum = selection.bon_curve(scores)
  for p, n in itertools.product(range(3), range(1, 8)):
    chosen, best = [], []
    for subset in map(list, itertools.combinations(range(7), n)):
      top = scores[p, subset].max()
      tied = [i for i in subset if scores[p, i] == top]
      chosen.append(values[p, tied].mean())
      best.append(top)
    np.testing.assert_allclose(curve[p, n - 1], np.mean(chosen), atol=1e-12)
    np.testing.assert_allclose(maximum[p, n - 1], np.mean(best), atol=1e-12)


def test_best_of_n_curve_is_the_expected_maximum():
  """E max of n uniforms is n / (n + 1); no bias from a table of 12."""
  curve = selection.bon_curve(RNG.uniform(size=(20_000, 12))).mean(0)
  n = np.arange(1, 13)
  np.testing.assert_allclose(curve, n / (n + 1), atol=6e-3)


def test_best_of_n_curve_of_a_large_table_is_finite():
  curve = selection.bon_curve(np.arange(2000.0)[None])
  # the maximum of n out of 0..N-1 averages n (N + 1) / (n + 1) - 1
  n = np.arange(1, 2001)
  np.testing.assert_allclose(curve[0], n * 2001 / (n + 1) - 1, rtol=1e-9)


def test_kl_of_best_of_n():
  assert selection.bon_kl(1) == 0
  np.testing.assert_allclose(selection.bon_kl(4), np.log(4) - 0.75)
  # reached by a score without ties: density n F^(n - 1) against 1
  u = (np.arange(1_000_000) + 0.5) / 1_000_000
  density = 4 * u**3
  np.testing.assert_allclose(
    (density * np.log(density)).mean(), selection.bon_kl(4), atol=1e-5
  )


def test_soft_best_of_n():
  scores = np.float32([[0.0, np.log(3.0)], [1.0, 1.0]])
  np.testing.assert_allclose(
    selection.soft_best_of_n(scores, 1.0), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6
  )
  np.testing.assert_allclose(
    selection.soft_best_of_n(scores, 0.5)[0], [0.1, 0.9], rtol=1e-6
  )
  np.testing.assert_allclose(selection.soft_best_of_n(scores, 1e-3)[0], [0, 1])


def test_rank_sums_by_hand():
  """Three candidates, two verifiers of different scales."""
  scores = np.float32([[[0.1, 300], [0.9, 200], [0.5, 100]]])
  np.testing.assert_array_equal(selection.rank_sum(scores), [[2, 3, 1]])
  np.testing.assert_allclose(
    selection.rank_ensemble(scores), [[0.5, 0.75, 0.25]]
  )
  stretched = np.stack([scores[..., 0] ** 3, np.log(scores[..., 1])], -1)
  np.testing.assert_array_equal(
    selection.rank_sum(stretched), selection.rank_sum(scores)
  )
  assert selection.rank_ensemble(np.ones((2, 1, 3), np.float32)).shape == (2, 1)
  # Equals beat the same others; one that scores all alike says nothing.
  tied = np.float32([[1, 7], [3, 7], [3, 7], [np.nan, 7]])
  np.testing.assert_array_equal(selection.rank_sum(tied), [1, 2, 2, 0])


def test_prune_step():
  scores = np.float32([[1, 5, 3, 5], [np.nan, 0, -np.inf, -1]])
  np.testing.assert_array_equal(
    selection.prune_step(scores, 2), [[1, 3], [1, 3]]
  )
  np.testing.assert_array_equal(
    selection.prune_step(scores, 1),
    [[1], [1]],  # the first of equals
  )
  np.testing.assert_array_equal(
    selection.prune_step(scores, 4), [[0, 1, 2, 3]] * 2
  )


def test_keep_counts():
  # TTSnap's ratios; round(2.5) is 2 (to even), and never none is left
  assert selection.keep_counts(38, (0.4, 0.4, 0.5)) == (15, 6, 3)
  assert selection.keep_counts(5, (0.5, 0.1, 0.1)) == (2, 1, 1)
  assert selection.keep_counts(7, (1.0, 1.0)) == (7, 7)


def test_prune_table_by_hand():
  first = np.float32([[5, 4, 3, 2]])
  second = np.float32([[0, 9, 1, 9]])
  final = np.float32([[1, 0, 3, 9]])
  # 3 is cut first; of 0, 1, 2 the second keeps 1 and 2; 2 is the best of them
  index = selection.prune_table([first, second], (3, 2), final)
  np.testing.assert_array_equal(index, [2])
  everything = selection.prune_table([first, second], (4, 4), final)
  np.testing.assert_array_equal(everything, [3])


def test_cost_by_hand():
  """The sheet's formula, with s + 1 calls for the estimate of step s.

  20 steps, 10 candidates, cuts after the steps 2, 6, 11 to 4, 2, 1:
  10 * 3 + 4 * 4 + 2 * 5 + 1 * 8 = 64 network calls, 10 + 4 + 2 + 1 scores.
  """
  cost = selection.search_cost(20, 10, (2, 6, 11), (4, 2, 1))
  assert cost == Cost(64, 17)
  assert cost.total() == 81 and cost.total(2.0, 0.5) == 136.5
  assert selection.search_cost(20, 10) == Cost(200, 10)
  # a cut that keeps all is none
  assert selection.search_cost(20, 10, (2, 6), (10, 10)) == Cost(200, 10)
  # guidance evaluates the network twice, not the verifier
  assert selection.search_cost(20, 1, calls=2) == Cost(40, 1)
  assert Cost(3, 1) + Cost(4, 2) == Cost(7, 3)


@pytest.mark.parametrize('n', [5, 25, 125])
def test_cost_is_the_published_formula(n):
  """sum_j A_{j-1} ((s_j - s_{j-1}) x + y) + A_J ((T - 1 - s_J) x + y).

  With s_0 = -1 and counts that the ratios divide.
  """
  x, y = 9.9, 1.2
  alive, before, total = 1.0, -1, 0.0
  for s, ratio in zip((2, 6), (0.4, 0.5), strict=True):
    total += alive * ((s - before) * x + y)
    alive, before = alive * ratio, s
  total += alive * ((20 - 1 - before) * x + y)
  keep = selection.keep_counts(n, (0.4, 0.5))
  assert keep == (0.4 * n, 0.2 * n)
  cost = selection.search_cost(20, n, (2, 6), keep)
  np.testing.assert_allclose(cost.total(x, y), n * total)


def test_area_gain():
  """base rises from 1 to 3 over a budget of 2: area 2 above 1.

  A curve 1 higher everywhere has the area 2 + 2: a gain of 100 %.
  """
  budget, base = np.float64([0, 1, 2]), np.float64([1, 2, 3])
  assert selection.budget_curve_gain(budget, base, base) == 0
  np.testing.assert_allclose(
    selection.budget_curve_gain(budget, base + 1, base), 1.0
  )
  flat = np.ones(3)
  np.testing.assert_allclose(
    selection.budget_curve_gain(budget, flat, base), -1.0
  )
