"""Regularizers against closed forms worked in the test."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, objectives, testing
from gen_rl.types import Experience, Noised, RewardOut, RowKeys, Trajectory


class Bernoulli(struct.PyTreeNode):
  """Two-way choice with P(1) = sigmoid(logit), [b k]."""

  logit: jax.Array

  def kl(self, other):
    p, q = jax.nn.sigmoid(self.logit), jax.nn.sigmoid(other.logit)
    return p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))

  def entropy(self):
    p = jax.nn.sigmoid(self.logit)
    return -p * jnp.log(p) - (1 - p) * jnp.log(1 - p)


class Unit(struct.PyTreeNode):
  """Normal step of deviation `std`, averaged over the event."""

  mean: jax.Array  # [b k d]
  std: jax.Array  # [b k]

  def kl(self, other):
    d = ((self.mean - other.mean) ** 2).mean(-1)
    return d / (2 * self.std**2)


def answers(**dists):
  return testing.answers(dist=dists.__getitem__)


def experience(mask, times=None):
  mask = jnp.asarray(mask, jnp.float32)
  b, k = mask.shape
  zeros = np.zeros((b, k))
  traj = Trajectory(
    cond=(),
    states=(),
    actions=zeros,
    times=np.zeros((b, k, 2)) if times is None else jnp.asarray(times),
    noise=zeros,
    log_prob=zeros,
    mask=mask,
    sample=zeros,
    group=np.zeros(b, np.int32),
  )
  rewards = RewardOut(score=np.zeros(b), parts={}, valid=np.ones(b, bool))
  return Experience(
    traj=traj, adv=np.zeros((b, 1)), weight=np.ones(b), rewards=rewards
  )


def logit(p):
  return jnp.log(jnp.array([[p / (1 - p)]], jnp.float32))


def test_kl_directions_table():
  # P 1/2, Q 1/4: KL(P || Q) = .5 ln 2 + .5 ln(2/3) = .143841
  # KL(Q || P) = .25 ln .5 + .75 ln 1.5 = .130812
  replay = answers(params=Bernoulli(logit(0.5)), ref=Bernoulli(logit(0.25)))
  exp = experience([[1.0]])
  term, metrics = testing.term_of(objectives.kl(), replay, exp)
  np.testing.assert_allclose(term.value, [[0.143841]], atol=1e-6)
  np.testing.assert_allclose(metrics['kl'], [[0.143841]], atol=1e-6)
  term, _ = testing.term_of(objectives.kl(kind='forward'), replay, exp)
  np.testing.assert_allclose(term.value, [[0.130812]], atol=1e-6)


def test_kl_scale_dt_is_flow_grpos():
  """mean(d^2) / (2 c^2) with the step's deviation c sqrt(t - t_next)."""
  coefficient = np.array([[0.7, 1.9]])
  t, t_next = np.array([[0.9, 0.5]]), np.array([[0.5, 0.4]])
  std = jnp.asarray(coefficient * np.sqrt(t - t_next))
  mean = jnp.array([[[1.0, 3.0], [2.0, 2.0]]])
  replay = answers(params=Unit(mean, std), ref=Unit(jnp.zeros_like(mean), std))
  exp = experience(np.ones((1, 2)), np.stack([t, t_next], -1))
  term, _ = testing.term_of(objectives.kl(scale='dt'), replay, exp)
  published = np.array([[5.0, 4.0]]) / (2 * coefficient**2)
  np.testing.assert_allclose(term.value, published, rtol=1e-5)
  exact, _ = testing.term_of(objectives.kl(), replay, exp)
  np.testing.assert_allclose(term.value, exact.value * (t - t_next), rtol=1e-5)


def test_kl_of_paths_has_the_gradient_of_the_whole():
  """Two steps x1 ~ N(a, 1), x2 ~ N(b x1, 1) against a = b = 0.

  KL of the paths is a^2 / 2 + b^2 E[x1^2] / 2 = (a^2 + b^2 (1 + a^2)) / 2, so
  d/da = a (1 + b^2) and d/db = b (1 + a^2). Step by step d/da would be a.
  """
  a, b, n = 0.7, 1.5, 200_000
  noise = np.random.default_rng(0).normal(size=(n, 2))
  x1 = a + noise[:, 0]
  actions = jnp.asarray(np.stack([x1, b * x1 + noise[:, 1]], 1)[..., None])
  exp = experience(np.ones((n, 2)))

  def loss(ab, path):
    mean = jnp.stack([jnp.full(n, ab[0]), ab[1] * actions[:, 0, 0]], 1)
    one = np.ones((n, 2))
    dist = Unit(mean[..., None], one)
    log_prob = -0.5 * ((actions - dist.mean) ** 2).sum(-1)
    replay = testing.answers(
      dist=dict(params=dist, ref=Unit(np.zeros((n, 2, 1)), one)).__getitem__,
      log_prob=lambda which: log_prob,
    )
    term, _ = testing.term_of(objectives.regularize.kl(path=path), replay, exp)
    return term.value.sum() / n

  ab = jnp.array([a, b])
  of = lambda slope, path: slope(functools.partial(loss, path=path))
  value, gradient = testing.value_and_grad(functools.partial(loss, path=True))(
    ab
  )
  np.testing.assert_allclose(value, (a**2 + b**2 * (1 + a**2)) / 2, rtol=0.02)
  np.testing.assert_allclose(
    gradient, [a * (1 + b**2), b * (1 + a**2)], rtol=0.03
  )
  np.testing.assert_allclose(of(testing.grad, False)(ab)[0], a, rtol=1e-4)


@pytest.mark.parametrize('kind', ['forward', 'reverse'])
def test_kl_of_self_is_zero_and_flat(kind):
  x = jax.random.normal(jax.random.key(0), (3, 4))
  exp = experience(np.ones((3, 4)))

  def loss(x, frozen):
    replay = answers(params=Bernoulli(x), ema=Bernoulli(frozen))
    term, _ = testing.term_of(objectives.kl('ema', kind), replay, exp)
    return term.value.sum()

  assert loss(x, x) == 0
  np.testing.assert_allclose(testing.grad(loss)(x, x), 0, atol=1e-6)
  # and downhill is towards the reference
  assert (testing.grad(loss)(x + 1, x) > 0).all()


def test_kl_reference_has_no_gradient_and_masked_rows_none():
  mask = jnp.array([[1.0, 0.0], [0.0, 0.0]])
  exp = experience(mask)
  a = jnp.array([[0.3, 0.2], [0.1, 0.0]])

  def loss(p, q):
    replay = answers(params=Bernoulli(p), ref=Bernoulli(q))
    term, _ = testing.term_of(objectives.kl(), replay, exp)
    return term.value.sum()

  g_params, g_ref = testing.grad(loss, (0, 1))(a, a - 1)
  np.testing.assert_array_equal(g_ref, 0)
  np.testing.assert_array_equal(g_params != 0, mask > 0)


def test_velocity_kl():
  # differences 1 3 and 0 2: means of squares 5 and 2; slopes 2 d / D
  v = jnp.array([[[1.0, 3.0], [4.0, 4.0], [9.0, 9.0]]])
  ref = jnp.array([[[0.0, 0.0], [4.0, 2.0], [0.0, 0.0]]])
  exp = experience([[1.0, 1.0, 0.0]])

  def term(v, ref):
    velocity = dict(params=v, ref=ref).__getitem__
    return testing.term_of(
      objectives.velocity_kl(), testing.answers(velocity=velocity), exp
    )

  out, metrics = term(v, ref)
  np.testing.assert_allclose(out.value, [[5, 2, 0]])
  np.testing.assert_allclose(metrics['velocity_kl'], [[5, 2, 0]])
  grad, grad_ref = testing.grad(lambda *x: term(*x)[0].value.sum(), (0, 1))(
    v, ref
  )
  np.testing.assert_allclose(grad, [[[1, 3], [0, 2], [0, 0]]])
  np.testing.assert_array_equal(grad_ref, 0)
  assert term(v, v)[0].value.sum() == 0


def test_velocity_kl_to_a_guided_copy():
  # v 3, of the copy 2, of no prompt 1: guided at 2.5 it is 1 + 2.5 (2 - 1)
  asked = []

  def noised(which, keys, draws):
    asked.append((keys, draws))
    return Noised(*4 * [jnp.zeros((1, 1))])

  def velocity_at(which, at, null=False):
    assert which == 'ref' or not null
    return jnp.full((1, 1, 1), 3.0 if which == 'params' else 2.0 - null)

  replay = testing.answers(noised=noised, velocity_at=velocity_at)
  keys = RowKeys('own', 'group')
  for scale, gap in ((2.5, -0.5), (1.0, 1.0)):
    objective = objectives.velocity_kl(draws=1, guidance_scale=scale)
    term, _ = objective(replay, experience([[1.0]]), keys)
    np.testing.assert_allclose(term.value, [[gap**2]], rtol=1e-6)
  objectives.velocity_kl(draws=1, paired=True)(
    replay, experience([[1.0]]), keys
  )
  assert asked == [('own', 1), ('own', 1), ('group', 1)]
  with pytest.raises(build.ConfigError, match='guidance_scale=2 .* set draws'):
    objectives.velocity_kl(guidance_scale=2.0)


def test_entropy_sign():
  x = jnp.array([[0.0, 2.0, -1.0]])
  exp = experience([[1.0, 1.0, 0.0]])

  def loss(x):
    term, metrics = testing.term_of(
      objectives.entropy(), answers(params=Bernoulli(x)), exp
    )
    return term.value.sum(), metrics

  (_, metrics), grad = testing.value_and_grad(loss, has_aux=True)(x)
  # H(1/2) = ln 2; H(sigmoid(2)) = .365335
  np.testing.assert_allclose(
    metrics['entropy'], [[np.log(2), 0.365335, 0]], atol=1e-5
  )
  # dH/dx = -x p (1 - p): descent on -H pulls a logit of 2 towards 0
  p = 1 / (1 + np.exp(-2.0))
  np.testing.assert_allclose(grad, [[0, 2 * p * (1 - p), 0]], atol=1e-6)


def test_errors_name_the_choices():
  with pytest.raises(ValueError, match="'reverse' or 'forward'"):
    objectives.kl(kind='both')
  with pytest.raises(ValueError, match="'exact' or 'dt'"):
    objectives.kl(scale='flow')
