"""Reward backpropagation against closed forms and plain autodiff."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, rollout, testing
from gen_rl.build import ConfigError
from gen_rl.models.parts.layers import Net
from gen_rl.policies import through
from gen_rl.types import Experience, Replay, RewardOut, RowKeys, Trajectory

KEY = jax.random.key(0)


# --- the objective by itself


def answers(score, calls=4):
  """A replay whose sample says where it was cut; `calls` network calls."""
  b = 6
  none = jnp.zeros((b, calls - 1))
  traj = Trajectory((), (), (), (), none, none, none, (), jnp.zeros(b))
  exp = Experience(traj, jnp.zeros((b, 1)), jnp.ones(b), None)
  keys = RowKeys(jax.random.split(KEY, b), None)
  # Digits say which of the calls are trained, of those that are computed.
  digits = lambda live, first: (live * 10.0 ** jnp.arange(calls))[:, first:]
  replay = testing.answers(
    finish=lambda which, live, detach, stop, first: digits(live, first).sum(1),
    estimate=lambda which, call: 10.0**call,
  )._replace(score=lambda x, keys: RewardOut(score(x), {}, x >= 0))
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


def trained(calls=4, rows=6, **kwargs):
  """{calls that one row trains, as '0101': how many rows do}."""
  replay, exp, keys = answers(lambda x: x, calls)
  keys = RowKeys(jax.random.split(KEY, rows), None)
  objective = objectives.reward_backprop(**kwargs)
  _, metrics = jax.jit(lambda keys: objective(replay, exp, keys))(keys)
  said = [f'{int(x):0{calls}}'[::-1] for x in metrics['reward'][:, 0]]
  assert [x.count('1') for x in said] == list(metrics['trained_calls'][:, 0])
  return collections.Counter(said)


def test_cuts():
  assert trained(cut='fixed', last=1) == {'0001': 6}
  assert trained(cut='fixed', last=9) == {'1111': 6}
  assert trained(cut='gaussian', mean=2.0, std=0.0) == {'0011': 6}
  assert trained(cut='gaussian', mean=9.0, std=0.1) == {'0001': 6}
  cuts = {'1111', '0111', '0011', '0001'}
  assert set(trained(cut='uniform', rows=40)) == cuts
  assert set(trained(cut='uniform', most=2, rows=40)) == {'0011', '0001'}
  assert trained(cut='gaussian', mean=0.0, most=3, std=0.0) == {'0111': 6}
  with pytest.raises(ValueError, match='fixed, uniform, gaussian, spaced'):
    objectives.reward_backprop('never')


def test_spaced_calls():
  """Of 7 every third, from any start that leaves room for all of them."""
  spaced = trained(7, cut='spaced', last=2, rows=200)
  starts = ['1001000', '0100100', '0010010', '0001001']
  assert set(spaced) == set(starts)
  assert min(spaced.values()) > 200 / 4 - 4 * (200 * 3 / 16) ** 0.5
  assert trained(cut='spaced', last=9) == {'1111': 6}


def test_chains_that_stop_early():
  """At any of the last three; what is trained lies before."""
  refl = trained(cut='fixed', last=1, early=3, rows=200)
  assert set(refl) == {'0100', '0010', '0001'}
  assert min(refl.values()) > 200 / 3 - 4 * (200 * 2 / 9) ** 0.5
  drtune = trained(cut='spaced', last=2, early=3, rows=200)
  assert set(drtune) == {'1100', '0110', '1010', '0101'}
  assert set(trained(cut='fixed', last=2, early=1)) == {'0011'}
  with pytest.raises(ConfigError, match='early=5 .* policy has 4: .*window=4'):
    trained(early=5)


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
def test_gradient_is_that_of_the_chain(cut, detach, scale, monkeypatch):
  """With guidance, too: through both halves of every step; long ones loop."""
  if detach:
    monkeypatch.setattr(through, '_UNROLLED', 0)
  policy, params, rows, traj = chain(deterministic=True, guidance_scale=scale)
  grid = 2 * np.linspace(1, 0, 5) / (1 + np.linspace(1, 0, 5))
  weight = jax.random.normal(KEY, traj.sample.shape)

  def mine(params):
    live = jnp.tile(jnp.arange(4) >= cut, (6, 1))
    done = policy.ops['finish'](params, traj, live, detach, None, cut)
    return (weight * done).sum()

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
  done = jax.jit(policy.ops['finish'])(params, traj, jnp.ones((6, 4), bool))
  np.testing.assert_allclose(done, traj.sample, atol=1e-5)


def test_every_row_has_its_own_cut():
  policy, params, _, traj = chain(deterministic=True)
  cuts = jnp.array([0, 1, 2, 3, 3, 0])

  def of(cuts):
    live = jnp.arange(4) >= cuts[:, None]
    out = lambda p: policy.ops['finish'](p, traj, live).sum((1, 2, 3))
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


# --- a net whose gradients are worked out by hand: v = w x

W = 0.3


@functools.cache
def linear_chain(**kwargs):
  """(policy, trajectory of 6 rows, states before each call, their times)."""
  net = Net(
    lambda key: jnp.float32(W), lambda w, x, t, cond: w * x, testing.SHAPE,
    lambda cond: cond,
  )  # fmt: skip
  policy = testing.make_policy(net, deterministic=True, **kwargs)
  rows = rollout.make_rows(testing.batch((0, 1)), 3, KEY, jnp.int32(0))
  traj = jax.jit(policy.rollout)(jnp.float32(W), rows, jnp.int32(0))
  x = np.concatenate([traj.states, traj.actions[:, -1:]], 1)
  t = np.append(traj.times[0, :, 0], traj.times[0, -1, 1])
  return policy, traj, x, t


def test_the_estimate_of_one_call():
  """x0 = (1 - t w) x, d x0 / d w = -t x: nothing of the calls before."""
  policy, traj, x, t = linear_chain()
  call = np.array([3, 0, 1, 2, 1, 3])
  x, t = x[np.arange(6), call], t[call][:, None, None, None]

  def estimate(w):
    return policy.ops['estimate'](w, traj, jnp.asarray(call))

  np.testing.assert_allclose(estimate(W), (1 - t * W) * x, rtol=1e-5)
  slope = jax.jit(jax.jacrev(estimate))(W)
  np.testing.assert_allclose(slope, -t * x, rtol=1e-5)


def test_detached_calls_that_stop_early():
  """d x0 / d w = sum_i (t_{i+1} - t_i) x_i over the trained calls alone.

  A row that stops at call s goes from there to time 0 in one step.
  """
  policy, traj, x, t = linear_chain()
  live = np.array(['1010', '0101', '1100', '0001', '1111', '0110'])
  live = np.array([[c == '1' for c in row] for row in live])
  stop = np.array([2, 3, 1, 3, 0, 3])
  live &= np.arange(4) <= stop[:, None]

  def seen(w):
    return policy.ops['finish'](w, traj, live, True, jnp.asarray(stop))

  steps = np.where(np.arange(4) < stop[:, None], np.diff([*t, 0.0]), 0.0)
  steps[np.arange(6), stop] = -t[stop]
  value = x[:, 0] + W * np.einsum('bk,bk...->b...', steps, x)
  np.testing.assert_allclose(seen(W), value, rtol=1e-5, atol=1e-6)
  slope = jax.jit(jax.jacrev(seen))(W)
  expected = np.einsum('bk,bk...->b...', steps * live, x)
  np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


def test_the_last_step_again():
  """x0' = (1 - t w) x with x = (1 - t) x0 + t eps, and -t x its slope.

  The noise is standard normal, so that the slope is -t (1 - t) x0 on average.
  """
  policy, traj, _, t = linear_chain()
  t, draws = t[-1], 400
  keys = jax.random.split(KEY, 6)

  def again(w):
    return policy.ops['last_step'](w, traj, keys, draws)

  done, slope = np.asarray(again(W)), jax.jit(jax.jacfwd(again))(W)
  x = done / (1 - t * W)
  np.testing.assert_allclose(slope, -t * x, rtol=1e-4, atol=1e-5)
  x0 = np.asarray(traj.sample)
  eps = (x - (1 - t) * x0[:, None]) / t
  assert abs(eps.std() - 1) < 0.01 and abs(eps.mean()) < 0.01
  error = slope.mean(1) + t * (1 - t) * x0
  assert np.abs(error).max() < 5 * t**2 / draws**0.5
  assert np.unique(eps[:, :, 0, 0, 0]).size == 6 * draws


def test_low_variance_gradients():
  """The mean of the last call's own gradient and of those taken again."""
  policy, traj, x, t = linear_chain()
  keys = RowKeys(jax.random.split(KEY, 6), None)
  weight = jax.random.normal(KEY, traj.sample.shape)
  exp = Experience(traj, jnp.zeros((6, 1)), jnp.ones(6), None)

  def value(w, draws):
    made = []  # what `last_step` gave

    def ask(which, op, *args):
      made.append(policy.ops[op](w, traj, *args))
      return made[-1]

    def score(sample, keys):
      score = (weight * sample).sum((1, 2, 3))
      return RewardOut(score, {}, score > -jnp.inf)

    objective = objectives.reward_backprop('fixed', draws=draws)
    term, metrics = objective(Replay(ask, score=score), exp, keys)
    return term.value[:, 0], (metrics['reward'][:, 0], made[-1])

  slope, (reward, again) = jax.jit(
    jax.jacfwd(lambda w: value(w, 2), has_aux=True)
  )(W)
  last, first = t[-1], traj.sample
  seen = [first, again[:, 0], again[:, 1]]
  inputs = [x[:, -1]] + [y / (1 - last * W) for y in seen[1:]]
  of = lambda xs: np.einsum('nbhwc,bhwc->nb', np.stack(xs), weight).mean(0)
  np.testing.assert_allclose(reward, of(seen), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(slope, last * of(inputs), rtol=1e-4, atol=1e-4)
  with pytest.raises(ConfigError, match="draws=2 .* cut='fixed', last=1"):
    objectives.reward_backprop('uniform', draws=2)


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
  heun = testing.make_policy(deterministic=True, solver='dpm2')
  step, state = testing.make_step(heun, terms, reward=color)
  with pytest.raises(ConfigError, match="policy.solver is 'dpm2'"):
    step.train_step(state, testing.batch(), KEY)
