"""Steps that take a velocity: decisions by hand, and who makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import toy
from gen_rl import evals, evaluate, rollout, schema, search, setups, testing
from gen_rl.diffusion import caching, solvers
from gen_rl.models.parts.layers import Net
from gen_rl.policies import denoising, ode
from gen_rl.types import Reward, RewardOut

KEY = jax.random.key(0)
ALWAYS = 1e9  # a threshold that nothing reaches


def rows_of(ids=range(4), group=2):
  return rollout.make_rows(testing.batch(ids), group, KEY, jnp.int32(0))


def linear(slope=1.0):
  """v = slope x: by (1), k is |slope|, and by (2) a step's e is |slope dt|."""
  return Net(
    lambda key: (), lambda params, x, t, cond: slope * x, (3,), lambda c: c
  )


def noise_of(rows, net):
  return ode.segments(net, 1).noise(rows)


# --- the rule


def remembered(**changes):
  """Of two velocities: rates 1 and 4 by (1)."""
  memory = caching.empty(1.0, jnp.zeros((2, 1)))
  for x, v in (([1.0, 1.0], [2.0, 4.0]), ([2.0, 2.0], [3.0, 8.0])):
    x, v = (jnp.array(a)[:, None] for a in (x, v))
    found, memory = caching.step(0.0 * x.sum(), lambda _, v=v: v, x, memory)
    np.testing.assert_array_equal(found, v)
  assert (memory.known, memory.calls) == (2, 2)
  np.testing.assert_allclose(memory.rate, [1, 4])
  return memory._replace(**changes)


def decides(memory, x, threshold, **options):
  """(is the velocity taken?, the memory)."""
  fresh = lambda x: jnp.full(x.shape, -7.0)
  x = jnp.array(x)[:, None]
  v, after = caching.step(threshold, fresh, x, memory, **options)
  taken = after.calls == memory.calls
  np.testing.assert_array_equal(v, memory.v if taken else fresh(x))
  return bool(taken), after


def test_decisions_by_hand():
  memory = remembered()
  # e = 1 * .3 / 3 and 4 * .6 / 8: .1 and .3, in the mean .2
  assert decides(memory, [2.3, 2.6], 0.21)[0]
  assert not decides(memory, [2.3, 2.6], 0.19)[0]
  # the next one: .1 + 1 * .6 / 3 and .3 + 0: .3 in the mean
  _, after = decides(memory, [2.3, 2.6], 0.21)
  assert decides(after, [2.9, 2.6], 0.31)[0]
  assert not decides(after, [2.9, 2.6], 0.29)[0]
  # what is computed then is compared with the velocity that was, where that was
  _, new = decides(after, [2.9, 2.6], 0.29)
  np.testing.assert_allclose(new.rate, [10 / 0.9, 15 / 0.6], rtol=1e-5)
  np.testing.assert_array_equal(new.change, 0)
  assert not decides(memory, [2.3, 2.6], ALWAYS, must=True)[0]


def test_rows_that_are_not_finite_have_no_say():
  memory = remembered()
  for lost in (jnp.nan, jnp.inf):
    assert decides(memory, [2.3, lost], 0.11)[0]
    assert not decides(memory, [2.3, lost], 0.09)[0]
  assert not decides(memory, [jnp.nan, jnp.nan], ALWAYS)[0]
  # a network that says 0 and goes nowhere has no rate
  still = remembered(rate=jnp.full(2, jnp.nan))
  assert not decides(still, [2.3, 2.6], ALWAYS)[0]


def test_noise_ends_a_path():
  _, memory = decides(
    remembered(), [2.3, 2.6], ALWAYS, must=True, noise_free=False
  )
  for x in ([2.4, 2.7], [2.5, 2.8]):  # two velocities make a rate
    taken, memory = decides(memory, x, ALWAYS)
    assert not taken
  assert decides(memory, [2.6, 2.9], ALWAYS)[0]


# --- samplers


def drawn(net, rows, *args, **options):
  """(samples, share) of `ode.counted` with a traced threshold."""

  @jax.jit
  def run(threshold, params):
    sample = ode.counted(net, *args, cache_threshold=threshold, **options)
    return sample(params, rows)

  return run


def test_a_linear_flow_by_hand():
  """Ten steps of .1: velocities 0, 1, 4, 7 and 9 are computed below .25."""
  net, rows = linear(), rows_of()
  run = drawn(net, rows, 10)
  sample, share = run(0.25, ())
  gain = (0.9**2 - 2 * 0.09) * (1 - 3 * 0.1) * (1 - 2 * 0.1) * 0.9
  np.testing.assert_allclose(sample, gain * noise_of(rows, net), rtol=1e-5)
  np.testing.assert_allclose(share, 0.5, rtol=1e-6)
  # the threshold is a number of the same program
  sample, share = run(0.05, ())
  np.testing.assert_allclose(sample, 0.9**10 * noise_of(rows, net), rtol=1e-5)
  np.testing.assert_array_equal(share, 0)
  _, share = run(ALWAYS, ())  # but 0, 1 and 9
  np.testing.assert_allclose(share, 0.7, rtol=1e-6)
  assert run._cache_size() == 1


def test_off_is_off():
  net = testing.perceptron()
  params, rows = net.init(KEY), rows_of()
  sample, share = jax.jit(ode.counted(net, 4, 2.0, 3.0))(params, rows)
  assert share == ()
  program = jax.make_jaxpr(ode.sampler(net, 4, 2.0, 3.0))(params, rows)
  assert 'cond[' not in str(program)
  nearly, share = drawn(net, rows, 4, 2.0, 3.0)(1e-12, params)
  np.testing.assert_allclose(nearly, sample, atol=1e-6)
  np.testing.assert_array_equal(share, 0)


def test_the_second_order_solver_takes_them_too():
  net = testing.perceptron()
  params, rows = net.init(KEY), rows_of()
  sample, share = drawn(net, rows, 6, solver='dpm2')(ALWAYS, params)
  np.testing.assert_allclose(share, 0.5, rtol=1e-6)
  x = noise_of(rows, net)
  memory, times = solvers.empty(x), np.linspace(1, 0, 7, dtype=np.float32)
  step = jax.jit(solvers.step, static_argnums=0)
  for i, (t, t_next) in enumerate(zip(times[:-1], times[1:])):
    if i in (0, 1, 5):
      v = net.apply(params, x, jnp.full(len(x), t), rows.cond)
    x, memory = step('dpm2', x, v, t, t_next, memory)
  np.testing.assert_allclose(sample, x, atol=1e-5)


def test_each_part_of_a_search_computes_its_last_step():
  net = testing.perceptron()
  params, rows = net.init(KEY), rows_of()
  parts = ode.segments(net, 7, cache_threshold=ALWAYS)
  x, foreseen = jax.jit(parts.run, static_argnums=(3, 4))(
    params, parts.noise(rows), rows.cond, 0, 4
  )
  at, velocities = parts.noise(rows), []
  for i in range(4):
    if i != 2:
      t = jnp.full(len(at), 1 - i / 7)
      v = net.apply(params, at, t, rows.cond)
    velocities.append(v)
    at = at - v / 7
  np.testing.assert_allclose(x, at, atol=1e-5)
  before = at + velocities[3] / 7
  np.testing.assert_allclose(
    foreseen[3], before - 4 / 7 * velocities[3], atol=1e-5
  )
  whole = drawn(net, rows, 7)(ALWAYS, params)[0]
  score = lambda latents, rows: latents[:, 0, 0, 0]
  found = jax.jit(lambda: search.best_of_n(parts, params, score, rows, 1))()
  np.testing.assert_allclose(found.sample, whole, atol=1e-5)


# --- rollouts


def test_trained_steps_are_computed():
  """Ten steps, of which 3 and 4 are trained: 2, 7 and 8 take a velocity."""
  net = testing.perceptron()
  policy = testing.make_policy(
    net, steps=10, shift=1.0, window=2,
    window_start=dict(name='fixed_window', start=3), cache_threshold=ALWAYS,
  )  # fmt: skip
  params, rows = policy.init(KEY), rows_of()
  traj = policy.rollout(params, rows, jnp.int32(0))
  np.testing.assert_allclose(traj.reused, 0.3, rtol=1e-6)
  np.testing.assert_array_equal(traj.mask, 1)
  dist = policy.ops['dist'](params, traj)
  np.testing.assert_allclose(
    testing.log_prob(dist, traj.actions), traj.log_prob, atol=1e-4
  )

  def go(x, steps, computed):
    for i in steps:
      if i in computed:
        v = net.apply(params, x, jnp.full(len(x), 1 - i / 10), rows.cond)
      x = x - v / 10
    return x

  start = go(noise_of(rows, net), range(3), (0, 1))
  np.testing.assert_allclose(traj.states[:, 0], start, atol=1e-5)
  np.testing.assert_array_equal(traj.states[:, 1], traj.actions[:, 0])
  end = go(traj.actions[:, 1], range(5, 10), (5, 6, 9))
  np.testing.assert_allclose(traj.sample, end, atol=1e-5)
  # finished without noise from both decisions: steps 7 and 8 take one again
  done = policy.ops['complete'](params, rows, jnp.int32(0), traj)
  for j in range(2):
    end = go(traj.states[:, j], range(3 + j, 10), (3, 4, 5, 6, 9))
    np.testing.assert_allclose(done[:, j], end, atol=1e-5)


def test_the_share_is_logged():
  policy = testing.make_policy(steps=8, window=2, cache_threshold=ALWAYS)
  step, state = testing.make_step(policy, rollout_chunks=2)
  _, exp, log = jax.jit(step.collect)(state, testing.batch(), KEY)
  assert log['rollout/reused'] == pytest.approx(3 / 8)  # 4, 5 and 6 of 0..7
  np.testing.assert_array_equal(exp.traj.reused, log['rollout/reused'])


# --- configs


def test_an_evaluation_says_what_it_saved():
  net = testing.perceptron()
  score = lambda params, inputs, key: RewardOut(
    inputs.image[:, 0, 0, 0], {}, jnp.ones(8, bool)
  )
  run = evaluate.sampled(
    denoising.denoising(net, steps=4),
    ode.counted(net, 6, cache_threshold=ALWAYS),
    testing.batch(), list('abcd'), [], dict(gold=(Reward('r', (), score), 1.0)),
    None, samples=2, seed=1,
  )  # fmt: skip
  found = run(net.init(KEY))
  assert found.metrics()['eval/reused'] == pytest.approx(0.5)
  assert found.summary()['reused'] == pytest.approx(0.5)


def test_thresholds_of_configs():
  config = toy.get_config('tiny')
  config.eval.update(steps=6, cache_threshold=ALWAYS)
  config.evals.off = dict(cache_threshold=0.0)
  built = setups.setup(config)
  params = jax.eval_shape(built.policy.init, KEY)
  for label, cached in (('', True), ('off', False)):
    of = evals.configs(config)[label]
    sample, parts = setups.sampler_of(of, built.policy, built.net)
    program = jax.make_jaxpr(sample)(params, rows_of())
    assert ('cond[' in str(program)) == cached
    part = lambda params, rows, run=parts.run: run(
      params, jnp.zeros((8, 2)), rows.cond, 0, 6
    )
    assert ('cond[' in str(jax.make_jaxpr(part)(params, rows_of()))) == cached
  config.policy.update(cache_threshold=0.1, steps=4)
  for window, wrong in ((0, True), (3, True), (2, False)):
    config.policy.window = window
    says = ' '.join(m.says for m in schema.mistakes(config))
    assert ('cache_threshold is 0.1, and every step' in says) == wrong
  config.policy.update(window=0, deterministic=True)
  assert 'cache_threshold' not in str(schema.mistakes(config))
