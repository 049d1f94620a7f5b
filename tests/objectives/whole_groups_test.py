"""Losses of whole groups: hand-worked numbers and published gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, testing
from gen_rl.types import Experience, Noised, RowKeys

KEYS = RowKeys('own', 'group')
# Two groups of two; velocities of an event of two numbers, the target is 0.
V = jnp.array([[[1.0, 1.0]], [[2.0, 0.0]], [[0.0, 3.0]], [[1.0, -1.0]]])
M = np.array([1.0, 2.0, 4.5, 1.0])  # their errors
REF = np.array([2.0, 0.5, 4.5, 2.0])
OLD = np.array([1.2, 2.0, 2.0, 1.0])
ADV = np.array([1.0, -1.0, 2.0, -2.0])


def replaying(v):
  errors = dict(ref=REF, old=OLD)

  def noised(which, keys, draws):
    assert (keys, draws) == ('group', 1)
    zero = jnp.zeros((4, 1, 2))
    return Noised(zero, zero[..., 0], zero[:, 0], zero)

  def velocity_at(which, at):
    root = np.sqrt(errors[which]) if which != 'params' else None
    return v if root is None else jnp.repeat(root[:, None, None], 2, 2)

  return testing.answers(noised=noised, velocity_at=velocity_at)


def experience(adv=ADV, weight=None):
  adv = jnp.asarray(adv, jnp.float32)[:, None]
  weight = jnp.ones(len(adv)) if weight is None else jnp.asarray(weight)
  return Experience(traj=None, adv=adv, weight=weight, rewards=None)


def loss_of(objective, exp):
  def loss(v):
    term, metrics = objective(replaying(v), exp, KEYS)
    mean = (term.value * term.mask).sum() / term.mask.sum()
    return mean, (term, metrics)

  slope, (term, metrics) = jax.grad(loss, has_aux=True)(V)
  return np.asarray(slope), term, metrics


def test_dgpo_by_hand():
  slope, term, metrics = loss_of(
    objectives.dgpo(group_size=2, beta=0.4), experience()
  )
  # h = -0.4 / 2 (A d of both): d = -1, 1.5 and 0, -1
  h = np.repeat([-0.2 * (-1 - 1.5), -0.2 * (0 + 2)], 2)
  np.testing.assert_allclose(metrics['margin'][:, 0], h, rtol=1e-5)
  np.testing.assert_allclose(
    term.value[:, 0], np.log1p(np.exp(-h)) / 0.4, rtol=1e-5
  )
  # The published gradient: mean of sigmoid(-h) A grad m, m = |v|^2 / 2
  weight = 1 / (1 + np.exp(h))
  published = (weight * ADV / 4)[:, None, None] * V
  np.testing.assert_allclose(slope, published, rtol=1e-5)


def test_dgpo_clips_rows_that_have_gone_far_enough():
  objective = objectives.dgpo(group_size=2, beta=0.4, clip=0.3)
  slope, _, metrics = loss_of(objective, experience())
  # exp(m_old - m) = 1.22, 1, 0.08, 1: of the third only, which was good
  assert not metrics['clip_fraction'].any()
  slope, _, metrics = loss_of(objective, experience(-ADV))
  np.testing.assert_array_equal(metrics['clip_fraction'][:, 0], [0, 0, 1, 0])
  assert not slope[2].any() and slope[[0, 1, 3]].any((1, 2)).all()


def test_crd_by_hand():
  exp = experience()
  slope, term, metrics = loss_of(
    objectives.crd(group_size=2, beta=2.0, max_adv=2.0), exp
  )
  # r = m_old / w_old - m / w, w the mean absolute error; w_old = sqrt(m_old)
  r = np.sqrt(OLD) - M / np.array([1.0, 1.0, 1.5, 1.0])
  own = r - np.repeat(r.reshape(2, 2).mean(1), 2)
  wanted = np.array([0.25, -0.25, 0.5, -0.5])  # p = 3/4, 1/4, 1, 0
  np.testing.assert_allclose(metrics['own'][:, 0], own, atol=1e-6)
  np.testing.assert_allclose(metrics['wanted'][:, 0], wanted, atol=1e-6)
  gap = 2.0 * own - wanted
  np.testing.assert_allclose(term.value[:, 0], gap**2, rtol=1e-5)
  # d/dv of the mean over 4 rows, through r alone: -d (m / w) = -v / w
  scale = np.array([1.0, 1.0, 1.5, 1.0])
  along = (2 * gap * 2.0 / 4 * -1 / scale)[:, None, None] * V
  np.testing.assert_allclose(slope, along, rtol=1e-4)


@pytest.mark.parametrize('name', ['dgpo', 'crd'])
def test_rows_that_say_nothing_are_left_out(name):
  objective = getattr(objectives, name)(group_size=2, beta=1.0)
  exp = experience(weight=[1.0, 1.0, 1.0, 0.0])
  slope, term, metrics = loss_of(objective, exp)
  np.testing.assert_array_equal(term.mask[:, 0], [1, 1, 1, 0])
  assert not slope[3].any() and slope[:2].any((1, 2)).all()
  if name == 'crd':  # alone in its group, it has nothing to be compared with
    assert metrics['own'][2] == metrics['wanted'][2] == 0
