"""Exact values: a ratio of 1, a KL of 0, no gradient where nothing is scored.

Over every policy and objective where they apply.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import objectives, optim, rollout, testing
from gen_rl.policies import ode
from gen_rl.types import Experience
from gen_rl.utils import tree

KEY = jax.random.key(testing.SEED)


# --- the ratio is 1 before the first update


@pytest.mark.parametrize(
  ('transition', 'ratio', 'event'),
  [
    ('cps', 'plain', 'mean'),
    ('cps', 'guard', 'sum'),
    ('flow_sde', 'plain', 'sum'),
    ('dance_sde', 'guard', 'mean'),
    ('ddim', 'plain', 'mean'),
  ],
)
def test_ratio_is_one_with_one_update_per_rollout(transition, ratio, event):
  policy = testing.make_policy(transition=dict(name=transition), event=event)
  terms = dict(pg=(objectives.clipped_pg(1e-2, ratio=ratio), 1.0))
  step, state = testing.make_step(policy, terms)
  _, (log,) = testing.run(step, state, 1)
  assert log['pg/log_ratio_abs_max'] == 0
  assert log['pg/approx_kl'] == 0 and log['pg/clip_fraction'] == 0
  # a mean of ones; its sum and its count round apart
  assert log['pg/ratio'] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize('objective', ['awm', 'nft'])
def test_matching_losses_start_at_the_policy_that_sampled(objective):
  """On policy v_old is v, to the bit, and NFT's pull is the advantage's."""
  terms = {objective: (getattr(objectives, objective)(draws=2), 1.0)}
  step, state = testing.make_step(testing.make_policy(), terms)
  _, (log,) = testing.run(step, state, 1)
  zero = dict(awm='awm/log_ratio_abs_max', nft='nft/old_distance')[objective]
  assert log[zero] == 0
  assert log['optim/grad_norm'] > 0


def log_ratio_as_gradient(ratio):
  """An objective whose gradient is 0 exactly where all log-ratios are."""
  objective = objectives.clipped_pg(1e-2, ratio=ratio, on_policy=False)

  def wrapped(replay, exp, keys):
    term, metrics = objective(replay, exp, keys)
    pull = replay.ask('params', 'log_prob') * metrics['log_ratio_abs_max']
    return term.replace(value=pull), metrics

  return wrapped


def record(updates):
  """An optimizer that keeps every gradient norm and moves all the same."""

  def update(grads, state, params=None):
    count, norms = state
    norms = norms.at[count].set(optax.tree.norm(grads))
    moved = jax.tree.map(lambda p: 0.01 * jnp.sign(p), params)
    return moved, (count + 1, norms)

  return optax.GradientTransformation(
    lambda params: (jnp.int32(0), jnp.zeros(updates)), update
  )


@pytest.mark.parametrize(
  ('net', 'ratio'),
  [('perceptron', 'plain'), ('perceptron', 'guard'), ('dit', 'plain')],
)
def test_ratio_is_one_in_the_first_of_several_minibatches(net, ratio):
  dit = net == 'dit'
  policy = testing.make_policy(testing.dit() if dit else None, window=2)
  terms = dict(pg=(log_ratio_as_gradient(ratio), 1.0))
  epochs = 1 if dit else 2
  step, state = testing.make_step(
    policy,
    terms,
    tx=record(2 * epochs),
    group_size=2,
    updates=2,
    epochs=epochs,
  )
  state, _ = testing.run(step, state, 1, testing.dit_batch() if dit else None)
  _, norms = state.opt_state
  assert norms[0] == 0
  assert (norms[1:] > 0).all()


@pytest.mark.parametrize('microbatches', [1, 2])
def test_recomputed_log_probs_are_those_of_the_rollout(microbatches):
  """Where nothing moves, every ratio is 1 to rounding, in every minibatch."""
  terms = dict(pg=(objectives.clipped_pg(1e-2, on_policy=False), 1.0))
  step, state = testing.make_step(
    None, terms, tx=optax.sgd(0.0), updates=2, microbatches=microbatches
  )
  _, (log,) = testing.run(step, state, 1)
  assert log['pg/log_ratio_abs_max'] < 1e-5


# --- masks and KL(self)


@pytest.mark.parametrize('transition', ['cps', 'flow_sde'])
def test_kl_to_itself_is_zero_and_flat(transition):
  policy = testing.make_policy(transition=dict(name=transition))
  for objective in (
    objectives.kl(),
    objectives.velocity_kl(),
    objectives.sampled_kl(),
  ):
    step, state = testing.make_step(policy, dict(kl=(objective, 1.0)))
    before = jax.device_get(state.params)
    state, (log,) = testing.run(step, state, 1)
    assert log['kl/loss'] == 0
    assert log['optim/grad_norm'] == 0
    assert tree.equal(state.params, before)


def per_decision_gradient(policy, objective, exp, params):
  """d loss / d (a constant added to the velocity of each decision): [b k]."""

  def loss(shift):
    shifted = shift.reshape(-1)

    def apply(p, x, t, cond):
      v = testing.perceptron().apply(p, x, t, cond)
      return v + shifted[:, None, None, None]

    net = testing.perceptron()._replace(apply=apply)
    moved = testing.make_policy(net, **policy)
    dist = moved.ops['dist'](params, exp.traj)
    fixed = testing.make_policy(**policy).ops['dist'](params, exp.traj)
    replay = testing.answers(
      dist=dict(params=dist, ref=fixed, old=fixed).__getitem__,
      log_prob=lambda which: dist.log_prob(exp.traj.actions),
      velocity=lambda which: (
        moved if which == 'params' else testing.make_policy(**policy)
      ).ops['velocity'](params, exp.traj),
    )
    term, _ = objective(replay, exp, None)
    return (term.value * term.mask * exp.weight[:, None]).sum()

  return jax.grad(loss)(0.1 * jnp.ones_like(exp.traj.mask))


@pytest.mark.parametrize('transition', ['cps', 'flow_sde'])
@pytest.mark.parametrize(
  'objective',
  [
    objectives.clipped_pg(10.0),
    objectives.clipped_pg(10.0, ratio='guard'),
    objectives.reinforce(),
    objectives.gspo(10.0, 10.0),
    objectives.gspo(10.0, 10.0, tokens=True),
    objectives.cispo(),
    objectives.kl(),
    objectives.velocity_kl(),
    objectives.entropy(),
  ],
  ids='pg guard reinforce gspo gspo_token cispo kl velocity_kl entropy'.split(),
)
def test_noise_free_steps_and_dropped_rows_have_no_gradient(
  transition, objective, request
):
  """All T steps scored, the window's two of them noisy; row 1 dropped."""
  policy = dict(transition=dict(name=transition), window=2)
  noisy = testing.make_policy(**policy)
  rows = rollout.make_rows(testing.batch((0, 1)), 2, KEY, jnp.int32(0))
  params = noisy.init(KEY)
  traj = noisy.rollout(params, rows, jnp.int32(0))
  # One more decision, noise-free: as the steps outside of a window are.
  traj = jax.tree.map(
    lambda x: jnp.concatenate([x, x[:, :1]], 1),
    traj.replace(cond=(), sample=(), group=()),
  ).replace(cond=traj.cond, sample=traj.sample, group=traj.group)
  traj = traj.replace(
    noise=traj.noise.at[:, 2].set(0.0), mask=traj.mask.at[:, 2].set(0.0)
  )
  exp = Experience(
    traj=traj,
    adv=jnp.arange(1.0, 5.0)[:, None],
    weight=jnp.array([1.0, 0.0, 1.0, 1.0]),
    rewards=None,
  )
  grad = jax.jit(
    lambda exp, params: per_decision_gradient(policy, objective, exp, params)
  )(exp, params)
  grad = np.asarray(grad)
  assert np.isfinite(grad).all()
  live = np.ones((4, 3), bool)
  live[1] = live[:, 2] = False
  if 'entropy' in request.node.callspec.id:
    live[:] = False  # the deviation is not learned
  np.testing.assert_array_equal(grad != 0, live)


# --- dtypes


@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_float32_around_a_bfloat16_net(scale):
  net = testing.perceptron(dtype=jnp.bfloat16)
  policy = testing.jitted(testing.make_policy(net, guidance_scale=scale))
  params = policy.init(KEY)
  rows = jax.jit(lambda: rollout.make_rows(testing.batch(), 4, KEY, 0))()
  assert net.apply(params, jnp.ones((16, 4, 4, 3)), jnp.ones(16),
                   rows.cond).dtype == jnp.bfloat16  # fmt: skip
  traj = policy.rollout(params, rows, jnp.int32(0))
  floats = [traj.states, traj.actions, traj.times, traj.log_prob, traj.sample]
  dist = policy.ops['dist'](params, traj)
  floats += [dist.mean, dist.std]
  floats += jax.jit(lambda d, a: (d.log_prob(a), d.kl(d)))(dist, traj.actions)
  floats += [policy.ops['nll'](params, traj, rows.keys)]
  floats += [policy.decode(params, traj.sample)]
  floats += [jax.jit(ode.sampler(net, 3, 1.0, scale))(params, rows)]
  step, state = testing.make_step(policy, tx=optim.adamw(lr=1e-2))
  _, exp, _ = jax.jit(step.collect)(state, testing.batch(), KEY)
  floats += [exp.adv, exp.weight, exp.rewards.score]
  state, _ = testing.run(step, state, 1)
  floats += [
    x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  assert {str(x.dtype) for x in floats} == {'float32'}
