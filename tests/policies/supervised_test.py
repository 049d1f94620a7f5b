"""Detector as a policy: trained by the one step, refuses to sample."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import (
  build,
  objectives,
  rollout,
  testing,
  train_state,
  train_step,
)
from gen_rl.models import detector
from gen_rl.policies import supervised
from gen_rl.worlds import shapes


def encode(rows):
  """Pictures of a red square in the first cell, or of nothing."""
  there = rows.info['there']
  b = there.shape[0]
  zeros = jnp.zeros((b, 4), jnp.int32)
  scene = shapes.Scene(
    shape=jnp.stack([jnp.where(there, 1, -1), *3 * [zeros[:, 0] - 1]], 1),
    color=zeros,
    size=zeros,
    center=jnp.full((b, 4, 2), 5),
    word=zeros[:, 0] - 1,
    word_color=zeros[:, 0],
    word_corner=zeros[:, :2],
    background=jnp.zeros(b),
  )
  square = jnp.full((24, 24, 3), -1.0).at[2:9, 2:9, 0].set(1.0)
  x = jnp.where(there[:, None, None, None], square, -1.0)
  return x, {**rows.cond, 'scene': scene}


BATCH = dict(
  tokens=np.zeros((2, 4), np.int32),
  prompt_id=np.arange(2, dtype=np.int32),
  info={'there': np.array([True, False])},
)


def test_one_step_trains_it_and_it_gets_better():
  net = detector.shapes_detector(channels=(4, 4, 8))
  policy = supervised.detector(net)
  tx = optax.adam(1e-2)
  step = train_step.make(
    policy,
    {'nll': (objectives.flow_matching(), 1.0)},
    tx,
    rollout=rollout.data_rollout(encode),
    group_size=2,
  )
  params = jax.jit(policy.init)(jax.random.key(0))
  state = train_state.create(params, tx, None)
  # At initialisation about -log of a uniform choice: log 5 in 36 cells (58
  # nats), and for half an object log 12 and the offset's square.
  losses = []
  for _ in range(25):
    state, metrics = step.train_step(state, BATCH, jax.random.key(1))
    losses.append(float(metrics['nll/nll']))
  assert 55 < losses[0] < 75
  assert losses[-1] < 0.5 * losses[0]


def test_correct_agrees_with_detections():
  """Weights that see nothing are right where there is nothing."""
  net = detector.shapes_detector(channels=(4, 4, 8))
  params = jax.eval_shape(net.init, jax.random.key(0))
  params = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)
  params['head']['bias'] = params['head']['bias'].at[0].set(9.0)
  policy = supervised.detector(net)
  rows = rollout.make_rows(BATCH, 2, jax.random.key(0), jnp.int32(0))
  x, cond = encode(rows)
  np.testing.assert_array_equal(
    jax.jit(policy.ops['correct'])(params, testing.given(x, cond)),
    [False, False, True, True],
  )


def test_it_refuses_in_one_sentence():
  policy = supervised.detector(detector.shapes_detector())
  with pytest.raises(build.ConfigError, match='samples nothing'):
    policy.rollout({}, None)
