"""Frechet distances against scipy and by hand, and in an evaluation."""

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import pytest
from scipy import linalg

from configs import flow_grpo
from gen_rl import assemble, build, initial, measures, rollout
from gen_rl.measures import features, frechet


def test_by_hand():
  """Means 3 apart, variances 1 and 4: 9 + (1 - 2)^2; a set itself: 0."""
  a = np.array([[-1.0], [1.0]]) / 2**0.5
  b = 2 * a + 3
  np.testing.assert_allclose(frechet.distance(a, b), 10.0)
  np.testing.assert_allclose(frechet.distance(a, a), 0.0, atol=1e-12)
  assert np.isnan(frechet.distance(a[:1], b))


def test_the_root_of_a_matrix():
  rng = np.random.default_rng(0)
  a, b = (
    rng.normal(size=(50, 6)),
    rng.normal(size=(40, 6)) @ np.diag(range(1, 7)),
  )
  first, second = np.cov(a.T), np.cov(b.T)
  want = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
    first + second - 2 * linalg.sqrtm(first @ second).real
  )
  np.testing.assert_allclose(frechet.distance(a, b), want, rtol=1e-6)


def test_renders_are_nearer_to_renders_than_noise_is():
  """By the features of two networks, and by thumbnails."""
  c = flow_grpo.get_config('tiny')
  built = assemble.setup(c)
  batch, *_ = assemble.feeds.evaluation(c, built)
  real = build.build(measures, 'frechet').real

  @jax.jit
  def drawn(key):
    return (real(rollout.make_rows(batch, 8, key, jnp.int32(0)))[0] + 1) / 2

  media = [drawn(jax.random.key(i)) for i in (0, 1)]
  noise = jax.random.uniform(jax.random.key(2), media[0].shape)
  for name in ('shapes_detector', 'shapes_vlm', 'thumbnails'):
    measure = build.build(measures, dict(name='frechet', features=name))
    read = jax.jit(measure.features)
    first, second, far = (
      np.asarray(read(measure.params, x)) for x in (*media, noise)
    )
    assert measure.value(first, second) < 0.2 * measure.value(first, far)


def test_the_eyes_of_the_vlm_are_those_of_its_judge():
  """A picture of squares of one colour each: as many features, each its own."""
  found = features.shapes_vlm()
  grey = jnp.full((1, 24, 24, 3), 0.5)
  whole, squares = found.look(found.params, grey)
  assert whole.shape == (1, 96) and squares.shape == (1, 16, 96)
  np.testing.assert_allclose(whole, squares.mean(1), rtol=1e-6)
  with pytest.raises(build.ConfigError, match=r'of pictures of \[24, 24, 3\]'):
    found.look(found.params, grey[:, :12])


def test_thumbnails_of_one_colour():
  grey = jnp.full((2, 8, 8, 3), 0.25)
  found = features.thumbnails(2).apply((), grey)
  assert found.shape == (2, 12)
  np.testing.assert_allclose(found, 0.25, rtol=1e-6)


def test_an_evaluation_that_searches_and_measures():
  """The first candidate is the sample itself; more raise the reward."""
  found = {}
  for n, how in {1: dict(name=''), 4: dict(name='best_of_n', n=4)}.items():
    c = flow_grpo.get_config('tiny,proxy')
    c.eval.update(num_prompts=6, gold={})
    c.eval.search = config_dict.create(**how)
    c.eval.sets.far = dict(name='frechet', features='thumbnails')
    built = assemble.setup(c)
    run, _ = assemble.make_evaluator(c, built)
    found[n] = run(initial.params(c, built.policy))
  assert np.nanmean(found[4].reward) > np.nanmean(found[1].reward)
  assert (found[4].reward >= found[1].reward).all()
  assert found[1].metrics()['eval/set/far'] == found[1].summary()['sets']['far']
  assert found[1].sets['far'] > 0
