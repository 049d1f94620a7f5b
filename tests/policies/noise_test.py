"""Noise per step, and noise that the rows of a group share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_rl import rollout, testing
from gen_rl.build import ConfigError
from gen_rl.policies import branches
from gen_rl.utils import flops, rng

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
    noise_schedule=dict(name='backward_interval', initial=1, stages=5, every=1)
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
    (
      spec('backward_interval', initial=5),
      'initial=5 steps .* more than the 4',
    ),
    (
      dict(spec('cosine_decay'), deterministic=True),
      'noise_schedule is .* take no noise',
    ),
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


# --- noise that a group shares


def branched(after, ways=(), **options):
  spec = dict(name='fixed_branches', after=after, ways=ways)
  return make(branch=spec, **options)


def data_of(keys):
  return np.asarray(jax.random.key_data(keys)).reshape(len(keys), -1)


def tree_keys(ids, group=6, members=None):
  """Keys of 4 decisions [4 b 2]: two ways after 1, three after 2."""
  rows = rollout.make_rows(
    testing.batch(ids), group, KEY, jnp.int32(0), members=members
  )
  tree = branches.fixed_branches(4, (1, 2), (2, 3))
  shared = jax.jit(lambda rows: branches.share(tree, rows, jnp.int32(0)))(rows)
  keys = [shared.step_keys(jnp.int32(j), jnp.int32(j)) for j in range(4)]
  apart = [np.asarray(shared.apart(jnp.int32(j))).all() for j in range(4)]
  assert apart == [False, True, True, True]
  return np.stack([data_of(k) for k in keys]), rows


def test_a_tree_by_hand():
  """Who draws whose noise in a group of six, by the first who does."""
  keys, rows = tree_keys((0, 1))
  for j, wanted in enumerate((
    [0, 0, 0, 0, 0, 0], [0, 0, 0, 3, 3, 3], range(6), range(6),
  )):  # fmt: skip
    same = (keys[j][:, None] == keys[j][None]).all(-1)
    first = np.array([*wanted, *(6 + np.array(wanted))])
    np.testing.assert_array_equal(same.argmax(1), first)
  own = [data_of(rng.step_keys(rows.keys, j)) for j in (2, 3)]
  np.testing.assert_array_equal(keys[2:], own)  # behind, what they ever drew
  # No key is drawn from twice, nor for another purpose.
  init = data_of(rng.stream_keys(rows.group_keys, 'init'))
  used = [*keys, init, data_of(rows.keys), data_of(rows.group_keys)]
  own = [data_of(rng.step_keys(rows.keys, j)) for j in (0, 1)]
  distinct = np.unique(np.concatenate([*used, *own]), axis=0)
  assert len(distinct) == 2 * (1 + 2 + 6 + 6) + 2 * (1 + 6 + 1) + 2 * (6 + 6)


def test_shared_noise_does_not_depend_on_the_company():
  whole, _ = tree_keys((0, 1))
  alone, _ = tree_keys((1,))
  np.testing.assert_array_equal(alone, whole[:, 6:])
  few, _ = tree_keys((1,), 3, members=jnp.array([[1, 4, 5]]))
  np.testing.assert_array_equal(few, whole[:, [7, 10, 11]])


def test_rows_part_behind_a_branch():
  """2 of 4 decisions are those of the group and masked, the others are not."""
  policy, params, rows = branched((2,)), make().init(KEY), rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  dist = policy.ops['dist'](params, traj)
  drawn = (traj.actions - dist.mean) / dist.std[..., None, None, None]
  drawn = np.asarray(drawn).reshape(2, 4, 4, -1)  # P G k d
  np.testing.assert_array_equal(traj.mask, [[0, 0, 1, 1]] * 8)
  one = traj.states[:, 2].reshape(2, 4, -1)
  np.testing.assert_allclose(one, one[:, :1].repeat(4, 1), atol=1e-6)
  for j in range(4):
    apart = np.abs(drawn[:, :1, j] - drawn[:, 1:, j]).max(-1)
    assert (apart < 1e-4).all() if j < 2 else (apart > 0.1).all()
  steps = drawn[:, 0].reshape(8, -1)  # of two prompts, all unlike
  assert np.abs(np.corrcoef(steps) - np.eye(8)).max() < 0.5
  assert scipy.stats.kstest(steps.ravel(), 'norm').pvalue > 1e-3
  # Behind it each draws what it would have drawn.
  plain = make().rollout(params, rows, jnp.int32(0))
  dist = policy.ops['dist'](params, plain)
  own = (plain.actions - dist.mean) / dist.std[..., None, None, None]
  own = np.asarray(own).reshape(2, 4, 4, -1)
  np.testing.assert_allclose(drawn[:, :, 2:], own[:, :, 2:], atol=1e-3)


def test_a_branch_before_all_decisions_is_shared_noise():
  params, rows = make().init(KEY), rows_of()
  run = lambda policy: policy.rollout(params, rows, jnp.int32(0))
  testing.assert_same(run(branched((0,))), run(make(shared_noise=True)))


def test_what_all_rows_share_says_nothing():
  """sum_rows A grad log p of a masked decision is 0, of others it is not."""
  policy, params, rows = branched((2,)), make().init(KEY), rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  advantage = jnp.array([1.0, -3.0, 0.5, 1.5] * 2)

  def gains(params):  # [k]
    log_prob = policy.ops['dist'](params, traj).log_prob(traj.actions)
    return advantage @ log_prob

  found = jax.jit(jax.jacrev(gains))(params)
  found = [np.abs(x).reshape(4, -1).max(-1) for x in jax.tree.leaves(found)]
  gradients = np.max(found, 0)
  assert gradients[:2].max() < 1e-4 * gradients[2:].min()


def test_levels_of_rows_spread():
  options = dict(transition=dict(name='flow_sde'), noise=0.8, noise_spread=0.5)
  policy = make(branch=dict(name='fixed_branches', after=(2,)), **options)
  params, rows = policy.init(KEY), rows_of((0, 1, 2, 3), 16)
  traj = policy.rollout(params, rows, jnp.int32(0))
  noise = np.asarray(traj.noise).reshape(4, 16, 4)
  # Rows of a group differ behind their branch alone; U[0.4, 0.8].
  assert (noise[:, :, :2] == noise[:, :1, :2]).all()
  assert len(np.unique(noise[:, 0, :2])) == 8
  own = noise[:, :, 2:].ravel()
  assert len(np.unique(own)) > 120
  assert (
    scipy.stats.kstest(own, scipy.stats.uniform(0.4, 0.4).cdf).pvalue > 0.01
  )
  dist = policy.ops['dist'](params, traj)
  testing.assert_close(dist.log_prob(traj.actions), traj.log_prob)


def test_a_drawn_branch():
  """Uniform over prompts, one for the rows of a group."""
  drawn = branches.random_branch(6, 1, 5)
  rows = rows_of(range(600), 2)
  after = np.asarray(jax.jit(drawn.after)(rows.group_keys, 0))[0].reshape(
    600, 2
  )
  np.testing.assert_array_equal(after[:, 0], after[:, 1])
  values, counts = np.unique(after[:, 0], return_counts=True)
  np.testing.assert_array_equal(values, [1, 2, 3, 4])
  assert scipy.stats.chisquare(counts).pvalue > 1e-3
  policy = make(branch=dict(name='random_branch'))
  rows = rows_of(range(6), 2)
  traj = policy.rollout(policy.init(KEY), rows, jnp.int32(0))
  masked = np.asarray((traj.mask == 0).sum(1))
  groups = np.asarray(traj.states).reshape(6, 2, 4, -1)
  alike = (np.abs(groups[:, 0] - groups[:, 1]).max(-1) < 1e-5).sum(-1)
  np.testing.assert_array_equal(masked[::2], masked[1::2])
  # the state of the decision at which they part is still the same
  np.testing.assert_array_equal(alike, masked[::2] + 1)
  assert len(set(masked)) > 1


def test_a_branch_that_moves_back():
  """1, 1, 2, 3, 4 of 4 decisions, all noisy: one program."""
  policy = make(branch=dict(name='backward_branch', initial=1, stages=5))
  params, rows = policy.init(KEY), rows_of()
  run = jax.jit(lambda step: policy.rollout(params, rows, step))
  for step, n in enumerate((1, 1, 2, 3, 4, 4)):
    traj = run(jnp.int32(step))
    np.testing.assert_array_equal(
      traj.mask, [[i >= 4 - n for i in range(4)]] * 8
    )
    np.testing.assert_allclose(traj.noise, 0.6)
  assert run._cache_size() == 1


def test_a_branch_and_a_schedule_in_a_step():
  """Ratios are 1 to the bit, and means are over decisions that count."""
  policy = branched(
    (1,), noise_schedule=dict(name='budget_match'),
    transition=dict(name='flow_sde'),
  )  # fmt: skip
  _, (logs, *_) = testing.run(*testing.make_step(policy))
  wanted = {
    'pg/ratio': 1.0, 'pg/log_ratio_abs_max': 0.0, 'pg/decisions': 3.0,
    'kl/decisions': 3.0,
  }  # fmt: skip
  assert {k: float(logs[k]) for k in wanted} == wanted


# Of 5 steps and groups of 4, rows that each step computes a group.
@pytest.mark.parametrize(
  'options, computed',
  [
    (dict(shared_noise=True), [1, 4, 4, 4, 4]),
    (dict(shared_noise=True, window=2, window_start=dict(
      name='progressive_window', tau=1)), [1, 1, 4, 4, 4]),
    (dict(branch=dict(name='fixed_branches', after=(0, 2), ways=(2, 2)),
      guidance_scale=2.0), [1, 2, 2, 4, 4]),
    (dict(branch=dict(name='fixed_branches', after=(1,)), solver='dpm2',
      window=2, tail=0.5, window_start=dict(name='fixed_window', start=1)),
      [1, 1, 1, 4]),
    (dict(branch=dict(name='backward_branch', initial=3, stages=5)),
      [1, 1, 4, 4, 4]),
    (dict(shared_noise=True, cache_threshold=1e3, window=1, window_low=3),
      [1, 1, 1, 1, 4]),
  ],
  ids=['start', 'window', 'tree', 'tail', 'back', 'cached'],
)  # fmt: skip
def test_what_rows_share_is_computed_once(options, computed):
  """The same samples, of as few rows as the tree has nodes."""
  policy, rows = make(**options), rows_of((0, 1))
  params = policy.init(KEY)
  once = policy.rollout(params, rows, jnp.int32(1))
  each = policy.rollout(params, rows.replace(alike=1), jnp.int32(1))
  assert each.spared == ()
  spared = 1 - np.mean(computed) / 4
  np.testing.assert_allclose(once.spared, [spared] * 8, atol=1e-6)
  testing.assert_same(once.replace(spared=()), each)


def test_operations_are_those_of_the_rows_that_are_computed():
  """Of points that do not move: 1, 1, 2, 4, 4 of 4 rows for 5 steps."""
  tree = branched((1, 2), (2, 2))
  params, rows = tree.init(KEY), rows_of((0, 1))

  def operations(rows):
    run = lambda rows: tree.rollout(params, rows, jnp.int32(0)).sample
    return flops.count(jax.make_jaxpr(run)(rows))

  once, each = operations(rows), operations(rows.replace(alike=1))
  assert once.open_loops == each.open_loops == 0
  assert once.flops / each.flops == 12 / 20


def test_who_is_in_a_node_has_to_be_known():
  """Of chosen members only what all of a group share is computed once."""
  policy = branched((1, 2), (2, 2))
  chosen = jnp.array([[0, 1, 2, 7], [2, 4, 5, 6]])
  rows = rollout.make_rows(
    testing.batch((0, 1)), 4, KEY, jnp.int32(0), members=chosen
  )
  params = policy.init(KEY)
  once, each = (
    policy.rollout(params, r, jnp.int32(0))
    for r in (rows, rows.replace(alike=1))
  )
  np.testing.assert_allclose(once.spared, 1 - (2 + 3 * 4) / 20, atol=1e-6)
  testing.assert_same(once.replace(spared=()), each)


def test_branches_that_a_window_cannot_hold_are_refused():
  def spec(name, **more):
    return dict(branch=dict(name=name, **more))

  for options, says in (
    (spec('fixed_branches', after=(4,)), r'after=\(4,\) leaves no .* most 3'),
    (dict(spec('fixed_branches', after=(2,)), window=2), 'at most 1'),
    (
      spec('fixed_branches', after=(2, 1), ways=(2, 2)),
      'several that increase',
    ),
    (spec('fixed_branches', after=()), 'one point'),
    (spec('fixed_branches', after=(1, 2)), 'one number of ways a point'),
    (spec('random_branch', low=3, high=3), 'low=3 and high=3 .* at most 4'),
    (spec('random_branch', high=5), 'high=5 .* at most 4'),
    (
      spec('backward_branch', initial=5),
      'initial=5 steps .* more than the 4',
    ),
    (dict(spec('random_branch'), deterministic=True), 'steps take no noise'),
  ):
    with pytest.raises(ConfigError, match=says):
      make(**options)
