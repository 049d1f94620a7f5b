"""A trust region that is a divergence: against a table and a closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import objectives, testing
from gen_rl.distributions import Gaussian
from gen_rl.types import Experience, Trajectory

# log r, advantage, KL: is the gradient held back at delta = 0.1?
TABLE = [
  (0.3, 2.0, 0.2, True),
  (0.3, -2.0, 0.2, False),  # comes back
  (-0.3, -2.0, 0.2, True),
  (-0.3, 2.0, 0.2, False),
  (0.3, 2.0, 0.05, False),  # near
  (0.0, 2.0, 0.5, False),  # no way is away
  (2.0, 1.0, 0.1, True),
]


def experience(adv, log_prob):
  b = len(adv)
  traj = Trajectory(
    cond=(), states=(), actions=np.zeros((b, 1)), times=np.zeros((b, 1, 2)),
    noise=np.zeros((b, 1)), log_prob=jnp.asarray(log_prob),
    mask=jnp.ones((b, 1)),
    sample=np.zeros((b, 1)), group=np.zeros(b, np.int32),
  )  # fmt: skip
  adv = jnp.asarray(adv, jnp.float32)[:, None]
  return Experience(traj=traj, adv=adv, weight=np.ones(b), rewards=None)


class Moved:
  """A distribution whose KL to any other is given."""

  def __init__(self, kl):
    self.moved = jnp.asarray(kl)[:, None]

  def kl(self, other):
    return self.moved


def test_by_hand():
  log_r, adv, moved, held = (np.array(x) for x in zip(*TABLE, strict=True))
  objective = objectives.divergence_pg(threshold=0.1, on_policy=False)

  def loss(log_prob):
    replay = testing.answers(
      log_prob=lambda which: log_prob, dist=lambda which: Moved(moved)
    )
    exp = experience(adv, np.zeros((len(adv), 1)))
    term, metrics = objective(replay, exp, ())
    return term.value.sum(), (term.value[:, 0], metrics)

  now = jnp.asarray(log_r)[:, None]
  slope, (value, metrics) = jax.grad(loss, has_aux=True)(now)
  free = -adv * np.exp(log_r)
  np.testing.assert_allclose(value, np.where(held, 0, free), rtol=1e-5)
  np.testing.assert_allclose(slope[:, 0], np.where(held, 0, free), rtol=1e-5)
  np.testing.assert_array_equal(metrics['clip_fraction'][:, 0], held)
  np.testing.assert_allclose(metrics['moved'][:, 0], moved, rtol=1e-6)


def test_of_gaussian_steps_and_on_policy():
  # KL of means 0.3 and -0.1 apart at deviation 0.5: mean(0.09, 0.01) / 0.5
  ones = jnp.ones((1, 1))
  new = Gaussian(jnp.array([[[0.3, -0.1]]]), 0.5 * ones, event='mean')
  old = Gaussian(jnp.zeros((1, 1, 2)), 0.5 * ones, event='mean')
  replay = testing.answers(
    log_prob=lambda which: 0.2 * ones,
    dist=lambda which: {'params': new, 'old': old}[which],
  )
  exp = experience([1.0], np.zeros((1, 1)))
  for threshold, held in ((0.09, True), (0.11, False)):
    objective = objectives.divergence_pg(threshold, on_policy=False)
    term, metrics = objective(replay, exp, ())
    np.testing.assert_allclose(metrics['moved'], 0.1, rtol=1e-5)
    assert (float(term.value[0, 0]) == 0) == held
  term, metrics = objectives.divergence_pg(1e-9)(replay, exp, ())
  np.testing.assert_allclose(term.value, -1.0)  # REINFORCE, r = 1
  assert not metrics['moved'].any()
