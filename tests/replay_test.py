"""Answers to objectives: asked alike, they are the same and cost once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import replay, rollout, testing
from gen_rl.build import ConfigError
from gen_rl.types import Experience

KEY = jax.random.key(0)


POLICY = testing.make_policy()


def make(**copies):
  policy = POLICY
  params = policy.init(KEY)
  rows = rollout.make_rows(testing.batch((0, 1)), 2, KEY, jnp.int32(0))
  traj = policy.rollout(params, rows, jnp.int32(0))
  exp = Experience(traj, np.ones((4, 1)), np.ones(4), None)
  calls = []

  def velocity_at(params, traj, at):
    calls.append(at.x.shape)
    return policy.ops['velocity_at'](params, traj, at)

  counted = policy._replace(ops={**policy.ops, 'velocity_at': velocity_at})
  copies = dict(params=params, ref=params) | copies
  return replay.make(counted, copies, exp), calls, exp


def test_what_two_objectives_ask_alike_is_evaluated_once():
  answers, calls, _ = make()
  keys = jax.random.split(KEY, 4)
  first, again = (answers.ask('params', 'noised', keys, 2) for _ in range(2))
  assert first is again
  v = [answers.ask('params', 'velocity_at', first) for _ in range(2)]
  assert v[0] is v[1] and len(calls) == 1
  answers.ask('ref', 'velocity_at', first)
  again = answers.ask('params', 'noised', keys, 1)
  answers.ask('params', 'velocity_at', again)
  assert len(calls) == 3


def test_stored_states_and_noised_samples_are_different_questions():
  answers, _, exp = make()
  at = answers.ask('params', 'noised', jax.random.split(KEY, 4), 3)
  assert answers.ask('params', 'velocity').shape == exp.traj.states.shape
  assert answers.ask('params', 'velocity_at', at).shape == at.x.shape
  np.testing.assert_array_equal(at.x0, exp.traj.sample)


def test_only_the_parameters_have_gradients():
  def total(params, ref):
    answers, _, _ = make(params=params, ref=ref)
    at = answers.ask('params', 'noised', jax.random.split(KEY, 4), 1)
    return sum(
      answers.ask(n, 'velocity_at', at).sum() for n in ('params', 'ref')
    )

  params = POLICY.init(KEY)
  grads = testing.grad(total, (0, 1))(params, params)
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads[0])) > 0
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads[1])) == 0


def test_unknown_copies_are_named():
  answers, *_ = make()
  with pytest.raises(
    ConfigError, match="'teacher'; this run keeps params, ref"
  ):
    answers.ask('teacher', 'dist')
