"""AdamW and schedules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from gen_rl import build, optim


def run(tx, params, grads, n):
  state = tx.init(params)
  for _ in range(n):
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_constant_gradient_moves_by_lr_each_step():
  # m_hat = g and v_hat = g^2 at every t, so a step is lr * g / (|g| + eps).
  params = {'a': jnp.array([1.0, -2.0, 5.0]), 'b': jnp.zeros(())}
  grads = {'a': jnp.array([0.3, -4.0, 1e-3]), 'b': jnp.float32(7.0)}
  got, _ = run(optim.adamw(lr=0.01, eps=1e-3, grad_clip=None), params, grads, 4)
  for name in params:
    g = np.asarray(grads[name], np.float64)
    want = params[name] - 4 * 0.01 * g / (abs(g) + 1e-3)
    np.testing.assert_allclose(got[name], want, rtol=2e-5)


def test_a_bfloat16_moment_moves_as_far():
  """Only the first: of the second, b2 = 0.999 would round to 1."""
  params = {'w': jnp.linspace(-1.0, 1.0, 64)}
  grads = {'w': jnp.cos(7 * params['w'])}
  want, _ = run(optim.adamw(lr=0.01), params, grads, 5)
  tx = optim.adamw(lr=0.01, moment_dtype='bfloat16')
  got, state = run(tx, params, grads, 5)
  assert optax.tree.get(state, 'mu')['w'].dtype == jnp.bfloat16
  assert optax.tree.get(state, 'nu')['w'].dtype == jnp.float32
  assert got['w'].dtype == jnp.float32
  moved, wanted = got['w'] - params['w'], want['w'] - params['w']
  np.testing.assert_allclose(moved, wanted, rtol=0.02, atol=1e-6)
  assert np.abs(moved - wanted).max() > 0


def test_weight_decay_alone_is_geometric():
  params = {'w': jnp.array([2.0, -3.0])}
  tx = optim.adamw(lr=0.1, weight_decay=0.5)
  got, _ = run(tx, params, {'w': jnp.zeros(2)}, 3)
  np.testing.assert_allclose(got['w'], params['w'] * 0.95**3, rtol=1e-6)


def test_an_anchor_draws_back_to_where_it_began():
  """Without a gradient what is left of the way shrinks by lr anchor."""
  tx = optim.adamw(lr=0.1, anchor=0.5)
  start = jnp.array([1.0, -2.0])
  state, params = tx.init(start), start + 3.0
  for left in (0.95, 0.95**2):
    updates, state = tx.update(jnp.zeros(2), state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, start + 3 * left, rtol=1e-6)
  assert len(jax.tree.leaves(optim.adamw().init(start))) + 1 == len(
    jax.tree.leaves(state)
  )


def test_noise_makes_the_prior_that_an_anchor_asks_for():
  """Without a gradient x_n - x_0 is normal with q = 1 - lr anchor and

  variance 2 lr T (1 - q^{2n}) / (1 - q^2), T / anchor / (1 - lr anchor / 2)
  in the end.
  """
  lr, anchor, heat, n = 0.2, 0.5, 0.03, 6
  tx = optim.adamw(lr=lr, anchor=anchor, temperature=heat)
  start = {'a': jnp.ones((50, 60)), 'b': -jnp.ones(3000)}

  @jax.jit
  def moved(start):
    zeros, state = jax.tree.map(jnp.zeros_like, start), tx.init(start)

    def body(carry, _):
      params, state = carry
      updates, state = tx.update(zeros, state, params)
      return (optax.apply_updates(params, updates), state), updates

    (params, _), updates = jax.lax.scan(body, (start, state), length=n)
    return jax.tree.map(jnp.subtract, params, start), updates

  ways, updates = moved(start)
  ways = np.concatenate([ways['a'].ravel(), ways['b']])
  q = 1 - lr * anchor
  std = np.sqrt(2 * lr * heat * (1 - q ** (2 * n)) / (1 - q**2))
  assert scipy.stats.kstest(ways / std, 'norm').pvalue > 1e-3
  steps = np.stack([updates['a'].reshape(n, -1), updates['b']]).reshape(12, -1)
  assert np.abs(np.corrcoef(steps) - np.eye(12))[:6, 6:].max() < 0.1


def test_noise_is_of_the_seed_the_step_and_the_parameter():
  params = {'a': jnp.zeros(64), 'b': jnp.zeros(64)}

  def drawn(seed, params, updates=1):
    tx = optim.adamw(lr=0.5, temperature=1.0, seed=seed)
    state, out = tx.init(params), []
    for _ in range(updates):
      moved, state = jax.jit(tx.update)(params, state, params)
      out.append(moved)
    return jax.device_get(out)

  first, second = drawn(3, params, 2)
  (again,), (other,) = drawn(3, params), drawn(4, params)
  (alone,) = drawn(3, {'b': params['b']})  # 'a' is not trained
  jax.tree.map(np.testing.assert_array_equal, first, again)
  np.testing.assert_array_equal(alone['b'], first['b'])
  draws = [first['a'], first['b'], second['a'], other['a'], other['b']]
  assert np.abs(np.corrcoef(draws) - np.eye(5)).max() < 0.5
  # lr follows its schedule: 1/2, then all of it
  warm = optim.langevin(1.0, optim.schedule(0.5, warmup=2), 3)
  moved, state = warm.update(params, warm.init(params))
  np.testing.assert_allclose(moved['a'], first['a'] / 2**0.5, rtol=1e-6)
  moved, _ = warm.update(params, state)
  np.testing.assert_allclose(moved['a'], second['a'], rtol=1e-6)


def test_gradients_are_clipped_to_a_global_norm():
  params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([30.0, 40.0]), 'b': jnp.array([120.0])}  # norm 130
  _, state = run(optim.adamw(b1=0.0, grad_clip=1.3), params, grads, 1)
  mu = optax.tree.get(state, 'mu')
  np.testing.assert_allclose(mu['a'], [0.3, 0.4], rtol=1e-6)
  np.testing.assert_allclose(mu['b'], [1.2], rtol=1e-6)
  _, state = run(optim.adamw(b1=0.0, grad_clip=0), params, grads, 1)
  np.testing.assert_allclose(optax.tree.get(state, 'mu')['b'], [120.0])


def test_states_are_float32_for_bfloat16_parameters():
  params = {'w': jnp.ones((3,), jnp.bfloat16)}
  tx = optim.adamw(lr=0.01)
  state = tx.init(params)
  updates, after = jax.jit(tx.update)(params, state, params)
  kinds = {
    x.dtype
    for x in jax.tree.leaves((state, after, updates))
    if jnp.issubdtype(x.dtype, jnp.floating)
  }
  assert kinds == {jnp.dtype('float32')}
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, after)
  assert optax.apply_updates(params, updates)['w'].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'kwargs, table',
  [
    (dict(), {0: 1.0, 1000: 1.0}),
    (dict(warmup=4), {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 90: 1.0}),
    (dict(warmup=4, steps=9), {0: 0.25, 90: 1.0}),
    (
      dict(decay='linear', steps=10, warmup=2),
      {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 10: 0.0, 11: 0.0},
    ),
    (
      dict(decay='linear', steps=10, decay_to=0.5),
      {0: 1.0, 5: 0.75, 10: 0.5, 11: 0.5},
    ),
    (
      dict(decay='cosine', steps=12),
      {0: 1.0, 3: 0.5 + 2**0.5 / 4, 4: 0.75, 6: 0.5, 8: 0.25, 12: 0, 20: 0},
    ),
  ],
)
def test_schedules_follow_a_table(kwargs, table):
  at = optim.schedule(0.2, **kwargs)
  for t, want in table.items():
    np.testing.assert_allclose(at(t), 0.2 * want, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
      jax.jit(at)(jnp.int32(t)), 0.2 * want, rtol=1e-6, atol=1e-8
    )
    assert at(t).dtype == jnp.float32


def test_schedule_drives_the_updates():
  tx = optim.adamw(lr=0.1, warmup=2, decay='linear', steps=4, grad_clip=None)
  got, _ = run(tx, {'w': jnp.zeros(1)}, {'w': jnp.ones(1)}, 4)
  np.testing.assert_allclose(got['w'], -0.1 * (0.5 + 1 + 1 + 0.5), rtol=1e-5)


def test_a_copy_is_taken_at_the_end_of_a_round():
  decay = [float(optim.rounds(3)(step)) for step in range(7)]
  assert decay == [1, 1, 0, 1, 1, 0, 1]


def test_an_average_forgets_by_a_table():
  assert optim.average_decay(0.9) == 0.9
  assert optim.average_decay(0.0, 8, True) == 0.0
  at = jax.jit(optim.average_decay(0.9, 8, True))
  moves = {n: float(at(n)) for n in range(1, 96) if at(n) != 1.0}
  table = [8 / 17, 16 / 25, 24 / 33, 32 / 41, 40 / 49, 48 / 57, 56 / 65]
  table += [64 / 73, 72 / 81, 80 / 89, 0.9, 0.9]
  assert list(moves) == [7 + 8 * i for i in range(12)]
  np.testing.assert_allclose(list(moves.values()), table, rtol=1e-6)


def test_mistakes_are_sentences():
  with pytest.raises(build.ConfigError, match='ema_every is 0'):
    optim.average_decay(0.9, 0)
  with pytest.raises(build.ConfigError, match='constant, linear, cosine'):
    optim.schedule(0.1, decay='exp')
  with pytest.raises(build.ConfigError, match='optimizer.warmup lower'):
    optim.schedule(0.1, decay='cosine')
  with pytest.raises(build.ConfigError, match='grad_clip=1.0'):
    build.build(optim, dict(name='adamw', clip=3))


def test_muon_moves_matrices_along_their_orthogonal_factor():
  """Same singular vectors as the gradient, singular values near lr.

  Five Newton-Schulz iterations bring them to about [0.7, 1.2] of it, whatever
  those of the gradient are; here they span a factor of 50.
  """
  left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=(6, 4)))
  gradient = left[:, :4] @ np.diag([5.0, 2.0, 0.5, 0.1]) @ right
  params = {'w': jnp.zeros((6, 4)), 'b': jnp.zeros(3)}
  grads = {'w': jnp.asarray(gradient), 'b': jnp.array([3.0, -0.2, 1.0])}
  tx = optim.muon(lr=0.1, adam_lr=0.01, grad_clip=None)
  got, _ = run(tx, params, grads, 1)
  core = left[:, :4].T @ np.asarray(got['w']) @ right.T
  np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-3)
  assert (np.diag(core) < -0.06).all() and (np.diag(core) > -0.13).all()
  # All else is Adam's, with Nesterov momentum: the first update is lr times
  # the sign of the gradient times 1 + b1 (1 - b1) / (1 - b1^2), b1 = 0.9.
  want = 0.01 * (1 + 0.9 / 1.9)
  np.testing.assert_allclose(got['b'], [-want, want, -want], rtol=1e-4)


def test_muon_follows_the_schedule():
  params = {'w': jnp.eye(3), 'b': jnp.zeros(2)}
  grads = {'w': jnp.eye(3), 'b': jnp.ones(2)}
  tx = optim.muon(
    lr=0.1, adam_lr=0.1, b1=0.0, warmup=2, decay='linear', steps=4
  )
  state = tx.init(params)
  sizes = []
  for _ in range(4):
    updates, state = tx.update(grads, state, params)
    sizes.append((-updates['w'][0, 0], -updates['b'][0]))
  sizes = np.array(sizes)
  # warm-up 1/2, 1; then linear from 1 to 0 over the other two updates
  np.testing.assert_allclose(sizes / sizes[1], [[0.5] * 2, [1] * 2, [1] * 2,
                             [0.5] * 2], rtol=1e-3)  # fmt: skip
