r"""How the values of all decisions become one loss.

A term has a value v_it and a mask m_it for decision t of row i (token t of a
completion), times the weight of the row, which need not be 0 or 1: means are
weighted ones, by (2) to (4) of weights of any unit. An aggregator makes weights
a_it and a count n_i of a row's mask, and over the rows of a minibatch

  L = sum_it a_it v_it / sum_i n_i,  0 where that is 0                   (1)

With L_i = sum_t m_it, w_i = max_t m_it (0 for a row without a decision, else
its weight) and k decisions at most,

                       a_it            n_i
  token_mean           m_it            L_i    decisions count alike     (2)
  seq_mean_token_mean  w_i m_it / L_i  w_i    rows count alike          (3)
  seq_mean_token_sum   m_it            w_i    decisions of a row add up (4)
  const                m_it            k      the same, by a constant   (5)

(2) is DAPO's (arXiv 2503.14476); (3) GRPO's (arXiv 2402.03300), under which a
token of a short answer weighs more than one of a long answer, so that short
right and long wrong ones pay; (4) and, up to the factor k, (5) have no such
preference: Dr. GRPO (arXiv 2503.20783) divides by a constant, so that no row's
share depends on the others. Rows without a decision, among them those that
were dropped, are in no mean over rows; (5) counts them.

Weights and counts are made row by row and the counts added up before anything
is divided, over all microbatches and devices: (1) does not depend on the cut.
Where all rows have the same number of decisions, as denoising has, (2), (3)
and (5) agree.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Float

from gen_rl.types import Array, Metrics

# mask [b k] -> (weights [b k], count [b])
Aggregator = Callable[[Array], tuple[Array, Array]]

Weights = tuple[Float[Array, 'b k'], Float[Array, ' b']]

__all__ = [
  'const',
  'seq_mean_token_mean',
  'seq_mean_token_sum',
  'token_mean',
]


def token_mean(mask: Float[Array, 'b k']) -> Weights:
  """Mean over all decisions, (2)."""
  return mask, mask.sum(-1)


def seq_mean_token_mean(mask: Float[Array, 'b k']) -> Weights:
  """Mean over rows of the mean over their decisions, (3)."""
  length, row = mask.sum(-1, keepdims=True), mask.max(-1, keepdims=True)
  weights = row * mask / jnp.where(length > 0, length, 1.0)
  return weights, row[:, 0]


def seq_mean_token_sum(mask: Float[Array, 'b k']) -> Weights:
  """Mean over rows of the sum over their decisions, (4)."""
  return mask, mask.max(-1)


def const(mask: Float[Array, 'b k']) -> Weights:
  """Sum over all decisions over the number of places for them, (5)."""
  b, k = mask.shape
  return mask, jnp.full(b, float(k))


def totals(aggregator: Aggregator, mask: Array) -> tuple[Array, Array]:
  """What divides a term and its metrics, of the mask of a whole minibatch."""
  counts = aggregator(mask)[1], mask.sum(-1)
  sums = [count.sum() for count in counts]
  return tuple(jnp.where(x > 0, x, 1.0) for x in sums)


def reduce(
  aggregator: Aggregator,
  value: Array,
  mask: Array,
  metrics: Metrics,
  by: tuple[Array, Array],
) -> tuple[Array, Metrics, Metrics]:
  """A microbatch's share of (1) and of the metrics.

  Args:
    aggregator: one of the functions above.
    value: [b k]; what is masked may be anything, NaN too.
    mask: [b k] of the term, times the weights of the rows.
    metrics: {name: [b k]}.
    by: `totals` of the minibatch.

  Returns:
    (share of the loss, {name: share of the mean over decisions}, {name: the
    largest}); the last of those whose name ends in "_max". Means of metrics
    are over decisions whatever the aggregator: a ratio of 1 is logged as 1.
  """
  weights, _ = aggregator(mask)
  loss = jnp.where(mask > 0, value * weights, 0.0).sum() / by[0]
  means, peaks = {}, {}
  for name, x in metrics.items():
    x = jnp.where(mask > 0, x, 0.0)
    if name.endswith('_max'):
      peaks[name] = x.max()
    else:
      means[name] = (x * mask).sum() / by[1]
  return loss, means, peaks
