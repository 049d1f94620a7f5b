"""Detector as a policy: trained by the one step, refuses to sample."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import build, objectives, rollout, train_state, train_step
from gen_rl.data import pictures
from gen_rl.models import detector
from gen_rl.policies import supervised
from gen_rl.worlds import grammar


def batch_of(*texts):
  specs = [grammar.spec_arrays(grammar.parse(text)) for text in texts]
  return dict(
    tokens=np.zeros((len(texts), 4), np.int32),
    prompt_id=np.arange(len(texts), dtype=np.int32),
    info={name: np.stack([s[name] for s in specs]) for name in specs[0]},
  )


def test_one_step_trains_it_and_it_gets_better():
  net = detector.shapes_detector(channels=(4, 4, 8))
  policy = supervised.detector(net)
  tx = optax.adam(1e-2)
  step = train_step.make(
    policy,
    {'nll': (objectives.flow_matching(), 1.0)},
    tx,
    rollout=rollout.data_rollout(pictures.shapes_scenes()),
    group_size=4,
  )
  state = train_state.create(policy.init(jax.random.key(0)), tx, None)
  batch, key = batch_of('a red circle', 'two squares'), jax.random.key(1)
  # At initialisation about -log of a uniform choice: log 5 in 36 cells (58
  # nats), and for each of 1.5 objects log 12 and the offset's 16 / 2 r^2 with
  # r a third of a cell or so.
  losses = []
  for _ in range(25):
    state, metrics = step.train_step(state, batch, key)
    losses.append(float(metrics['nll/nll']))
  assert 55 < losses[0] < 75
  assert losses[-1] < 0.5 * losses[0]


def test_correct_agrees_with_detections():
  """Weights that see nothing are right about pictures of words only."""
  net = detector.shapes_detector(channels=(4, 4, 8))
  params = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0)))
  params['head']['bias'] = params['head']['bias'].at[0].set(9.0)
  policy = supervised.detector(net)
  rows = rollout.make_rows(
    batch_of('a circle', 'the word "cat"'), 2, jax.random.key(0), jnp.int32(0)
  )
  x, cond = jax.jit(pictures.shapes_scenes())(rows)
  np.testing.assert_array_equal(
    policy.correct(params, x, cond), [False, False, True, True]
  )


@pytest.mark.parametrize('what', ['rollout', 'dist'])
def test_it_refuses_in_one_sentence(what):
  policy = supervised.detector(detector.shapes_detector())
  with pytest.raises(build.ConfigError, match='samples nothing'):
    getattr(policy, what)({}, None)
