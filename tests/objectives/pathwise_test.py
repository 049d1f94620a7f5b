"""Reward backpropagation against closed forms and plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, rollout, testing
from gen_rl.build import ConfigError
from gen_rl.types import Experience, RewardOut, RowKeys, Trajectory

KEY = jax.random.key(0)


# --- the objective by itself


def answers(score, calls=4):
  """A replay whose sample says where it was cut; `calls` network calls."""
  b = 6
  none = jnp.zeros((b, calls - 1))
  traj = Trajectory((), (), (), (), none, none, none, (), jnp.zeros(b))
  exp = Experience(traj, jnp.zeros((b, 1)), jnp.ones(b), None)
  keys = RowKeys(jax.random.split(KEY, b), None)
  replay = testing.answers(finish=lambda which, cut, detach: cut)._replace(
    score=lambda x, keys: RewardOut(score(x), {}, x >= 0),
  )
  return replay, exp, keys


@pytest.mark.parametrize(
  ('loss', 'value', 'slope'),
  [
    ('negative', [-3.0, -0.5], [-1, -1]),
    ('l1_target', [2.0, 0.5], [1, -1]),
    ('relu_margin', [0.0, 0.5], [0, -1]),
  ],
)
def test_losses(loss, value, slope):
  objective = objectives.reward_backprop('fixed', loss=loss, target=1.0)

  def run(r):
    replay, exp, keys = answers(lambda x: jnp.full(6, r))
    return objective(replay, exp, keys)[0].value[0, 0]

  for r, v, s in zip((3.0, 0.5), value, slope):
    got, grad = jax.value_and_grad(run)(r)
    assert got == pytest.approx(v) and grad == pytest.approx(s)


def test_each_reward_has_a_direction():
  """Of two that are linear: unit vectors by their weights; 0 stays 0."""
  slopes = dict(a=jnp.array([3.0, 4.0]), b=jnp.array([0.0, 1e-3]))
  weights = dict(a=2.0, b=-1.0)
  _, exp, keys = answers(lambda x: x)
  on = jnp.arange(6.0)[:, None] > 0

  def score(x, keys):
    parts = {k: (jnp.where(on, x, 0.0) @ v) for k, v in slopes.items()}
    total = sum(weights[k] * r for k, r in parts.items())
    return RewardOut(total, parts | dict(other=x[:, 0]), total > -9)

  objective = objectives.reward_backprop(
    'fixed', per_reward=True, reward_weights=weights
  )

  def loss(x):
    replay = testing.answers(finish=lambda *args: x)._replace(score=score)
    term, metrics = objective(replay, exp, keys)
    return term.value.sum(), metrics

  grads, metrics = jax.jit(jax.grad(loss, has_aux=True))(jnp.ones((6, 2)))
  expected = -np.array([2 * 0.6, 2 * 0.8 - 1.0])
  np.testing.assert_allclose(grads[1:], np.tile(expected, (5, 1)), rtol=1e-6)
  assert not grads[0].any()
  np.testing.assert_allclose(metrics['slope/a'][:, 0], [0] + [5] * 5)
  np.testing.assert_allclose(metrics['reward'][1:, 0], 14 - 1e-3, rtol=1e-6)
  with pytest.raises(ConfigError, match="loss='relu_margin' has a value"):
    objectives.reward_backprop(loss='relu_margin', per_reward=True)


def test_cuts():
  def cuts(*args, **kwargs):
    replay, exp, keys = answers(lambda x: x.astype(jnp.float32))
    objective = objectives.reward_backprop(*args, **kwargs)
    _, metrics = objective(replay, exp, keys)
    assert (metrics['trained_calls'] == 4 - metrics['reward']).all()
    return np.asarray(metrics['reward'])[:, 0]

  assert (cuts('fixed', last=1) == 3).all()
  assert (cuts('fixed', last=9) == 0).all()
  assert (cuts('gaussian', mean=2.0, std=0.0) == 2).all()
  assert set(cuts('gaussian', mean=9.0, std=0.1)) == {3}
  assert set(cuts('uniform')) <= {0, 1, 2, 3} and len(set(cuts('uniform'))) > 1
  with pytest.raises(ValueError, match='fixed, uniform, gaussian'):
    objectives.reward_backprop('never')


# --- through the sampling chain


def chain(deterministic, **kwargs):
  policy = testing.make_policy(
    window_low=0, deterministic=deterministic, **kwargs
  )
  params = policy.init(KEY)
  rows = rollout.make_rows(testing.batch((0, 1)), 3, KEY, jnp.int32(0))
  traj = jax.jit(policy.rollout)(params, rows, jnp.int32(0))
  return policy, params, rows, traj


def by_hand(params, x, cond, cut, grid, detach, scale):
  """Euler steps with the gradient stopped before the cut, plain autodiff."""
  net = testing.perceptron()
  for j in range(4):
    seen = jax.lax.stop_gradient(x) if detach else x
    v, free = (
      net.apply(params, seen, jnp.full(6, grid[j]), c)
      for c in (cond, net.null(cond))
    )
    v = scale * v + (1 - scale) * free
    if j < cut:
      v = jax.lax.stop_gradient(v)
    x = x + v * (grid[j + 1] - grid[j])
  return x


@pytest.mark.parametrize(
  'cut, detach, scale',
  [(0, False, 4.5), (0, True, 1.0), (2, False, 1.0), (3, True, 4.5)],
)
def test_gradient_is_that_of_the_chain(cut, detach, scale):
  """With guidance, too: through both halves of every step."""
  policy, params, rows, traj = chain(deterministic=True, guidance_scale=scale)
  grid = 2 * np.linspace(1, 0, 5) / (1 + np.linspace(1, 0, 5))
  weight = jax.random.normal(KEY, traj.sample.shape)

  def mine(params):
    cuts = jnp.full(6, cut)
    return (weight * policy.ops['finish'](params, traj, cuts, detach)).sum()

  def expected(params):
    x = traj.states[:, 0]
    end = by_hand(params, x, rows.cond, cut, grid, detach, scale)
    return (weight * end).sum()

  value, grad = jax.jit(jax.value_and_grad(mine))(params)
  want, want_grad = jax.jit(jax.value_and_grad(expected))(params)
  assert float(value) == pytest.approx(float(want), rel=1e-4)
  testing.assert_close(grad, want_grad, rtol=1e-3, atol=1e-4)
  assert max(np.abs(g).max() for g in jax.tree.leaves(grad)) > 1e-3


def test_noise_is_replayed():
  """With noisy steps the replayed sample is the stored one, to rounding."""
  policy, params, _, traj = chain(deterministic=False)
  done = jax.jit(policy.ops['finish'])(params, traj, jnp.zeros(6, int))
  np.testing.assert_allclose(done, traj.sample, atol=1e-5)


def test_every_row_has_its_own_cut():
  policy, params, _, traj = chain(deterministic=True)
  cuts = jnp.array([0, 1, 2, 3, 3, 0])

  def of(cuts):
    out = lambda p: policy.ops['finish'](p, traj, cuts).sum((1, 2, 3))
    return jax.jit(jax.jacrev(out))(params)

  mixed = of(cuts)
  for k in (0, 3):
    alone = of(jnp.full(6, k))
    rows = np.flatnonzero(np.asarray(cuts) == k)
    jax.tree.map(
      lambda a, b, rows=rows: np.testing.assert_allclose(
        a[rows], b[rows], rtol=1e-4, atol=1e-5
      ),
      mixed,
      alone,
    )


def test_a_step_raises_the_reward_and_says_what_it_needs():
  color = testing.color_reward()
  terms = dict(reward=(objectives.reward_backprop(), 1.0))
  step, state = testing.make_step(
    testing.make_policy(deterministic=True), terms, reward=color
  )
  scores = []
  for _ in range(12):
    state, log = step.train_step(state, testing.batch(), KEY)
    scores.append(float(log['reward/score']))
  assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.02
  hard = color._replace(differentiable=False)
  step, state = testing.make_step(testing.make_policy(), terms, reward=hard)
  with pytest.raises(ConfigError, match='differentiable'):
    step.train_step(state, testing.batch(), KEY)
  moving = testing.make_policy(
    window=1, window_start=dict(name='random_window')
  )
  step, state = testing.make_step(moving, terms, reward=color)
  with pytest.raises(ConfigError, match='policy.window_low=2'):
    step.train_step(state, testing.batch(), KEY)
