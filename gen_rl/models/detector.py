r"""A small convolutional detector of ShapesWorld objects.

Anchor-free, as CenterNet (arXiv 1904.07850): the picture becomes a coarse map
whose cells are STRIDE pixels wide, and every cell says whether the centre of an
object lies in it (class 0 is background), which shape, colour and size it has,
and where in the cell its centre is. It is trained by the likelihood of what was
drawn,

  nll = -sum_cells log p(class) - sum_objects (log p(colour) + log p(size)
        + log N(offset; predicted, sigma^2)),  sigma = 1 pixel           (1)

without the Gaussian's constant. Its weights know renders only, so pictures
exist that fool it; that makes it a proxy worth studying.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.fields import Count
from gen_rl.scoring.geneval import Detections
from gen_rl.types import Array, Axes, Params
from gen_rl.worlds import grammar, shapes

STRIDE = 4  # pixels per cell
MOST = 6  # objects seen in a picture
NEAR = 1  # cells around a peak that belong to it
THRESHOLD = 0.5  # smallest confidence of a detection
TOLERANCE = 2.0  # pixels a detection's centre may be off, in x and in y

_SHAPES, _COLORS = len(grammar.SHAPES), len(shapes.PALETTE)
# All of it on every device.
AXES = ((r'/kernel$', (None,) * 4), (r'/bias$', (None,)))
_WIDTHS = (1 + _SHAPES, _COLORS, len(shapes.RADII), 2)


class Maps(NamedTuple):
  """What every cell says."""

  shape: Array  # [b i j 5] logits; 0 is background
  color: Array  # [b i j 6] logits
  size: Array  # [b i j 2] logits
  offset: Array  # [b i j 2] (y, x) of the centre from the cell's, cells


class Peaks(NamedTuple):
  """The m cells that look most like an object, best first."""

  shape: Array  # [b m 4] probability of each shape; the rest is background
  color: Array  # [b m 6] probability of each colour
  box: Array  # [b m 4] centre x, centre y, width, height; pixels


class Detector(NamedTuple):
  """A detector as pure functions."""

  init: Callable[[Array], Params]  # key -> params
  apply: Callable[[Params, Array], Maps]  # (params, images [b h w 3])
  # (params, images) -> what the last layer sees, [b i j d]
  features: Callable[[Params, Array], Array]
  axes: Axes = ()  # of the parameters' dimensions, see sharding.logical_axes


class Net(nn.Module):
  """Images [b h w 3] in [0, 1] -> a map [b h/4 w/4 15]."""

  channels: tuple[int, int, int]

  @nn.compact
  def __call__(self, x: Array, features: bool = False) -> Array:
    fine, middle, coarse = self.channels
    x = x.astype(jnp.float32) - 0.5
    x = nn.relu(nn.Conv(fine, (3, 3), strides=2, name='conv1')(x))
    x = nn.relu(nn.Conv(middle, (3, 3), name='conv2')(x))
    x = nn.relu(nn.Conv(coarse, (3, 3), strides=2, name='conv3')(x))
    x = nn.relu(nn.Conv(coarse, (3, 3), name='conv4')(x))
    if features:
      return x
    return nn.Conv(sum(_WIDTHS), (1, 1), name='head')(x)


def shapes_detector(
  channels: tuple[Count, Count, Count] = (24, 32, 64),
) -> Detector:
  """The detector network.

  Args:
    channels: width at 1/2, 1/2 and 1/4 of the resolution. The default has 64
      thousand parameters and needs 6 million operations for 24x24 pixels.
  """
  module = Net(tuple(channels))

  def init(key: Array) -> Params:
    image = jnp.zeros((1, shapes.SIZE, shapes.SIZE, 3))
    return module.init(key, image)['params']

  def apply(params: Params, images: Array) -> Maps:
    out = module.apply({'params': params}, images)
    ends = [sum(_WIDTHS[:i]) for i in range(1, len(_WIDTHS))]
    return Maps(*jnp.split(out, ends, axis=-1))

  def features(params: Params, images: Array) -> Array:
    return module.apply({'params': params}, images, features=True)

  return Detector(init, apply, features, AXES)


def _cells(maps: Maps, scene: shapes.Scene) -> tuple[Array, Array]:
  """Indicators of the cells in which the objects stand, and offsets in them.

  Returns:
    cell [b 4 i j], zero where there is no object; offset [b 4 2] in cells.
  """
  place = (scene.center + 0.5) / STRIDE
  index = jnp.floor(place)
  height, width = maps.shape.shape[1:3]
  row = index[..., :1] == jnp.arange(height)
  column = index[..., 1:] == jnp.arange(width)
  cell = row[..., :, None] & column[..., None, :]
  present = (scene.shape >= 0)[..., None, None]
  return (cell & present).astype(jnp.float32), place - index - 0.5


def nll(maps: Maps, scene: shapes.Scene) -> Array:
  """Equation (1), nats: [b].

  Args:
    maps: of pictures of the scenes.
    scene: rows [b ...]. Words are background.
  """
  cell, offset = _cells(maps, scene)

  def log_prob(logits: Array, label: Array) -> Array:
    """Log-probability of the label at the cell of each object: [b 4]."""
    one_hot = jax.nn.one_hot(label, logits.shape[-1])
    log_p = jax.nn.log_softmax(logits)
    return jnp.einsum('boij,bijc,boc->bo', cell, log_p, one_hot)

  background = jax.nn.log_softmax(maps.shape)[..., 0]
  empty = 1.0 - cell.sum(1)
  predicted = jnp.einsum('boij,bijd->bod', cell, maps.offset)
  miss = jnp.square(predicted - offset).sum(-1) * cell.sum((2, 3))
  total = (
    log_prob(maps.shape, scene.shape + 1)
    + log_prob(maps.color, scene.color)
    + log_prob(maps.size, scene.size)
    - 0.5 * STRIDE**2 * miss
  )
  return -(background * empty).sum((1, 2)) - total.sum(-1)


def peaks(maps: Maps) -> Peaks:
  """Greedy non-maximum suppression, `MOST` times.

  The cell most sure of some shape is taken, and it and the cells within `NEAR`
  of it are never taken again. Differentiable but for the choice of the cells.
  """
  b, height, width, _ = maps.shape.shape
  prob = jax.nn.softmax(maps.shape)[..., 1:]
  left = jax.lax.stop_gradient(prob.max(-1))
  y, x = jnp.arange(height), jnp.arange(width)
  taken, free = [], []
  for _ in range(MOST):
    at = left.reshape(b, -1).argmax(-1)
    taken.append(at)
    free.append(left.reshape(b, -1).max(-1) >= 0)  # False: no cell is left
    near_y = jnp.abs(y - (at // width)[:, None]) <= NEAR
    near_x = jnp.abs(x - (at % width)[:, None]) <= NEAR
    left = jnp.where(near_y[:, :, None] & near_x[:, None], -1.0, left)
  at, free = jnp.stack(taken, 1), jnp.stack(free, 1)

  def pick(values: Array) -> Array:
    flat = values.reshape(b, height * width, -1)
    return jnp.take_along_axis(flat, at[..., None], 1)

  cell = jnp.stack([at // width, at % width], -1)
  center = (cell + 0.5 + pick(maps.offset)) * STRIDE
  size = pick(maps.size).argmax(-1)
  side = 2 * jnp.asarray(shapes.RADII)[size]
  return Peaks(
    shape=pick(prob) * free[..., None],
    color=jax.nn.softmax(pick(maps.color)),
    box=jnp.concatenate([center[..., ::-1], jnp.stack([side, side], -1)], -1),
  )


def detections(found: Peaks) -> Detections:
  """Peaks as hard detections: confidence is the probability of the shape."""
  score = found.shape.max(-1)
  return Detections(
    box=found.box,
    label=found.shape.argmax(-1),
    color=found.color.argmax(-1),
    valid=score > THRESHOLD,
    score=score,
  )


def detect(net: Detector, params: Params, images: Array) -> Detections:
  """Objects in images [b h w 3] in [0, 1]; `MOST` slots each, best first."""
  return detections(peaks(net.apply(params, images)))


def exact(found: Detections, scene: shapes.Scene) -> Array:
  """Do detections say what was drawn, neither more nor less? Bool [b].

  Every object needs one detection of its shape and colour with its centre
  within `TOLERANCE`, and there are as many detections as objects. Sizes may
  differ.
  """
  center = scene.center[..., ::-1] + 0.5
  off = jnp.abs(found.box[:, None, :, :2] - center[:, :, None])
  same = (
    found.valid[:, None]
    & (found.label[:, None] == scene.shape[..., None])
    & (found.color[:, None] == scene.color[..., None])
    & (off <= TOLERANCE).all(-1)
  )
  present = scene.shape >= 0
  met = (same.sum(-1) == 1) | ~present
  return met.all(-1) & (found.valid.sum(-1) == present.sum(-1))
