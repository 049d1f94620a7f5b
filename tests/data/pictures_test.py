"""Pictures of data batches: what was drawn is what the labels say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, rollout
from gen_rl.data import pictures
from gen_rl.rewards import shapes as rewards
from gen_rl.worlds import grammar, shapes

KEY = jax.random.key(0)
P, G = 32, 4


def rows_of(texts, media=None, group_size=2):
  specs = [grammar.spec_arrays(grammar.parse(text)) for text in texts]
  batch = dict(
    tokens=np.arange(len(texts) * 3).reshape(-1, 3),
    prompt_id=np.arange(len(texts), dtype=np.int32),
    info={name: np.stack([s[name] for s in specs]) for name in specs[0]},
  )
  if media is not None:
    batch['media'] = media
  return rollout.make_rows(batch, group_size, jax.random.key(0), jnp.int32(0))


def test_scenes_are_what_was_drawn_and_noise_is_bounded():
  rows = rows_of(['a red circle', 'two squares', 'the word "cat"'], None, 64)
  encoders = (
    pictures.shapes_scenes(),
    pictures.shapes_pictures(),
    pictures.shapes_scenes(noise=0.02),
  )
  (x, cond), (plain, plain_cond), (noisy, noisy_cond) = jax.jit(
    lambda rows: [encode(rows) for encode in encoders]
  )(rows)
  scene = cond['scene']
  np.testing.assert_array_equal(cond['tokens'], rows.cond['tokens'])
  present = (scene.shape >= 0).sum(-1)
  np.testing.assert_array_equal(present, np.repeat([1, 2, 0], 64))
  np.testing.assert_array_equal(
    scene.color[:64, 0], grammar.COLORS.index('red')
  )
  # The pictures of plain data batches, which carry no labels.
  np.testing.assert_array_equal(x, plain)
  assert set(plain_cond) == {'tokens'}
  # The pixel at the centre of a circle has its colour.
  y, column = scene.center[0, 0]
  np.testing.assert_allclose(
    (x[0, y, column] + 1) / 2, shapes.PALETTE[0], atol=1e-6
  )
  # Noise, in units of [0, 1]: its level is uniform over the pictures.
  spread = np.std((noisy - x) / 2, axis=(1, 2, 3))
  assert 0 <= spread.min() < 0.002 and 0.018 < spread.max() < 0.021
  np.testing.assert_allclose(spread.mean(), 0.01, rtol=0.15)
  assert np.abs(noisy).max() <= 1.0
  np.testing.assert_array_equal(noisy_cond['scene'].center, scene.center)


def grid_of(step=0):
  prompts = grammar.enumerate_prompts('train')[:: 2000 // P][:P]
  specs = [grammar.spec_arrays(p.spec) for p in prompts]
  batch = dict(
    tokens=np.zeros((len(prompts), 2), np.int32),
    prompt_id=np.array([p.prompt_id for p in prompts], np.int32),
    info=jax.tree.map(lambda *x: np.stack(x), *specs),
  )
  return rollout.make_rows(batch, G, KEY, jnp.int32(step))


@pytest.mark.parametrize('noise', [0.0, 0.5, 1.0])
def test_caption_noise_is_the_share_of_wrong_pictures(noise):
  rows = grid_of()
  encode = jax.jit(pictures.shapes_pictures(noise))
  latents, _ = encode(rows)
  assert latents.shape == (len(rows.group), 24, 24, 3)
  assert latents.min() >= -1 and latents.max() <= 1
  assert latents.min() < -0.5 and latents.max() > 0.5
  _, strict = jax.jit(rewards.judge)((latents + 1) / 2, rows.info)
  n = len(rows.group)
  sd = (noise * (1 - noise) / n) ** 0.5
  assert abs((1 - strict.mean()) - noise) <= 4 * sd + 1 / n


def test_every_step_draws_afresh():
  encode = jax.jit(pictures.shapes_pictures())
  a, b, c = (encode(grid_of(step))[0] for step in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert (np.abs(a - c).max((1, 2, 3)) > 0.05).mean() > 0.9
  # and so does every member of a group
  a = np.asarray(a).reshape(-1, G, a[0].size)
  assert (np.abs(a[:, 0] - a[:, 1]).max(-1) > 0.05).all()


def test_given_pictures():
  media = np.full((1, 2, 2, 3), 0.75, np.float32)
  rows = rows_of(['a circle'], media)
  x, cond = pictures.given()(rows)
  np.testing.assert_array_equal(x, np.full((2, 2, 2, 3), 0.5))
  assert cond is rows.cond
  with pytest.raises(build.ConfigError, match='has none'):
    pictures.given()(rows_of(['a circle']))
