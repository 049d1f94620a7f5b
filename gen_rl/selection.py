r"""Which of a prompt's candidates to take, what that is worth, what it costs.

Functions of tables of scores: `search` calls them with what it samples, an
experiment with tables made once. Best of n, from the scores r_(1) <= .. <=
r_(N) of a prompt, without resampling (pass@k's estimator, arXiv 2107.03374,
for any score); how far it goes from the base; its soft form:

  E max_n = sum_i C(i - 1, n - 1) / C(N, n) r_(i)                        (1)
  KL(best of n || base) <= log n - (n - 1) / n       arXiv 2401.01879    (2)
  p_i ~ exp(R_i / beta)                                                  (3)

Pruning (TTSnap, arXiv 2511.22242) scores unfinished candidates at the steps
s_1 < .. < s_J, counted from 0, and goes on with the best of the n_0:

  n_j = max(1, round(a_j n_{j-1}))                                       (4)

One ledger counts what every search costs, for a prompt, in pictures. What is
scored at step s takes s + 1 network calls (the authors' code counts s), so

  network = sum_j n_{j-1} (s_j - s_{j-1}) + n_J (T - 1 - s_J),  s_0 = -1 (5)
  reward  = sum_j n_{j-1} + n_J                                          (6)

where a cut that keeps everybody is not scored. Best of n is J = 0.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from gen_rl.types import AnyArray, Array


@dataclasses.dataclass(frozen=True)
class Cost:
  """Calls for one prompt, in units of one picture; decoding is the reward's."""

  network_calls: int = 0
  reward_calls: int = 0
  # Calls of the network that a gradient went back through, beside the same
  # calls forward; the reward's own gradient is theirs.
  backward_calls: int = 0

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(
      self.network_calls + other.network_calls,
      self.reward_calls + other.reward_calls,
      self.backward_calls + other.backward_calls,
    )

  def total(
    self, network: float = 1.0, reward: float = 1.0, backward: float = 1.0
  ) -> float:
    """At these prices of a call."""
    return (
      network * self.network_calls
      + reward * self.reward_calls
      + backward * self.backward_calls
    )


# --- scores


def rank_sum(
  scores: Float[AnyArray, '*p n k'],
) -> Int[Array, '*p n']:
  """Sum over k verifiers of a candidate's rank among the n: 0 is the worst.

  What verifiers of different scales agree on (TTSnap; arXiv 2501.09732 calls
  it the verifier ensemble). A rank is how many score less, so that a verifier
  that scores all alike decides nothing; TTSnap's code ranks equals in their
  order. NaN is the worst score.
  """
  scores = jnp.asarray(scores)
  scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
  less = scores[..., None, :, :] < scores[..., :, None, :]
  return less.sum((-1, -2))


def rank_ensemble(
  scores: Float[AnyArray, '*p n k'],
) -> Float[Array, '*p n']:
  """Mean rank, from 0 (worst by all verifiers) to 1 (best by all)."""
  n, k = scores.shape[-2:]
  return rank_sum(scores) / (k * max(n - 1, 1))


def soft_best_of_n(
  scores: Float[AnyArray, '*p n'], beta: float
) -> Float[Array, '*p n']:
  """Probabilities (3) of drawing each candidate; beta in units of the score.

  beta -> 0 is best of n, beta -> inf the base. It gives the verifier's errors
  less to gain than an arg-max does.
  """
  return jax.nn.softmax(jnp.asarray(scores) / beta, axis=-1)


def bon_kl(n: AnyArray | int) -> AnyArray:
  """Bound (2) on KL(best of n || base), nats."""
  return np.log(n) - (np.asarray(n) - 1.0) / n


def bon_curve(
  scores: Float[AnyArray, 'P N'], values: Float[AnyArray, 'P N'] | None = None
) -> Float[AnyArray, 'P N']:
  """What best of n = 1..N is worth, (1): no bias and no resampling.

  Args:
    scores: of N candidates, by which one is chosen.
    values: what the chosen one is worth, another reward for example; default
      the scores. Candidates of equal score are chosen equally often.

  Returns:
    float64; column n - 1 is the mean over all subsets of n candidates.
  """
  scores = np.asarray(scores, np.float64)
  values = scores if values is None else np.asarray(values, np.float64)
  size = scores.shape[1]
  # weight[n - 1, i - 1] = C(i - 1, n - 1) / C(N, n), from i = N downwards.
  n = np.arange(1, size + 1)
  weight = np.zeros((size, size))
  weight[:, -1] = n / size
  for i in range(size, 1, -1):
    weight[:, i - 2] = weight[:, i - 1] * np.maximum(i - n, 0) / (i - 1)
  rows = []
  for score, value in zip(scores, values, strict=True):
    _, tied = np.unique(score, return_inverse=True)
    mean = np.bincount(tied, value) / np.bincount(tied)
    rows.append(weight @ mean[np.sort(tied)])
  return np.stack(rows)


# --- pruning


def keep_counts(n: int, ratios: Sequence[float]) -> tuple[int, ...]:
  """(4): how many candidates are left after each cut, never none."""
  counts = []
  for ratio in ratios:
    n = max(1, round(ratio * n))
    counts.append(n)
  return tuple(counts)


def prune_step(
  scores: Float[AnyArray, '*p m'], keep: int
) -> Int[Array, '*p {keep}']:
  """Indices of the best `keep` of m candidates, in ascending order.

  Of equal scores the first ones stay; NaN is the worst score.
  """
  scores = jnp.asarray(scores)
  scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
  return jnp.sort(jax.lax.top_k(scores, keep)[1], axis=-1)


def prune_table(
  scores: Sequence[Float[AnyArray, '*p n']],
  keep: Sequence[int],
  final: Float[AnyArray, '*p n'],
) -> Int[Array, '*p']:
  """What `pruned_search` finds, from tables of scores: no sampling.

  Args:
    scores: of all candidates at each cut.
    keep: candidates left after it.
    final: scores of the finished candidates.

  Returns:
    Index of the chosen candidate.
  """
  alive = jnp.broadcast_to(jnp.arange(final.shape[-1]), final.shape)
  take = lambda x, at: jnp.take_along_axis(jnp.asarray(x), at, axis=-1)
  for score, count in zip(scores, keep, strict=True):
    if count < alive.shape[-1]:
      alive = take(alive, prune_step(take(score, alive), count))
  best = jnp.argmax(take(final, alive), -1, keepdims=True)
  return take(alive, best)[..., 0]


def search_cost(
  steps: int,
  n: int,
  checkpoints: Sequence[int] = (),
  keep: Sequence[int] = (),
  calls: int = 1,
) -> Cost:
  """(5) and (6), for one prompt.

  Args:
    steps: T.
    n: candidates.
    checkpoints: steps s_j of the cuts.
    keep: candidates n_j left after each.
    calls: network evaluations of a step, 2 with guidance.
  """
  cost, start = Cost(), 0
  for step, count in zip(checkpoints, keep, strict=True):
    if count < n:
      cost += Cost(n * (step + 1 - start) * calls, n)
      start, n = step + 1, count
  return cost + Cost(n * (steps - start) * calls, n)


def budget_curve_gain(
  budget: Float[AnyArray, ' b'],
  value: Float[AnyArray, ' b'],
  base: Float[AnyArray, ' b'],
) -> float:
  """Relative gain in area of a reward-over-budget curve (TTSnap's metric).

  Both areas are above the base's value at the smallest budget:

    gain = integral (value - base_0) / integral (base - base_0) - 1.

  By trapezoids, where the authors' code uses Simpson's rule, which wants
  smooth curves on even grids.
  """
  floor = float(base[0])
  area = lambda curve: np.trapezoid(np.asarray(curve) - floor, budget)
  return float(area(value) / area(base) - 1.0)
