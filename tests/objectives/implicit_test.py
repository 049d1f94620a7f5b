"""The implicit classifier, where its density or its gradient is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, rollout, testing
from gen_rl import replay as replay_lib
from gen_rl.models.parts.layers import Net
from gen_rl.policies import denoising
from gen_rl.types import Experience, Noised, RowKeys
from gen_rl.worlds import mixture

B, KEY = 64, jax.random.key(0)
NAMED = jnp.arange(B) % 4


def log_density(named, x, t):
  """Of (1) of `worlds.mixture`, made noisy: x [2], t []."""
  weights, means, var = mixture.base(named)
  var = (1 - t) ** 2 * var + t**2
  square = jnp.sum((x - (1 - t) * means) ** 2, -1)
  return jax.nn.logsumexp(jnp.log(weights) - square / (2 * var))


def towards(sample, at, velocity):
  """(gradient of the loss in the samples [b ...], slopes [b 1])."""
  exp = Experience(
    testing.given(sample, ()), np.zeros((B, 1)), np.ones(B), None
  )
  keys = RowKeys(jax.random.split(KEY, B), None)

  def loss(sample):
    replay = testing.answers(
      finish=lambda which, *calls: sample,
      noised=lambda which, keys, draws: at,
      velocity_at=velocity,
    )
    term, metrics = objectives.implicit_guidance()(replay, exp, keys)
    return term.value.sum(), metrics['slope']

  gradient, slope = testing.grad(loss, has_aux=True)(sample)
  return np.asarray(gradient), np.asarray(slope)


def test_it_climbs_the_posterior_of_the_prompt():
  """eps_u - eps_c is t grad log p(c | x_t), by the densities themselves."""
  keys = jax.random.split(jax.random.key(1), 3)
  x0 = 0.6 * jax.random.normal(keys[0], (B, 2))
  x1 = jax.random.normal(keys[1], (B, 1, 2))
  t = jax.random.uniform(keys[2], (B, 1), minval=0.3, maxval=0.9)
  at = Noised((1 - t[..., None]) * x0[:, None] + t[..., None] * x1, t, x0, x1)

  def velocity(which, at, null=False):
    assert which == 'ref'
    named = jnp.where(null, -1, NAMED)[:, None]
    return mixture.velocity(mixture.base(named), at.x, at.t)

  def posterior(x, named, t):
    return log_density(named, x, t) - log_density(jnp.int32(-1), x, t)

  slope = jax.jit(jax.vmap(jax.grad(posterior)))(at.x[:, 0], NAMED, t[:, 0])
  length = np.linalg.norm(slope, axis=-1, keepdims=True)
  gradient, found = towards(x0, at, velocity)
  np.testing.assert_allclose(found, t * length, rtol=1e-3, atol=1e-5)
  some = length[:, 0] > 1e-3
  assert some.sum() > B / 2
  np.testing.assert_allclose(gradient[some], -(slope / length)[some], atol=1e-3)


def test_what_says_nothing_has_no_gradient():
  """Equal velocities, and one row that is not finite."""
  x = jnp.zeros((B, 1, 2))
  at = Noised(x, jnp.full((B, 1), 0.5), x[:, 0], x)

  def velocity(which, at, null=False):
    same = jnp.ones_like(at.x)
    return jnp.where(null, same.at[1].set(jnp.nan).at[2, 0, 1].set(4.0), same)

  gradient, found = towards(x[:, 0], at, velocity)
  np.testing.assert_array_equal(gradient[2], [0, -1])
  np.testing.assert_array_equal(np.delete(gradient, 2, 0), 0)
  assert found[2] == pytest.approx(1.5) and np.isnan(found[1])
  np.testing.assert_array_equal(np.delete(found, [1, 2]), 0)


def test_gradient_of_a_linear_net_by_hand():
  """v = gain x + shift c, without a prompt gain x.

  eps_u - eps_c is a multiple of -shift_ref c, so that d = -sign(c) u with
  u = shift_ref / |shift_ref|. The last call, at time s of state y, makes
  x0 = y - s v of it: dL / dshift = -s |c| u, dL / dgain = s <d, y>.
  """
  shape = testing.SHAPE

  def init(key):
    return dict(gain=jnp.float32(0.3), shift=jax.random.normal(key, shape))

  def apply(params, x, t, cond):
    said = cond['tokens'][:, 0].astype(jnp.float32) - 3.0
    said = jnp.where(cond['tokens'][:, 1] < 0, 0.0, said)
    return params['gain'] * x + params['shift'] * said[:, None, None, None]

  def null(cond):
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], -1)}

  net = Net(init, apply, shape, null)
  policy = testing.jitted(denoising.denoising(net, steps=4, deterministic=True))
  params, ref = init(KEY), init(jax.random.key(1))
  rows = rollout.make_rows(testing.batch((0, 1, 4, 5)), 2, KEY, jnp.int32(0))
  traj = policy.rollout(params, rows, jnp.int32(0))
  exp = Experience(traj, jnp.zeros((8, 1)), jnp.ones(8), None)
  keys = RowKeys(rows.keys, rows.group_keys)
  objective = objectives.implicit_guidance(draws=2)

  def loss(params, ref):
    replay = replay_lib.make(policy, dict(params=params, ref=ref), exp)
    return objective(replay, exp, keys)[0].value.sum()

  found, frozen = testing.grad(loss, (0, 1))(params, ref)
  said = np.asarray(rows.cond['tokens'][:, 0], np.float64) - 3
  unit = np.asarray(ref['shift'] / np.sqrt((ref['shift'] ** 2).sum()))
  s, y = 0.25, np.asarray(traj.actions[:, -1])
  np.testing.assert_allclose(
    found['shift'], -s * np.abs(said).sum() * unit, atol=1e-5
  )
  d = -np.sign(said)[:, None, None, None] * unit
  assert found['gain'] == pytest.approx(s * (d * y).sum(), rel=1e-4)
  assert all(np.all(x == 0) for x in jax.tree.leaves(frozen))
