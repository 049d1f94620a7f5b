"""Matching losses against hand-worked tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, testing
from gen_rl.types import Experience, Noised, RewardOut, RowKeys

KEYS = RowKeys(None, None)


def experience(adv):
  adv = jnp.asarray(adv, jnp.float32)
  b = adv.shape[0]
  rewards = RewardOut(score=np.zeros(b), parts={}, valid=np.ones(b, bool))
  return Experience(traj=None, adv=adv, weight=np.ones(b), rewards=rewards)


def test_flow_matching_asks_for_the_rows_keys():
  keys = jax.random.split(jax.random.key(0), 3)
  asked = []

  def nll(which, keys):
    asked.append(which)
    return jax.vmap(jax.random.uniform)(keys)

  term, metrics = objectives.flow_matching()(
    testing.answers(nll=nll), experience(np.zeros((3, 1))), RowKeys(keys, None)
  )
  assert asked == ['params']
  expected = [[float(jax.random.uniform(key))] for key in keys]
  np.testing.assert_allclose(term.value, expected, rtol=1e-6)
  np.testing.assert_array_equal(term.mask, np.ones((3, 1)))
  np.testing.assert_allclose(metrics['nll'], expected, rtol=1e-6)


def test_rwr_table_and_gradient():
  # temperature 2: exp(ln 9 / 2) = 3, exp(0) = 1, exp(-ln 4 / 2) = 1/2;
  # an advantage of 1000 is bounded at 10, without overflow
  adv = jnp.array([[np.log(9)], [0.0], [-np.log(4)], [1000.0]])
  nll = jnp.array([2.0, 5.0, 4.0, 1.0])

  def value(nll, adv):
    term, metrics = objectives.rwr(temperature=2.0, max_weight=10.0)(
      testing.answers(nll=lambda which, keys: nll), experience(adv), KEYS
    )
    return term.value.sum(), (term, metrics)

  (_, (term, metrics)), (grad, grad_adv) = testing.value_and_grad(
    value, (0, 1), has_aux=True
  )(nll, adv)
  np.testing.assert_allclose(term.value, [[6], [5], [2], [10]], rtol=1e-5)
  np.testing.assert_allclose(grad, [3, 1, 0.5, 10], rtol=1e-5)
  np.testing.assert_array_equal(grad_adv, 0)
  np.testing.assert_allclose(
    metrics['weight'], [[3], [1], [0.5], [10]], rtol=1e-5
  )


def test_rwr_averages_step_wise_advantages():
  term, _ = objectives.rwr()(
    testing.answers(nll=lambda which, keys: np.ones(1)),
    experience([[0.0, 2 * np.log(2)]]),
    KEYS,
  )
  np.testing.assert_allclose(term.value, [[2.0]], rtol=1e-6)


def test_rows_are_independent():
  """Half batches give the halves of the full batch: microbatch safe."""
  adv = jax.random.normal(jax.random.key(0), (6, 1))
  nll = jnp.arange(6.0)
  objective = objectives.rwr(0.5)

  def value(rows):
    replay = testing.answers(nll=lambda which, keys: nll[rows])
    return objective(replay, experience(adv[rows]), KEYS)[0].value

  np.testing.assert_allclose(
    jnp.concatenate([value(slice(0, 3)), value(slice(3, 6))]),
    value(slice(0, 6)),
    rtol=1e-6,
  )


def test_errors():
  with pytest.raises(ValueError, match='positive'):
    objectives.rwr(temperature=0.0)
  with pytest.raises(ValueError, match='uniform, t, t2, huber, ghuber'):
    objectives.awm(weighting='t**2')


# --- samples noised to drawn times


def noised(velocities, x0=1.0, x1=3.0, t=0.5):
  """One row, one draw, an event of two equal numbers; {copy: velocity}."""
  x = (1 - t) * x0 + t * x1
  pair = lambda value: jnp.full((1, 1, 2), value, jnp.float32)
  at = Noised(pair(x), jnp.full((1, 1), t), pair(x0)[:, 0], pair(x1))
  return testing.answers(
    noised=lambda which, keys, draws: at,
    velocity_at=lambda which, at: pair(velocities[which]),
  )


def test_awm_is_the_advantage_times_the_error_on_policy():
  # target x1 - x0 = 2; at v = 1.5 the error is 0.25, its slope 2 (v - 2) = -1
  def value(v, adv):
    replay = noised(dict(params=v, old=1.5))
    term, metrics = objectives.awm()(replay, experience([[adv]]), KEYS)
    return term.value.sum(), metrics

  for adv in (2.0, -3.0):
    (loss, metrics), grad = testing.value_and_grad(value, has_aux=True)(
      1.5, adv
    )
    assert metrics['nll'] == pytest.approx(0.25)
    assert metrics['ratio'] == 1.0
    assert loss == pytest.approx(-adv)
    assert grad == pytest.approx(-adv)  # -A dr = A dm


@pytest.mark.parametrize(
  'weighting, m, slope',  # of the error 1/4 at t = 1/2
  [
    ('uniform', 0.25, 1.0),
    ('t', 0.125, 0.5),
    ('t2', 0.0625, 0.25),
    ('huber', 0.25, 0.5),  # t sqrt(e), slope t / (2 sqrt(e))
    # (t / p) (e^p - 1e-10^p), slope t e^(p - 1)
    ('ghuber', 2 * (0.5**0.5 - 10**-2.5), 0.5 * 0.25**-0.75),
  ],
)
def test_awm_weighs_errors_and_times(weighting, m, slope):
  objective = objectives.awm(weighting=weighting, clip=9.0, max_log_ratio=9.0)

  def value(v, old):
    replay = noised(dict(params=v, old=old))
    return objective(replay, experience([[2.0]]), KEYS)[0].value.sum()

  # At v_old = 2 the error of before is 0, so that r = exp(-m).
  assert value(1.5, 2.0) == pytest.approx(-2 * np.exp(-m), rel=1e-4)
  # On policy the loss moves by A m' de, de = 2 (v - 2) = -1 for a unit of v.
  assert testing.grad(value)(1.5, 1.5) == pytest.approx(-2 * slope, rel=1e-4)


def test_awm_stops_outside_of_the_trust_interval():
  # error 0 against 0.25: r = e^0.25 = 1.28 > 1.2, where A > 0 gains no more
  def value(v, adv):
    replay = noised(dict(params=v, old=1.5))
    return objectives.awm(clip=0.2)(replay, experience([[adv]]), KEYS)[
      0
    ].value.sum()

  assert value(2.0, 1.0) == pytest.approx(-1.2)
  assert testing.grad(value)(1.9, 1.0) == 0
  assert testing.grad(value)(1.9, -1.0) != 0


def test_nft_by_hand():
  # x_t = 2, t = 1/2, x0 = 1. beta = 1/2: v+ = (v + v_old) / 2 = 1.5,
  # v- = 1.5 v_old - v / 2 = 0.5; x0+ = 2 - 0.75 = 1.25, x0- = 1.75;
  # l+ = 0.25^2 / 0.25 = 0.25, l- = 0.75; p = 2 / 10 + 1/2 = 0.7
  replay = noised(dict(params=2.0, old=1.0))
  term, metrics = objectives.nft(beta=0.5)(replay, experience([[2.0]]), KEYS)
  assert metrics['positive'] == pytest.approx(0.25)
  assert metrics['negative'] == pytest.approx(0.75)
  assert metrics['optimality'] == pytest.approx(0.7)
  assert metrics['old_distance'] == pytest.approx(1.0)
  assert term.value == pytest.approx(10 * (0.7 * 0.25 + 0.3 * 0.75))


@pytest.mark.parametrize('beta', [0.1, 1.0])
def test_nft_gradient_at_the_old_policy(beta):
  """Proportional to A, without beta; 0 at A = 0; its two branches are even."""

  def value(v, adv, mode):
    replay = noised(dict(params=v, old=1.0))
    objective = objectives.nft(beta=beta, mode=mode)
    return objective(replay, experience([[adv]]), KEYS)[0].value.sum()

  slope = lambda v, adv, mode='all': testing.grad(
    lambda v: value(v, adv, mode)
  )(v)
  # x0+ = 2 - v / 2: d l+ / dv = 2 (x0+ - 1) (-beta / 2) / |x0+ - 1| = -beta;
  # (C / beta) (p - (1 - p)) (-beta) = -C (2 p - 1) = -A
  for adv in (0.0, 1.0, -2.0):
    assert slope(1.0, adv) == pytest.approx(-adv, abs=1e-5)
  assert slope(1.0, 9.0) == pytest.approx(-5.0)  # p ends at 1
  assert slope(1.0, 1.0, 'positive') == pytest.approx(-5 * 0.6)
  assert slope(1.0, 1.0, 'negative') == pytest.approx(5 * 0.4)


def test_nft_gives_no_gradient_to_the_old_policy_or_the_advantage():
  def value(old, adv):
    replay = noised(dict(params=1.5, old=old))
    return objectives.nft()(replay, experience(adv), KEYS)[0].value.sum()

  grads = testing.grad(value, (0, 1))(1.0, jnp.array([[1.0]]))
  assert grads[0] == 0 and (grads[1] == 0).all()


def test_more_errors():
  for kwargs in (dict(beta=0.0), dict(max_adv=-1.0)):
    with pytest.raises(ValueError, match='positive'):
      objectives.nft(**kwargs)
