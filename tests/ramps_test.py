"""Weights that move: tables by hand, and in a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import objectives, ramps, testing

KEY = jax.random.key(0)


@pytest.mark.parametrize(
  'ramp, table',
  [
    (ramps.linear(4), {0: 0, 1: 0.25, 4: 1, 9: 1}),
    (ramps.linear(2, 3.0, 1.0, begin=5), {0: 3, 5: 3, 6: 2, 7: 1, 8: 1}),
    (ramps.cosine(4), {0: 0, 1: 0.5 - 8**-0.5, 2: 0.5, 4: 1}),
    (ramps.cosine(2, 2.0, 0.0, begin=1), {1: 2, 2: 1, 3: 0}),
  ],
)
def test_by_hand(ramp, table):
  at = jax.jit(ramp)
  for done, want in table.items():
    np.testing.assert_allclose(at(jnp.int32(done)), want, atol=1e-7)


def test_weights_of_a_step():
  """The KL term's is 0.2, 0.1, 0; the reward's 1, 2, 3: so are the scores."""
  step, state = testing.make_step(
    terms=dict(kl=(objectives.kl(), 0.2)),
    objective_ramps=dict(kl=ramps.linear(2, 1.0, 0.0)),
    reward_ramps=dict(color=ramps.linear(2, 1.0, 3.0)),
    tx=optax.sgd(0.1),
  )
  state = state.replace(params=jax.tree.map(lambda p: 1.3 * p, state.params))
  logs, before = [], jax.device_get(state.params)
  moved = []
  for _ in range(3):
    state, log = step.train_step(state, testing.batch(), KEY)
    logs.append(jax.device_get(log))
    after = jax.device_get(state.params)
    moved.append(any(map(np.any, jax.tree.leaves(
      jax.tree.map(lambda a, b: a != b, after, before)))))  # fmt: skip
    before = after
  np.testing.assert_allclose([x['kl/weight'] for x in logs], [0.2, 0.1, 0])
  np.testing.assert_allclose(
    [x['reward/color/weight'] for x in logs], [1, 2, 3]
  )
  for weight, log in zip((1, 2, 3), logs):
    np.testing.assert_allclose(
      log['reward/score'], weight * log['reward/color'], rtol=1e-5
    )
  assert moved == [True, True, False]
