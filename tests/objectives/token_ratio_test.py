"""Ratios of rows and clipped weights: by hand, and by exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import aggregate, objectives, testing
from gen_rl.types import Experience, Trajectory


def experience(adv, mask, log_prob):
  mask = jnp.asarray(mask, jnp.float32)
  traj = Trajectory(
    cond=(), states=(), actions=(), times=(), noise=(), sample=(), group=(),
    log_prob=jnp.asarray(log_prob), mask=mask,
  )  # fmt: skip
  adv = jnp.asarray(adv, jnp.float32)
  return Experience(traj, adv, np.ones(len(mask)), None)


def replaying(log_prob):
  return testing.answers(log_prob={'params': log_prob}.__getitem__)


def reduced(objective, new, exp, aggregator=aggregate.token_mean):
  term, _ = testing.term_of(objective, replaying(new), exp)
  by = aggregate.totals(aggregator, term.mask)
  return aggregate.reduce(aggregator, term.value, term.mask, {}, by)[0]


def total(objective, new, exp):
  term, _ = testing.term_of(objective, replaying(new), exp)
  return (term.value * term.mask).sum()


# --- GSPO

MASK = jnp.array([[1.0, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
NEW = jnp.array(
  [
    [-1.0, -2.0, jnp.nan],
    [-0.5, jnp.nan, jnp.inf],
    [-0.5, jnp.nan, -jnp.inf],
    [-1.0, -2.0, -3.0],
    [jnp.nan, jnp.nan, jnp.nan],
  ]
)
# log-ratios: .2 and .4 | 1 | 1 | -.6 -.9 0 | none; their means: .3 1 1 -.5
OLD = NEW - jnp.array(
  [[0.2, 0.4, 0], [1.0, 0, 0], [1.0, 0, 0], [-0.6, -0.9, 0], [0, 0, 0]]
)
ADV = jnp.array([[1.0], [2.0], [-1.0], [3.0], [1.0]])
S = np.exp([0.3, 1.0, 1.0, -0.5])
# trust interval [.8, 1.5]: the second is clipped, the others are not
VALUE = [-S[0], -2 * 1.5, S[2], -3 * S[3], 0]
SLOPE = [
  [-S[0] / 2, -S[0] / 2, 0], [0, 0, 0], [S[2], 0, 0], [-S[3]] * 3, [0, 0, 0],
]  # fmt: skip


def test_gspo_table():
  exp = experience(ADV, MASK, OLD)
  objective = objectives.gspo(0.2, 0.5, on_policy=False)
  term, metrics = testing.term_of(objective, replaying(NEW), exp)
  np.testing.assert_allclose(term.value[:, 0], VALUE, rtol=1e-6)
  np.testing.assert_array_equal(term.mask[:, 0], [1, 1, 1, 1, 0])
  grad = testing.grad(lambda x: total(objective, x, exp))(NEW)
  np.testing.assert_allclose(grad, SLOPE, rtol=1e-5)
  np.testing.assert_allclose(metrics['ratio'][:, 0], [*S, 0], rtol=1e-6)
  np.testing.assert_array_equal(metrics['clip_fraction'][:, 0], [0, 1, 1, 1, 0])
  np.testing.assert_allclose(
    metrics['log_ratio_abs_max'][:, 0], [0.3, 1, 1, 0.5, 0], rtol=1e-5
  )
  # k3 of a ratio of rows: e^.3 - 1 - .3
  assert metrics['approx_kl'][0, 0] == pytest.approx(0.0498588, rel=1e-4)


def test_gspo_bounds_the_ratio_of_a_row_that_was_bad():
  """The third row has s = e and A = -1: at c = 2 its loss is 2, flat."""
  exp = experience(ADV, MASK, OLD)
  objective = objectives.gspo(0.2, 0.5, on_policy=False, dual_clip=2.0)
  term, _ = testing.term_of(objective, replaying(NEW), exp)
  np.testing.assert_allclose(
    term.value[:, 0], [*VALUE[:2], 2.0, *VALUE[3:]], rtol=1e-6
  )
  grad = testing.grad(lambda x: total(objective, x, exp))(NEW)
  np.testing.assert_allclose(
    grad, [*SLOPE[:2], [0, 0, 0], *SLOPE[3:]], rtol=1e-5
  )
  with pytest.raises(ValueError, match=r'dual_clip is 1.4.*ends at 1.5'):
    objectives.gspo(0.2, 0.5, dual_clip=1.4)


def test_gspo_by_token_has_the_gradient_of_the_row():
  """Averaged over a row's tokens first, at one advantage per row."""
  exp = experience(ADV, MASK, OLD)
  rows = testing.grad(
    lambda x: reduced(objectives.gspo(0.2, 0.5, on_policy=False), x, exp)
  )(NEW)
  by_token = objectives.gspo(0.2, 0.5, tokens=True, on_policy=False)
  tokens = testing.grad(
    lambda x: reduced(by_token, x, exp, aggregate.seq_mean_token_mean)
  )(NEW)
  np.testing.assert_allclose(tokens, rows, rtol=1e-5)
  np.testing.assert_allclose(rows, np.array(SLOPE) / 4, rtol=1e-5)
  term, metrics = testing.term_of(by_token, replaying(NEW), exp)
  np.testing.assert_array_equal(term.mask, MASK)
  # every token has the value of its row
  np.testing.assert_allclose(
    term.value, np.array(VALUE)[:, None] * MASK, rtol=1e-6
  )
  assert all(np.isfinite(x).all() for x in metrics.values())


def test_gspo_by_token_takes_an_advantage_per_token():
  exp = experience(jnp.array([[1.0, -2.0, 9.0]]), MASK[:1], OLD[:1])
  objective = objectives.gspo(0.2, 0.5, tokens=True, on_policy=False)
  grad = testing.grad(lambda x: total(objective, x, exp))(NEW[:1])
  np.testing.assert_allclose(grad, [[-S[0], 2 * S[0], 0]], rtol=1e-5)
  with pytest.raises(ValueError, match=r'gspo\(tokens=True\)'):
    total(objectives.gspo(), NEW[:1], exp)


@pytest.mark.parametrize('tokens', [False, True])
def test_gspo_on_policy(tokens):
  exp = experience(ADV, MASK, np.full(MASK.shape, 7.0))
  objective = objectives.gspo(tokens=tokens)
  _, metrics = testing.term_of(objective, replaying(NEW), exp)
  live = MASK > 0 if tokens else MASK.any(1, keepdims=True)
  np.testing.assert_array_equal(metrics['ratio'], live)
  assert all((metrics[k] == 0).all() for k in ('approx_kl', 'clip_fraction'))
  grad = testing.grad(lambda x: total(objective, x, exp))(NEW)
  length = 1 if tokens else np.array([2, 1, 1, 3, 1])[:, None]
  np.testing.assert_allclose(grad, -ADV * MASK / length, rtol=1e-6)


# --- CISPO


def test_cispo_table():
  # weights clipped to [.5, 5]: a bound on the gradient, which never vanishes
  ratio = jnp.array([[0.1, 0.7, 1.0], [4.0, 8.0, jnp.nan]])
  adv = jnp.array([[2.0], [-1.0]])
  new = jnp.log(ratio) - 3.0
  exp = experience(adv, [[1, 1, 1], [1, 1, 0]], np.full((2, 3), -3.0))
  objective = objectives.cispo(5.0, 0.5, on_policy=False)
  grad = testing.grad(lambda x: total(objective, x, exp))(new)
  np.testing.assert_allclose(grad, [[-1, -1.4, -2], [4, 5, 0]], rtol=1e-5)
  term, metrics = testing.term_of(objective, replaying(new), exp)
  np.testing.assert_allclose(
    term.value[:, :2], grad[:, :2] * new[:, :2], rtol=1e-5
  )
  np.testing.assert_array_equal(
    metrics['clip_fraction'], [[1, 0, 0], [0, 1, 0]]
  )
  np.testing.assert_allclose(
    metrics['ratio'], [[0.1, 0.7, 1], [4, 8, 0]], rtol=1e-5
  )


def test_cispo_without_bounds_is_the_gradient_of_the_expected_reward():
  """E_old[r A d log p] = d E_p[A], over all five actions."""
  theta = jnp.array([0.3, -1.0, 0.5, 0.0, 2.0])
  old = jax.nn.log_softmax(jnp.array([1.0, 0.0, -1.0, 0.5, 0.2]))
  reward = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0])
  exp = experience(reward[:, None], np.ones((5, 1)), old[:, None])
  objective = objectives.cispo(1e9, on_policy=False)

  def loss(theta):
    new = jax.nn.log_softmax(theta)[:, None]
    term, _ = testing.term_of(objective, replaying(new), exp)
    return (jnp.exp(old) * term.value[:, 0]).sum()

  p = jax.nn.softmax(theta)
  by_hand = p * (reward - (p * reward).sum())  # d E / d theta of a softmax
  np.testing.assert_allclose(testing.grad(loss)(theta), -by_hand, rtol=1e-5)


def test_cispo_on_policy_is_reinforce():
  exp = experience(ADV, MASK, np.full(MASK.shape, 7.0))
  grad = testing.grad(lambda x: total(objectives.cispo(), x, exp))(NEW)
  np.testing.assert_array_equal(grad, -ADV * MASK)
  _, metrics = testing.term_of(objectives.cispo(), replaying(NEW), exp)
  np.testing.assert_array_equal(metrics['ratio'], MASK)


def test_errors_say_what_is_right():
  with pytest.raises(ValueError, match='positive'):
    objectives.gspo(0.0)
  with pytest.raises(ValueError, match='floor < 1 < cap'):
    objectives.cispo(0.2)
