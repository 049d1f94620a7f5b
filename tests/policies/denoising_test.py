"""The denoising policy: what it stores, replays and samples.

Checked with nets whose ODE has a closed solution, and by replaying.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_rl import rollout, testing
from gen_rl.build import ConfigError
from gen_rl.diffusion import schedules
from gen_rl.policies import denoising, ode
from gen_rl.types import Noised
from gen_rl.utils import rng

KEY = jax.random.key(0)
kl = jax.jit(lambda p, q: p.kl(q))
TARGET = 0.3


def make(net, **options):
  return testing.jitted(denoising.denoising(net, **options))


def sampler(net, *args, **options):
  return jax.jit(ode.sampler(net, *args, **options))


def rows_of(ids=range(8), group=4, step=0):
  return rollout.make_rows(testing.batch(ids), group, KEY, jnp.int32(step))


@pytest.mark.parametrize('name', ['cps', 'flow_sde', 'dance_sde', 'ddim'])
def test_every_transition_ends_on_the_data(name):
  """x0 is known from any state, so the last step lands on it, noise or not."""
  policy = make(
    testing.point_net(TARGET), steps=5, transition=dict(name=name), noise=0.7
  )
  traj = policy.rollout(jnp.float32(0), rows_of(), jnp.int32(0))
  np.testing.assert_allclose(traj.sample, TARGET, atol=1e-4)
  sample = sampler(testing.point_net(TARGET), 3)(jnp.float32(0), rows_of())
  np.testing.assert_allclose(sample, TARGET, atol=1e-5)
  media = policy.decode(None, traj.sample)
  np.testing.assert_allclose(media, (1 + TARGET) / 2, atol=1e-4)


def test_stored_decisions_are_a_chain():
  """states[i + 1] is actions[i]; times are the grid; T - 1 of T trained."""
  policy = make(testing.perceptron(), steps=5, shift=1.0)
  params = policy.init(KEY)
  traj = policy.rollout(params, rows_of(), jnp.int32(0))
  assert traj.states.shape == (32, 4, *testing.SHAPE)
  np.testing.assert_array_equal(traj.states[:, 1:], traj.actions[:, :-1])
  grid = np.array([1, 0.8, 0.6, 0.4, 0.2])
  np.testing.assert_allclose(traj.times[3, :, 0], grid[:-1], rtol=1e-6)
  np.testing.assert_allclose(traj.times[3, :, 1], grid[1:], rtol=1e-6)
  np.testing.assert_array_equal(traj.mask, 1)
  # the first state is standard normal
  x = np.asarray(traj.states[:, 0]).ravel()
  assert scipy.stats.kstest(x, 'norm').pvalue > 1e-3


@pytest.mark.parametrize('unit', [False, True])
@pytest.mark.parametrize('event', ['mean', 'sum'])
def test_log_prob_against_scipy(event, unit):
  """cps: mean (1 - t') x0 + t' cos(a pi / 2) x1, std t' sin(a pi / 2)."""
  net, level = testing.perceptron(), 0.6
  policy = make(net, steps=4, noise=level, event=event, unit_log_prob=unit)
  params = policy.init(KEY)
  rows = rows_of((0, 1))
  traj = policy.rollout(params, rows, jnp.int32(0))
  i = 1
  x, t, t_next = traj.states[:, i], traj.times[:, i, 0], traj.times[0, i, 1]
  v = net.apply(params, x, t, rows.cond)
  t = float(t[0])
  x0, x1 = np.asarray(x - t * v), np.asarray(x + (1 - t) * v)
  mean = (1 - t_next) * x0 + t_next * np.cos(level * np.pi / 2) * x1
  std = float(t_next) * np.sin(level * np.pi / 2)
  action = np.asarray(traj.actions[:, i], np.float64)
  if unit:
    density = -np.square(action - mean)
  else:
    density = scipy.stats.norm.logpdf(action, mean, std)
  expected = getattr(density.reshape(8, -1), event)(-1)
  np.testing.assert_allclose(traj.log_prob[:, i], expected, rtol=1e-3)
  # and the noise that was drawn is standard normal
  z = ((action - mean) / std).ravel()
  assert scipy.stats.kstest(z, 'norm').pvalue > 1e-3


@pytest.mark.parametrize('scale', [1.0, 3.0])
def test_replay_is_what_sampled(scale):
  """One kernel samples and scores, guidance included."""
  policy = make(
    testing.perceptron(), steps=4, transition=dict(name='flow_sde'),
    guidance_scale=scale,
  )  # fmt: skip
  params = policy.init(KEY)
  traj = policy.rollout(params, rows_of(), jnp.int32(0))
  dist = policy.ops['dist'](params, traj)
  np.testing.assert_allclose(
    testing.log_prob(dist, traj.actions), traj.log_prob, atol=1e-4
  )
  np.testing.assert_array_equal(kl(dist, dist), 0)
  # Matching losses fit the net, which guidance at scale 1 leaves as it is.
  net = testing.perceptron()
  at = params, traj.states[:, 1], traj.times[:, 1, 0]
  own, free = (net.apply(*at, c) for c in (traj.cond, net.null(traj.cond)))
  at = Noised(traj.states, traj.times[..., 0], (), ())
  found = policy.ops['velocity_at'](params, traj, at)[:, 1]
  np.testing.assert_allclose(found, own, atol=1e-6)
  guided = policy.ops['velocity'](params, traj)[:, 1]
  np.testing.assert_allclose(guided, free + scale * (own - free), atol=1e-5)
  other = jax.tree.map(lambda p: 1.5 * p, params)
  assert (kl(dist, policy.ops['dist'](other, traj)) > 0).all()


def test_a_window_is_noisy_and_the_rest_is_the_ode():
  net = testing.perceptron()
  policy = make(
    net, steps=6, window=2, window_start=dict(name='fixed_window', start=2)
  )
  params = policy.init(KEY)
  rows = rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  assert traj.actions.shape[1] == 2
  np.testing.assert_array_equal(traj.mask, 1)
  np.testing.assert_allclose(traj.noise, 0.8)
  np.testing.assert_allclose(traj.times[0, :, 0], [4 / 6, 3 / 6], rtol=1e-5)
  # before the window: the same Euler steps as the evaluation sampler's
  x = np.asarray(
    make(net, steps=6, deterministic=True)
    .rollout(params, rows, jnp.int32(0))
    .states[:, 2]
  )
  np.testing.assert_allclose(traj.states[:, 0], x, atol=1e-5)
  # after it: Euler from the last action
  x = traj.actions[:, 1]
  for t in (2 / 6, 1 / 6):
    x = x - net.apply(params, x, jnp.full(32, t), rows.cond) / 6
  # (one more step lies between the window's end, 2/6, and the data)
  np.testing.assert_allclose(traj.sample, x, atol=1e-4)


def test_without_noise_the_rollout_is_the_evaluation_sampler():
  net = testing.perceptron()
  policy = make(net, steps=4, shift=3.0, deterministic=True)
  params = policy.init(KEY)
  traj = policy.rollout(params, rows_of(), jnp.int32(0))
  sample = sampler(net, 4, shift=3.0)(params, rows_of())
  np.testing.assert_allclose(traj.sample, sample, atol=1e-5)
  # no decision was a choice
  np.testing.assert_array_equal(traj.mask, 0)
  np.testing.assert_array_equal(traj.log_prob, 0)


def test_windows_move_with_the_step():
  def starts(spec, steps):
    policy = make(
      testing.point_net(TARGET),
      steps=6,
      window=2,
      window_low=1,
      window_start=spec,
    )
    rollout_fn = jax.jit(policy.rollout)
    return [
      round(6 * (1 - float(t)))
      for step in range(steps)
      for t in rollout_fn(
        jnp.float32(0), rows_of((0,), 1, step), jnp.int32(step)
      ).times[0, 0, :1]
    ]

  assert starts(None, 2) == [1, 1]
  assert starts(dict(name='progressive_window', tau=2), 7) == [
    1, 1, 2, 2, 3, 3, 1,
  ]  # fmt: skip
  assert set(starts(dict(name='random_window'), 20)) == {1, 2, 3}


def test_matching_loss_of_the_exact_velocity():
  """v is x1 - TARGET where the data is one point; elsewhere x0 is missed by d.

  net - (x1 - x0) = d (1 - t) / t + d = d / t for data x0 = TARGET + d.
  """
  policy = make(testing.point_net(TARGET), time_mean=1.0, time_std=0.5)
  keys = jax.random.split(KEY, 64)
  x0 = jnp.full((64, *testing.SHAPE), TARGET)
  cond = dict(tokens=jnp.zeros((64, 2), jnp.int32))
  nll = policy.ops['nll'](jnp.float32(0), testing.given(x0, cond), keys)
  np.testing.assert_allclose(nll, 0, atol=1e-8)
  shifted = policy.ops['nll'](
    jnp.float32(0), testing.given(x0 + 0.1, cond), keys
  )
  t = 0.1 / np.sqrt(shifted)
  # t is sigmoid(N(1, .5^2)), the key's own
  z = (np.log(t / (1 - t)) - 1.0) / 0.5
  assert scipy.stats.kstest(z, 'norm').pvalue > 1e-3
  again = policy.ops['nll'](jnp.float32(0), testing.given(x0 + 0.2, cond), keys)
  np.testing.assert_allclose(again, 4 * shifted, rtol=1e-3)  # paired noise


def test_null_prob_drops_that_share_of_prompts():
  base = testing.perceptron()

  def apply(params, x, t, cond):
    kept = (cond['tokens'] != 0).any(-1).astype(jnp.float32)
    return jnp.zeros_like(x) + 1e3 * kept[:, None, None, None]

  net = base._replace(apply=apply)
  policy = make(net, null_prob=0.25)
  n = 512
  nll = policy.ops['nll'](
    (),
    testing.given(
      np.zeros((n, *testing.SHAPE), np.float32),
      dict(tokens=np.ones((n, 2), np.int32)),
    ),
    jax.random.split(KEY, n),
  )
  dropped = float((nll < 1e4).mean())
  assert abs(dropped - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5


def test_windows_that_do_not_fit():
  for kwargs in (
    dict(steps=4, window=4),
    dict(steps=4, window=2, window_low=2),
    dict(steps=4, window_high=4),
  ):
    with pytest.raises(ValueError, match='does not fit between'):
      make(testing.point_net(TARGET), **kwargs)


# --- steps outside of the window


def test_shared_noise_starts_a_group_from_one_point():
  policy = testing.make_policy(shared_noise=True)
  params = policy.init(KEY)
  traj = policy.rollout(params, rows_of((0, 1)), jnp.int32(0))
  first = np.asarray(traj.states[:, 0]).reshape(2, 4, -1)
  np.testing.assert_array_equal(first, first[:, :1].repeat(4, 1))
  assert np.abs(first[0, 0] - first[1, 0]).max() > 0.1
  # The noise of the steps stays each row's own.
  second = np.asarray(traj.states[:, 1]).reshape(2, 4, -1)
  assert np.abs(second[0, 0] - second[0, 1]).max() > 0.1


def test_deterministic_rollouts_are_the_sampler():
  net = testing.perceptron()
  policy = testing.make_policy(deterministic=True, solver='dpm2')
  params = policy.init(KEY)
  rows = rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  sample = sampler(net, 4, 2.0, solver='dpm2')
  np.testing.assert_allclose(traj.sample, sample(params, rows), atol=1e-5)
  np.testing.assert_array_equal(traj.mask, 0)
  np.testing.assert_array_equal(traj.log_prob, 0)


def test_a_chain_that_begins_at_a_picture():
  """At step 2 of 4, where t = 1/2: half the picture in [-1, 1], half noise."""
  policy = testing.make_policy(
    begin=0.5, shift=1.0, transition=dict(name='cps')
  )
  params, rows = policy.init(KEY), rows_of()
  with pytest.raises(ConfigError, match='at pictures, .* the data have none'):
    policy.rollout(params, rows, jnp.int32(0))
  media = jax.random.uniform(KEY, (32, *testing.SHAPE))
  rows = rows.replace(media=media)
  traj = policy.rollout(params, rows, jnp.int32(0))
  noise = rng.normal(rng.stream_keys(rows.keys, 'init'), testing.SHAPE)
  start = 0.5 * (2 * media - 1) + 0.5 * noise
  np.testing.assert_allclose(traj.states[:, 0], start, rtol=1e-5, atol=1e-6)
  assert (traj.mask == 1).all() and (traj.times == jnp.array([0.5, 0.25])).all()
  found = testing.log_prob(policy.ops['dist'](params, traj), traj.actions)
  np.testing.assert_allclose(found, traj.log_prob, atol=1e-5)
  # The one step that is left has no noise.
  x = traj.actions[:, 0]
  v = testing.perceptron().apply(params, x, jnp.full(32, 0.25), rows.cond)
  np.testing.assert_allclose(traj.sample, x - 0.25 * v, rtol=1e-5, atol=1e-6)


def test_where_a_chain_may_begin():
  with pytest.raises(ConfigError, match='step 2 of 4, .* step 1: .* at most 1'):
    testing.make_policy(begin=0.5, window=1, window_low=1)
  with pytest.raises(ConfigError, match='begin is 0.25 .* set it to 0.5'):
    testing.make_policy(begin=0.25, window=1, window_low=2)


def test_a_tail_of_long_steps():
  """Window on steps 1 and 2 of 6; the rest from t = 1/2 in 2 steps, not 3."""
  policy = testing.make_policy(
    steps=6, shift=1.0, window=2, tail=0.5, window_low=1
  )
  params = policy.init(KEY)
  rows = rows_of((0,))
  traj = policy.rollout(params, rows, jnp.int32(0))
  np.testing.assert_allclose(
    traj.times[0], [[5 / 6, 4 / 6], [4 / 6, 3 / 6]], rtol=1e-6
  )
  x, net = traj.actions[:, -1], testing.perceptron()
  for t, t_next in ((0.5, 0.25), (0.25, 0.0)):
    x = x + (t_next - t) * net.apply(params, x, jnp.full(4, t), rows.cond)
  np.testing.assert_allclose(traj.sample, x, atol=1e-5)


@pytest.mark.parametrize('solver', ['euler', 'dpm2'])
def test_completions(solver):
  """Of the first state the plain ODE; of all states what a loop computes."""
  net = testing.perceptron()
  policy = testing.make_policy(steps=5, window=3, solver=solver)
  params = policy.init(KEY)
  rows, step = rows_of((0, 1)), jnp.int32(0)
  traj = policy.rollout(params, rows, step)
  done = policy.ops['complete'](params, rows, step, traj)
  assert done.shape == traj.states.shape
  if solver == 'euler':
    sample = sampler(net, 5, 2.0)(params, rows)
    np.testing.assert_allclose(done[:, 0], sample, atol=1e-5)
    grid = 2 * np.linspace(1, 0, 6) / (1 + np.linspace(1, 0, 6))
    for j in range(3):
      x = traj.states[:, j]
      for t, t_next in zip(grid[j:-1], grid[j + 1 :]):
        x = x + (t_next - t) * net.apply(params, x, jnp.full(8, t), rows.cond)
      np.testing.assert_allclose(done[:, j], x, atol=1e-5)


def test_noised_samples():
  policy = testing.make_policy(time_mean=0.5)
  x0 = jax.random.normal(KEY, (6, *testing.SHAPE))
  keys = jax.random.split(KEY, 6)
  at = policy.ops['noised']((), testing.given(x0, ()), keys, 3)
  assert at.x.shape == (6, 3, *testing.SHAPE) and at.t.shape == (6, 3)
  t = at.t[..., None, None, None]
  np.testing.assert_allclose(at.x, (1 - t) * x0[:, None] + t * at.x1, atol=1e-6)
  assert len(np.unique(at.t)) == 18  # every draw its own time
  # One key, one draw, whatever the row: paired noise.
  same = policy.ops['noised'](
    (), testing.given(x0, ()), keys[jnp.zeros(6, int)], 2
  )
  np.testing.assert_array_equal(
    same.x1, np.broadcast_to(same.x1[:1], same.x1.shape)
  )


def test_solver_and_tail_are_checked():
  for kwargs in (dict(solver='heun'), dict(tail=0.0), dict(tail=1.5)):
    with pytest.raises(ConfigError, match='solver|tail'):
      testing.make_policy(**kwargs)


def discrete(transition='ddim', steps=5, **options):
  """On the grid of a discrete process: it starts below 1 and ends above 0."""
  return make(
    testing.perceptron(), steps=steps, transition=dict(name=transition),
    noise=1.0, grid=dict(name='ddim'), **options,
  )  # fmt: skip


def test_the_grid_of_a_discrete_process():
  """Signal and noise of its levels; its own units at both ends."""
  policy = discrete()
  params, rows = policy.init(KEY), rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  times = np.asarray(schedules.ddim(5), np.float64)
  assert 0.8 < times[0] < 0.94 and 0.02 < times[-1] < 0.04
  np.testing.assert_allclose(traj.times[0, :, 0], times[:-2], rtol=1e-6)
  np.testing.assert_allclose(traj.times[0, :, 1], times[1:-1], rtol=1e-6)
  start = rng.normal(rng.stream_keys(rows.keys, 'init'), testing.SHAPE)
  alpha, sigma = 1 - times, times  # up to a factor, which is then
  unit = np.sqrt(alpha**2 + sigma**2)
  np.testing.assert_allclose(traj.states[:, 0], start * unit[0], rtol=1e-6)
  # The last step is one of the ode.
  x, t = traj.actions[:, -1], jnp.full(32, times[-2], jnp.float32)
  v = testing.perceptron().apply(params, x, t, rows.cond)
  want = (x + v * (times[-1] - times[-2])) / unit[-1]
  np.testing.assert_allclose(traj.sample, want, atol=1e-5)


def test_what_is_recomputed_on_a_discrete_grid():
  policy = discrete()
  params, rows = policy.init(KEY), rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  found = testing.log_prob(policy.ops['dist'](params, traj), traj.actions)
  np.testing.assert_allclose(found, traj.log_prob, atol=1e-5)
  live = jnp.ones((32, traj.mask.shape[1] + 1), bool)
  finished = policy.ops['finish'](params, traj, live)
  np.testing.assert_allclose(finished, traj.sample, atol=1e-5)
  net, grid = testing.perceptron(), dict(name='ddim')
  whole = sampler(net, 5, grid=grid)(params, rows)
  complete = policy.ops['complete'](params, rows, jnp.int32(0), traj)
  np.testing.assert_allclose(complete[:, 0], whole, atol=1e-5)
  segments = ode.segments(net, 5, grid=grid)
  x, _ = segments.run(params, segments.noise(rows), rows.cond, 0, 2)
  x, foreseen = segments.run(params, x, rows.cond, 2, 5)
  np.testing.assert_allclose(x, whole, atol=1e-5)
  np.testing.assert_array_equal(foreseen[-1], x)
  assert np.abs(foreseen[-2] - x).max() > 1e-3
  with pytest.raises(ConfigError, match='tail=0.5.*grid=ddim'):
    discrete(tail=0.5)
  same = make(net, steps=5, grid=dict(name=''))
  plain = make(net, steps=5)
  samples = [
    p.rollout(params, rows, jnp.int32(0)).sample for p in (same, plain)
  ]
  np.testing.assert_array_equal(*samples)
