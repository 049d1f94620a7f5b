"""Estimates of KL divergences, against sums over all actions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, testing
from gen_rl.types import Experience, Trajectory

THETA = jnp.array([0.3, -1.0, 0.5, 0.0, 2.0])
P = np.asarray(jax.nn.softmax(THETA), np.float64)
Q = np.array([0.1, 0.4, 0.2, 0.25, 0.05])
OLD = np.array([0.3, 0.1, 0.1, 0.3, 0.2])
KL = (P * np.log(P / Q)).sum()
# By hand, for p = softmax(theta)
D_KL = P * (np.log(P / Q) - KL)
D_REVERSE = P - Q


def experience(mask, log_prob=None):
  mask = jnp.asarray(mask, jnp.float32)
  traj = Trajectory(
    cond=(), states=(), actions=(), times=(), noise=(), sample=(), group=(),
    log_prob=mask if log_prob is None else jnp.asarray(log_prob), mask=mask,
  )  # fmt: skip
  return Experience(traj, mask[:, :1], np.ones(len(mask)), None)


def replaying(new, ref):
  return testing.answers(log_prob=dict(params=new, ref=ref).__getitem__)


def mean(objective, weights, log_prob=None):
  """(value, gradient) of the mean over all five actions, each a row."""
  exp = experience(np.ones((5, 1)), log_prob)

  def loss(theta):
    new = jax.nn.log_softmax(theta)[:, None]
    ref = jnp.log(jnp.asarray(Q, jnp.float32))[:, None]
    term, _ = testing.term_of(objective, replaying(new, ref), exp)
    return (jnp.asarray(weights, jnp.float32) * term.value[:, 0]).sum()

  return testing.value_and_grad(loss)(THETA)


K2 = (P * np.log(P / Q) ** 2).sum() / 2
FACTS = {
  'k1': (KL, 0 * D_KL),
  'k2': (K2, D_KL),
  'k3': (KL, D_REVERSE),
  'k3+': (KL, D_KL),
}


@pytest.mark.parametrize('estimator', FACTS)
def test_value_and_gradient_on_policy(estimator):
  value, gradient = FACTS[estimator]
  v, g = mean(objectives.sampled_kl(estimator=estimator), P)
  np.testing.assert_allclose(v, value, rtol=1e-5)
  np.testing.assert_allclose(g, gradient, atol=1e-6)
  assert np.abs(D_KL - D_REVERSE).max() > 0.1  # the facts are unlike


@pytest.mark.parametrize('on_policy', [True, False])
@pytest.mark.parametrize('estimator', FACTS)
def test_with_the_ratio_all_have_the_gradient_of_the_divergence(
  estimator, on_policy
):
  objective = objectives.sampled_kl(
    estimator=estimator, ratio=True, on_policy=on_policy
  )
  actions = P if on_policy else OLD
  old = np.log(OLD).astype(np.float32)[:, None]
  v, g = mean(objective, actions, old)
  np.testing.assert_allclose(v, FACTS[estimator][0], rtol=1e-5)
  np.testing.assert_allclose(g, D_KL, atol=1e-6)
  # and without it, off policy, none has
  v, g = mean(objectives.sampled_kl(estimator=estimator), OLD)
  assert np.abs(g - D_KL).max() > 0.05


def test_by_hand():
  # x = ln 2, 0, -ln 2: k1, k2, k3 = 1/x - 1 + ln x
  new = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
  ref = jnp.log(jnp.array([[0.25, 0.3, 0.4]]))
  ln2 = np.log(2)
  expected = dict(
    k1=[ln2, 0, -ln2],
    k2=[ln2**2 / 2, 0, ln2**2 / 2],
    k3=[ln2 - 0.5, 0, 1 - ln2],
  )
  expected['k3+'] = expected['k3']
  slopes = dict(k1=[1, 1, 1], k2=[ln2, 0, -ln2], k3=[0.5, 0, -1])
  slopes['k3+'] = slopes['k2']
  for estimator, values in expected.items():
    objective = objectives.sampled_kl(estimator=estimator)

    def value(new, ref, o=objective):
      return testing.term_of(
        o, replaying(new, ref), experience(np.ones((1, 3)))
      )

    term, metrics = value(new, ref)
    np.testing.assert_allclose(term.value, [values], atol=1e-6)
    np.testing.assert_allclose(metrics['kl'], [values], atol=1e-6)
    g, g_ref = testing.grad(lambda *x, v=value: v(*x)[0].value.sum(), (0, 1))(
      new, ref
    )
    np.testing.assert_allclose(g, [slopes[estimator]], atol=1e-6)
    np.testing.assert_array_equal(g_ref, 0)


@pytest.mark.parametrize(
  'estimator, ratio', [('k1', True), ('k2', False), ('k3', True), ('k3+', True)]
)
def test_of_paths(estimator, ratio):
  """Two tokens of three words, all nine rows: d KL of the joint."""
  keys = jax.random.split(jax.random.key(0), 4)
  first, ref_first = (jax.random.normal(k, (3,)) for k in keys[:2])
  second, ref_second = (jax.random.normal(k, (3, 3)) for k in keys[2:])

  def log_probs(first, second):
    a, b = (jax.nn.log_softmax(x) for x in (first, second))
    return jnp.stack([jnp.repeat(a, 3), b.reshape(-1)], 1)  # [9 2]

  ref = log_probs(ref_first, ref_second)

  def exact(first, second):
    both = log_probs(first, second).sum(1)
    return (jnp.exp(both) * (both - ref.sum(1))).sum()

  weights = jax.lax.stop_gradient(jnp.exp(log_probs(first, second).sum(1)))

  def loss(first, second, path=True):
    objective = objectives.sampled_kl(
      estimator=estimator, ratio=ratio, path=path
    )
    replay = replaying(log_probs(first, second), ref)
    term, _ = testing.term_of(objective, replay, experience(np.ones((9, 2))))
    return (weights[:, None] * term.value).sum()

  value, gradient = testing.value_and_grad(loss, (0, 1))(first, second)
  if estimator != 'k2':
    np.testing.assert_allclose(value, exact(first, second), rtol=1e-5)
  expected = testing.grad(exact, (0, 1))(first, second)
  for g, e in zip(gradient, expected, strict=True):
    np.testing.assert_allclose(g, e, atol=2e-6)
  alone = testing.grad(functools.partial(loss, path=False))(first, second)
  assert np.abs(alone - expected[0]).max() > 0.05


@pytest.mark.parametrize('estimator', FACTS)
def test_masked_tokens_and_far_policies(estimator):
  mask = jnp.array([[1.0, 0.0], [0.0, 0.0]])
  new = jnp.array([[-500.0, jnp.nan], [jnp.inf, -jnp.inf]])
  exp = experience(mask, jnp.where(mask > 0, -1.0, jnp.nan))
  for settings in (dict(), dict(ratio=True, on_policy=False, path=True)):
    objective = objectives.sampled_kl(estimator=estimator, **settings)

    def loss(new, o=objective):
      ref = jnp.where(mask > 0, -1.0, jnp.nan)
      term, metrics = testing.term_of(o, replaying(new, ref), exp)
      return term.value.sum(), (term, metrics)

    (value, (term, metrics)), grad = testing.value_and_grad(loss, has_aux=True)(
      new
    )
    assert np.isfinite(value) and np.isfinite(grad).all()
    assert np.isfinite(metrics['kl']).all()
    np.testing.assert_array_equal(jnp.where(mask > 0, 0, term.value), 0)
    np.testing.assert_array_equal(jnp.where(mask > 0, 0, grad), 0)


def test_an_unknown_estimator_is_named():
  with pytest.raises(ValueError, match="'k4'; valid: k1, k2, k3"):
    objectives.sampled_kl(estimator='k4')


@pytest.mark.parametrize('gap', [-25.0, 25.0])
def test_there_is_a_gradient_however_far_the_policies_are_apart(gap):
  """k2: x^2 / 2; k3: exp(-x) - 1 + x, its exponential straight beyond e^20."""
  rise = np.exp(20.0)
  want = dict(
    k2=(gap**2 / 2, gap),
    k3=(gap - 1, 1.0) if gap > 0 else (rise * 6 - 1 + gap, 1 - rise),
  )
  for estimator, (value, slope) in want.items():
    objective = objectives.sampled_kl(estimator=estimator)

    def loss(x, objective=objective):
      term, _ = testing.term_of(
        objective, replaying(x, np.zeros((1, 1))), experience(np.ones((1, 1)))
      )
      return term.value.sum()

    v, g = testing.value_and_grad(loss)(np.full((1, 1), gap))
    np.testing.assert_allclose(v, value, rtol=1e-5)
    np.testing.assert_allclose(g[0, 0], slope, rtol=1e-5)
