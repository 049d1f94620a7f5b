"""The update of a rollout; more of it in tests/train_step_test.py."""

import jax
import numpy as np
import optax

from gen_rl import objectives, testing

KEY = jax.random.key(0)


def test_decisions_the_rollout_found_likelier_or_not():
  """Its log-probs are .5 too low: gap .5, and weights e^.5 up to the cap."""
  policy = testing.make_policy()

  def rollout_of(params, rows, step):
    traj = policy.rollout(params, rows, step)
    return traj.replace(log_prob=traj.log_prob - 0.5)

  low = policy._replace(rollout=rollout_of)
  terms = dict(pg=(objectives.clipped_pg(1e-2), 1.0))
  moved, gaps = [], []
  for kwargs in ({}, dict(importance_cap=1.2),
                 dict(importance_cap=9.0, updates=2)):  # fmt: skip
    tx = optax.sgd(0.1)
    step, state = testing.make_step(low, terms, tx=tx, **kwargs)
    before = jax.device_get(state.params)
    state, log = step.train_step(state, testing.batch(), KEY)
    gaps.append(
      (float(log['pg/sampler_gap']), float(log['pg/sampler_gap_max']))
    )
    moved.append(jax.tree.map(np.subtract, state.params, before)['up'])
  np.testing.assert_allclose(gaps, 0.5, atol=1e-4)
  np.testing.assert_allclose(moved[1], 1.2 * moved[0], rtol=1e-3, atol=1e-6)
