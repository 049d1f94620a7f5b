"""Values: what they see, and that they learn the return."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import (
  advantages,
  objectives,
  testing,
  train_state,
  train_step,
)
from gen_rl.build import ConfigError
from gen_rl.learners.value import value
from gen_rl.train_state import Taught
from gen_rl.types import Experience, Reward, RewardOut, Trajectory

KEY = jax.random.key(0)
MODEL = dict(name='mixture_net', width=8, layers=1)


def test_the_loss_by_hand():
  """r (0, 1), V old (.5, .25), gamma = lambda = 1: R = 1, 1."""
  learner = value(MODEL, lam=1.0)
  none = np.zeros((1, 2), np.float32)
  traj = Trajectory((), (), (), (), (), none, none + 1, (), ())
  out = RewardOut(np.ones(1), {}, np.ones(1, bool))
  old = jnp.array([[0.5, 0.25]])
  exp = Experience(traj, none, np.ones(1), out, values=old)

  def of(said, **kwargs):
    learner = value(MODEL, lam=1.0, **kwargs)
    replay = testing.answers(value=lambda which: jnp.array([said]))
    return learner.loss(replay, exp, None)[0]

  term = of([0.5, 2.0])
  np.testing.assert_allclose(term.value, [[0.125, 0.5]])
  np.testing.assert_array_equal(term.mask, [[1, 1]])
  # V within .1 of the old: .5, and .35 in place of .9
  np.testing.assert_allclose(
    of([0.5, 0.9], clip=0.1).value, [[0.125, 0.65**2 / 2]], rtol=1e-6
  )
  with pytest.raises(ConfigError, match='no advantage asks for values'):
    learner.loss(None, exp.replace(values=()), None)


def test_the_value_of_tokens_depends_on_what_was_said_before():
  learner = value(
    dict(name='lm', width=16, layers=1, heads=2), vocab=7, length=3
  )
  params = jax.jit(learner.init)(KEY)
  said = np.array([[1, 2, 3, 4], [1, 2, 5, 4]], np.int32)
  cond = dict(tokens=np.full((2, 3), 2, np.int32))
  traj = testing.given(said, cond).replace(actions=said)
  found = np.asarray(jax.jit(learner.ops['value'])(((), params), traj))
  assert found.shape == (2, 4)
  np.testing.assert_allclose(found[0, :3], found[1, :3], atol=1e-6)
  assert abs(found[0, 3] - found[1, 3]) > 1e-4


def test_actor_and_critic():
  """Every sample earns 3: values get there, and advantages vanish."""
  reward = Reward(
    'three', (),
    lambda params, inputs, key: RewardOut(
      jnp.full(len(inputs.media), 3.0), {}, jnp.ones(len(inputs.media), bool)
    ),
  )  # fmt: skip
  learner = value(
    dict(
      name='dit', image=(4, 4, 3), patch=2, width=8, layers=1, heads=2,
      text_width=8, text_layers=1,
    ),
    vocab=8, length=2,
  )  # fmt: skip
  policy, tx = testing.make_policy(), optax.sgd(0.1)
  advantage = advantages.gae(whiten=False)
  taught = dict(value=Taught(learner, optax.adam(3e-2)))
  step = train_step.make(
    policy, dict(pg=(objectives.clipped_pg(1e-2), 1.0)), tx,
    rewards=dict(three=(reward, 1.0)), advantage=advantage, group_size=4,
    learners=taught,
  )  # fmt: skip
  state = train_state.create(
    policy.init(KEY), tx, advantage, refs=(), reward_params=dict(three=()),
    learners=taught, key=KEY,
  )  # fmt: skip
  logs = []
  for _ in range(40):
    state, log = step.train_step(state, testing.batch(), KEY)
    logs.append(jax.device_get(log))
  assert abs(logs[0]['advantage/value'] - 3) > 1
  assert abs(logs[-1]['advantage/value'] - 3) < 0.3
  assert logs[-1]['learner/value/loss'] < 0.05 * logs[0]['learner/value/loss']
