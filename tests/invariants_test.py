"""Properties every policy, objective and geometry has to have.

Compared are program with program (another cut of the batch, another number of
devices, a resumed run) and with exact values (a ratio of 1, a KL of 0).
"""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import (
  advantages,
  checkpoint,
  objectives,
  optim,
  rollout,
  sharding,
  testing,
  train_state,
  train_step,
)
from gen_rl.models import dit as dit_lib
from gen_rl.policies import denoising
from gen_rl.rewards import evaluate
from gen_rl.types import Experience
from gen_rl.utils import tree

ROOT = pathlib.Path(__file__).parents[1]
KEY = jax.random.key(7)
# Where two programs are compared: linear in the gradient. Adam's first steps
# are its sign, which rounding decides where a gradient is nearly 0.
LINEAR = optax.sgd(0.5, momentum=0.9)


def make_policy(net=None, **kwargs):
  kwargs = dict(steps=4, shift=2.0, noise=0.6) | kwargs
  return denoising.denoising(net or testing.perceptron(), **kwargs)


def make(
  policy=None,
  terms=None,
  *,
  reward=None,
  advantage=None,
  tx=None,
  group_size=4,
  on_policy=None,
  **kwargs,
):
  """(Step, state) of a small run."""
  policy = policy or make_policy()
  reward = reward or testing.color_reward()
  advantage = advantage or advantages.grpo(group_size)
  tx = tx or optim.adamw(lr=1e-2, b2=0.99)
  if on_policy is None:
    on_policy = kwargs.get('updates', 1) * kwargs.get('epochs', 1) == 1
  terms = terms or dict(
    pg=(objectives.clipped_pg(1e-2, on_policy=on_policy), 1.0),
    kl=(objectives.kl(), 0.1),
  )
  step = train_step.make(
    policy,
    terms,
    tx,
    rewards=dict(color=(reward, 1.0)),
    advantage=advantage,
    group_size=group_size,
    ema_decay=0.9,
    **kwargs,
  )
  return step, make_state(policy, tx, advantage)


def make_state(policy, tx, advantage):
  return train_state.create(
    policy.init(jax.random.key(1)),
    tx,
    advantage,
    refs=('ref', 'ema'),
    reward_params=dict(color=()),
  )


def run(step, state, steps=2, batch=None):
  logs = []
  for _ in range(steps):
    state, log = step.train_step(state, batch or testing.batch(), KEY)
    logs.append(jax.device_get(log))
  return jax.device_get(state), logs


def assert_close(a, b, rtol=1e-4, atol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


# --- 1. the ratio is 1 before the first update


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
  policy = make_policy(transition=dict(name=transition), event=event)
  terms = dict(pg=(objectives.clipped_pg(1e-2, ratio=ratio), 1.0))
  step, state = make(policy, terms)
  _, (log,) = run(step, state, 1)
  assert log['pg/log_ratio_abs_max'] == 0
  assert log['pg/approx_kl'] == 0 and log['pg/clip_fraction'] == 0
  # a mean of ones; its sum and its count round apart
  assert log['pg/ratio'] == pytest.approx(1, rel=1e-6)


def log_ratio_as_gradient(ratio):
  """An objective whose gradient is 0 exactly where all log-ratios are."""
  objective = objectives.clipped_pg(1e-2, ratio=ratio, on_policy=False)

  def wrapped(replay, exp, keys):
    term, metrics = objective(replay, exp, keys)
    pull = replay.log_prob('params') * metrics['log_ratio_abs_max']
    return term.replace(value=pull), metrics

  return wrapped


def record(updates):
  """An optimizer that keeps every gradient norm and moves all the same."""

  def update(grads, state, params=None):
    count, norms = state
    norms = norms.at[count].set(optax.global_norm(grads))
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
  policy = make_policy(small_dit() if dit else None, window=2)
  terms = dict(pg=(log_ratio_as_gradient(ratio), 1.0))
  epochs = 1 if dit else 2
  step, state = make(
    policy,
    terms,
    tx=record(2 * epochs),
    group_size=2,
    updates=2,
    epochs=epochs,
  )
  state, _ = run(step, state, 1, dit_batch() if dit else None)
  _, norms = state.opt_state
  assert norms[0] == 0
  assert (norms[1:] > 0).all()


@pytest.mark.parametrize('microbatches', [1, 2])
def test_recomputed_log_probs_are_those_of_the_rollout(microbatches):
  """Where nothing moves, every ratio is 1 to rounding, in every minibatch."""
  terms = dict(pg=(objectives.clipped_pg(1e-2, on_policy=False), 1.0))
  step, state = make(
    None, terms, tx=optax.sgd(0.0), updates=2, microbatches=microbatches
  )
  _, (log,) = run(step, state, 1)
  assert log['pg/log_ratio_abs_max'] < 1e-5


def small_dit():
  return dit_lib.dit(
    image=(8, 8, 3), width=16, layers=1, heads=2, patch=4,
    vocab=16, length=4, text_width=8, text_layers=1,
  )  # fmt: skip


def dit_batch():
  batch = testing.batch((0, 1, 2, 3))
  return batch | dict(tokens=np.tile(batch['tokens'], (1, 2)))


# --- 2. masks and KL(self)


@pytest.mark.parametrize('transition', ['cps', 'flow_sde'])
def test_kl_to_itself_is_zero_and_flat(transition):
  policy = make_policy(transition=dict(name=transition))
  for objective in (objectives.kl(), objectives.velocity_kl()):
    step, state = make(policy, dict(kl=(objective, 1.0)))
    before = jax.device_get(state.params)
    state, (log,) = run(step, state, 1)
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
    moved = make_policy(net, **policy)
    dist = moved.dist(params, exp.traj)
    fixed = make_policy(**policy).dist(params, exp.traj)
    replay = train_step.Replay(
      dist=dict(params=dist, ref=fixed, old=fixed).__getitem__,
      log_prob=lambda which: dist.log_prob(exp.traj.actions),
      nll=None,
      velocity=lambda which: (
        moved if which == 'params' else make_policy(**policy)
      ).velocity(params, exp.traj),
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
    objectives.kl(),
    objectives.velocity_kl(),
    objectives.entropy(),
  ],
  ids=['pg', 'guard', 'reinforce', 'kl', 'velocity_kl', 'entropy'],
)
def test_noise_free_steps_and_dropped_rows_have_no_gradient(
  transition, objective, request
):
  """All T steps scored, the window's two of them noisy; row 1 dropped."""
  policy = dict(transition=dict(name=transition), window=2)
  noisy = make_policy(**policy)
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


def test_invalid_rewards_are_dropped_and_counted():
  """A prompt whose scores are NaN leaves no trace in the parameters."""

  def spoil(score, channel):
    return jnp.where(channel == 1, jnp.nan, score)

  batch = testing.batch((0, 1, 2))
  step, state = make(reward=testing.color_reward(spoil), tx=LINEAR)
  state, (log,) = run(step, state, 1, batch)
  assert log['reward/invalid'] == 4
  assert log['optim/skipped'] == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  assert np.isfinite(log['reward/score']) and np.isfinite(log['pg/loss'])
  # The other prompts alone give the same update: sums and counts agree.
  step, state_alone = make(tx=LINEAR)
  state_alone, (log_alone,) = run(step, state_alone, 1, testing.batch((0, 2)))
  assert log['reward/score'] == pytest.approx(log_alone['reward/score'])
  assert_close(state.params, state_alone.params)


def test_all_rewards_invalid_changes_nothing():
  step, state = make(
    reward=testing.color_reward(lambda score, channel: score * jnp.nan)
  )
  before = jax.device_get(state.params)
  state, (log,) = run(step, state, 1)
  assert log['reward/invalid'] == 16
  assert tree.equal(state.params, before)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


# --- 3. geometry


@pytest.mark.parametrize('updates', [1, 2])
def test_microbatches_equal_the_full_batch(updates):
  whole, logs = run(*make(tx=LINEAR, updates=updates))
  parts, part_logs = run(*make(tx=LINEAR, updates=updates, microbatches=4))
  assert_close(parts.params, whole.params)
  assert_close(parts.opt_state, whole.opt_state)
  assert_close(part_logs, logs)


def test_microbatches_equal_the_full_batch_with_dropped_rows():
  """The denominator of a minibatch is global, however rows are dropped."""

  def spoil(score, channel):
    return jnp.where(channel == 0, jnp.nan, score)

  reward = testing.color_reward(spoil)
  whole, logs = run(*make(reward=reward, tx=LINEAR))
  parts, part_logs = run(*make(reward=reward, microbatches=8, tx=LINEAR))
  assert_close(parts.params, whole.params)
  assert_close(part_logs, logs)


def test_fused_step_equals_split_step():
  """Scoring between two programs, in threads, as in one."""
  fused, fused_logs = run(*make(tx=LINEAR))
  host = testing.color_reward(where='host')
  sizes = []

  def score(params, inputs, key):
    sizes.append(inputs.group_size)
    return plain(params, inputs, key)

  plain, host = host.score, host._replace(score=score)
  step, state = make(reward=host, tx=LINEAR)
  logs = []
  for _ in range(2):
    traj, inputs, outs = step.sample(state, testing.batch(), KEY)
    assert outs == {}
    outs, _ = evaluate.evaluate_host(dict(color=(host, 1.0)), inputs, KEY)
    state, log = step.learn(state, traj, outs, KEY)
    logs.append(jax.device_get(log))
  assert_close(jax.device_get(state), fused)
  assert_close(logs, fused_logs)
  assert sizes == [4, 4] and {type(n) for n in sizes} == {int}


_MESH = """
  import runpy, sys
  run = runpy.run_path('tests/invariants_test.py')
  run['write_run'](sys.argv[1], int(sys.argv[2]))
"""


def write_run(path, devices):
  """Two steps on `devices`, and what they sampled, as npz."""
  assert len(jax.devices()) >= devices
  mesh = sharding.data_mesh(devices)
  out = {}
  for name, net, batch, cut in (
    ('dit', small_dit(), dit_batch(), {}),
    ('cut', None, testing.batch(), dict(updates=2, microbatches=2)),
  ):
    policy = make_policy(net, window=2)
    step, state = make(policy, mesh=mesh, group_size=8, tx=LINEAR, **cut)
    state = sharding.replicate(state, mesh)
    traj, inputs, _ = step.sample(state, batch, KEY)
    state, logs = run(step, state, 2, batch)
    found = dict(sample=traj.sample, media=inputs.media, state=state, log=logs)
    out |= {f'{name}/{k}': x for k, x in tree.named(found).items()}
  np.savez(path, **{k: np.asarray(x) for k, x in out.items()})


def test_one_device_equals_eight(tmp_path):
  results = []
  for devices in (1, 8):
    flags = f'--xla_force_host_platform_device_count={devices}'
    path = tmp_path / f'{devices}.npz'
    subprocess.run(
      [sys.executable, '-c', textwrap.dedent(_MESH), path, str(devices)],
      check=True,
      cwd=ROOT,
      env=os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu'),
    )
    results.append(dict(np.load(path)))
  one, eight = results
  assert set(one) == set(eight)
  for name, value in one.items():
    tight = name.endswith(('sample', 'media'))
    np.testing.assert_allclose(
      eight[name], value, err_msg=name,
      **(dict(atol=1e-6) if tight else dict(rtol=1e-4, atol=1e-5)),
    )  # fmt: skip


# --- 4. who draws what


@pytest.mark.parametrize('net', ['perceptron', 'dit'])
def test_a_sample_depends_on_seed_step_prompt_and_member_only(net):
  dit = net == 'dit'
  policy = make_policy(small_dit() if dit else None, window=2)
  params = policy.init(KEY)
  if dit:  # its last layers start at zero
    params = jax.tree.map(lambda p: p + 0.1, params)

  @jax.jit
  def sample(batch, seed, step):
    rows = rollout.make_rows(batch, 2, seed, step)
    return policy.rollout(params, rows, step).sample

  def of(ids, seed=7, step=3):
    batch = testing.batch(ids)
    if dit:
      batch |= dict(tokens=np.tile(batch['tokens'], (1, 2)))
    out = sample(batch, jax.random.key(seed), jnp.int32(step))
    out = np.asarray(out).reshape(len(ids), 2, -1)
    return dict(zip(ids, out, strict=True))

  a = of((0, 1, 2, 3))
  again = of((3, 1, 0, 2))  # another order: the same program
  for prompt, x in a.items():
    np.testing.assert_array_equal(again[prompt], x)
  for other in (of((1,)), of((9, 8, 7, 6, 5, 3))):  # other company
    for prompt in set(a) & set(other):
      np.testing.assert_allclose(
        other[prompt], a[prompt], atol=1e-6 * np.abs(a[prompt]).max()
      )
  # all rows differ, and all change with seed and step
  flat = np.concatenate(
    [x for run in (a, of((0, 1, 2, 3), 8), of((0, 1, 2, 3), 7, 4))
     for x in run.values()]
  )  # fmt: skip
  distance = np.abs(flat[:, None] - flat[None]).max(-1)
  assert (distance + np.eye(len(flat)) > 0.01).all()


def test_no_key_is_used_twice():
  """Rows' keys, their children, and the key all rows share."""
  rows = rollout.make_rows(testing.batch(range(6)), 3, KEY, jnp.int32(2))
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  used = [
    jax.random.key_data(k).reshape(-1, 2)
    for k in (rows.keys, rows.key, KEY, jax.vmap(fold, (0, None))(
      rows.keys, jnp.arange(4)), fold(rows.key, jnp.arange(4)))
  ]  # fmt: skip
  used = np.concatenate(used)
  assert len(np.unique(used, axis=0)) == len(used)


# --- 5. resume (a whole run, killed: train_test.py)


def test_resume_is_bitwise(tmp_path):
  """5 steps == 2 + save + restore into a fresh state + 3."""
  advantage = advantages.history(4, num_prompts=4, min_count=4)
  tx = optim.adamw(
    lr=1e-2, warmup=3, decay='cosine', steps=20, weight_decay=0.1
  )
  settings = dict(advantage=advantage, tx=tx, updates=2)
  policy = make_policy(window=2, window_start=dict(name='random_window'))
  step, state = make(policy, **settings)
  whole, logs = run(step, state, 5)

  step, state = make(policy, **settings)
  manager = checkpoint.open_manager(tmp_path)
  for _ in range(2):
    state, _ = step.train_step(state, testing.batch(), KEY)
  # The state is donated to the next step while the save goes on.
  checkpoint.save(manager, 2, state, extra=dict(i=2))
  for _ in range(3):
    state, _ = step.train_step(state, testing.batch(), KEY)
  checkpoint.close(manager)

  step, state = make(policy, **settings)
  manager = checkpoint.open_manager(tmp_path)
  restored = checkpoint.restore_latest(manager, state)
  checkpoint.close(manager)
  resumed, resumed_logs = run(step, restored.state, 3)
  assert tree.differing(resumed, whole) == []
  assert tree.differing(resumed_logs, logs[2:]) == []
  assert int(resumed.step) == 5


# --- 6. one program


def test_a_moving_window_compiles_once():
  starts = []
  policy = make_policy(
    steps=6,
    window=2,
    window_start=dict(name='progressive_window', tau=1),
  )
  step, state = make(policy)
  for _ in range(4):
    traj, _, _ = step.sample(state, testing.batch(), KEY)
    starts.append(float(traj.times[0, 0, 0]))
    state, _ = step.train_step(state, testing.batch(), KEY)
  assert len(set(starts)) == 4
  assert step.train_step._cache_size() == 1


# --- 7. dtypes


@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_float32_around_a_bfloat16_net(scale):
  net = testing.perceptron(dtype=jnp.bfloat16)
  policy = make_policy(net, guidance_scale=scale)
  params = policy.init(KEY)
  rows = rollout.make_rows(testing.batch(), 4, KEY, jnp.int32(0))
  assert net.apply(params, jnp.ones((16, 4, 4, 3)), jnp.ones(16),
                   rows.cond).dtype == jnp.bfloat16  # fmt: skip
  traj = policy.rollout(params, rows, jnp.int32(0))
  floats = [traj.states, traj.actions, traj.times, traj.log_prob, traj.sample]
  dist = policy.dist(params, traj)
  floats += [dist.mean, dist.std, dist.log_prob(traj.actions), dist.kl(dist)]
  floats += [policy.nll(params, traj.sample, rows.cond, rows.keys)]
  floats += [policy.decode(params, traj.sample)]
  floats += [denoising.ode_sampler(net, 3, 1.0, scale)(params, rows)]
  step, state = make(policy, tx=optim.adamw(lr=1e-2))
  _, exp, _ = step.collect(state, testing.batch(), KEY)
  floats += [exp.adv, exp.weight, exp.rewards.score]
  state, _ = run(step, state, 1)
  floats += [
    x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  assert {str(x.dtype) for x in floats} == {'float32'}


# --- 8. updates that are not finite


def test_a_non_finite_update_is_skipped_and_counted():
  def explode(replay, exp, keys):
    term, metrics = objectives.reinforce()(replay, exp, keys)
    return term.replace(value=term.value * jnp.inf), metrics

  step, state = make(terms=dict(pg=(explode, 1.0)))
  before = jax.device_get(state)
  for i in (1, 2):
    state, log = step.train_step(state, testing.batch(), KEY)
    assert int(log['optim/skipped']) == i
    assert int(log['optim/skipped_in_a_row']) == i
  state = jax.device_get(state)
  assert int(state.step) == 2
  for part in ('params', 'opt_state', 'refs'):
    assert tree.equal(getattr(state, part), getattr(before, part))
  # a good update ends the row, and the count stays
  good, _ = make(terms=dict(pg=(objectives.reinforce(), 1.0)))
  state, (log,) = run(good, state, 1)
  assert int(log['optim/skipped']) == 2
  assert int(log['optim/skipped_in_a_row']) == 0
  assert not tree.equal(state.params, before.params)


def test_one_bad_minibatch_of_two_is_skipped():
  """The other one counts, and its parameters are kept."""

  def explode(replay, exp, keys):
    term, metrics = objectives.reinforce()(replay, exp, keys)
    hit = exp.traj.group == 3  # two of the eight rows
    return term.replace(value=term.value / (1.0 - hit[:, None])), metrics

  step, state = make(terms=dict(pg=(explode, 1.0)), group_size=2, updates=4)
  before = jax.device_get(state.params)
  state, (log,) = run(step, state, 1)
  assert 1 <= int(log['optim/skipped']) <= 2
  assert not tree.equal(state.params, before)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_an_update_that_overflows_is_skipped_though_its_gradient_is_finite():
  step, state = make(tx=optim.adamw(lr=1e39))  # infinite in float32
  before = jax.device_get(state)
  state, (log,) = run(step, state, 1)
  assert np.isfinite(log['optim/grad_norm'])
  assert log['optim/skipped'] == 1
  assert tree.equal(state.params, before.params)
  assert tree.equal(state.refs, before.refs)
