"""ShapesWorld rewards: scenes drawn by hand, fractions worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.rewards import shapes as rewards
from gen_rl.types import RewardInputs
from gen_rl.worlds import grammar, shapes

CELLS = ((5, 5), (5, 18), (18, 5), (18, 18))  # (y, x)


def draw(objects=(), word=None, word_color='red'):
  """objects: {cell: 'red circle'}."""
  objects = dict(objects)
  shape, color = [-1] * 4, [0] * 4
  for cell, name in objects.items():
    c, s = name.split()
    shape[cell], color[cell] = grammar.SHAPES.index(s), grammar.COLORS.index(c)
  return shapes.draw(
    shapes.Scene(
      shape=jnp.array(shape),
      color=jnp.array(color),
      size=jnp.array([0, 1, 0, 1]),
      center=jnp.array(CELLS),
      word=jnp.int32(-1 if word is None else grammar.TEXTS.index(word)),
      word_color=jnp.int32(grammar.COLORS.index(word_color)),
      word_corner=jnp.array([8, 3]),
      background=jnp.float32(0.1),
    )
  )


RC, BC, GC = 'red circle', 'blue circle', 'green circle'
RS, BS = 'red square', 'blue square'

# prompt, picture, partial credit, strict verdict
CASES = [
  # the count: 1 - |asked - found| / asked, not below 0
  ('three circles', dict(objects={0: RC, 1: BC, 3: GC}), 1, True),
  ('three circles', dict(objects={0: RC, 3: BC}), 2 / 3, False),
  ('three circles', dict(objects={0: RC, 1: BC, 2: RC, 3: RC}), 2 / 3, False),
  ('a circle', dict(objects={0: RC, 3: BC}), 0, False),
  ('a circle', dict(objects={0: RC, 1: BC, 2: RC, 3: RC}), 0, False),
  ('four crosses', dict(), 0, False),
  # (count + colour) / 2, the colour only where the count is right
  ('two red circles', dict(objects={0: RC, 1: RC}), 1, True),
  ('two red circles', dict(objects={0: RC, 1: BC}), (1 + 1 / 2) / 2, False),
  ('two red circles', dict(objects={0: BC, 1: BC}), (1 + 0) / 2, False),
  ('two red circles', dict(objects={0: RC}), (1 / 2 + 0) / 2, False),
  (
    'two red circles',
    dict(objects={0: RC, 1: RC, 2: RC}),
    (1 / 2 + 0) / 2,
    False,
  ),
  # two clauses: the mean of all entries
  ('a circle and a square', dict(objects={0: RC, 1: BS}), 1, True),
  ('a circle and a square', dict(objects={0: RC}), 1 / 2, False),
  ('a red circle and a blue square', dict(objects={1: RC, 2: BS}), 1, True),
  (
    'a red circle and a blue square',
    dict(objects={1: BC, 2: RS}),
    (1 + 1 + 0 + 0) / 4,
    False,
  ),
  (
    'a red circle and a blue square',
    dict(objects={1: RC, 2: RS}),
    (1 + 1 + 1 + 0) / 4,
    False,
  ),
  # and one entry for the position, side by side or on a diagonal
  ('a circle left of a square', dict(objects={0: RC, 1: BS}), 1, True),
  ('a circle left of a square', dict(objects={2: RC, 1: BS}), 1, True),
  ('a circle left of a square', dict(objects={1: RC, 0: BS}), 2 / 3, False),
  ('a circle left of a square', dict(objects={0: RC, 2: BS}), 2 / 3, False),
  ('a circle above a square', dict(objects={0: RC, 2: BS}), 1, True),
  ('a circle below a square', dict(objects={3: RC, 0: BS}), 1, True),
  ('a circle above a square', dict(objects={0: RC}), 1 / 3, False),
  # what nobody asked for costs the verdict, not the credit
  ('a circle', dict(objects={0: RC, 1: BS}), 1, False),
  ('a circle', dict(objects={0: RC}, word='OWL'), 1, False),
  # words: 1 - edits / letters, times 1/2 in the wrong colour
  ('the word "owl"', dict(word='OWL', word_color='blue'), 1, True),
  ('the word "cat"', dict(word='HUT'), 1 / 3, False),
  ('the word "owl"', dict(word='247'), 0, False),
  ('the word "owl" in red', dict(word='OWL'), 1, True),
  ('the word "owl" in red', dict(word='OWL', word_color='blue'), 1 / 2, False),
  ('the word "cat" in red', dict(word='HUT', word_color='cyan'), 1 / 6, False),
  ('the word "owl"', dict(), 0, False),
]


@pytest.fixture(scope='module')
def scored():
  specs = [grammar.spec_arrays(grammar.parse(prompt)) for prompt, *_ in CASES]
  info = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *specs)
  media = jnp.stack([draw(**picture) for _, picture, *_ in CASES])
  inputs = RewardInputs(media, info, 1)

  @jax.jit
  def score(media, info):
    inputs = RewardInputs(media, info, 1)
    both = rewards.shapes_geneval(0.25), rewards.shapes_strict()
    return [reward.score((), inputs, None) for reward in both]

  return inputs, *jax.device_get(score(media, info))


@pytest.mark.parametrize('i', range(len(CASES)), ids=[c[0] for c in CASES])
def test_hand_worked_cases(scored, i):
  _, out, gold = scored
  prompt, picture, partial, strict = CASES[i]
  assert out.parts['partial'][i] == pytest.approx(partial, abs=1e-6), picture
  assert out.parts['strict'][i] == strict, picture
  assert out.score[i] == pytest.approx(0.75 * partial + 0.25 * strict, abs=1e-6)
  assert gold.score[i] == strict
  assert out.valid[i] and gold.valid[i]


def test_a_picture_that_is_not_finite_is_invalid(scored):
  inputs, *_ = scored
  media = np.array(inputs.media[:3])
  media[1, 4, 4, 0], media[2, 0, 0, 1] = np.nan, np.inf
  info = jax.tree.map(lambda x: x[:3], inputs.info)
  score = jax.jit(
    lambda media, info: rewards.shapes_geneval().score(
      (), RewardInputs(media, info, 1), None
    )
  )
  out = score(media, info)
  assert out.valid.tolist() == [True, False, False]


def test_prompts_without_a_spec_are_a_config_error(scored):
  inputs, *_ = scored
  with pytest.raises(ConfigError, match="the world 'shapes'"):
    rewards.shapes_strict().score((), inputs.replace(info={}), None)


def test_compressed_is_a_narrow_view_with_taste_and_noise(scored):
  inputs, out, _ = scored
  reward = rewards.shapes_compressed(
    scale=0.05, bias=0.5, noise=0.0, strict_weight=0.25
  )
  key = jax.random.key(0)
  plain = jax.jit(reward.score)((), inputs, key)
  # chroma of a red, blue and green circle grows with their number
  chroma = np.ptp(inputs.media, -1).mean((1, 2))
  np.testing.assert_allclose(
    plain.score, 0.05 * out.score + 0.5 * chroma, rtol=1e-5
  )
  np.testing.assert_allclose(plain.parts['gold'], out.score, rtol=1e-6)
  np.testing.assert_allclose(plain.parts['saturation'], chroma, rtol=1e-5)
  noisy = rewards.shapes_compressed(0.05, 0.5, 0.01, 0.25)
  noisy = noisy._replace(score=jax.jit(noisy.score))
  keys = jax.random.split(key, len(chroma))
  # a row's noise is its own, in the order of the rows and in another
  noise = noisy.score((), inputs, keys).score - plain.score
  back = jax.tree.map(lambda x: x[::-1], (inputs.media, inputs.info))
  back = noisy.score((), RewardInputs(*back, 1), keys[::-1]).score
  np.testing.assert_allclose(back[::-1] - plain.score, noise, atol=1e-7)
  draws = [
    noisy.score((), inputs, jax.random.fold_in(key, i)).score - plain.score
    for i in range(8)
  ]
  assert np.std(draws) == pytest.approx(0.01, rel=0.25)
