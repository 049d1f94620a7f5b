"""Aggregators on rows of unlike lengths, by hand, and through a step.

That the cut of a batch does not matter is in tests/invariants/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import flow_grpo
from gen_rl import aggregate, assemble, build, objectives, sharding, testing

# A row of one decision and one of three: the sums are 8 and 1 + 2 + 3.
VALUES = [[8.0, np.nan, np.inf, 0.0], [1.0, 2.0, 3.0, -np.inf]]
MASK = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
# loss, and what each decision's value weighs in it
TABLE = {
  'token_mean': (14 / 4, [1 / 4], [1 / 4] * 3),
  'seq_mean_token_mean': ((8 + 2) / 2, [1 / 2], [1 / 6] * 3),
  'seq_mean_token_sum': ((8 + 6) / 2, [1 / 2], [1 / 2] * 3),
  'const': (14 / 8, [1 / 8], [1 / 8] * 3),
}


def loss(name, values, mask):
  mask = jnp.asarray(mask)
  aggregator = getattr(aggregate, name)
  by = aggregate.totals(aggregator, mask)
  return aggregate.reduce(aggregator, jnp.asarray(values), mask, {}, by)[0]


@pytest.mark.parametrize('name', aggregate.__all__)
def test_two_rows_of_unlike_lengths(name):
  expected, short, long = TABLE[name]
  value, grad = jax.value_and_grad(lambda v: loss(name, v, MASK))(
    jnp.array(VALUES)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  weights = np.zeros((2, 4))
  weights[0, :1], weights[1, :3] = short, long
  np.testing.assert_allclose(grad, weights, rtol=1e-6)


@pytest.mark.parametrize('name', aggregate.__all__)
def test_a_row_without_decisions_is_in_no_mean(name):
  more = loss(name, VALUES + [[9.0] * 4], MASK + [[0.0] * 4])
  expected = 14 / 12 if name == 'const' else TABLE[name][0]
  np.testing.assert_allclose(more, expected, rtol=1e-6)
  assert loss(name, [[9.0] * 4], [[0.0] * 4]) == 0


@pytest.mark.parametrize('name', aggregate.__all__)
def test_a_row_of_half_the_weight_counts_half(name):
  """Two of them are one row, whatever is averaged."""
  half = [[0.5 * m for m in row] for row in MASK]
  twice = loss(name, VALUES * 2, half * 2)
  factor = 0.5 if name == 'const' else 1.0  # which counts rows, not weights
  np.testing.assert_allclose(twice, factor * TABLE[name][0], rtol=1e-6)


def test_metrics_are_means_over_decisions():
  mask = jnp.array(MASK)
  x = jnp.array([[1.0, 9, 9, 9], [1.0, 1.0, 5.0, 9.0]])
  for name in aggregate.__all__:
    aggregator = getattr(aggregate, name)
    _, means, peaks = aggregate.reduce(
      aggregator,
      x,
      mask,
      dict(x=x, x_max=x),
      aggregate.totals(aggregator, mask),
    )
    assert means == dict(x=2) and peaks == dict(x_max=5)


@pytest.mark.parametrize('name', aggregate.__all__)
def test_the_gradient_of_a_step(name):
  """Of rows of as many decisions all agree, but for the sums: k times."""
  one, (log,) = testing.run(
    *testing.make_step(
      terms=dict(pg=(objectives.clipped_pg(), 1.0)),
      tx=optax.sgd(1.0),
      aggregate=getattr(aggregate, name),
    ),
    1,
  )
  mean, (mean_log,) = testing.run(
    *testing.make_step(
      terms=dict(pg=(objectives.clipped_pg(), 1.0)), tx=optax.sgd(1.0)
    ),
    1,
  )
  start = testing.make_step()[1].params
  k = 3.0 if name == 'seq_mean_token_sum' else 1.0
  moved, by_mean = (
    jax.tree.map(lambda a, b: a - b, x.params, start) for x in (one, mean)
  )
  testing.assert_close(moved, jax.tree.map(lambda x: k * x, by_mean))
  assert log['optim/grad_norm'] > 0
  assert log['pg/ratio'] == mean_log['pg/ratio']


def test_a_config_names_one():
  config = flow_grpo.get_config('tiny')
  config.aggregate = 'seq_mean'
  built = assemble.setup(config)
  with pytest.raises(build.ConfigError, match='seq_mean_token_mean'):
    assemble.make_step(config, built, sharding.one_device())


@pytest.mark.parametrize(
  'name', ['token_mean', 'seq_mean_token_mean', 'seq_mean_token_sum']
)
def test_a_mean_is_over_the_weights(name):
  """Half a row is half of one, however small all weights are."""
  aggregator = getattr(aggregate, name)
  value = np.float32([[1, 2], [5, 7], [11, 13]])
  for scale in (1.0, 1e-3):
    mask = scale * jnp.float32([[1, 1], [0.5, 0.5], [0, 0]])
    by = aggregate.totals(aggregator, mask)
    loss, means, _ = aggregate.reduce(
      aggregator, value, mask, dict(v=value), by
    )
    rows = (3 + 0.5 * 12) / 1.5
    expected = rows if name == 'seq_mean_token_sum' else rows / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(means['v'], rows / 2, rtol=1e-6)
