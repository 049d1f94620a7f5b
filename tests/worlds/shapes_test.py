"""The renderer: exact pixels, determinism, what it promises about scenes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.worlds import grammar, shapes


def spec_of(text):
  spec = grammar.spec_arrays(grammar.parse(text))
  return jax.tree.map(jnp.asarray, spec)


def stacked(texts):
  return jax.tree.map(lambda *x: jnp.stack(x), *map(spec_of, texts))


def scene(shape=-1, color=0, size=1, center=(5, 5), word=-1, word_color=0):
  rest = shapes.MAX_OBJECTS - 1
  return shapes.Scene(
    shape=jnp.array([shape] + [-1] * rest),
    color=jnp.array([color] + [0] * rest),
    size=jnp.array([size] + [0] * rest),
    center=jnp.array([center] + [(0, 0)] * rest),
    word=jnp.int32(word),
    word_color=jnp.int32(word_color),
    word_corner=jnp.array([8, 3]),
    background=jnp.float32(0.1),
  )


def test_template_areas_against_geometry():
  """Pixels: pi r^2; (2 r)^2; r 2r; two bars 3 x 2r less their square."""
  area = shapes.object_templates().sum((2, 3))
  for i, r in enumerate(shapes.RADII):
    exact = [np.pi * r**2, 4 * r**2, 2 * r**2, 2 * 3 * 2 * r - 9]
    np.testing.assert_allclose(area[:, i], exact, rtol=0.03)
  assert area.min() > 0 and shapes.object_templates().max() == 1


def test_draw_a_square_pixel_by_pixel():
  image = np.asarray(shapes.draw(scene(1, color=2, size=1, center=(6, 17))))
  expected = np.full((24, 24, 3), 0.1, np.float32)
  expected[2:11, 13:22] = shapes.PALETTE[2]  # centre pixel +- 4
  np.testing.assert_allclose(image, expected, atol=1e-6)


def test_draw_nothing_and_a_word():
  np.testing.assert_allclose(shapes.draw(scene()), 0.1)
  image = np.asarray(shapes.draw(scene(word=0, word_color=1)))
  inked = (image != np.float32(0.1)).any(-1)
  glyphs = shapes.glyph_templates()
  letters = [shapes.LETTERS.index(c) for c in 'CAT']
  cat = np.concatenate(glyphs[letters], 1) > 0
  expected = np.zeros((24, 24), bool)
  expected[8:16, 3:21] = cat
  np.testing.assert_array_equal(inked, expected)
  np.testing.assert_allclose(image[inked][0], shapes.PALETTE[1], atol=1e-6)


def test_an_object_at_the_edge_is_cut_off_not_wrapped():
  image = np.asarray(shapes.draw(scene(1, center=(0, 23))))
  inked = (image != np.float32(0.1)).any(-1)
  rows, columns = np.nonzero(inked)
  assert rows.max() == 4 and columns.min() == 19


def test_render_is_a_function_of_its_key():
  spec = stacked(['two red circles', 'the word "owl"'] * 2)
  render = jax.jit(jax.vmap(shapes.render))
  keys = jax.random.split(jax.random.key(0), 4)
  a, b = render(keys, spec), render(keys, spec)
  np.testing.assert_array_equal(a, b)
  assert a.shape == (4, 24, 24, 3) and a.dtype == jnp.float32
  assert a.min() >= 0 and a.max() <= 1
  # a row does not depend on its company, and another key draws another
  one = render(keys[1:2], jax.tree.map(lambda x: x[1:2], spec))
  np.testing.assert_array_equal(one[0], a[1])
  assert np.abs(a[0] - a[2]).max() > 0.1


@pytest.mark.parametrize('relation', range(4))
def test_compose_places_what_was_asked_for(relation):
  text = f'a circle {grammar.RELATIONS[relation]} a cross'
  keys = jax.random.split(jax.random.key(relation), 200)
  scenes = jax.jit(jax.vmap(shapes.compose, (0, None)))(keys, spec_of(text))
  offset = np.asarray(scenes.center[:, 0] - scenes.center[:, 1])
  y, x = offset[:, 0], offset[:, 1]
  assert (np.stack([-x, x, -y, y])[relation] >= 11).all()
  np.testing.assert_array_equal(scenes.shape, [[0, 3, -1, -1]] * 200)
  # what is left open varies
  assert len(np.unique(scenes.color[:, 0])) == 6
  assert len(np.unique(scenes.size[:, 1])) == 2
  assert scenes.background.min() >= shapes.BACKGROUND[0]
  assert scenes.background.max() <= shapes.BACKGROUND[1]


def test_objects_never_touch_and_never_leave_the_canvas():
  keys = jax.random.split(jax.random.key(0), 300)
  spec = spec_of('four squares')
  scenes = jax.jit(jax.vmap(shapes.compose, (0, None)))(keys, spec)
  center = np.asarray(scenes.center)
  radius = np.array([3, 4])[np.asarray(scenes.size)]  # whole pixels
  low, high = center - radius[..., None], center + radius[..., None]
  assert low.min() >= 0 and high.max() <= 23
  for i in range(4):
    for j in range(i):
      gap = np.maximum(low[:, i] - high[:, j], low[:, j] - high[:, i])
      assert (gap.max(-1) >= 1).all()


def test_mutate_changes_one_thing_that_was_asked_for():
  texts = [
    'a circle', 'a circle and a square', 'four crosses', 'two red circles',
    'a cyan square', 'a circle above a square',
    'a red circle and a blue square', 'the word "owl"', 'the word "247" in red',
  ]  # fmt: skip
  before = stacked(texts * 40)
  keys = jax.random.split(jax.random.key(0), len(texts) * 40)
  after = jax.jit(jax.vmap(shapes.mutate))(keys, before)
  seen = {text: set() for text in texts}
  for row, text in enumerate(texts * 40):
    old = {k: np.asarray(v[row]) for k, v in before.items()}
    new = {k: np.asarray(v[row]) for k, v in after.items()}
    changed = [k for k in old if (old[k] != new[k]).any()]
    assert len(changed) == 1, (text, changed)
    name = changed[0]
    seen[text].add(name)
    assert (old[name] != new[name]).sum() == 1
    assert (old[name].clip(0) * (old[name] != new[name]) >= 0).all()
    count = new['include_count'].sum()
    assert (new['word'] >= 0) ^ (1 <= count <= 4)
    if name == 'relation':
      assert new[name] == grammar.OPPOSITE[old[name]]
    if name == 'include_class':  # not the other clause's shape either
      fresh = new[name][old[name] != new[name]]
      assert not np.isin(fresh, old[name]).any()
  assert seen['two red circles'] == {
    'include_class', 'include_color', 'include_count',
  }  # fmt: skip
  assert seen['a circle above a square'] == {'include_class', 'relation'}
  assert seen['the word "owl"'] == {'word'}
  assert seen['the word "247" in red'] == {'word', 'word_color'}
