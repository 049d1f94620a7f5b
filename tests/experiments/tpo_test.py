"""What the study of TPO says of held-out pictures."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tpo import run
from gen_rl import rollout
from gen_rl.types import Noised

KEYS = jnp.repeat(jax.random.split(jax.random.key(0), 3), 2)


def noised(params, traj, keys, draws):
  del params
  x1 = jax.vmap(lambda k: jax.random.normal(k, (draws, 2)))(keys)
  return Noised(x=x1, t=jnp.ones(x1.shape[:2]), x0=traj.sample, x1=x1)


def velocity_at(params, traj, at):
  """Off by what the parameters say for the prompt, [v] of prompt ids."""
  off = params[traj.cond['tokens'][:, 0]]
  return at.x1 - at.x0[:, None] + off[:, None, None]


def test_implicit_rewards_by_hand():
  """Errors are squares of what velocities are off by.

  Prompts are 0 (true) and 1, 2, 3 (false) of three pictures.
  """
  policy = types.SimpleNamespace(
    ops=dict(noised=noised, velocity_at=velocity_at)
  )
  tokens = jnp.array([[0], [1], [0], [2], [0], [3]])
  traj = rollout.given(
    jnp.zeros((6, 2)), dict(tokens=tokens), jnp.arange(6) // 2
  )
  base = jnp.array([0.3, 0.2, 0.4, 0.5])
  trained = jnp.array([0.1, 0.4, 0.1, 0.4])
  got = run.told_apart(policy, base, trained, traj, KEYS)
  want = dict(
    implicit_accuracy=[True, False, False],  # -.08 against .12, -.15, -.09
    base_classified=[False, True, True],
    classified=[True, False, True],
    true_shift=[-0.08, -0.08, -0.08],
    false_shift=[0.12, -0.15, -0.09],
  )
  assert set(got) == set(want) == set(run.STUDY.columns)
  for name, values in want.items():
    np.testing.assert_allclose(got[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('arm', ['equal_tdpo', 'equal_tkto'])
def test_equal_arms_have_the_pairs_of_diffusion_dpo(arm):
  from configs import diffusion_dpo, tpo

  theirs, ours = diffusion_dpo.get_config(), tpo.get_config()
  ours.update_from_flattened_dict(run.ARMS[arm].overrides)
  for path in ('data.prompts_per_step', 'policy.time_mean'):
    outer, field = path.split('.')
    assert ours[outer][field] == theirs[outer][field]
  assert ours.objective.preference.draws == theirs.objective.preference.draws
