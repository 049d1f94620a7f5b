"""GenEval by detections: the benchmark, walked through object by object."""

import collections
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.data import prompts
from gen_rl.rewards import detections, evaluate
from gen_rl.scoring import geneval
from gen_rl.types import RewardInputs

M = 24  # slots of a picture
LINES = (
  '{"tag": "single_object", "include": [{"class": "clock", "count": 1}], '
  '"prompt": "a photo of a clock"}',
  '{"tag": "two_object", "include": [{"class": "dog", "count": 1}, '
  '{"class": "tv", "count": 1}], "prompt": "a photo of a dog and a tv"}',
  '{"tag": "counting", "include": [{"class": "cup", "count": 3}], "exclude": '
  '[{"class": "cup", "count": 4}], "prompt": "a photo of three cups"}',
  '{"tag": "colors", "include": [{"class": "bus", "count": 1, "color": '
  '"pink"}], "prompt": "a photo of a pink bus"}',
  '{"tag": "position", "include": [{"class": "cat", "count": 1}, {"class": '
  '"dog", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a '
  'dog left of a cat"}',
  '{"tag": "color_attr", "include": [{"class": "cup", "count": 1, "color": '
  '"red"}, {"class": "vase", "count": 1, "color": "black"}], "prompt": "a '
  'photo of a red cup and a black vase"}',
)
NAMES = 'clock', 'dog', 'tv', 'cup', 'bus', 'cat', 'vase'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  path = tmp_path_factory.mktemp('geneval') / 'metadata.jsonl'
  path.write_text('\n'.join(LINES))
  return prompts.geneval(path)


def scenes(rng, count):
  """Random objects: dicts with corners, confidence, class and colour.

  Mostly those that are asked for, so that every rule is reached.
  """
  out = []
  for i in range(count):
    line = i % len(LINES)
    wanted = [
      ['clock'], ['dog', 'tv'], 3 * ['cup'], ['bus'], ['cat', 'dog'],
      ['cup', 'vase'],
    ][line]  # fmt: skip
    color = {3: ['pink'], 5: ['red', 'black']}.get(line, len(wanted) * ['red'])
    objects = []
    for name, tint in zip(wanted, color, strict=True):
      if rng.random() < 0.12:
        continue
      tint = tint if rng.random() < 0.75 else rng.choice(geneval.COLORS)
      score = rng.uniform(0.85, 1) if rng.random() < 0.85 else rng.random()
      objects.append((name, tint, score))
    for _ in range(rng.poisson(0.6)):
      pick = rng.choice([*wanted, *NAMES])
      objects.append((pick, rng.choice(geneval.COLORS), rng.random()))
    if rng.random() < 0.05:  # more than 16 of a class
      objects += [(wanted[0], 'red', rng.uniform(0.4, 0.8)) for _ in range(18)]
    scene = []
    for name, tint, score in objects[:M]:
      corner, size = rng.uniform(0, 400, 2), rng.uniform(20, 110, 2)
      box = np.array([*corner, *(corner + size)]).round(1)
      scene.append(dict(name=name, tint=tint, score=score, box=box))
    out.append(scene)
  return out


def arrays(scenes):
  """The same as Detections, in slots in any order."""
  rng = np.random.default_rng(9)
  b = len(scenes)
  det = geneval.Detections(
    box=np.zeros((b, M, 4), np.float32),
    label=np.zeros((b, M), np.int32),
    color=np.zeros((b, M), np.int32),
    valid=np.zeros((b, M), bool),
    score=np.ones((b, M), np.float32),
  )
  for i, scene in enumerate(scenes):
    slots = rng.permutation(M)
    for j, x in zip(slots, scene, strict=False):
      low, high = x['box'][:2], x['box'][2:]
      det.box[i, j] = *((low + high) / 2), *(high - low)
      det.label[i, j] = geneval.CLASSES.index(x['name'])
      det.color[i, j] = geneval.COLORS.index(x['tint'])
      det.valid[i, j], det.score[i, j] = True, x['score']
  return det


def stands(a, relation, b):
  """Is the object a in the relation to b?"""
  offset = (a['box'][:2] + a['box'][2:] - b['box'][:2] - b['box'][2:]) / 2
  sizes = a['box'][2:] - a['box'][:2] + b['box'][2:] - b['box'][:2]
  shrunk = np.maximum(abs(offset) - 0.1 * sizes, 0) * np.sign(offset)
  if np.all(abs(shrunk) < 1e-3):
    return False
  x, y = shrunk / np.linalg.norm(offset)
  holds = dict(left=x < -0.5, right=x > 0.5, above=y < -0.5, below=y > 0.5)
  return holds[relation.removesuffix(' of')]


def published(scene, line):
  """(correct, partial, strict) by the rules, one object after the other."""
  sure = 0.9 if line['tag'] == 'counting' else 0.3
  found = collections.defaultdict(list)
  for x in sorted(scene, key=lambda x: -x['score']):
    if x['score'] > sure and len(found[x['name']]) < 16:
      found[x['name']].append(x)
  # The benchmark: the first ones of each class.
  correct, groups = True, []
  for clause in line['include']:
    first = found[clause['class']][: clause['count']]
    good = len(first) == clause['count']
    if good and 'color' in clause:
      good = all(x['tint'] == clause['color'] for x in first)
    if good and 'position' in clause:
      relation, target = clause['position']
      good = groups[target] is not None and all(
        stands(x, relation, y) for x in first for y in groups[target]
      )
    groups.append(first if good else None)
    correct &= good
  for clause in line.get('exclude', ()):
    correct &= len(found[clause['class']]) < clause['count']
  # The training reward: all of each class, and a list of entries.
  entries, strict, groups = [], True, []
  for clause in line['include']:
    these, asked = found[clause['class']], clause['count']
    entries.append(1 - abs(asked - len(these)) / asked)
    good = len(these) == asked
    if not good:
      if 'color' in clause or 'position' in clause:
        entries.append(0.0)
    else:
      if 'color' in clause:
        tinted = sum(x['tint'] == clause['color'] for x in these)
        entries.append(1 - abs(asked - tinted) / asked)
        good = tinted == asked
      if good and 'position' in clause:
        relation, target = clause['position']
        if groups[target] is None:
          entries.append(0.0)
          good = False
        else:
          good = all(
            stands(x, relation, y) for x in these for y in groups[target]
          )
          entries += [1.0] if good else [0.0, 1.0]
    groups.append(these if good else None)
    strict &= good
  return correct, np.mean(entries), strict


def lookup(params, images):
  """A detector that has been told: a picture's first number is its row."""
  rows = jnp.round(images[:, 0, 0, 0] * 1000).astype(jnp.int32)
  return jax.tree.map(lambda x: jnp.asarray(x)[rows], params)


def told(params, images):
  """The same on the host."""
  assert isinstance(images, np.ndarray)
  rows = np.round(images[:, 0, 0, 0] * 1000).astype(int)
  return jax.tree.map(lambda x: np.asarray(x)[rows], params)


def pictures(count):
  media = np.zeros((count, 2, 2, 3), np.float32)
  media[:, 0, 0, 0] = np.arange(count) / 1000
  return media


@pytest.mark.parametrize('where', ['device', 'host'])
def test_random_detections(source, where):
  """All six tasks against a walk through the objects."""
  count = 600
  drawn = scenes(np.random.default_rng(0), count)
  lines = [source[i % len(LINES)]['info'] for i in range(count)]
  lines = [dict(tag=x['tag'], include=x['include'], exclude=x['exclude'] or ())
           for x in lines]  # fmt: skip
  want = [published(s, line) for s, line in zip(drawn, lines, strict=True)]
  correct, partial, strict = map(np.array, zip(*want, strict=True))
  for verdict in (correct, strict):
    for task in range(len(LINES)):  # the test tests something
      assert 0.03 < verdict[task :: len(LINES)].mean() < 0.97
  rows = np.arange(count) % len(LINES)
  info = {name: x[rows] for name, x in source.info.items()}
  find = lookup if where == 'device' else told
  used = detections.Finder(arrays(drawn), find, where)
  reward = detections.detected_geneval(used)
  assert reward.where == where
  inputs = RewardInputs(pictures(count), info, 1)
  key = jax.random.key(0)
  if where == 'device':
    score = jax.jit(
      lambda params, media, info: reward.score(
        params, RewardInputs(media, info, 1), key
      )
    )
    out = score(reward.params, inputs.media, info)
  else:
    outs, _ = evaluate.evaluate_host({'geneval': (reward, 1.0)}, inputs, key)
    out = outs['geneval']
  np.testing.assert_allclose(out.score, partial, atol=1e-5)
  np.testing.assert_array_equal(out.parts['correct'], correct)
  np.testing.assert_array_equal(out.parts['strict'], strict)
  assert np.asarray(out.valid).all()


# By hand: (class, colour, confidence, centre x, centre y), 20 wide and high.
HAND = (
  # What the prompt is, the objects, partial, strict, correct.
  ('clock', [('clock', 'red', 0.31, 50, 50)], 1, 1, 1),
  ('a clock that is not sure', [('clock', 'red', 0.3, 50, 50)], 0, 0, 0),
  ('two', [('dog', 'red', 0.4, 9, 9), ('tv', 'red', 0.4, 9, 9)], 1, 1, 1),
  ('one of two', [('dog', 'red', 0.4, 9, 9)], 0.5, 0, 0),
  # Of counted objects only those above 0.9.
  ('cups', [('cup', 'red', 0.95, 50 * i, 9) for i in range(3)], 1, 1, 1),
  (
    'cups of which one is not sure',
    [('cup', 'red', 0.95 - 0.06 * (i > 1), 50 * i, 9) for i in range(3)],
    2 / 3,
    0,
    0,
  ),
  ('a bus', [('bus', 'pink', 0.8, 9, 9)], 1, 1, 1),
  ('a bus of another colour', [('bus', 'red', 0.8, 9, 9)], 0.5, 0, 0),
  # The surest is pink: that is all the benchmark looks at. 1 - 1 = 0, and 0.
  (
    'buses',
    [('bus', 'red', 0.5, 9, 9), ('bus', 'pink', 0.8, 99, 9)],
    0,
    0,
    1,
  ),
  ('left', [('cat', 'red', 1, 90, 9), ('dog', 'red', 1, 9, 9)], 1, 1, 1),
  # 1, 1, then 0 and always a 1.
  ('right', [('cat', 'red', 1, 9, 9), ('dog', 'red', 1, 90, 9)], 0.75, 0, 0),
  ('cup', [('cup', 'red', 1, 9, 9), ('vase', 'black', 1, 9, 9)], 1, 1, 1),
  # 1, 0, 1, 0
  ('swapped', [('cup', 'black', 1, 9, 9), ('vase', 'red', 1, 9, 9)], 0.5, 0, 0),
)


def test_by_hand(source):
  tasks = dict(clock=0, two=1, one=1, cups=2, bus=3, buses=3, left=4, right=4)
  rows, drawn = [], []
  for what, objects, *_ in HAND:
    words = what.split()
    word = words[1] if words[0] == 'a' else words[0]
    rows.append(tasks.get(word, 5))
    around = np.array([-10, -10, 10, 10])
    drawn.append(
      [
        dict(name=n, tint=t, score=s, box=around + [x, y, x, y])
        for n, t, s, x, y in objects
      ]
    )
  info = {name: x[np.array(rows)] for name, x in source.info.items()}
  used = detections.Finder(arrays(drawn), told)
  inputs = RewardInputs(pictures(len(HAND)), info, 1)
  for i, score in enumerate(('partial', 'strict', 'correct'), 2):
    reward = detections.detected_geneval(used, score)
    out = reward.score(reward.params, inputs, None)
    got = dict(zip([x[0] for x in HAND], out.score.round(5), strict=True))
    assert got == pytest.approx({x[0]: x[i] for x in HAND}, abs=1e-5), score


def test_prompts_as_arrays(source):
  assert len(source) == 6 and source.tasks[2] == 'counting'
  assert source.texts[3] == 'a photo of a pink bus'
  np.testing.assert_allclose(
    source.info['confidence'], [0.3, 0.3, 0.9, 0.3, 0.3, 0.3]
  )
  assert source.info['include_class'][1].tolist() == [
    geneval.CLASSES.index('dog'),
    geneval.CLASSES.index('tv'),
  ]
  # "a dog left of a cat" with the cat first: the cat is right of the dog.
  assert source.info['relation'].tolist() == [-1, -1, -1, -1, 1, -1]
  assert source.info['exclude_count'][2].tolist() == [4, 0]


def test_what_cannot_be_scored(source):
  media = pictures(2)
  media[1, 1, 1] = np.inf
  info = {name: x[:2] for name, x in source.info.items()}
  used = detections.Finder(arrays([[], []]), told)
  reward = detections.detected_geneval(used)
  out = reward.score(reward.params, RewardInputs(media, info, 1), None)
  assert out.valid.tolist() == [True, False]
  with pytest.raises(ConfigError, match='confidence, .* data.prompts.name'):
    reward.score(reward.params, RewardInputs(media, {}, 1), None)


def test_a_detector_by_its_name(monkeypatch):
  module = types.ModuleType('my_detector')
  module.make = functools.partial(detections.Finder, (), told)
  module.other = dict
  monkeypatch.setitem(sys.modules, 'my_detector', module)
  made = detections.finder('my_detector:make')
  assert made == detections.Finder((), told, 'host')
  assert detections.detected_geneval('my_detector:make').where == 'host'
  with pytest.raises(ConfigError, match='made dict, not a Finder'):
    detections.finder('my_detector:other')
  for name in ('my_detector:none', 'no_module:make', 'my_detector'):
    with pytest.raises(ConfigError, match='module:function'):
      detections.finder(name)
  with pytest.raises(ConfigError, match='partial, strict and correct'):
    detections.detected_geneval('my_detector:make', score='soft')
