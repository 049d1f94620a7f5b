"""The same promises for policies of tokens, through the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, rollout, sharding, testing
from gen_rl.policies import tokens as tokens_lib
from gen_rl.rewards import evaluate
from gen_rl.types import Reward, RewardOut

KEY = jax.random.key(testing.SEED)
END = 5


def policy(**options):
  return tokens_lib.tokens(
    testing.bigram(), **(dict(length=4, end=END) | options)
  )


def reward(where='device'):
  """How often a row says the token that its prompt asks for."""

  def score(params, inputs, key):
    del params, key
    hit = inputs.media == inputs.info['channel'][:, None] + 1
    return RewardOut(
      hit.mean(1, dtype=np.float32), {}, jnp.ones(len(hit), bool)
    )

  return Reward('hits', (), score, where=where)


def make_step(terms=None, tx=testing.LINEAR, options=None, **settings):
  return testing.make_step(
    policy(**(options or {})),
    terms or dict(
      pg=(objectives.clipped_pg(0.2, on_policy='updates' not in settings), 1.0),
      kl=(objectives.kl(), 0.1),
    ),
    reward=settings.pop('reward', None) or reward(),
    tx=tx,
    **settings,
  )  # fmt: skip


def test_it_learns():
  step, state = make_step(group_size=32)
  _, logs = testing.run(step, state, 40)
  assert logs[-1]['reward/score'] > logs[0]['reward/score'] + 0.3


def test_ratio_is_one_and_kl_zero_at_first():
  for settings in ({}, dict(updates=2)):
    step, state = make_step(**settings)
    if not settings:
      _, (log,) = testing.run(step, state, 1)
      assert log['pg/log_ratio_abs_max'] == 0 and log['pg/clip_fraction'] == 0
      assert log['kl/kl'] == 0
    else:  # in the first of two minibatches; see values_test for others
      terms = dict(
        pg=(objectives.clipped_pg(0.2, on_policy=False), 1.0),
      )
      step, state = make_step(terms=terms, updates=1)
      _, (log,) = testing.run(step, state, 1)
      # The stored log-probs are those of the cached decoding.
      assert log['pg/log_ratio_abs_max'] < 1e-5


@pytest.mark.parametrize('updates', [1, 2])
def test_microbatches_equal_the_full_batch(updates):
  """Rows are of unlike lengths: what counts are tokens, over all of them."""
  whole, logs = testing.run(*make_step(updates=updates))
  parts, part_logs = testing.run(*make_step(updates=updates, microbatches=4))
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(part_logs, logs)


def test_fused_step_equals_split_step():
  fused, fused_logs = testing.run(*make_step())
  host = reward('host')
  step, state = make_step(reward=host)
  logs = []
  for _ in range(2):
    traj, inputs, outs = step.sample(state, testing.batch(), KEY)
    outs, _ = evaluate.evaluate_host(dict(color=(host, 1.0)), inputs, KEY)
    state, log = step.learn(state, traj, inputs, outs, KEY)
    logs.append(jax.device_get(log))
  testing.assert_close(jax.device_get(state), fused)
  testing.assert_close(logs, fused_logs)


def test_rollout_in_chunks_equals_a_whole_one():
  whole, logs = testing.run(*make_step())
  parts, part_logs = testing.run(*make_step(rollout_chunks=4))
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(part_logs, logs)


def test_no_gradient_after_the_end():
  """Nor for forced tokens, even with an advantage of a million."""
  made, params = policy(), policy().init(KEY)
  rows = rollout.make_rows(testing.batch(), 4, KEY, jnp.int32(0))
  forced = jnp.full((16, 4), -1).at[:, 1].set(3)
  rows = rows.replace(cond={**rows.cond, 'forced': forced})
  traj = made.rollout(params, rows, 0)
  assert (traj.mask == 0).any() and (traj.mask[:, 0] == 1).all()

  def loss(params, weight):
    log_prob = made.ops['dist'](params, traj).log_prob(traj.actions)
    return jnp.where(traj.mask > 0, weight * log_prob, 0.0).sum()

  big = jnp.where(traj.mask > 0, 1.0, 1e6)
  testing.assert_close(
    testing.grad(loss)(params, big),
    testing.grad(loss)(params, np.ones(big.shape, np.float32)),
  )


def test_one_program():
  step, state = make_step()
  state = sharding.one_device().put(state)
  for ids in ((0, 1, 2, 3), (4, 5, 6, 7)):
    state, _ = step.train_step(state, testing.batch(ids), KEY)
  assert step.train_step._cache_size() == 1


def test_float32_around_a_bfloat16_net():
  net = testing.bigram()

  def half(fn):
    def wrapped(*args):
      return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x,
        fn(*args),
      )

    return wrapped

  net = net._replace(
    prefill=half(net.prefill), step=half(net.step), score=half(net.score)
  )
  made = tokens_lib.tokens(net, length=4, end=END)
  params = made.init(KEY)
  rows = rollout.make_rows(testing.batch(), 4, KEY, jnp.int32(0))
  traj = made.rollout(params, rows, 0)
  log_prob = made.ops['dist'](params, traj).log_prob(traj.actions)
  assert traj.log_prob.dtype == log_prob.dtype == jnp.float32
  np.testing.assert_allclose(
    traj.log_prob, jnp.where(traj.mask > 0, log_prob, 0), atol=1e-5
  )
