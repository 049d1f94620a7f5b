"""Program with program: another cut of the batch, more devices, a resumed run.

Where two programs are compared the update is linear in the gradient
(testing.LINEAR).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import (
  advantages,
  aggregate,
  checkpoint,
  minibatch,
  optim,
  rollout,
  sharding,
  testing,
)
from gen_rl.rewards import evaluate
from gen_rl.utils import tree

ROOT = pathlib.Path(__file__).parents[2]
KEY = jax.random.key(testing.SEED)


# --- geometry


@pytest.mark.parametrize(
  ('updates', 'terms'), [(1, None), (2, None), (1, 'all')]
)
def test_microbatches_equal_the_full_batch(updates, terms):
  """By the metrics of every objective, too, where all are one loss."""
  settings = dict(
    terms=testing.terms() if terms else None,
    tx=testing.LINEAR,
    updates=updates,
    whole_groups=terms == 'all',  # some compare the rows of a group
  )

  def run(**more):
    step, state = testing.make_step(**settings, **more)
    # Away from the reference: margins to it are then more than rounding.
    away = jax.tree.map(lambda p: 1.1 * p, state.params)
    return testing.run(step, state.replace(params=away))

  whole, logs = run()
  parts, part_logs = run(microbatches=4)
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(parts.opt_state, whole.opt_state)
  testing.assert_close(part_logs, logs)


def test_microbatches_equal_the_full_batch_with_dropped_rows():
  """The denominator of a minibatch is global, however rows are dropped."""

  def spoil(score, channel):
    return jnp.where(channel == 0, jnp.nan, score)

  reward = testing.color_reward(spoil)
  whole, logs = testing.run(
    *testing.make_step(reward=reward, tx=testing.LINEAR)
  )
  parts, part_logs = testing.run(
    *testing.make_step(reward=reward, microbatches=8, tx=testing.LINEAR)
  )
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(part_logs, logs)


@pytest.mark.parametrize('aggregator', aggregate.__all__)
def test_microbatches_equal_the_full_batch_of_unlike_lengths(aggregator):
  settings = testing.of_unlike_lengths(aggregator)
  whole, logs = testing.run(*testing.make_step(**settings))
  parts, part_logs = testing.run(*testing.make_step(**settings, microbatches=8))
  assert 0 < logs[0]['reward/invalid'] < 4
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(part_logs, logs)


@pytest.mark.parametrize('stepwise', (False, True))
def test_rollout_in_chunks_equals_a_whole_one(stepwise):
  advantage = advantages.turning_points(4) if stepwise else None
  policy = testing.make_policy(window=2)
  found = []
  for chunks in (1, 2, 8):
    step, state = testing.make_step(
      policy,
      advantage=advantage,
      rollout_chunks=chunks,
      tx=testing.LINEAR,
    )
    traj, inputs, outs = step.sample(state, testing.batch(), KEY)
    found.append((traj, inputs.media, outs, *testing.run(step, state)))
  assert found[0][0].states.shape[:2] == (16, 2)
  for one in found[1:]:
    testing.assert_close(one, found[0])


def test_a_scan_over_batches_equals_the_loop_of_cpus(monkeypatch):
  """What GPUs and TPUs run, minibatch.fold, is compiled here, too."""
  settings = dict(updates=2, microbatches=2, epochs=2, tx=testing.LINEAR)
  loop, logs = testing.run(*testing.make_step(**settings))
  monkeypatch.setattr(
    minibatch,
    'fold',
    lambda body, carry, xs, platform: jax.lax.scan(body, carry, xs),
  )
  scan, scan_logs = testing.run(*testing.make_step(**settings))
  testing.assert_close(scan.params, loop.params)
  testing.assert_close(scan_logs, logs)


def test_the_state_is_donated():
  """No second copy of parameters and optimizer state while a step runs."""
  step, state = testing.make_step()
  old = [x for x in jax.tree.leaves(state) if x.size]
  step.train_step(state, testing.batch(), KEY)
  assert all(x.is_deleted() for x in old)


@pytest.mark.parametrize('updates', [1, 2])
def test_an_offloaded_state_learns_the_same(updates):
  kept = {}
  for away in ((), ('ema', 'optimizer')):
    layout = sharding.one_device()._replace(offload=away)
    step, state = testing.make_step(layout=layout, updates=updates)
    state = layout.put(state)
    for _ in range(2):
      state, _ = step.train_step(state, testing.batch(), KEY)
    host = {'pinned_host' if away else 'device'}
    assert (
      testing.memory_kinds(state.refs['ema'])
      == testing.memory_kinds(state.opt_state)
      == host
    )
    assert testing.memory_kinds((state.params, state.refs['ref'])) == {'device'}
    assert testing.memory_kinds(layout.near(state)) == {'device'}
    assert step.train_step._cache_size() == 1
    kept[away] = jax.device_get(state)
  testing.assert_close(*kept.values(), rtol=1e-6, atol=1e-7)


def test_fused_step_equals_split_step():
  """Scoring between two programs, in threads, as in one."""
  fused, fused_logs = testing.run(*testing.make_step(tx=testing.LINEAR))
  host = testing.color_reward(where='host')
  sizes = []

  def score(params, inputs, key):
    sizes.append(inputs.group_size)
    return plain(params, inputs, key)

  plain, host = host.score, host._replace(score=score)
  step, state = testing.make_step(reward=host, tx=testing.LINEAR)
  logs = []
  for _ in range(2):
    traj, inputs, outs = step.sample(state, testing.batch(), KEY)
    assert outs == {}
    outs, _ = evaluate.evaluate_host(dict(color=(host, 1.0)), inputs, KEY)
    state, log = step.learn(state, traj, inputs, outs, KEY)
    logs.append(jax.device_get(log))
  testing.assert_close(jax.device_get(state), fused)
  testing.assert_close(logs, fused_logs)
  assert sizes == [4, 4] and {type(n) for n in sizes} == {int}


# --- who draws what


@pytest.mark.parametrize('net', ['perceptron', 'dit'])
def test_a_sample_depends_on_seed_step_prompt_and_member_only(net):
  dit = net == 'dit'
  policy = testing.make_policy(testing.dit() if dit else None, window=2)
  params = jax.jit(policy.init)(KEY)
  if dit:  # its last layers start at zero
    params = jax.tree.map(lambda p: p + 0.1, params)

  @jax.jit
  def sample(batch, seed, step):
    rows = rollout.make_rows(batch, 2, seed, step)
    return policy.rollout(params, rows, step).sample

  def of(ids, seed=7, step=3):
    batch = (testing.dit_batch if dit else testing.batch)(ids)
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
    [x for samples in (a, of((0, 1, 2, 3), 8), of((0, 1, 2, 3), 7, 4))
     for x in samples.values()]
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


# --- resume (a whole run, killed: train_test.py)


def test_resume_is_bitwise(tmp_path):
  """5 steps == 2 + save + restore into a fresh state + 3."""
  advantage = advantages.history(4, num_prompts=4, min_count=4)
  tx = optim.adamw(
    lr=1e-2, warmup=3, decay='cosine', steps=20, weight_decay=0.1
  )
  settings = dict(advantage=advantage, tx=tx, updates=2)
  policy = testing.make_policy(
    window=2, window_start=dict(name='random_window')
  )
  step, state = testing.make_step(policy, **settings)
  whole, logs = testing.run(step, state, 5)

  step, state = testing.make_step(policy, **settings)
  manager = checkpoint.open_manager(tmp_path)
  for _ in range(2):
    state, _ = step.train_step(state, testing.batch(), KEY)
  # The state is donated to the next step while the save goes on.
  checkpoint.save(manager, 2, state, extra=dict(i=2))
  for _ in range(3):
    state, _ = step.train_step(state, testing.batch(), KEY)
  checkpoint.close(manager)

  step, state = testing.make_step(policy, **settings)
  manager = checkpoint.open_manager(tmp_path)
  restored = checkpoint.restore_latest(manager, state)
  checkpoint.close(manager)
  resumed, resumed_logs = testing.run(step, restored.state, 3)
  assert tree.differing(resumed, whole) == []
  assert tree.differing(resumed_logs, logs[2:]) == []
  assert int(resumed.step) == 5


# --- one program


def test_a_moving_window_compiles_once():
  starts = []
  policy = testing.make_policy(
    steps=6,
    window=2,
    window_start=dict(name='progressive_window', tau=1),
  )
  step, state = testing.make_step(policy)
  for _ in range(4):
    traj, _, _ = step.sample(state, testing.batch(), KEY)
    starts.append(float(traj.times[0, 0, 0]))
    state, _ = step.train_step(state, testing.batch(), KEY)
  assert len(set(starts)) == 4
  assert step.train_step._cache_size() == 1
