"""Preference losses against hand-worked tables."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, objectives, testing
from gen_rl.types import Experience, Noised, RowKeys

KEYS = RowKeys('own', 'group')


def answers(errors, ref, t=0.0):
  """A replay with matching errors [b k] of the policy and its reference.

  The target velocity is 0 and the event has one number, the root of the error.
  """
  asked = []

  def noised(which, keys, draws):
    asked.append((keys, draws))
    zero = np.zeros((*errors.shape, 1))
    return Noised(zero, zero[..., 0] + t, zero[:, 0], zero)

  def velocity_at(which, at):
    return jnp.sqrt(errors if which == 'params' else ref)[..., None]

  return testing.answers(noised=noised, velocity_at=velocity_at), asked


def experience(labels, weight=None):
  y = jnp.asarray(labels, jnp.float32)[:, None]
  weight = np.ones(len(y)) if weight is None else jnp.asarray(weight)
  return Experience(traj=None, adv=y, weight=weight, rewards=None)


ERRORS = jnp.array([[1.0], [2.0], [3.0], [4.0], [4.0], [1.0]])
REF = jnp.array([[1.5], [1.0], [3.0], [2.0], [9.0], [1.0]])
# d = -0.5, 1, 0 and 2, -5, 0
LABELS = [1, -1, 0, 0, 1, -1]


def test_dpo_by_hand():
  # groups: 1 (-0.5) - 1 (1) = -1.5 and -5 - 0 = -5; beta / 2 = 0.1
  replay, asked = answers(ERRORS, REF)
  objective = objectives.dpo(group_size=3, beta=0.2)
  term, metrics = objective(replay, experience(LABELS), KEYS)
  margin = np.repeat([0.15, 0.5], 3)[:, None]
  np.testing.assert_allclose(metrics['margin'], margin, rtol=1e-5)
  # Errors of the noise at s = 0.75 are 1/16 of those of the velocity.
  replay, _ = answers(ERRORS, REF, t=0.75)
  published = objectives.dpo(group_size=3, beta=3.2, error='noise')
  np.testing.assert_allclose(
    published(replay, experience(LABELS), KEYS)[1]['margin'], margin, rtol=1e-5
  )
  np.testing.assert_allclose(term.value, np.log1p(np.exp(-margin)), rtol=1e-5)
  np.testing.assert_array_equal(term.mask[:, 0], np.abs(LABELS))
  np.testing.assert_allclose(
    metrics['preferred_shift'][:, 0], [-0.5, 0, 0, 0, -5, 0], atol=1e-6
  )
  np.testing.assert_allclose(
    metrics['other_shift'][:, 0], [0, 1, 0, 0, 0, 0], atol=1e-6
  )
  assert (metrics['implicit_accuracy'] == 1).all()
  assert asked == [('group', 1)]  # one noise for a group


def test_dpo_cap_stops_the_loser():
  def loss(errors, cap):
    replay, _ = answers(errors, REF)
    objective = objectives.dpo(group_size=3, beta=0.2, loser_cap=cap)
    return objective(replay, experience(LABELS), KEYS)[0].value.sum()

  free = testing.grad(loss)(ERRORS, None)
  capped = testing.grad(loss)(ERRORS, 0.5)  # d of row 1 is 1
  assert free[0] > 0 > free[1] and free[2] == 0  # lower the first, raise it
  assert capped[1] == 0 and capped[0] > 0
  assert capped[5] < 0  # d = 0, below the cap
  # the capped margin of group 0: 0.1 (0.5 + 0.5)
  replay, _ = answers(ERRORS, REF)
  objective = objectives.dpo(group_size=3, beta=0.2, loser_cap=0.5)
  _, metrics = objective(replay, experience(LABELS), KEYS)
  assert metrics['margin'][0] == pytest.approx(0.1)


def test_dpo_starts_at_log_2():
  replay, _ = answers(REF, REF)
  term, metrics = objectives.dpo(3)(replay, experience(LABELS), KEYS)
  np.testing.assert_allclose(term.value, np.log(2), rtol=1e-6)
  assert (metrics['margin'] == 0).all()


def test_a_dropped_row_has_no_label():
  replay, _ = answers(ERRORS, REF)
  exp = experience(LABELS, weight=[1, 1, 1, 1, 0, 1])
  term, metrics = objectives.dpo(3, beta=0.2)(replay, exp, KEYS)
  assert metrics['margin'][4] == pytest.approx(0)  # -0.1 (0 - 0)
  assert term.mask[4] == 0


def test_kto_by_hand():
  # beta = 1: g = 0.5, -1, 0 | -2, 5, 0; labelled means -0.25 and 2.5,
  # so q = 0 and 2.5; y (g - q) = 0.5, 1, 0 | 0, 2.5, 2.5
  replay, asked = answers(ERRORS, REF)
  objective = objectives.kto(group_size=3, beta=1.0, other_weight=2.0)
  term, metrics = objective(replay, experience(LABELS), KEYS)
  gain = np.array([0.5, 1.0, 0.0, 0.0, 2.5, 2.5])[:, None]
  np.testing.assert_allclose(metrics['gain'], gain, atol=1e-5)
  weight = np.array([1, 2, 2, 2, 1, 2])[:, None]
  np.testing.assert_allclose(term.value, weight / (1 + np.exp(gain)), rtol=1e-5)
  np.testing.assert_array_equal(term.mask[:, 0], np.abs(LABELS))
  # y g > 0: rows 0, 1 and 4; g of row 5 is 0
  np.testing.assert_array_equal(
    metrics['implicit_accuracy'][:, 0], [1, 1, 0, 0, 1, 0]
  )
  assert asked == [('group', 1)]


def test_kto_reference_point_has_no_gradient():
  """d L_i / d m_i = w beta y sigmoid'(gain) and nothing through the others."""

  def loss(errors):
    replay, _ = answers(errors, REF)
    term, _ = objectives.kto(3, beta=1.0)(replay, experience(LABELS), KEYS)
    return (term.value * term.mask).sum()

  gain = np.array([0.5, 1.0, 0.0, 0.0, 2.5, 2.5])
  s = 1 / (1 + np.exp(-gain))
  expected = np.array(LABELS) * s * (1 - s)
  np.testing.assert_allclose(
    testing.grad(loss)(ERRORS)[:, 0], expected, rtol=1e-4
  )


# Log-probabilities [b 2] of two decisions, of the policy and its reference; the
# second of row 1 is after the end. d = -0.5, 1 and 2 of rows 0, 1 and 4.
SAID = np.float32([[-1, -2], [-3, -9], [0, 0], [0, 0], [-2, -4], [-1, -1]])
WAS = np.float32([[-1, -2.5], [-2, -1], [0, 0], [0, 0], [-1, -3], [-1, -1]])
MASK = np.float32([[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [1, 1]])


def of_decisions(name, said=SAID, **kwargs):
  log_prob = lambda which: said if which == 'params' else WAS
  traj = types.SimpleNamespace(mask=MASK)
  exp = experience(LABELS).replace(traj=traj)
  objective = getattr(objectives, name)(3, error='nll', **kwargs)
  return objective(testing.answers(log_prob=log_prob), exp, KEYS)


def test_pairs_of_tokens_by_hand():
  """h = (0.5 + 1) and (-2 - 0): log-ratios of best less worst, whole rows."""
  h = np.repeat([1.5, -2.0], 3)[:, None]
  term, metrics = of_decisions('dpo', beta=0.2)
  np.testing.assert_allclose(term.value, np.log1p(np.exp(-0.2 * h)), rtol=1e-6)
  np.testing.assert_array_equal(term.mask[:, 0], np.abs(LABELS))
  np.testing.assert_allclose(metrics['margin'], 0.2 * h, rtol=1e-6)
  term, metrics = of_decisions('ipo', beta=0.2)
  np.testing.assert_allclose(term.value, (h - 2.5) ** 2, rtol=1e-5)
  # g = .1, -.2, 0 | -.4, 0; means of the labelled below 0, so q = 0
  term, metrics = of_decisions('kto', beta=0.2)
  gain = np.array([0.1, 0.2, 0.0, 0.0, -0.4, 0.0])[:, None]
  np.testing.assert_allclose(metrics['gain'], gain, atol=1e-6)
  np.testing.assert_allclose(term.value, 1 / (1 + np.exp(gain)), rtol=1e-6)


@pytest.mark.parametrize('name', ['dpo', 'ipo', 'kto'])
def test_the_end_of_a_row_has_no_gradient(name):
  def loss(said):
    term, _ = of_decisions(name, said, beta=0.2)
    return (term.value * term.mask).sum()

  found = testing.grad(loss)(SAID)
  assert found[1, 1] == 0 and found[1, 0] > 0 > found[0, 0]
  assert not found[2:4].any()
  with pytest.raises(build.ConfigError, match='nothing is drawn'):
    of_decisions(name, draws=2)


def test_a_distance_that_is_reached_is_kept():
  """IPO is least where h = 1 / (2 beta), whatever side it comes from."""
  loss = lambda said: of_decisions('ipo', said, beta=1 / 3)[0].value[:3].sum()
  assert loss(SAID) == pytest.approx(0, abs=1e-10)  # h = 1.5
  near = SAID.copy()
  near[0, 0] -= 0.1
  assert testing.grad(loss)(near)[0, 0] < 0
  near[0, 0] += 0.2
  assert testing.grad(loss)(near)[0, 0] > 0
