"""Policy gradients against hand-worked tables and closed-form gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import objectives, testing
from gen_rl.distributions import Categorical, Gaussian
from gen_rl.types import Experience, RewardOut, Trajectory


def experience(adv, mask, log_prob=None, actions=None, times=None):
  mask = jnp.asarray(mask, jnp.float32)
  b, k = mask.shape
  zeros = np.zeros((b, k))
  traj = Trajectory(
    cond=(),
    states=(),
    actions=zeros if actions is None else actions,
    times=np.zeros((b, k, 2)) if times is None else times,
    noise=zeros,
    log_prob=zeros if log_prob is None else jnp.asarray(log_prob),
    mask=mask,
    sample=zeros,
    group=np.zeros(b, np.int32),
  )
  rewards = RewardOut(score=np.zeros(b), parts={}, valid=np.ones(b, bool))
  adv = jnp.asarray(adv, jnp.float32)
  return Experience(traj=traj, adv=adv, weight=np.ones(b), rewards=rewards)


def replaying(log_prob=None, **dists):
  return testing.answers(
    dist=dists.__getitem__, log_prob={'params': log_prob}.__getitem__
  )


def total(objective, replay, exp):
  term, _ = testing.term_of(objective, replay, exp)
  return (term.value * term.mask).sum()


# --- plain ratio

# ratio, advantage, clip low .2, high .5 -> loss, d loss / d log-prob
TABLE = [
  # inside: -A r, and the same gradient
  (1.0, 2.0, -2.0, -2.0),
  (1.4, 2.0, -2.8, -2.8),
  (0.9, -3.0, 2.7, 2.7),
  # above, A > 0: clipped at 1.5, no gradient
  (2.0, 2.0, -3.0, 0.0),
  # above, A < 0: not clipped, pulled back
  (2.0, -3.0, 6.0, 6.0),
  # below, A < 0: clipped at .8, no gradient
  (0.5, -3.0, 2.4, 0.0),
  # below, A > 0: not clipped
  (0.5, 2.0, -1.0, -1.0),
]


def test_clipped_pg_table():
  ratio, adv, loss, slope = (
    jnp.array(x, jnp.float32)[:, None] for x in zip(*TABLE, strict=True)
  )
  exp = experience(adv, jnp.ones_like(adv), log_prob=jnp.full_like(adv, -3.0))
  objective = objectives.clipped_pg(0.2, 0.5, on_policy=False)
  new = jnp.log(ratio) - 3.0
  term, metrics = testing.term_of(objective, replaying(new), exp)
  np.testing.assert_allclose(term.value, loss, rtol=1e-5)
  grad = testing.grad(lambda x: total(objective, replaying(x), exp))(new)
  np.testing.assert_allclose(grad, slope, rtol=1e-5)
  np.testing.assert_allclose(metrics['ratio'], ratio, rtol=1e-5)
  np.testing.assert_array_equal(
    metrics['clip_fraction'][:, 0], [0, 0, 0, 1, 1, 1, 1]
  )
  # k3 by hand: r - 1 - log r, at r = 2: 1 - .693147, at .5: -.5 + .693147
  np.testing.assert_allclose(
    metrics['approx_kl'][np.array([0, 3, 5]), 0],
    [0.0, 0.306853, 0.193147],
    atol=1e-5,
  )
  np.testing.assert_allclose(
    metrics['log_ratio_abs_max'], np.abs(np.log(ratio)), atol=1e-6
  )


def test_dual_clip_table():
  """(7) at c = 3, and TRL's delta = 3: -min(min(r, delta) A, clip(r) A)."""
  table = [
    # inside, and an action that was good: as without
    (1.0, 2.0, -2.0, -2.0),
    (4.0, 2.0, -3.0, 0.0),
    # bad and likely: pulled back up to r = c, and no further beyond
    (2.0, -3.0, 6.0, 6.0),
    (2.9, -3.0, 8.7, 8.7),
    (4.0, -3.0, 9.0, 0.0),  # TRL: -min(3 * -3, 1.5 * -3)
    (40.0, -0.5, 1.5, 0.0),
    # bad and unlikely: clipped at .8
    (0.5, -3.0, 2.4, 0.0),
  ]
  ratio, adv, loss, slope = (
    jnp.array(x, jnp.float32)[:, None] for x in zip(*table, strict=True)
  )
  exp = experience(adv, jnp.ones_like(adv), log_prob=jnp.full_like(adv, -3.0))
  objective = objectives.clipped_pg(0.2, 0.5, on_policy=False, dual_clip=3.0)
  new = jnp.log(ratio) - 3.0
  term, _ = testing.term_of(objective, replaying(new), exp)
  np.testing.assert_allclose(term.value, loss, rtol=1e-5)
  grad = testing.grad(lambda x: total(objective, replaying(x), exp))(new)
  np.testing.assert_allclose(grad, slope, rtol=1e-5)


def test_on_policy_ratio_is_one_and_gradient_is_reinforce():
  key = jax.random.key(0)
  theta = jax.random.normal(key, (3,))
  features = jax.random.normal(jax.random.key(1), (4, 5, 3))
  adv = jnp.array([[1.0], [-2.0], [0.5], [0.0]])
  exp = experience(adv, np.ones((4, 5)), log_prob=np.full((4, 5), 9.0))

  def log_prob(theta):
    return -jnp.square(features @ theta)

  def loss(objective):
    return lambda t: total(objective, replaying(log_prob(t)), exp)

  on_policy = objectives.clipped_pg(1e-4, on_policy=True)
  term, metrics = testing.term_of(on_policy, replaying(log_prob(theta)), exp)
  np.testing.assert_array_equal(metrics['ratio'], 1)
  np.testing.assert_array_equal(metrics['approx_kl'], 0)
  np.testing.assert_array_equal(metrics['clip_fraction'], 0)
  np.testing.assert_array_equal(term.value, jnp.broadcast_to(-adv, (4, 5)))
  # d/dtheta of sum A (f theta)^2 = 2 sum A (f theta) f
  by_hand = 2 * np.einsum(
    'bo,bk,bkd->d', adv, np.asarray(features @ theta), features
  )
  grad = testing.grad(loss(on_policy))(theta)
  np.testing.assert_allclose(grad, by_hand, rtol=1e-5)
  reinforce = testing.grad(loss(objectives.reinforce()))(theta)
  np.testing.assert_allclose(grad, reinforce, rtol=1e-6)


def test_step_wise_advantage():
  adv = jnp.array([[1.0, -1.0, 2.0]])
  exp = experience(adv, np.ones((1, 3)))
  objective = objectives.clipped_pg()
  grad = testing.grad(lambda x: total(objective, replaying(x), exp))(
    np.zeros((1, 3))
  )
  np.testing.assert_allclose(grad, -adv)


@pytest.mark.parametrize('on_policy', [True, False])
def test_masked_decisions_have_no_value_and_no_gradient(on_policy):
  mask = jnp.array([[1.0, 0.0], [0.0, 0.0]])
  new = jnp.array([[0.1, jnp.nan], [jnp.inf, -jnp.inf]])
  exp = experience([[1.0], [2.0]], mask, log_prob=np.full((2, 2), jnp.nan))
  exp = exp.replace(
    traj=exp.traj.replace(log_prob=jnp.where(mask > 0, 0.1, jnp.nan))
  )
  for objective in (
    objectives.clipped_pg(on_policy=on_policy),
    objectives.reinforce(),
  ):
    value, grad = testing.value_and_grad(
      lambda x, o=objective: total(o, replaying(x), exp)
    )(new)
    assert np.isfinite(value)
    np.testing.assert_array_equal(grad, [[-1, 0], [0, 0]])
    _, metrics = testing.term_of(objective, replaying(new), exp)
    for metric in metrics.values():
      assert np.isfinite(metric).all()
      np.testing.assert_array_equal(jnp.where(mask > 0, 0, metric), 0)


def test_extreme_log_ratio_stays_finite():
  exp = experience([[-1.0]], [[1.0]], log_prob=[[0.0]])
  objective = objectives.clipped_pg(on_policy=False)
  value, grad = testing.value_and_grad(
    lambda x: total(objective, replaying(x), exp)
  )(jnp.array([[500.0]]))
  assert np.isfinite(value) and np.isfinite(grad).all()


# --- GRPO-Guard


def guard_case(seed=0, b=3, k=2, shape=(2, 2, 5)):
  keys = jax.random.split(jax.random.key(seed), 4)
  old = jax.random.normal(keys[0], (b, k, *shape))
  new = old + 0.1 * jax.random.normal(keys[1], old.shape)
  std = jax.random.uniform(keys[2], (b, k), minval=0.1, maxval=1.0)
  noise = jax.random.normal(keys[3], old.shape)
  actions = old + std[:, :, None, None, None] * noise
  t = jnp.linspace(1.0, 0.0, k + 1) ** 2
  times = jnp.broadcast_to(jnp.stack([t[:-1], t[1:]], -1), (b, k, 2))
  return old, new, std, noise, actions, times


def mean_log_prob(actions, mean, std):
  """Mean of scipy's normal log density over the event."""
  density = jax.scipy.stats.norm.logpdf(
    actions, mean, std[:, :, None, None, None]
  )
  return np.asarray(density, np.float64).mean((2, 3, 4))


def test_guard_equals_the_published_formula():
  """exp((l - l' + mean(d^2) / (2 s^2)) s), the loss over -dt."""
  old, new, std, noise, actions, times = guard_case()
  adv = jnp.array([[1.0], [-1.0], [0.5]])
  exp = experience(adv, np.ones(std.shape), actions=actions, times=times)
  objective = objectives.clipped_pg(10.0, ratio='guard', on_policy=False)
  replay = replaying(params=Gaussian(new, std), old=Gaussian(old, std))
  term, metrics = testing.term_of(objective, replay, exp)
  bias = np.asarray((new - old) ** 2).mean((2, 3, 4)) / (2 * std**2)
  diff = mean_log_prob(actions, new, std) - mean_log_prob(actions, old, std)
  ratio = np.exp((diff + bias) * std)
  np.testing.assert_allclose(metrics['ratio'], ratio, rtol=1e-4)
  length = np.asarray(times[..., 0] - times[..., 1])
  np.testing.assert_allclose(term.value, -adv * ratio / length, rtol=1e-4)
  # and the short form
  short = (noise * (new - old)).mean((2, 3, 4))
  np.testing.assert_allclose(np.log(metrics['ratio']), short, atol=1e-5)


def test_guard_removes_the_bias_and_the_noise_level():
  """Over actions of the old policy: mean 0, variance mean(d^2) / D, any s."""
  n, d = 4096, 64
  shift = 0.3
  for std in (0.05, 0.8):
    noise = jax.random.normal(jax.random.key(3), (n, 1, d))
    old = Gaussian(np.zeros((n, 1, d)), np.full((n, 1), std))
    new = old.replace(mean=np.full((n, 1, d), shift))
    times = jnp.broadcast_to(jnp.array([0.5, 0.25]), (n, 1, 2))
    exp = experience(
      np.ones((n, 1)), np.ones((n, 1)), actions=std * noise, times=times
    )
    objective = objectives.clipped_pg(1.0, ratio='guard', on_policy=False)
    _, metrics = testing.term_of(objective, replaying(params=new, old=old), exp)
    log_ratio = np.log(metrics['ratio'])
    sd = shift / d**0.5
    assert abs(log_ratio.mean()) < 4 * sd / n**0.5
    np.testing.assert_allclose(log_ratio.std(), sd, rtol=0.05)


def test_guard_is_exactly_one_before_the_first_update():
  old, _, std, _, actions, times = guard_case()
  exp = experience(
    np.ones((3, 1)), np.ones(std.shape), actions=actions, times=times
  )
  dist = Gaussian(old, std)
  for on_policy, replay in (
    (True, replaying(params=dist)),
    (False, replaying(params=dist, old=dist)),
  ):
    objective = objectives.clipped_pg(ratio='guard', on_policy=on_policy)
    _, metrics = testing.term_of(objective, replay, exp)
    np.testing.assert_array_equal(metrics['ratio'], 1)
    np.testing.assert_array_equal(metrics['approx_kl'], 0)


def test_guard_gradient_on_policy():
  """d/dm of -A mean(z d) / -dt = -A z / (D (t - t_next))."""
  old, _, std, noise, actions, times = guard_case()
  adv = jnp.array([[1.0], [-1.0], [0.5]])
  exp = experience(adv, np.ones(std.shape), actions=actions, times=times)
  objective = objectives.clipped_pg(ratio='guard', on_policy=True)
  grad = testing.grad(
    lambda m: total(objective, replaying(params=Gaussian(m, std)), exp)
  )(old)
  length = (times[..., 0] - times[..., 1])[:, :, None, None, None]
  expected = -adv[:, :, None, None, None] * noise / (20 * length)
  np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-4)


def test_guard_noise_free_and_masked_steps():
  old, new, std, _, actions, times = guard_case()
  std = std.at[0, 1].set(0.0)
  mask = jnp.ones(std.shape).at[0, 1].set(0.0).at[2, 0].set(0.0)
  times = times.at[2, 0].set(0.5)  # no length
  exp = experience(np.ones((3, 1)), mask, actions=actions, times=times)
  objective = objectives.clipped_pg(1.0, ratio='guard', on_policy=False)

  def loss(mean):
    replay = replaying(params=Gaussian(mean, std), old=Gaussian(old, std))
    return total(objective, replay, exp)

  value, grad = testing.value_and_grad(loss)(new)
  assert np.isfinite(value) and np.isfinite(grad).all()
  live = np.abs(grad).sum((2, 3, 4)) > 0
  np.testing.assert_array_equal(live, mask > 0)


def test_guard_needs_gaussians():
  exp = experience(np.ones((1, 1)), np.ones((1, 1)))
  objective = objectives.clipped_pg(ratio='guard')
  with pytest.raises(ValueError, match="Use ratio='plain'"):
    testing.term_of(
      objective, replaying(params=Categorical(np.zeros((1, 1, 4)))), exp
    )


def test_errors_name_the_choices():
  with pytest.raises(ValueError, match="'plain' or 'guard'"):
    objectives.clipped_pg(ratio='sequence')
  with pytest.raises(ValueError, match='positive'):
    objectives.clipped_pg(0.0)
  with pytest.raises(ValueError, match='dual_clip is 1.4.*ends at 1.5'):
    objectives.clipped_pg(0.2, 0.5, dual_clip=1.4)


# --- REBEL


def test_rebel_by_hand():
  # Log-ratios are 0 while the policies agree, so the loss is the squared gap
  # of the advantages, and its slope -2 eta gap for the first of a pair.
  mask = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
  old = jnp.zeros((4, 2))
  adv = jnp.array([[1.0], [-0.5], [2.0], [2.0]])

  def loss(new, weight=(1.0, 1.0, 1.0, 1.0)):
    log_probs = dict(params=new, old=old)
    replay = testing.answers(log_prob=log_probs.__getitem__)
    traj = Trajectory((), (), (), (), (), old, mask, (), None)
    exp = Experience(traj, adv, jnp.asarray(weight), None)
    term, metrics = testing.term_of(objectives.rebel(2, eta=0.5), replay, exp)
    return (term.value * term.mask).sum(), (term, metrics)

  (_, (term, metrics)), grad = testing.value_and_grad(loss, has_aux=True)(old)
  np.testing.assert_allclose(term.value[:, 0], [2.25, 2.25, 0, 0])
  np.testing.assert_allclose(metrics['advantage_gap'][:, 0], [1.5, 1.5, 0, 0])
  # both rows of a pair hold its loss: twice 2 (0 - 1.5) 0.5
  np.testing.assert_allclose(grad, [[-3, -3], [3, 0], [0, 0], [0, 0]])
  moved = old.at[0].set(jnp.array([1.0, 2.0])).at[1].set(jnp.array([1.0, 9.0]))
  _, (term, metrics) = loss(moved)
  assert metrics['log_ratio_gap'][0, 0] == 2.0  # 3 - 1: the mask holds
  assert term.value[0, 0] == pytest.approx((0.5 * 2.0 - 1.5) ** 2)
  _, (term, _) = loss(old, (1.0, 0.0, 1.0, 1.0))
  np.testing.assert_array_equal(term.mask[:, 0], [0, 0, 1, 1])
  with pytest.raises(ValueError, match='even'):
    objectives.rebel(3)
