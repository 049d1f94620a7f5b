import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.rewards import mixture as rewards
from gen_rl.types import RewardInputs
from gen_rl.worlds import mixture

# Media (1, .5) is the point (1, 0); (.5, .5) the origin; east is (.5, 0).
MEDIA = jnp.array([[1.0, 0.5], [0.75, 0.5], [0.5, 0.5], [0.75, jnp.nan]])
INFO = dict(
  named=jnp.full(4, 1, jnp.int32),
  target=jnp.tile(jnp.array([0.5, 0.0]), (4, 1)),
)


def score(reward, media=MEDIA, info=INFO, group_size=4):
  return reward.score((), RewardInputs(media, info, group_size), None)


def test_by_hand():
  out = score(rewards.mixture_distance())
  np.testing.assert_allclose(out.score[:3], [-0.25, 0.0, -0.25], atol=1e-6)
  assert out.valid.tolist() == [True, True, True, False]
  out = score(rewards.mixture_near(radius=0.5))
  np.testing.assert_allclose(out.score[:3], [0.0, 1.0, 0.0])


def test_gradient_points_to_the_target():
  def total(media):
    return score(rewards.mixture_distance(), media).score[:3].sum()

  # d/dm of -(2 m - 1 - y)^2 is -4 (x - y).
  gradient = jax.grad(total)(MEDIA.at[0, 1].set(0.75))
  np.testing.assert_allclose(gradient[0], [-2.0, -2.0], atol=1e-5)


def test_gaps_vanish_at_the_optimum_only():
  n, beta = 4000, 0.1
  named = jnp.repeat(jnp.arange(4), n)
  info = dict(named=named, target=jnp.asarray(mixture.CENTERS)[named])
  base = mixture.base(named)
  best = mixture.optimum(base, info['target'], beta)
  reward = rewards.mixture_near(beta=beta)
  gaps = {}
  for name, mix in (('base', base), ('best', best)):
    x = mixture.sample(mix, jax.random.key(0))
    out = score(reward, (x + 1.0) / 2.0, info, n)
    gaps[name] = [
      float(out.parts[part].max() if name == 'best' else out.parts[part].min())
      for part in ('optimum_mean_gap', 'optimum_second_gap')
    ]
  assert max(gaps['best']) < 0.02
  assert min(gaps['base']) > 0.05


def test_other_prompts_are_refused():
  with pytest.raises(ConfigError, match="the world 'mixture'"):
    score(rewards.mixture_distance(), info={})


def test_pictures_are_no_points():
  with pytest.raises(ConfigError, match=r'samples are \[4, 8, 8, 3\]'):
    score(rewards.mixture_distance(), jnp.zeros((4, 8, 8, 3)))
