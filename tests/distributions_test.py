"""Distributions against scipy, closed forms and sampling."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import optax
import pytest
import scipy.stats

from gen_rl import testing
from gen_rl.distributions import (
  Categorical,
  Concat,
  Gaussian,
  HeadCategorical,
  Places,
  decision_keys,
)

B, K, EVENT = 3, 4, (2, 5)
# False-alarm rate of every statistical test (fixed keys).
LEVEL = 1e-3


def _compiled(name):
  return jax.jit(lambda dist, *args: getattr(dist, name)(*args))


log_prob, kl, entropy, sample = map(
  _compiled, ('log_prob', 'kl', 'entropy', 'sample')
)


def _gaussians(event='sum', scale='full'):
  rng = np.random.default_rng(0)

  def one():
    return Gaussian(
      jnp.asarray(rng.normal(size=(B, K, *EVENT)), jnp.float32),
      jnp.asarray(rng.uniform(0.3, 2.0, size=(B, K)), jnp.float32),
      event,
      scale,
    )

  actions = jnp.asarray(rng.normal(size=(B, K, *EVENT)), jnp.float32)
  return one(), one(), actions


def _scipy(p):
  std = np.asarray(p.std, np.float64)[..., None, None]
  return scipy.stats.norm(np.asarray(p.mean, np.float64), std)


@pytest.mark.parametrize('event', ['sum', 'mean'])
def test_gaussian_log_prob_and_entropy_match_scipy(event):
  p, _, actions = _gaussians(event)
  reduce = getattr(np, event)
  want = reduce(_scipy(p).logpdf(np.asarray(actions)), axis=(2, 3))
  np.testing.assert_allclose(log_prob(p, actions), want, rtol=2e-6, atol=2e-5)
  per_dim = np.broadcast_to(_scipy(p).entropy(), p.mean.shape)
  want = reduce(per_dim, axis=(2, 3))
  np.testing.assert_allclose(entropy(p), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('event', ['sum', 'mean'])
def test_gaussian_kl_is_the_expected_log_ratio(event):
  # E_p[log p - log q] per dimension by Gauss-Hermite quadrature, which is
  # exact here because the log-ratio is a quadratic.
  p, q, _ = _gaussians(event)
  nodes, weights = np.polynomial.hermite_e.hermegauss(8)
  weights = weights / weights.sum()
  std = np.asarray(p.std, np.float64)[..., None, None]
  want = 0.0
  for node, weight in zip(nodes, weights, strict=True):
    a = np.asarray(p.mean, np.float64) + std * node
    want = want + weight * (_scipy(p).logpdf(a) - _scipy(q).logpdf(a))
  want = getattr(np, event)(want, axis=(2, 3))
  np.testing.assert_allclose(kl(p, q), want, rtol=1e-5, atol=1e-5)


def test_gaussian_kl_to_itself_is_exactly_zero_with_zero_gradient():
  p, _, _ = _gaussians()
  value, grad = jax.jit(jax.value_and_grad(lambda q: p.kl(q).sum()))(p)
  assert value == 0
  assert all(not np.any(g) for g in jax.tree.leaves(grad))


def test_gaussian_kl_of_nearly_equal_stds_does_not_cancel():
  # KL = e^2 + O(e^3) per dimension for s_p / s_q = 1 + e.
  e = 1e-3
  p = Gaussian(jnp.zeros((1, 1, 1)), jnp.full((1, 1), 1 + e))
  q = Gaussian(jnp.zeros((1, 1, 1)), jnp.ones((1, 1)))
  np.testing.assert_allclose(kl(p, q), e**2, rtol=2e-3)


def test_unit_scale_is_minus_the_squared_distance():
  p, q, actions = _gaussians('mean', 'unit')
  want = -np.mean(np.square(np.asarray(actions - p.mean)), axis=(2, 3))
  np.testing.assert_allclose(log_prob(p, actions), want, rtol=1e-6)
  # Its log-ratios are 2 s^2 times those of the density at equal std.
  other = p.replace(mean=q.mean)
  unit = log_prob(p, actions) - log_prob(other, actions)
  p, other = p.replace(scale='full'), other.replace(scale='full')
  full = log_prob(p, actions) - log_prob(other, actions)
  np.testing.assert_allclose(unit, 2 * p.std**2 * full, rtol=1e-4, atol=1e-5)


def test_mean_is_the_sum_over_the_number_of_event_dims():
  p, q, actions = _gaussians('sum')
  p_mean, q_mean = p.replace(event='mean'), q.replace(event='mean')
  n = np.prod(EVENT)
  for summed, averaged in [
    (log_prob(p, actions), log_prob(p_mean, actions)),
    (kl(p, q), kl(p_mean, q_mean)),
    (entropy(p), entropy(p_mean)),
  ]:
    np.testing.assert_allclose(summed / n, averaged, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('event', ['sum', 'mean'])
@pytest.mark.parametrize('scale', ['full', 'unit'])
def test_gaussian_gradients_match_finite_differences(event, scale):
  p, q, actions = _gaussians(event, scale)

  def f(mean, std, actions):
    r = p.replace(mean=mean, std=std)
    return r.log_prob(actions), r.kl(q), q.kl(r), r.entropy()

  args = (p.mean, p.std, actions)
  check_grads(
    jax.jit(f), args, order=1, modes=['rev'], eps=1e-2, rtol=2e-2, atol=2e-2
  )


@pytest.mark.parametrize('event', ['sum', 'mean'])
@pytest.mark.parametrize('scale', ['full', 'unit'])
def test_steps_without_noise_are_zero_and_have_zero_gradients(event, scale):
  p, q, actions = _gaussians(event, scale)
  silent = np.zeros((B, K), bool)
  silent[0, 1] = silent[2] = True
  p = p.replace(std=jnp.where(silent, 0.0, p.std))
  # Even a broken mean does not leak out of a step that was not a choice.
  actions = actions.at[2, 0].set(jnp.nan)

  @jax.jit
  def f(mean, std):
    r = p.replace(mean=mean, std=std)
    return {
      'log_prob': r.log_prob(actions),
      'kl': r.kl(q),
      'kl_reversed': q.kl(r),
      'entropy': r.entropy(),
    }

  for name, value in f(p.mean, p.std).items():
    assert not np.any(value[silent]), name
    assert np.all(value[~silent] != 0), name
    total = lambda m, s, n=name: f(m, s)[n].sum()
    for grad in jax.jit(jax.grad(total, (0, 1)))(p.mean, p.std):
      assert np.all(np.isfinite(grad)), name
      assert not np.any(np.asarray(grad)[silent]), name


def test_low_precision_fields_are_computed_in_float32():
  p, q, actions = _gaussians()
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)
  full = jax.tree.map(lambda x: x.astype(jnp.float32), half)

  @jax.jit
  def f(r):
    noise = r.sample(jax.random.key(0))
    return r.log_prob(actions), r.kl(q), r.entropy(), noise

  for got, want in zip(f(half), f(full), strict=True):
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 7)))
  assert Categorical(logits.astype(jnp.bfloat16)).entropy().dtype == jnp.float32


def test_sampling_row_by_row_and_step_by_step_gives_the_same_actions():
  p, _, _ = _gaussians()
  root = jax.random.key(3)
  rows = jnp.stack([jax.random.fold_in(root, i) for i in range(B)])
  want = p.sample(root)
  np.testing.assert_array_equal(p.sample(rows), want)
  for j in range(K):
    keys = jnp.stack([jax.random.fold_in(row, j) for row in rows])[:, None]
    step = Gaussian(p.mean[:, j : j + 1], p.std[:, j : j + 1])
    np.testing.assert_array_equal(step.sample(keys), want[:, j : j + 1])
  with pytest.raises(ValueError, match='prefix'):
    p.sample(rows[:2])


def test_gaussian_samples_pass_kolmogorov_smirnov():
  p = Gaussian(jnp.full((2, 1, 20000), 0.5), jnp.array([[2.0], [0.0]]))
  actions = np.float64(sample(p, jax.random.key(0)))
  test = scipy.stats.kstest(actions[0, 0], scipy.stats.norm(0.5, 2.0).cdf)
  assert test.pvalue > LEVEL
  np.testing.assert_array_equal(actions[1], p.mean[1])


def test_gaussian_survives_vmap_jit_and_scalar_events():
  p, _, actions = _gaussians('mean')
  want = p.log_prob(actions)
  got = jax.jit(jax.vmap(lambda r, a: r.log_prob(a)))(p, actions)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  scalar = Gaussian(jnp.array([[1.0]]), jnp.array([[2.0]]))
  np.testing.assert_allclose(
    scalar.log_prob(jnp.array([[0.0]])), scipy.stats.norm(1, 2).logpdf(0)
  )


def test_bad_arguments_are_named():
  p, q, actions = _gaussians()
  with pytest.raises(ValueError, match='sum'):
    Gaussian(p.mean, p.std, event='max')
  with pytest.raises(ValueError, match='unit'):
    Gaussian(p.mean, p.std, scale='none')
  with pytest.raises(ValueError, match='shape'):
    p.log_prob(actions[:, :1])
  with pytest.raises(ValueError, match='unlike'):
    p.kl(q.replace(event='mean'))


def test_decision_keys_are_all_different():
  keys = decision_keys(jax.random.key(0), (5, 6))
  assert keys.shape == (5, 6)
  data = np.asarray(jax.random.key_data(keys)).reshape(30, -1)
  assert len(np.unique(data, axis=0)) == 30


def _categoricals():
  rng = np.random.default_rng(1)
  p = rng.normal(size=(B, K, 6)) * 3
  q = rng.normal(size=(B, K, 6))
  actions = rng.integers(0, 6, size=(B, K))
  return p, q, actions


def test_categorical_matches_scipy_and_optax():
  logits_p, logits_q, actions = _categoricals()
  p = Categorical(jnp.asarray(logits_p, jnp.float32))
  q = Categorical(jnp.asarray(logits_q, jnp.float32))
  probs_p = scipy.special.softmax(logits_p, -1)
  probs_q = scipy.special.softmax(logits_q, -1)
  np.testing.assert_allclose(
    entropy(p), scipy.stats.entropy(probs_p, axis=-1), rtol=1e-4
  )
  np.testing.assert_allclose(
    kl(p, q), scipy.stats.entropy(probs_p, probs_q, axis=-1), rtol=1e-4
  )
  ce = optax.softmax_cross_entropy_with_integer_labels(p.logits, actions)
  np.testing.assert_allclose(log_prob(p, actions), -ce, rtol=1e-5, atol=1e-6)
  assert not np.any(kl(p, p))


def test_categorical_gradients_match_finite_differences():
  logits_p, logits_q, actions = _categoricals()
  q = Categorical(jnp.asarray(logits_q, jnp.float32))

  def f(logits):
    p = Categorical(logits)
    return p.log_prob(actions), p.kl(q), q.kl(p), p.entropy()

  args = (jnp.asarray(logits_p, jnp.float32),)
  check_grads(
    jax.jit(f), args, order=1, modes=['rev'], eps=1e-2, rtol=2e-2, atol=2e-2
  )


def test_forbidden_choices_contribute_nothing():
  # Two of four choices forbidden: the same as the two-way distribution.
  two = jnp.array([[[0.2, -1.0]]])
  four = jnp.array([[[0.2, -jnp.inf, -1.0, -jnp.inf]]])

  @jax.jit
  def f(logits):
    p = Categorical(logits)
    q = Categorical(jnp.where(jnp.isfinite(logits), 0.0, -jnp.inf))
    return jnp.stack([p.entropy(), p.kl(q), p.log_prob(jnp.zeros((1, 1), int))])

  np.testing.assert_allclose(f(four), f(two), rtol=1e-6)
  grad_fn = jax.jit(jax.grad(lambda x: f(x).sum()))
  grad = grad_fn(four)
  want = grad_fn(two)
  np.testing.assert_allclose(grad[..., ::2], want, rtol=1e-5)
  assert not np.any(grad[..., 1::2])


def test_large_logits_do_not_overflow():
  p = Categorical(jnp.array([[[1e4, 0.0, -1e4]]]))
  np.testing.assert_allclose(log_prob(p, jnp.array([[1]])), -1e4)
  assert entropy(p) == 0


def test_categorical_samples_have_the_right_frequencies():
  probs = np.array([0.1, 0.2, 0.7])
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(probs)), (4000, 2, 3))
  ids = np.asarray(Categorical(logits).sample(jax.random.key(0)))
  assert ids.shape == (4000, 2) and ids.dtype == np.int32
  counts = np.bincount(ids.ravel(), minlength=3)
  assert scipy.stats.chisquare(counts, probs * ids.size).pvalue > LEVEL


def test_places_add_up_what_counts():
  rng = np.random.default_rng(3)
  a, b = rng.normal(size=(2, B, K, 3, 5))
  chosen = rng.random((B, K, 3)) < 0.5
  actions = np.where(chosen, rng.integers(0, 5, chosen.shape), 99)
  p, q = (Places(np.asarray(x, np.float32), chosen) for x in (a, b))
  pa, pb = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
  at = np.take_along_axis(pa, np.minimum(actions, 4)[..., None], -1)[..., 0]
  sums = lambda x: np.where(chosen, x, 0).sum(-1)
  np.testing.assert_allclose(log_prob(p, actions), sums(np.log(at)), rtol=1e-5)
  want = scipy.stats.entropy(pa, pb, axis=-1)
  np.testing.assert_allclose(kl(p, q), sums(want), rtol=1e-5, atol=1e-6)
  want = scipy.stats.entropy(pa, axis=-1)
  np.testing.assert_allclose(entropy(p), sums(want), rtol=1e-5)
  assert sample(p, jax.random.key(0)).shape == (B, K, 3)
  # Where nothing counts: no number, no gradient.
  total = lambda x: Places(x, chosen).log_prob(actions).sum()
  given = np.where(chosen[..., None], a, np.nan).astype(np.float32)
  found = np.asarray(jax.jit(jax.grad(total))(given))
  np.testing.assert_array_equal(np.abs(found).sum(-1) > 0, chosen)


def test_concat_lays_parts_side_by_side():
  p, q, actions = _gaussians()
  rng = np.random.default_rng(4)
  words = [
    Categorical(jnp.asarray(rng.normal(size=(B, 2, 5)), jnp.float32))
    for _ in range(2)
  ]
  ids = jnp.asarray(rng.integers(0, 5, (B, 2)))
  both, other = Concat((words[0], p)), Concat((words[1], q))
  found = log_prob(both, (ids, actions)), kl(both, other), entropy(both)
  for x in found:
    assert x.shape == (B, 2 + K)
  np.testing.assert_array_equal(found[0][:, :2], log_prob(words[0], ids))
  np.testing.assert_array_equal(found[0][:, 2:], log_prob(p, actions))
  np.testing.assert_array_equal(found[1][:, :2], kl(words[0], words[1]))
  np.testing.assert_array_equal(found[1][:, 2:], kl(p, q))
  np.testing.assert_array_equal(found[2][:, 2:], entropy(p))
  for keys in (jax.random.key(0), jax.random.split(jax.random.key(0), B)):
    said, latent = sample(both, keys)
    assert said.shape == (B, 2) and latent.shape == (B, K, *EVENT)
  with pytest.raises(ValueError, match='shorter'):
    log_prob(both, (ids,))


def head_pair(chunk, k=5, v=7):
  """(whole, in chunks, another in chunks) of vectors and a matrix [3 v]."""
  rng = np.random.default_rng(0)
  h, g = rng.normal(size=(2, 2, k, 3)).astype(np.float32)
  w, u = rng.normal(size=(2, 3, v)).astype(np.float32)
  logits = lambda w, h: h @ w
  make = lambda h, w: HeadCategorical(h, w, logits, chunk)
  return (h, w), (g, u), make


@pytest.mark.parametrize('chunk', [2, 5, 64])
def test_a_head_in_chunks_is_the_whole(chunk):
  (h, w), (g, u), make = head_pair(chunk)
  actions = np.random.default_rng(1).integers(0, 7, (2, 5))
  weights = np.random.default_rng(2).normal(size=(3, 2, 5)).astype(np.float32)

  def total(make, hw, gu):
    p, q = make(*hw), make(*gu)
    found = jnp.stack([p.log_prob(actions), p.kl(q), p.entropy()])
    return (weights * found).sum(), found

  whole = lambda h, w: Categorical(h @ w)
  got, want = (
    jax.jit(jax.value_and_grad(
      lambda *x, m=m: total(m, *x), (0, 1), has_aux=True
    ))((h, w), (g, u))
    for m in (make, whole)
  )  # fmt: skip
  testing.assert_same(got, want)
  keys = jax.random.split(jax.random.key(0), 2)
  draw = jax.jit(lambda hw: [m(*hw).sample(keys) for m in (make, whole)])
  np.testing.assert_array_equal(*draw((h, w)))


def test_a_head_in_chunks_holds_a_chunk():
  def bytes_of(chunk):
    (h, w), _, make = head_pair(chunk, k=64, v=2048)
    actions = np.zeros((2, 64), np.int32)
    loss = lambda h, w: make(h, w).log_prob(actions).sum()
    program = jax.jit(jax.grad(loss, (0, 1))).lower(h, w).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert bytes_of(4) < 0.2 * bytes_of(64)
