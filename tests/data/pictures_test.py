"""Pictures of data batches: what was drawn is what the labels say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, rollout
from gen_rl.data import pictures, pipeline, prompts, tokenizers
from gen_rl.worlds import grammar, shapes, shapes_oracle

KEY = jax.random.key(0)
P, G = 32, 4


def rows_of(texts, media=None, group_size=2, step=0):
  specs = [grammar.spec_arrays(grammar.parse(text)) for text in texts]
  batch = dict(
    tokens=np.arange(len(texts) * 3).reshape(-1, 3),
    prompt_id=np.arange(len(texts), dtype=np.int32),
    info={name: np.stack([s[name] for s in specs]) for name in specs[0]},
  )
  if media is not None:
    batch['media'] = media
  return rollout.make_rows(batch, group_size, KEY, jnp.int32(step))


def test_few_pictures_of_a_prompt():
  rows = [rows_of(['a red circle', 'two squares'], step=i) for i in range(20)]
  rows = jax.tree.map(lambda *x: jnp.stack(x), *rows)

  def shown(**few):
    encode = pictures.world_pictures('shapes', shared=True, **few)
    pictures_of = jax.jit(jax.vmap(lambda rows: encode(rows)[0]))
    return np.asarray(pictures_of(rows)).reshape(20, 2, 2, -1)

  drawn = shown(shots=3)
  # One for all rows of a prompt; three in all, and others with another seed.
  np.testing.assert_array_equal(drawn[:, :, 0], drawn[:, :, 1])
  found = [np.unique(drawn[:, i, 0], axis=0) for i in range(2)]
  assert [len(x) for x in found] == [3, 3]
  others = shown(shots=3, shots_seed=1)[:, 0, 0]
  assert not (others[:, None] == found[0]).all(-1).any()
  assert len(np.unique(shown()[:, 0, 0], axis=0)) == 20


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
  prompts = [p for p in grammar.prompts() if p.split == 'train']
  prompts = prompts[:: 2000 // P][:P]
  specs = [grammar.spec_arrays(p.spec) for p in prompts]
  batch = dict(
    tokens=np.zeros((len(prompts), 2), np.int32),
    prompt_id=np.array([p.prompt_id for p in prompts], np.int32),
    info=jax.tree.map(lambda *x: np.stack(x), *specs),
  )
  return rollout.make_rows(batch, G, KEY, jnp.int32(step))


def test_caption_noise_is_the_share_of_wrong_pictures(noise=0.5):
  rows = grid_of()
  encode = jax.jit(pictures.shapes_pictures(noise))
  latents, _ = encode(rows)
  assert latents.shape == (len(rows.group), 24, 24, 3)
  assert latents.min() >= -1 and latents.max() <= 1
  assert latents.min() < -0.5 and latents.max() > 0.5
  _, strict = jax.jit(shapes_oracle.judge)((latents + 1) / 2, rows.info)
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


# --- pairs


def test_preferences_are_right_and_wrong():
  texts = ['a red circle', 'two blue squares', 'a circle above a square']
  rows = rows_of(texts)
  x, cond = jax.jit(pictures.shapes_preferences(2))(rows)
  _, strict = jax.jit(shapes_oracle.judge)((x + 1) / 2, dict(rows.info))
  np.testing.assert_array_equal(strict, [True, False] * 3)
  np.testing.assert_array_equal(cond['tokens'], rows.cond['tokens'])


def test_prompt_pairs_are_one_picture_under_two_prompts():
  tokenizer = tokenizers.shapes_words()
  source = prompts.shapes_contrasts('train', tasks=('colors', 'position'))
  rows = range(0, 40, 5)
  false = [source.wrong[i][0] for i in rows]
  batch, texts = pipeline.gather(source, rows, tokenizer, 16, wrong=false)
  rows = rollout.make_rows(batch, 2, KEY, jnp.int32(0))
  x, cond = jax.jit(pictures.prompt_pairs(2))(rows)
  pairs = np.asarray(x).reshape(8, 2, *x.shape[1:])
  np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
  tokens = np.asarray(cond['tokens']).reshape(8, 2, -1)
  np.testing.assert_array_equal(tokens[:, 0], batch['tokens'])
  np.testing.assert_array_equal(tokens[:, 1], tokenizer.encode(false, 16))
  # The picture shows the true prompt, and by the oracle not the false one.
  _, strict = jax.jit(shapes_oracle.judge)((x + 1) / 2, {
    k: v for k, v in rows.info.items() if k != 'wrong_tokens'
  })  # fmt: skip
  assert strict.all()


def test_pairs_come_in_pairs():
  with pytest.raises(build.ConfigError, match='must be 2'):
    pictures.shapes_preferences(3)(rows_of(['a red circle'], None, 3))
  with pytest.raises(build.ConfigError, match='shapes_contrasts'):
    pictures.prompt_pairs(2)(rows_of(['a red circle']))


def test_a_given_picture_under_two_prompts():
  media = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
  cond = dict(text=np.array([[1.0], [2]]), null_text=np.zeros((2, 1)))
  batch = dict(
    tokens=np.array([[1], [2]]), prompt_id=np.array([4, 7]), media=media,
    cond=cond, info=dict(
      wrong_tokens=np.array([[5], [6]]), wrong_text=np.array([[8.0], [9]])
    ),
  )  # fmt: skip
  rows = rollout.make_rows(batch, 2, KEY, jnp.int32(0))
  x, seen = pictures.given_prompt_pairs(2)(rows)
  np.testing.assert_allclose((x + 1) / 2, np.repeat(media, 2, 0), atol=1e-6)
  np.testing.assert_array_equal(seen['tokens'][:, 0], [1, 5, 2, 6])
  np.testing.assert_array_equal(seen['text'][:, 0], [1, 8, 2, 9])
  assert set(seen) == {'tokens', 'text', 'null_text'}
  with pytest.raises(build.ConfigError, match='wrong_field'):
    pictures.given_prompt_pairs(2)(rows.replace(info={}))


def test_given_pairs_go_to_the_two_rows():
  media = np.random.default_rng(0).random((2, 2, 24, 24, 3), np.float32)
  rows = rows_of(['a red circle', 'two squares'], media)
  x, _ = pictures.given()(rows)
  np.testing.assert_allclose(
    (x + 1) / 2, media.reshape(4, 24, 24, 3), atol=1e-6
  )


def test_references_are_drawn_for_every_row():
  levels = np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]], np.float32)
  media = np.tile(levels[..., None, None, None], (2, 2, 3))
  rows = rows_of(['a red circle', 'two squares'], media, 32)
  x, cond = pictures.references()(rows)
  assert x.shape == (64, 2, 2, 3) and cond is rows.cond
  found = np.round(np.asarray(x[:, 0, 0, 0] + 1) / 2, 4).reshape(2, 32)
  for own, known in zip(found, levels, strict=True):
    assert set(own) == set(known)
  with pytest.raises(build.ConfigError, match='has 3; take "references"'):
    pictures.given()(rows)
  for less in (None, media[:, 0]):
    with pytest.raises(build.ConfigError, match='has none or one'):
      pictures.references()(rows_of(['a red circle'] * 2, less))


def test_another_style_shows_the_same_scenes():
  rows = rows_of(['a red circle', 'two squares'], None, 64)
  (plain, _), (styled, cond) = jax.jit(
    lambda rows: (
      pictures.shapes_pictures()(rows),
      pictures.shapes_inked()(rows),
    )
  )(rows)
  np.testing.assert_array_equal(cond['tokens'], rows.cond['tokens'])
  # A pixel that an object covers is as it was, and no other one is.
  covered = np.abs(styled - plain).max(-1) < 1e-5
  coloured = np.ptp(plain, -1) / 2 > 0.7
  assert covered[coloured].mean() > 0.99
  assert covered[np.ptp(plain, -1) < 1e-6].mean() < 0.01


def test_digit_scans_are_those_of_scikit_learn():
  from sklearn import datasets

  rows = rows_of(['a red circle', 'two squares'], None, 128)
  encode = jax.jit(pictures.digit_scans(24))
  x, cond = encode(rows)
  np.testing.assert_array_equal(cond['tokens'], rows.cond['tokens'])
  assert x.shape == (256, 24, 24, 3)
  np.testing.assert_array_equal(x[..., 0], x[..., 2])  # grey
  # The middle of a block of 3x3 is the pixel that was enlarged.
  found = np.round(np.asarray((x[:, 1::3, 1::3, 0] + 1) * 8), 4)
  scans = {scan.tobytes() for scan in datasets.load_digits().images}
  picked = {scan.astype(np.float64).tobytes() for scan in found}
  assert picked <= scans
  assert 200 < len(picked) <= 256  # of 1,797, drawn with replacement
  (again, _), (fewer, _) = (
    encode(rows),
    encode(rows_of(['a red circle'], None, 128)),
  )
  np.testing.assert_allclose(again, x, atol=1e-6)
  np.testing.assert_allclose(fewer, x[:128], atol=1e-6)


@pytest.mark.parametrize(
  'encode', [pictures.shapes_pictures(), pictures.shapes_scenes()]
)
def test_sentences_that_are_not_of_the_world_are_refused(encode):
  rows = rows_of(['a red circle'])
  with pytest.raises(build.ConfigError, match="the world 'shapes'"):
    encode(rows.replace(info={}))
