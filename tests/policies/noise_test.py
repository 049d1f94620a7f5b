"""Noise per step, and noise that the rows of a group share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_rl import rollout, testing
from gen_rl.build import ConfigError

KEY = jax.random.key(0)
GRID = 2 * np.linspace(1, 0, 6) / (1 + np.linspace(1, 0, 6))  # 5 steps, shift 2
kl = jax.jit(lambda p, q: p.kl(q))


def make(**options):
  return testing.make_policy(steps=5, **options)


def rows_of(ids=(0, 1), group=4, step=0):
  return rollout.make_rows(testing.batch(ids), group, KEY, jnp.int32(step))


def levels(policy, steps):
  """Stored levels [update k] of one row, and how often that was compiled."""
  run = jax.jit(lambda step: policy.rollout(params, rows, step).noise[0])
  params, rows = policy.init(KEY), rows_of((0,), 1)
  out = np.stack([run(jnp.int32(i)) for i in range(steps)])
  return out, run._cache_size()


def test_each_step_has_its_level():
  """dance_sde: g = a f(t), std = g sqrt(dt), mean + g^2 / (2 t) x1 dt."""
  policy = make(
    transition=dict(name='dance_sde'), noise=0.5,
    noise_schedule=dict(name='cosine_decay', floor=0.2),
  )  # fmt: skip
  net, params, rows = testing.perceptron(), policy.init(KEY), rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  t, t_next = GRID[:-2], GRID[1:-1]
  g = 0.5 * (0.2 + 0.8 * (1 + np.cos(np.pi * (1 - t))) / 2)
  np.testing.assert_allclose(traj.noise, np.tile(g, (8, 1)), rtol=1e-6)
  std, dt = g * np.sqrt(t - t_next), t_next - t
  dist = policy.ops['dist'](params, traj)
  other = policy.ops['dist'](jax.tree.map(lambda p: 1.5 * p, params), traj)
  np.testing.assert_allclose(dist.std, np.tile(std, (8, 1)), rtol=1e-5)
  for i in range(4):
    x = np.asarray(traj.states[:, i])
    v = np.asarray(net.apply(params, x, jnp.full(8, t[i]), rows.cond))
    x1 = x + (1 - t[i]) * v
    mean = x + v * dt[i] + g[i] ** 2 / (2 * t[i]) * x1 * dt[i]
    density = scipy.stats.norm.logpdf(traj.actions[:, i], mean, std[i])
    wanted = density.reshape(8, -1).mean(-1)
    np.testing.assert_allclose(traj.log_prob[:, i], wanted, rtol=1e-3)
    apart = np.square(mean - np.asarray(other.mean[:, i])) / (2 * std[i] ** 2)
    wanted = apart.reshape(8, -1).mean(-1)
    np.testing.assert_allclose(kl(dist, other)[:, i], wanted, rtol=1e-3)
  np.testing.assert_allclose(
    testing.log_prob(dist, traj.actions), traj.log_prob, atol=1e-4
  )
  np.testing.assert_array_equal(kl(dist, dist), 0)


def variance_of_one(name, t, t_next):
  """Of a step at a small level a, in units of a^2, but for cps."""
  dt = t - t_next
  return dict(
    dance_sde=dt,
    flow_sde=t / (1 - np.where(t < 1, t, t_next)) * dt,
    ddim=t_next**2 * (1 - ((1 - t) * t_next / (t * (1 - t_next))) ** 2),
    cps=t_next**2,
  )[name]


@pytest.mark.parametrize('name', ['cps', 'flow_sde', 'dance_sde', 'ddim'])
def test_a_budget_is_kept_in_every_window(name):
  """Windows (0, 1), (1, 2), (2, 3): one program, the constant's variance."""
  spec = dict(name='budget_match', shape='increasing', floor=0.3)
  policy = make(
    transition=dict(name=name), noise=0.5, noise_schedule=spec, window=2,
    window_start=dict(name='progressive_window', tau=1),
  )  # fmt: skip
  found, programs = levels(policy, 3)
  assert programs == 1
  amplitude = (lambda a: np.sin(a * np.pi / 2)) if name == 'cps' else np.asarray
  for start, a in enumerate(found):
    t, t_next = GRID[start : start + 2], GRID[start + 1 : start + 3]
    unit = variance_of_one(name, t, t_next)
    spent = (amplitude(a) ** 2 * unit).sum()
    assert spent == pytest.approx(amplitude(0.5) ** 2 * unit.sum(), rel=1e-5)
    g = 0.3 + 0.7 * (1 + np.cos(np.pi * t)) / 2
    assert a[1] / a[0] == pytest.approx(g[1] / g[0], rel=1e-5)


def test_a_policy_may_be_made_in_a_program():
  def run(step):
    policy = make(noise_schedule=dict(name='budget_match'), window=2)
    return policy.rollout(policy.init(KEY), rows_of((0,), 1), step).noise

  testing.assert_close(jax.jit(run)(jnp.int32(0)), run(jnp.int32(0)))


def test_an_interval_trains_the_last_steps():
  """1, 1, 2, 3, 4 of 4: steps before belong to the ODE and are masked."""
  policy = make(
    noise_schedule=dict(name='backward_interval', first=1, stages=5, every=1)
  )
  found, programs = levels(policy, 6)
  wanted = np.array(
    [[i >= 4 - n for i in range(4)] for n in (1, 1, 2, 3, 4, 4)]
  )
  assert programs == 1
  np.testing.assert_allclose(found, 0.6 * wanted, rtol=1e-6)
  params, rows = policy.init(KEY), rows_of()
  traj = policy.rollout(params, rows, jnp.int32(2))
  np.testing.assert_array_equal(traj.mask, np.tile(wanted[2], (8, 1)))
  x, net = traj.states[:, 0], testing.perceptron()
  for t, t_next in zip(GRID[:2], GRID[1:3], strict=True):
    x = x + (t_next - t) * net.apply(params, x, jnp.full(8, t), rows.cond)
  np.testing.assert_allclose(traj.states[:, 2], x, atol=1e-5)


def test_a_factor_of_one_is_the_constant():
  params, rows = make().init(KEY), rows_of()
  plain, none, one = (
    make(noise_schedule=spec).rollout(params, rows, jnp.int32(0))
    for spec in (None, dict(name=''), dict(name='cosine_decay', floor=1.0))
  )
  testing.assert_same(none, plain)
  testing.assert_close(one, plain)


def test_schedules_that_leave_no_noise_are_refused():
  def spec(name, **more):
    return dict(noise_schedule=dict(name=name, **more))

  for options, says in (
    (spec('increasing', floor=0.0), 'leaves step 0 without noise.* 0..3'),
    (
      dict(spec('backward_interval'), window=2, window_high=3),
      'leaves step 0 without noise.* 0..1',
    ),
    (spec('backward_interval', first=5), 'first=5 steps is longer than the 4'),
    (dict(spec('cosine_decay'), deterministic=True), 'no noise to spread'),
    (
      dict(spec('budget_match', floor=0.0), noise=0.99),
      'cannot inject as much noise .* at most 1.01',
    ),
    (spec('sine'), "no 'sine'.*backward_interval, budget_match"),
  ):
    with pytest.raises(ConfigError, match=says):
      make(**options)
  # A window that never holds the silent step
  make(**spec('increasing', floor=0.0), window=2, window_low=1)
