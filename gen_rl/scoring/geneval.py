"""GenEval scores from detections: counts, colours and positions, jittable.

GenEval (arXiv 2310.11513) asks a detector what is in an image and compares it
with clauses such as "2 red apples". Flow-GRPO (arXiv 2505.05470) trains on a
partial-credit version of it. Whatever detects (a COCO detector on the host, an
exact oracle, a small net) fills `Detections`; the rules below do the rest.

With n_c detections of clause c's class (n_ck of them in its colour) and r_c
asked for:

  (1)  count reward   1 - |r_c - n_c| / r_c
  (2)  colour reward  1 - |r_c - n_ck| / r_c
  (3)  A is left of B, with o = centre_A - centre_B in x and y:
       d = sign(o) max(|o| - 0.1 (size_A + size_B), 0) / ||o||,  d_x < -1/2;
       right of, above, below: d_x > 1/2, d_y < -1/2, d_y > 1/2 (y down)

Three verdicts are built from them: `strict_score` (Flow-GRPO's training
reward), `correct` (the benchmark) and `exact` (nothing missing, nothing more).
"""

from collections.abc import Mapping, Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Int
import numpy as np

from gen_rl.types import AnyArray, Array

RELATIONS = ('left of', 'right of', 'above', 'below')
OPPOSITE = (1, 0, 3, 2)
COLORS = (
  'red',
  'orange',
  'yellow',
  'green',
  'blue',
  'purple',
  'pink',
  'brown',
  'black',
  'white',
)
# COCO's 80 in its order, as the prompts call them.
CLASSES = tuple(
  (
    'person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, '
    'traffic light, fire hydrant, stop sign, parking meter, bench, bird, '
    'cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, '
    'backpack, umbrella, handbag, tie, suitcase, frisbee, skis, '
    'snowboard, sports ball, kite, baseball bat, baseball glove, '
    'skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, '
    'knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, '
    'carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, '
    'bed, dining table, toilet, tv, laptop, computer mouse, tv remote, '
    'computer keyboard, cell phone, microwave, oven, toaster, sink, '
    'refrigerator, book, clock, vase, scissors, teddy bear, hair drier, '
    'toothbrush'
  ).split(', ')
)
SHRINK = 0.1  # of the summed sizes, equation (3)


class Detections(struct.PyTreeNode):
  """Up to m objects per image, in any order.

  Both box axes share one unit (pixels, or fractions of a square canvas); no
  verdict depends on which.
  """

  box: Array  # [b m 4]  centre x, centre y, width, height; y points down
  label: Array  # [b m]    class, int
  color: Array  # [b m]    colour, int
  valid: Array  # [b m]    bool; False: no object in this slot
  score: Array  # [b m]    confidence


class Clauses(struct.PyTreeNode):
  """What a prompt asks for: up to q = 2 include clauses, exclude clauses.

  Class -1 is an empty slot. `include_count` is at least 1 where the class is
  not -1.
  """

  include_class: Array  # [b q] int
  include_count: Array  # [b q] int
  include_color: Array  # [b q] int, -1: any
  relation: Array  # [b] int: clause 0 stands in RELATIONS[.] to 1; -1: none
  exclude_class: Array | None = None  # [b q] int; None: no exclude clauses
  exclude_count: Array | None = None  # [b q] int: this many is too many


def thresholds(tasks: Sequence[str]) -> np.ndarray:
  """The benchmark's smallest confidence of a detection, by task: [b]."""
  return np.array(
    [0.9 if task == 'counting' else 0.3 for task in tasks], np.float32
  )


def keep_confident(
  det: Detections, threshold: ArrayLike = 0.3, most: int = 16
) -> Detections:
  """The benchmark's filter: confident objects, the `most` best of each class.

  Args:
    det: detections.
    threshold: scalar or [b]; the published ones are 0.3, and 0.9 for prompts
      of the counting task. A confidence equal to it is dropped.
    most: objects kept of a class.
  """
  det = jax.tree.map(jnp.asarray, det)
  threshold = jnp.broadcast_to(threshold, det.score.shape[:1])[:, None]
  det = det.replace(valid=det.valid & (det.score > threshold))
  same = det.label[:, :, None] == det.label[:, None, :]
  return det.replace(valid=det.valid & (_rank(det, same) < most))


def _rank(det: Detections, same: Array) -> Array:
  """[b m]: how many valid detections that are `same` [b m m] come before.

  Before: more confident, or as confident and in an earlier slot.
  """
  a, b = det.score[:, :, None], det.score[:, None, :]
  slot = jnp.arange(det.score.shape[1])
  before = (b > a) | ((b == a) & (slot < slot[:, None]))
  return (before & same & det.valid[:, None, :]).sum(-1)


def related(
  box: Float[AnyArray, '*#n 4'],
  other: Float[AnyArray, '*#n 4'],
  relation: Int[AnyArray, '*#n'],
) -> Bool[Array, '*n']:
  """Equation (3): does `box` stand in `relation` to `other`?

  Args:
    box: centre and size.
    other: likewise; shapes broadcast.
    relation: 0..3; any other never holds.
  """
  offset = box[..., :2] - other[..., :2]
  slack = SHRINK * (box[..., 2:] + other[..., 2:])
  revised = jnp.sign(offset) * jnp.maximum(jnp.abs(offset) - slack, 0)
  norm = jnp.sqrt(jnp.square(offset).sum(-1, keepdims=True))
  d = revised / jnp.where(norm > 0, norm, 1)
  x, y = d[..., 0], d[..., 1]
  holds = jnp.stack([x < -0.5, x > 0.5, y < -0.5, y > 0.5], -1)
  one_hot = jnp.asarray(relation)[..., None] == jnp.arange(4)
  return (holds & one_hot).any(-1)


def _matches(det: Detections, clauses: Clauses) -> tuple[Array, Array, Array]:
  """Bool (used [b q], of the class [b q m], in the colour as well [b q m])."""
  used = clauses.include_class >= 0
  of_class = det.valid[:, None] & (
    det.label[:, None] == clauses.include_class[..., None]
  )
  of_class &= used[..., None]
  color = clauses.include_color[..., None]
  colored = of_class & ((color < 0) | (det.color[:, None] == color))
  return used, of_class, colored


def _all_related(
  det: Detections, clauses: Clauses, a: Array, b: Array
) -> Array:
  """[b]: every pair of detections from `a` and `b` [b m] stands as asked."""
  relation = clauses.relation[:, None, None]
  holds = related(det.box[:, :, None], det.box[:, None], relation)
  return (holds | ~(a[:, :, None] & b[:, None])).all((1, 2))


def strict_score(
  det: Detections, clauses: Clauses, quirks: bool = True
) -> tuple[Float32[Array, ' b'], dict[str, Float32[Array, ' b']]]:
  """Flow-GRPO's training reward: the mean of a list of entries in (-inf, 1].

  Per include clause: its count reward (1). If the count is wrong and the
  clause has a colour or a relation, one 0. If it is right: the colour reward
  (2), then, unless the colour is wrong, the position. The published code puts
  the relation on the second clause and

  * has no position entry if the second clause's colour is wrong,
  * enters one 0 if the first clause failed,
  * enters a 0 if some pair violates it, and then a 1 in any case.

  Exclude clauses do not count. A count above twice the one asked for makes an
  entry negative.

  Args:
    det: detections.
    clauses: what the prompt asks for; one or two include clauses.
    quirks: False: each count, colour and position asked for is one entry
      always, floored at 0; position is 1 if all pairs hold, else 0.

  Returns:
    (score, {'strict': strict}); strict is 1 where every count, colour and
    position is exactly as asked. Without clauses the score is 0, as published,
    and strict 1.
  """
  det, clauses = jax.tree.map(jnp.asarray, (det, clauses))
  used, of_class, colored = _matches(det, clauses)
  asked = jnp.maximum(clauses.include_count, 1)
  n, n_color = of_class.sum(-1), colored.sum(-1)
  count = 1 - jnp.abs(asked - n) / asked
  color = 1 - jnp.abs(asked - n_color) / asked
  counted, tinted = n == asked, n_color == asked
  has_color = used & (clauses.include_color >= 0)
  has_position = (clauses.relation >= 0) & used[:, 0] & used[:, 1]
  first, second = ((counted & tinted)[:, i] for i in (0, 1))
  holds = _all_related(det, clauses, of_class[:, 0], of_class[:, 1])
  position = (first & second & holds).astype(jnp.float32)

  if quirks:
    # A wrong count enters one 0 for colour and position together.
    empty = ~counted & has_color
    empty = empty.at[:, 1].set(
      ~counted[:, 1] & (has_color[:, 1] | has_position)
    )
    color_entry = has_color & counted
    # 0 | 0, 1 | 1 when reached: the first clause failed | violated | holds.
    reached = has_position & second
    total = jnp.where(used, count, 0).sum(-1)
    total += jnp.where(color_entry, color, 0).sum(-1) + (reached & first)
    entries = used.sum(-1) + (empty & used).sum(-1) + color_entry.sum(-1)
    entries += reached
    entries += reached & first & ~holds
  else:
    color = jnp.where(counted, color, 0)
    total = jnp.where(used, jnp.maximum(count, 0), 0).sum(-1)
    total += jnp.where(has_color, jnp.maximum(color, 0), 0).sum(-1)
    total += jnp.where(has_position, position, 0)
    entries = used.sum(-1) + has_color.sum(-1) + has_position
  strict = (~used | (counted & tinted)).all(-1)
  strict &= ~has_position | (position > 0)
  score = (total / jnp.maximum(entries, 1)).astype(jnp.float32)
  return score, {'strict': strict.astype(jnp.float32)}


def correct(det: Detections, clauses: Clauses) -> Bool[Array, ' b']:
  """The benchmark's verdict.

  Of each include clause the `count` most confident detections of the class
  must exist, all have the colour, and all pairs stand as asked; there may be
  more of them. Any exclude clause with as many detections as its count fails.
  """
  det, clauses = jax.tree.map(jnp.asarray, (det, clauses))
  used, of_class, _ = _matches(det, clauses)
  same = det.label[:, :, None] == det.label[:, None, :]
  best = _rank(det, same)[:, None] < clauses.include_count[..., None]
  found = of_class & best
  color = clauses.include_color[..., None]
  wrong = found & (color >= 0) & (det.color[:, None] != color)
  enough = found.sum(-1) >= clauses.include_count
  ok = (~used | (enough & ~wrong.any(-1))).all(-1)
  has_position = (clauses.relation >= 0) & used[:, 0] & used[:, 1]
  ok &= ~has_position | _all_related(det, clauses, found[:, 0], found[:, 1])
  if clauses.exclude_class is None:
    return ok
  n = det.label[:, None] == clauses.exclude_class[..., None]
  n = (n & det.valid[:, None]).sum(-1)
  many = (clauses.exclude_class >= 0) & (n >= clauses.exclude_count)
  return ok & ~many.any(-1)


def exact(det: Detections, clauses: Clauses) -> Bool[Array, ' b']:
  """Exactly what was asked for and nothing else.

  Each include clause has exactly `count` detections of its class and colour,
  all pairs stand as asked, and every detection belongs to some clause. Two
  clauses of one class are fine if their colours differ. Exclude clauses have
  nothing to add.
  """
  det, clauses = jax.tree.map(jnp.asarray, (det, clauses))
  used, _, colored = _matches(det, clauses)
  ok = (~used | (colored.sum(-1) == clauses.include_count)).all(-1)
  has_position = (clauses.relation >= 0) & used[:, 0] & used[:, 1]
  ok &= ~has_position | _all_related(det, clauses, colored[:, 0], colored[:, 1])
  return ok & ~(det.valid & ~colored.any(1)).any(-1)


def parse_metadata(
  lines: Sequence[Mapping],
  classes: Sequence[str],
  colors: Sequence[str] = COLORS,
  slots: int = 2,
) -> Clauses:
  """Clauses [b ...] (numpy) of GenEval metadata.jsonl lines, already parsed.

  In the files a position sits on the second clause and names the first; here
  it is turned around, e.g. "B right of A" is "A (clause 0) left of B".

  Args:
    lines: dicts with `include` and perhaps `exclude`: lists of {class, count,
      color?, position?: [relation, 0]}.
    classes: class names; the label is the index.
    colors: colour names; the label is the index.
    slots: q, at least 2.

  Raises:
    ValueError: an unknown class, colour or relation, more clauses than slots,
      or a position elsewhere; names the line (from 0).
  """
  shape = len(lines), slots
  out = {
    name: np.full(shape, fill, np.int32)
    for name, fill in (
      ('include_class', -1),
      ('include_count', 0),
      ('include_color', -1),
      ('exclude_class', -1),
      ('exclude_count', 0),
    )
  }
  relation = np.full(len(lines), -1, np.int32)
  for row, line in enumerate(lines):
    try:
      for kind in ('include', 'exclude'):
        clauses = _clauses(line, kind)
        if len(clauses) > slots:
          raise ValueError(f'{len(clauses)} {kind} clauses, at most {slots}')
        for i, clause in enumerate(clauses):
          name = _index(classes, clause['class'], 'class')
          out[f'{kind}_class'][row, i] = name
          out[f'{kind}_count'][row, i] = _count(clause['count'])
          if kind == 'include' and 'color' in clause:
            color = _index(colors, clause['color'], 'colour')
            out['include_color'][row, i] = color
          if 'position' in clause:
            name, target = clause['position']
            if kind != 'include' or (i, target) != (1, 0):
              raise ValueError(
                'a position must relate the second include clause to the first'
              )
            relation[row] = OPPOSITE[_index(RELATIONS, name, 'relation')]
    except KeyError as error:
      raise ValueError(f'metadata line {row}: a clause lacks {error}') from None
    except ValueError as error:
      raise ValueError(f'metadata line {row}: {error}') from None
  return Clauses(relation=relation, **out)


def _clauses(line: Mapping, kind: str) -> Sequence[Mapping]:
  """The clauses of a line, each with known keys; of `include`, one at least."""
  clauses = line.get(kind, [])
  if not isinstance(clauses, list | tuple) or not all(
    isinstance(clause, Mapping) for clause in clauses
  ):
    raise ValueError(f'{kind} is {clauses!r:.60}, no list of objects')
  if kind == 'include' and not clauses:
    raise ValueError('include is missing or empty: nothing is asked for')
  known = ('class', 'count', 'color', 'position')
  for key in (key for clause in clauses for key in clause):
    if key not in known:
      raise ValueError(
        f'a clause has {key!r}, which is none of {", ".join(known)}'
      )
  return clauses


def _index(names: Sequence[str], name: str, what: str) -> int:
  if name not in names:
    raise ValueError(f'unknown {what} {name!r}; known: {", ".join(names)}')
  return list(names).index(name)


def _count(count: int) -> int:
  if not isinstance(count, int) or not 1 <= count < 2**31:
    raise ValueError(f'a count is a whole number from 1, not {count!r:.40}')
  return count
