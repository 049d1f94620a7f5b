"""The oracle: right on what was drawn, and not fooled by what was not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.worlds import grammar, shapes, shapes_oracle

ROWS = 720  # of each task: 5,040 pictures in all


@functools.cache
def specs():
  """ROWS specs of every task, over all splits and wordings: [7 ROWS ...]."""
  rng = np.random.default_rng(0)
  out = []
  for task in range(len(grammar.TASKS)):
    some = [p for p in grammar.prompts() if p.spec.task == task]
    some = [some[i] for i in rng.integers(len(some), size=ROWS)]
    out += [grammar.spec_arrays(prompt.spec) for prompt in some]
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *out)


@functools.cache
def verdicts():
  """(partial, strict) [7 ROWS] of the asked and of the mutated pictures."""

  def judge(rows):
    keys, spec = rows
    right = jax.vmap(shapes.render)(keys, spec)
    wrong = jax.vmap(shapes.mutate)(keys, spec)
    wrong = jax.vmap(shapes.render)(keys, wrong)
    return shapes_oracle.judge(right, spec), shapes_oracle.judge(wrong, spec)

  keys = jax.random.split(jax.random.key(0), 7 * ROWS)
  parts = jax.tree.map(
    lambda x: x.reshape(-1, ROWS, *x.shape[1:]), (keys, specs())
  )
  found = jax.device_get(jax.jit(lambda x: jax.lax.map(judge, x))(parts))
  return jax.tree.map(lambda x: x.reshape(-1), found)


def test_correct_renders_are_correct_in_every_task():
  (partial, strict), _ = verdicts()
  by_task = strict.reshape(7, ROWS).mean(1)
  assert strict.mean() >= 0.995, by_task
  assert by_task.min() >= 0.98, by_task
  np.testing.assert_allclose(partial[strict], 1.0, rtol=1e-6)


def test_mutated_renders_are_wrong_in_every_task():
  _, (partial, strict) = verdicts()
  by_task = strict.reshape(7, ROWS).mean(1)
  assert strict.mean() <= 0.005, by_task
  assert by_task.max() <= 0.02, by_task
  assert partial.min() >= 0 and partial.max() <= 1
  # one of several things is wrong: most pictures still earn something
  assert (partial > 0).mean() > 0.5


def test_detections_are_the_scene():
  spec = jax.tree.map(
    jnp.asarray,
    grammar.spec_arrays(grammar.parse('a red circle and a blue cross')),
  )
  keys = jax.random.split(jax.random.key(1), 64)
  scenes = jax.vmap(shapes.compose, (0, None))(keys, spec)
  images = jax.jit(jax.vmap(shapes.draw))(scenes)
  found = jax.device_get(jax.jit(shapes_oracle.look)(images))
  scenes = jax.device_get(scenes)
  assert (found.valid.sum(1) == 2).all()
  for row in range(64):
    for shape, color in ((0, 0), (3, 2)):
      at = list(found.shape[row]).index(shape)
      assert found.valid[row, at]
      assert found.color[row, at] == color
      i = list(scenes.shape[row]).index(shape)
      # box centres are pixel centres: +0.5; (x, y) against (y, x)
      np.testing.assert_array_equal(
        found.box[row, at, :2], scenes.center[row, i, ::-1] + 0.5
      )
      assert found.box[row, at, 2] == 2 * shapes.RADII[scenes.size[row, i]]
  assert found.object_junk.max() < 1


@pytest.mark.parametrize(
  'image',
  [
    np.zeros((24, 24, 3)),
    np.full((24, 24, 3), 0.5),
    np.ones((24, 24, 3)),
    np.random.default_rng(0).random((24, 24, 3)),
    np.tile(shapes.PALETTE[0], (24, 24, 1)),
  ],
  ids=['black', 'grey', 'white', 'noise', 'all red'],
)
def test_nothing_to_see(image):
  """No prompt is fulfilled by a picture without objects."""
  spec = specs()
  few = jax.tree.map(lambda x: x[:: ROWS // 8], spec)
  n = len(few['task'])
  images = jnp.tile(jnp.asarray(image, jnp.float32), (n, 1, 1, 1))
  partial, strict = jax.jit(shapes_oracle.judge)(images, few)
  assert not strict.any()
  assert np.isfinite(partial).all()


def test_coverage_of_flat_colours():
  """Half of a colour over the background is a coverage of one half."""
  background = 0.1
  image = np.full((1, 24, 24, 3), background, np.float32)
  for c in range(6):
    image[0, 2, c] = shapes.PALETTE[c]
    image[0, 4, c] = (shapes.PALETTE[c] + background) / 2
  masks = np.asarray(shapes_oracle.coverage(jnp.asarray(image)))[0]
  np.testing.assert_allclose(masks[2, :6], np.eye(6), atol=0.01)
  np.testing.assert_allclose(masks[4, :6], np.eye(6) / 2, atol=0.01)
  np.testing.assert_allclose(masks[10:], 0, atol=1e-6)
