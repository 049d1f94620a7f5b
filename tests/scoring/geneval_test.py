"""GenEval scores: every task and quirk by hand, then a loop over objects."""

import functools

import jax
import numpy as np
import pytest

from gen_rl.scoring import geneval
from gen_rl.scoring.geneval import Detections

M = 6
CLASSES = ('cat', 'dog', 'cup')
RED, BLUE = geneval.COLORS.index('red'), geneval.COLORS.index('blue')


@jax.jit
def _verdicts(det, clauses):
  score, parts = geneval.strict_score(det, clauses)
  plain, _ = geneval.strict_score(det, clauses, quirks=False)
  return {
    'score': score,
    'strict': parts['strict'],
    'plain': plain,
    'correct': geneval.correct(det, clauses),
    'exact': geneval.exact(det, clauses),
  }


def _detections(images):
  """Images of (class, colour, cx, cy, size, confidence)."""
  b = len(images)
  det = Detections(
    box=np.zeros((b, M, 4), np.float32),
    label=np.zeros((b, M), np.int32),
    color=np.zeros((b, M), np.int32),
    valid=np.zeros((b, M), bool),
    score=np.ones((b, M), np.float32),
  )
  for i, image in enumerate(images):
    for j, (label, color, x, y, size, score) in enumerate(image):
      det.box[i, j] = x, y, size, size
      det.label[i, j], det.color[i, j] = label, color
      det.valid[i, j], det.score[i, j] = True, score
  return det


def _thing(name, x=0.5, y=0.5, color=BLUE, score=0.9, size=0.2):
  return CLASSES.index(name), color, x, y, size, score


def _clause(name, count=1, color=None, position=None):
  clause = {'class': name, 'count': count}
  if color:
    clause['color'] = color
  if position:
    clause['position'] = [position, 0]
  return clause


ONE = {'include': [_clause('cat')], 'exclude': []}
TWO = {'include': [_clause('cat'), _clause('dog')]}
COUNT = {'include': [_clause('cup', 2)], 'exclude': [_clause('cup', 3)]}
COLOR = {'include': [_clause('cat', 1, 'red')]}
COLORS = {'include': [_clause('cat', 1, 'red'), _clause('dog', 1, 'blue')]}
RIGHT = {'include': [_clause('cat'), _clause('dog', position='right of')]}
BELOW = {'include': [_clause('cat'), _clause('dog', position='below')]}
BOTH = {
  'include': [
    _clause('cat', 1, 'red'),
    _clause('dog', 1, 'blue', position='right of'),
  ]
}

cat = functools.partial(_thing, 'cat')
dog = functools.partial(_thing, 'dog')
cup = functools.partial(_thing, 'cup')

# what, image, prompt, score with quirks, without, strict, correct, exact
HAND = [
  ('single', [cat()], ONE, 1, 1, 1, 1, 1),
  ('missing', [dog()], ONE, 0, 0, 0, 0, 0),
  ('something else, too', [cat(), dog()], ONE, 1, 1, 1, 1, 0),
  ('two of one: entry 0', [cat(), cat(0.1)], ONE, 0, 0, 0, 1, 0),
  ('three of one: 1 - 2', [cat(), cat(0.1), cat(0.9)], ONE, -1, 0, 0, 1, 0),
  ('both', [cat(), dog()], TWO, 1, 1, 1, 1, 1),
  ('one of both', [cat()], TWO, 0.5, 0.5, 0, 0, 0),
  ('count', [cup(), cup(0.1)], COUNT, 1, 1, 1, 1, 1),
  ('one too few', [cup()], COUNT, 0.5, 0.5, 0, 0, 0),
  # Excluded by the benchmark, not looked at by the reward.
  ('too many', [cup(), cup(), cup()], COUNT, 0.5, 0.5, 0, 0, 0),
  ('colour', [cat(color=RED)], COLOR, 1, 1, 1, 1, 1),
  ('wrong colour: 1, 0', [cat()], COLOR, 0.5, 0.5, 0, 0, 0),
  ('no cat: 0, 0', [dog()], COLOR, 0, 0, 0, 0, 0),
  # The most confident cat is red: enough for the benchmark.
  (
    'second cat: 0, 0',
    [cat(score=0.5), cat(color=RED)],
    COLOR,
    0,
    0,
    0,
    1,
    0,
  ),
  ('colours', [cat(color=RED), dog()], COLORS, 1, 1, 1, 1, 1),
  # 1, 0, 1, 0
  ('swapped', [cat(), dog(color=RED)], COLORS, 0.5, 0.5, 0, 0, 0),
  # 0, 0, 1, 1
  ('only the dog', [dog()], COLORS, 0.5, 0.5, 0, 0, 0),
  ('right of', [cat(0.2), dog(0.8)], RIGHT, 1, 1, 1, 1, 1),
  # 1, 1, 0 and then always a 1: 3 / 4; without the quirk 2 / 3.
  ('left of', [cat(0.8), dog(0.2)], RIGHT, 0.75, 2 / 3, 0, 0, 0),
  # 1, then 0, 0 for the dog.
  ('no dog', [cat(0.2)], RIGHT, 1 / 3, 1 / 3, 0, 0, 0),
  # 0, then 1, 0: no target.
  ('no cat', [dog(0.2)], RIGHT, 1 / 3, 1 / 3, 0, 0, 0),
  ('below', [cat(y=0.2), dog(y=0.8)], BELOW, 1, 1, 1, 1, 1),
  ('above', [cat(y=0.8), dog(y=0.2)], BELOW, 0.75, 2 / 3, 0, 0, 0),
  # o = (0.3, 0): 0.3 - 0.1 (0.2 + 0.2) = 0.26, over 0.3: 0.87
  ('near', [cat(0.2), dog(0.5)], RIGHT, 1, 1, 1, 1, 1),
  # o = (0.06, 0): 0.02 / 0.06 = 1/3, not over 1/2
  ('too near', [cat(0.5), dog(0.56)], RIGHT, 0.75, 2 / 3, 0, 0, 0),
  ('same place', [cat(), dog()], RIGHT, 0.75, 2 / 3, 0, 0, 0),
  # 1 1 | 1 1 1
  ('all', [cat(0.2, color=RED), dog(0.8)], BOTH, 1, 1, 1, 1, 1),
  # 1 1 | 1 0, no position entry: 3 / 4; without the quirk 3 / 5.
  (
    'second colour',
    [cat(0.2, color=RED), dog(0.8, color=RED)],
    BOTH,
    0.75,
    0.6,
    0,
    0,
    0,
  ),
  # 1 0 | 1 1 0
  ('first colour', [cat(0.2), dog(0.8)], BOTH, 0.6, 0.6, 0, 0, 0),
  # 1 1 | 0 0: one 0 for colour and position; without the quirk 2 / 5.
  ('no second', [cat(color=RED)], BOTH, 0.5, 0.4, 0, 0, 0),
  ('empty image', [], BOTH, 0, 0, 0, 0, 0),
]


def test_by_hand():
  names = [case[0] for case in HAND]
  det = _detections([case[1] for case in HAND])
  clauses = geneval.parse_metadata([case[2] for case in HAND], CLASSES)
  out = _verdicts(det, clauses)
  for i, key in enumerate(('score', 'plain', 'strict', 'correct', 'exact'), 3):
    got = dict(zip(names, np.asarray(out[key], float).round(6), strict=True))
    want = {case[0]: round(float(case[i]), 6) for case in HAND}
    assert got == want, key


def _relations(a, b):
  """Names of the relations of box a to box b, from their corners."""
  a, b = (
    np.array([[x - w / 2, y - h / 2], [x + w / 2, y + h / 2]])
    for x, y, w, h in (a, b)
  )
  offset = a.mean(0) - b.mean(0)
  slack = 0.1 * (a[1] - a[0] + b[1] - b[0])
  length = np.hypot(*offset)
  if length == 0:
    return set()
  names = set()
  for axis, (low, high) in enumerate(
    (('left of', 'right of'), ('above', 'below'))
  ):
    reach = abs(offset[axis]) - slack[axis]
    if reach > length / 2:
      names.add(low if offset[axis] < 0 else high)
  return names


def _stand(these, relation, those):
  return all(
    relation in _relations(x['box'], y['box']) for x in these for y in those
  )


def _slow(objects, line):
  """All verdicts by walking through lists of objects, best first."""
  objects = sorted(objects, key=lambda o: -o['score'])
  entries, strict, good, groups, explained = [], True, True, [], set()
  pools, whole = [], True
  for clause in line['include']:
    want, color = clause['count'], clause.get('color')
    mine = [o for o in objects if o['class'] == clause['class']]
    tinted = [o for o in mine if color in (None, o['color'])]
    entries.append(1 - abs(want - len(mine)) / want)
    fine = len(mine) == want
    if not fine and (color or 'position' in clause):
      entries.append(0)
    if fine and color:
      entries.append(1 - abs(want - len(tinted)) / want)
      fine = len(tinted) == want
    top = mine[:want]
    good &= len(top) == want and all(color in (None, o['color']) for o in top)
    whole &= len(tinted) == want
    explained |= {id(o) for o in tinted}
    if 'position' in clause:
      relation, target = clause['position']
      good &= _stand(top, relation, pools[target][0])
      whole &= _stand(tinted, relation, pools[target][1])
      if fine and groups[target] is None:
        entries.append(0)
        fine = False
      elif fine:
        fine = _stand(mine, relation, groups[target])
        entries += [1] if fine else [0, 1]
    groups.append(mine if fine else None)
    pools.append((top, tinted))
    strict &= fine
  for clause in line.get('exclude', ()):
    n = sum(o['class'] == clause['class'] for o in objects)
    good &= n < clause['count']
  whole &= all(id(o) in explained for o in objects)
  return np.mean(entries), strict, good, whole


def test_random_scenes_against_lists():
  rng = np.random.default_rng(0)
  images, lines, expected = [], [], []
  for _ in range(600):
    names = rng.permutation(CLASSES)[: rng.integers(1, 3)].tolist()
    include = [_clause(n, int(rng.integers(1, 3))) for n in names]
    for clause in include:
      if rng.random() < 0.4:
        clause['color'] = str(rng.choice(['red', 'blue']))
    if len(include) == 2 and rng.random() < 0.6:
      include[1]['position'] = [str(rng.choice(geneval.RELATIONS)), 0]
    line = {'include': include}
    if rng.random() < 0.4:
      line['exclude'] = [_clause(names[0], include[0]['count'] + 1)]
    image = []
    for clause in include:  # mostly as asked, so that every branch is reached
      for _ in range(clause['count'] + rng.choice([-1, 0, 0, 0, 0, 1])):
        asked = rng.random() < 0.8 and 'color' in clause
        color = clause['color'] if asked else rng.choice(['red', 'blue'])
        place = rng.uniform(0.1, 0.9, 2).round(2)
        image.append(
          _thing(
            clause['class'],
            *place,
            color=geneval.COLORS.index(color),
            score=float(rng.random()),
            size=0.1,
          )
        )
    order = rng.permutation(len(image))
    image = [image[i] for i in order]
    objects = [
      {
        'class': CLASSES[o[0]],
        'color': geneval.COLORS[o[1]],
        'box': (o[2], o[3], o[4], o[4]),
        'score': o[5],
      }
      for o in image
    ]
    images.append(image)
    lines.append(line)
    expected.append(_slow(objects, line))
  clauses = geneval.parse_metadata(lines, CLASSES)
  det = _detections(images)
  out = _verdicts(det, clauses)
  score, *flags = zip(*expected, strict=True)
  np.testing.assert_allclose(out['score'], score, atol=1e-5)
  for key, flag in zip(('strict', 'correct', 'exact'), flags, strict=True):
    assert 0.03 < np.mean(flag) < 0.9  # the test tests something
    np.testing.assert_array_equal(np.asarray(out[key], bool), flag)
  assert not np.any(np.asarray(out['exact']) & ~np.asarray(out['correct']))
  # Pixels instead of fractions: the same verdicts.
  pixels = _verdicts(det.replace(box=det.box * 512), clauses)
  for key in out:
    np.testing.assert_array_equal(out[key], pixels[key])


def test_exact_with_two_colours_of_one_class():
  line = {'include': [_clause('cat', 1, 'red'), _clause('cat', 2, 'blue')]}
  scenes = [
    [cat(color=RED), cat(), cat()],
    [cat(color=RED), cat()],
    [cat(color=RED), cat(), cat(), cat(color=3)],
  ]
  clauses = geneval.parse_metadata(3 * [line], CLASSES)
  out = geneval.exact(_detections(scenes), clauses)
  assert np.asarray(out).tolist() == [True, False, False]


def test_keep_confident():
  scene = [cat(score=s) for s in (0.3, 0.5, 0.95)] + [dog(score=0.92)]
  det = _detections([scene, scene])
  kept = geneval.keep_confident(det, np.array([0.3, 0.9]))
  assert np.asarray(kept.valid)[:, :4].tolist() == [
    [False, True, True, True],
    [False, False, True, True],
  ]
  kept = geneval.keep_confident(det, 0.0, most=1)
  assert np.asarray(kept.valid)[0, :4].tolist() == [False, False, True, True]


def test_parse_metadata():
  lines = [BOTH, COUNT, BELOW]
  clauses = geneval.parse_metadata(lines, CLASSES)
  assert clauses.include_class.tolist() == [[0, 1], [2, -1], [0, 1]]
  assert clauses.include_count.tolist() == [[1, 1], [2, 0], [1, 1]]
  assert clauses.include_color.tolist() == [[RED, BLUE], [-1, -1], [-1, -1]]
  # dog right of cat = cat left of dog; dog below cat = cat above dog
  assert clauses.relation.tolist() == [0, -1, 2]
  assert clauses.exclude_class.tolist() == [[-1, -1], [2, -1], [-1, -1]]
  assert clauses.exclude_count.tolist() == [[0, 0], [3, 0], [0, 0]]


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ({'include': [_clause('cow')]}, "unknown class 'cow'; known: cat, dog"),
    ({'include': [_clause('cat', 1, 'grey')]}, "unknown colour 'grey'"),
    ({'include': [_clause('cat', 0)]}, 'whole number from 1, not 0'),
    ({'include': 3 * [_clause('cat')]}, '3 include clauses, at most 2'),
    ({'include': [_clause('cat', position='above')]}, 'the second include'),
    ({'include': [{'class': 'cat'}]}, "lacks 'count'"),
  ],
)
def test_bad_metadata_names_the_line(line, message):
  with pytest.raises(ValueError, match=f'metadata line 1: .*{message}'):
    geneval.parse_metadata([ONE, line], CLASSES)
