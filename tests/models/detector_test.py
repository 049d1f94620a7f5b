"""Detector: maps, peaks and likelihoods by hand and against scipy."""

import jax
from jax import test_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from gen_rl.models import detector
from gen_rl.models.files import weights
from gen_rl.worlds import grammar, shapes

CIRCLE, SQUARE, TRIANGLE, CROSS = range(4)
RED, GREEN, BLUE, YELLOW, PURPLE, CYAN = range(6)
SIDE = shapes.SIZE // detector.STRIDE


def maps_of(objects, cold=-9.0):
  """Maps of one picture, of (row, column, shape, color, logit) objects."""
  maps = detector.Maps(
    *(np.zeros((1, SIDE, SIDE, n), np.float32) for n in (5, 6, 2, 2))
  )
  maps.shape[..., 1:] = cold
  for row, column, shape, color, logit in objects:
    maps.shape[0, row, column, 1 + shape] = logit
    maps.color[0, row, column, color] = 9.0
    maps.size[0, row, column, 1] = 9.0
  return maps


def scene_of(objects, b=1):
  """A Scene [b ...] of (shape, color, size, y, x) objects."""
  shape, color, size = (np.full((b, 4), v, np.int32) for v in (-1, 0, 0))
  center = np.full((b, 4, 2), 5, np.int32)
  for i, (s, c, r, y, x) in enumerate(objects):
    shape[:, i], color[:, i], size[:, i], center[:, i] = s, c, r, (y, x)
  zero = np.zeros(b, np.int32)
  return shapes.Scene(
    shape, color, size, center, zero - 1, zero, np.zeros((b, 2), int), zero
  )


@jax.jit
def detections(maps):
  return detector.detections(detector.peaks(maps))


nll = jax.jit(detector.nll)


def seen(maps):
  found = detections(maps)
  return [
    (int(found.label[0, i]), int(found.color[0, i]), *map(float, box))
    for i, box in enumerate(found.box[0])
    if found.valid[0, i]
  ]


def test_peaks_stand_in_their_cells():
  maps = maps_of([(1, 4, CROSS, CYAN, 8.0), (4, 1, CIRCLE, RED, 9.0)])
  maps.offset[0, 1, 4] = 0.25, -0.5  # of 4 pixels: 1 down, 2 to the left
  maps.size[0, 1, 4] = 9.0, 0.0
  # best first: centre x, centre y, width, height in pixels
  assert seen(maps) == [
    (CIRCLE, RED, 6.0, 18.0, 9.0, 9.0),
    (CROSS, CYAN, 16.0, 7.0, 7.0, 7.0),
  ]


@pytest.mark.parametrize('gap, count', [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize('logits', [(4.0, 5.0), (60.0, 60.0)])
def test_a_neighbour_of_a_peak_is_suppressed(gap, count, logits):
  """60: both probabilities round to exactly 1."""
  maps = maps_of(
    [(2, 1, CIRCLE, RED, logits[0]), (2, 1 + gap, SQUARE, RED, logits[1])]
  )
  found = seen(maps)
  assert len(found) == count
  if logits[0] < logits[1]:
    assert found[0][0] == SQUARE


def test_no_peak_is_left_where_all_cells_are_taken():
  """Four peaks with their neighbours tile the map; (0, 0) is nobody's."""
  objects = [(r, c, CIRCLE, RED, 9.0) for r in (1, 4) for c in (1, 4)]
  maps = maps_of([*objects, (0, 0, SQUARE, BLUE, 8.0)])
  assert [label for label, *_ in seen(maps)] == [CIRCLE] * 4
  np.testing.assert_array_equal(detector.peaks(maps).shape[0, 4:], 0.0)


def test_confidence_is_the_probability_of_the_shape():
  maps = maps_of([(1, 1, CIRCLE, RED, 0.1), (4, 4, CROSS, RED, -0.1)])
  found = detections(maps)
  # softmax of (0, 0.1, -9, -9, -9): a sigmoid but for e^-9
  np.testing.assert_allclose(
    found.score[0, :2], scipy.special.expit([0.1, -0.1]), atol=2e-4
  )
  np.testing.assert_array_equal(found.valid[0], [True] + [False] * 5)


def test_nll_against_scipy():
  rng = np.random.default_rng(0)
  objects = [(CROSS, BLUE, 1, 4, 19), (SQUARE, CYAN, 0, 17, 6)]
  maps = detector.Maps(
    *(rng.normal(size=(3, SIDE, SIDE, n)).astype(np.float32)
      for n in (5, 6, 2, 2))
  )  # fmt: skip
  log_shape, log_color, log_size = (
    scipy.special.log_softmax(m, axis=-1) for m in maps[:3]
  )
  want = log_shape[..., 0].sum((1, 2))
  gaussian = scipy.stats.norm(scale=1 / 4)  # a pixel, in cells
  for shape, color, size, y, x in objects:
    i, j = y // 4, x // 4
    want += log_shape[:, i, j, 1 + shape] - log_shape[:, i, j, 0]
    want += log_color[:, i, j, color] + log_size[:, i, j, size]
    for d, position in enumerate((y, x)):
      middle = 4 * (position // 4) + 2  # between its second and third pixel
      at = (position + 0.5 - middle) / 4
      want += gaussian.logpdf(maps.offset[:, i, j, d] - at)
      want -= gaussian.logpdf(0.0)
  got = nll(maps, scene_of(objects, 3))
  np.testing.assert_allclose(got, -want, rtol=1e-5)


def test_nll_gradient_and_empty_scene():
  rng = np.random.default_rng(1)
  maps = detector.Maps(
    *(jnp.asarray(rng.normal(size=(1, SIDE, SIDE, n)), jnp.float32)
      for n in (5, 6, 2, 2))
  )  # fmt: skip
  scene = scene_of([(TRIANGLE, RED, 0, 5, 18)])
  test_util.check_grads(
    lambda m: nll(m, scene).sum(), (maps,), 1, ['rev'], 1e-2, 1e-2
  )
  grads = jax.grad(lambda m: nll(m, scene_of([])).sum())(maps)
  assert np.abs(grads.shape).max() > 0
  for field in (grads.color, grads.size, grads.offset):
    np.testing.assert_array_equal(field, 0.0)


def test_exact():
  drawn = [(CIRCLE, RED, 0, 5, 5), (SQUARE, BLUE, 1, 5, 18)]
  scene = scene_of(drawn)
  right = [(1, 1, CIRCLE, RED, 9.0), (1, 4, SQUARE, BLUE, 9.0)]

  def verdict(objects, offset=-0.125):  # cell middles are 6 and 18
    maps = maps_of(objects)
    maps.offset[:] = offset
    found = detections(maps)
    return bool(detector.exact(found, scene)[0])

  assert verdict(right) and verdict(right[::-1])
  assert not verdict(right[:1])  # one missing
  assert not verdict([*right, (4, 1, CROSS, RED, 9.0)])  # one more
  assert not verdict([(1, 1, CIRCLE, GREEN, 9.0), right[1]])
  assert not verdict([(1, 1, CROSS, RED, 9.0), right[1]])
  assert not verdict([(1, 4, CIRCLE, RED, 9.0), (1, 1, SQUARE, BLUE, 9.0)])
  assert not verdict(right, offset=0.8)  # 2.7 pixels off


def test_weights_round_trip(tmp_path):
  net = detector.shapes_detector()
  params = jax.jit(net.init)(jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) < 150_000
  path = tmp_path / 'detector.safetensors'
  weights.save(path, params, {'a': 'b'})
  back, facts = weights.load(path, jax.eval_shape(net.init, jax.random.key(0)))
  assert facts == {'a': 'b'}
  jax.tree.map(np.testing.assert_array_equal, params, back)
  narrow = detector.shapes_detector(channels=(24, 32, 48))
  with pytest.raises(weights.WeightsError, match='conv3/kernel'):
    weights.load(path, jax.eval_shape(narrow.init, jax.random.key(0)))


def test_detector_on_clean_renders():
  """The shipped weights, on scenes with any shape and colour anywhere."""
  net = detector.shapes_detector()
  params, _ = weights.load(
    weights.find('asset:shapes_detector'),
    jax.eval_shape(net.init, jax.random.key(0)),
  )
  spec = grammar.spec_arrays(grammar.parse('a circle and three squares'))
  spec = jax.tree.map(jnp.asarray, spec)
  shape = jax.random.randint(jax.random.key(2), (256, 2), 0, 4)

  @jax.jit
  def run(params, keys, shape):
    draw = lambda key, s: shapes.compose(key, {**spec, 'include_class': s})
    scene = jax.vmap(draw)(keys, shape)
    images = jax.vmap(shapes.draw)(scene)
    return detector.exact(detector.detect(net, params, images), scene)

  keys = jax.random.split(jax.random.key(3), 256)
  assert run(params, keys, shape).mean() > 0.95
