"""Detector reward: by hand, against GenEval's hard score, and its gradient."""

import jax
from jax import test_util
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build
from gen_rl.models import detector as net_lib
from gen_rl.models.files import weights
from gen_rl.rewards import combine, detector
from gen_rl.scoring import geneval
from gen_rl.types import RewardInputs
from gen_rl.worlds import grammar, shapes

soft_score = jax.jit(detector.soft_score)
CELLS = ((6.0, 6.0), (18.0, 6.0), (6.0, 18.0), (18.0, 18.0))  # (x, y)


def info_of(*texts):
  """Arrays [b ...] of what prompts ask for."""
  specs = [grammar.spec_arrays(grammar.parse(text)) for text in texts]
  return {name: np.stack([s[name] for s in specs]) for name in specs[0]}


def clauses_of(info):
  names = 'include_class', 'include_count', 'include_color', 'relation'
  return geneval.Clauses(**{name: info[name] for name in names})


def peaks_of(*pictures):
  """Of (shape word, probability, colour word, probability, cell) objects.

  The rest of a shape's probability is background, that of a colour is spread.
  """
  b, m = len(pictures), net_lib.MOST
  shape = np.zeros((b, m, 4), np.float32)
  color = np.full((b, m, 6), 1 / 6, np.float32)
  box = np.full((b, m, 4), 8.0, np.float32)
  for i, objects in enumerate(pictures):
    for j, (s, p, c, q, cell) in enumerate(objects):
      shape[i, j, grammar.SHAPES.index(s)] = p
      color[i, j] = (1 - q) / 5
      color[i, j, grammar.COLORS.index(c)] = q
      box[i, j, :2] = CELLS[cell]
  return net_lib.Peaks(*map(jnp.asarray, (shape, color, box)))


def test_soft_score_by_hand():
  circle = lambda p, q=1.0, cell=0: ('circle', p, 'red', q, cell)
  table = [
    # (2) alone: 1 - |1 - 0.75|
    ('a circle', [circle(0.75)], 0.75),
    # Two half-believed circles are one: that is how it can be fooled.
    ('a circle', [circle(0.5), circle(0.5, cell=3)], 1.0),
    # n = 1.5 of 3: 1/2
    ('three circles', [circle(0.5, cell=i) for i in range(3)], 0.5),
    # count 1, colour 1 * (1 - |1 - 0.6|)
    ('a red circle', [circle(1.0, 0.6)], 0.8),
    # count 0.8; colour 0.8 * (1 - |1 - 0.8 * 0.5|) = 0.32
    ('a red circle', [circle(0.8, 0.5)], 0.56),
    # counts 1, 0.5; position 1 * 0.5 * (1 - 0)
    (
      'a circle left of a cross',
      [circle(1.0), ('cross', 0.5, 'red', 1.0, 1)],
      (1 + 0.5 + 0.5) / 3,
    ),
    # the other way round: position 1 * 0.5 * (1 - 0.5)
    (
      'a circle right of a cross',
      [circle(1.0), ('cross', 0.5, 'red', 1.0, 1)],
      (1 + 0.5 + 0.25) / 3,
    ),
    ('a circle', [], 0.0),
    # nobody asked for the square, and nobody minds
    ('a circle', [circle(1.0), ('square', 1.0, 'red', 1.0, 1)], 1.0),
  ]
  texts, pictures, want = zip(*table, strict=True)
  got = soft_score(peaks_of(*pictures), clauses_of(info_of(*texts)))
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_certain_soft_score_is_the_hard_one():
  rng = np.random.default_rng(0)
  prompts = [
    p for p in grammar.prompts() if p.split == 'train' and p.spec.word < 0
  ]
  chosen = [prompts[i] for i in rng.integers(len(prompts), size=2000)]

  def picture(spec):
    """Objects at random, mostly of what the prompt asks for."""

    def draw(cell):
      clause = rng.integers(2)
      s, c = spec.shape[clause], spec.color[clause]
      s = s if s >= 0 and rng.random() < 0.9 else rng.integers(4)
      c = c if c >= 0 and rng.random() < 0.9 else rng.integers(6)
      return grammar.SHAPES[s], 1.0, grammar.COLORS[c], 1.0, cell

    cells = rng.permutation(4)[: rng.integers(5)]
    if rng.random() < 0.7:
      cells = rng.permutation(4)[: sum(spec.count)]
    return [draw(cell) for cell in cells]

  found = peaks_of(*(picture(p.spec) for p in chosen))
  clauses = clauses_of(info_of(*(p.text for p in chosen)))
  hard, _ = geneval.strict_score(
    net_lib.detections(found), clauses, quirks=False
  )
  assert len(np.unique(np.round(hard, 3))) > 8  # all sorts of pictures
  soft = soft_score(found, clauses)
  np.testing.assert_allclose(soft, hard, atol=1e-6)


def test_soft_score_gradient():
  rng = np.random.default_rng(2)
  clauses = clauses_of(info_of('two red circles', 'a circle above a cross'))
  found = peaks_of([], [])
  shape, color = (
    rng.uniform(0.05, 0.24, (2, net_lib.MOST, 4)),
    np.ones((2, 6, 6)),
  )
  box = rng.uniform(4, 20, (2, net_lib.MOST, 4))
  score = lambda s, c: detector.soft_score(
    found._replace(shape=s, color=c, box=box), clauses
  )
  args = (
    jnp.float32(shape),
    jnp.float32(color) * rng.uniform(0.2, 0.9, (2, 6, 6)),
  )
  test_util.check_grads(jax.jit(score), args, 1, ['rev'], 1e-2, 1e-2)


@pytest.fixture(scope='module')
def rewards():
  return {soft: detector.shapes_detector(soft=soft) for soft in (True, False)}


@pytest.fixture(scope='module')
def scored(rewards):
  """Renders of prompts, then of mutated ones: (soft, hard) scores [2 n]."""
  every = [
    p for p in grammar.prompts() if p.split == 'heldout' and p.spec.word < 0
  ]
  info = info_of(*(p.text for p in every[::5]))
  n = len(info['word'])
  keys = jax.random.split(jax.random.key(0), n)

  @jax.jit
  def run(params, info):
    wrong = jax.vmap(shapes.mutate)(keys, info)
    media = [jax.vmap(shapes.render)(keys, spec) for spec in (info, wrong)]
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), info)
    inputs = RewardInputs(jnp.concatenate(media), twice, 1)
    return [rewards[s].score(params, inputs, keys[0]) for s in (True, False)]

  return n, run(rewards[True].params, jax.tree.map(jnp.asarray, info))


@pytest.mark.parametrize('which', [0, 1])
def test_renders_score_high_and_mutants_do_not(scored, which):
  n, outs = scored
  score, strict = outs[which].score, outs[which].parts['strict']
  assert outs[which].valid.all()
  assert score[:n].mean() > 0.95 and strict[:n].mean() > 0.9
  assert score[n:].mean() < 0.8 and strict[n:].mean() < 0.1


def test_places_flags_and_weights(rewards, tmp_path):
  soft, hard = rewards[True], rewards[False]
  assert soft.where == hard.where == 'device'
  assert soft.differentiable and not hard.differentiable
  built = build.build(detector, dict(name='shapes_detector', weight=2.0))
  assert built.name == 'shapes_detector'
  # What a run exports is float16.
  shipped = detector.shapes_detector().params
  half = jax.tree.map(lambda x: np.asarray(x, np.float16), shipped)
  weights.save(tmp_path / 'half.safetensors', half)
  loaded = detector.shapes_detector(str(tmp_path / 'half.safetensors')).params
  jax.tree.map(lambda a: np.testing.assert_equal(a.dtype, np.float32), loaded)
  jax.tree.map(np.testing.assert_array_equal, loaded, half)
  with pytest.raises(weights.WeightsError, match='no weights file'):
    detector.shapes_detector(weights='asset:nobody')


def test_gradient_climbs_and_verdicts_have_none(rewards):
  """A pale circle needs few and small changes to be a red one."""
  info = info_of('a red circle')
  spec = jax.tree.map(lambda x: jnp.asarray(x[0]), info)
  image = jax.jit(shapes.render)(jax.random.key(1), spec)[None]
  image = 0.75 * image[:, :1, :1] + 0.25 * image

  def value(image, reward):
    inputs = RewardInputs(image, info, 1)
    return reward.score(reward.params, inputs, jax.random.key(0)).score.sum()

  soft = jax.jit(jax.value_and_grad(lambda x: value(x, rewards[True])))
  start, grad = soft(image)
  assert np.isfinite(grad).all() and np.abs(grad).max() > 0
  for _ in range(10):
    now, grad = soft(image)
    image = jnp.clip(image + 0.01 * jnp.sign(grad), 0.0, 1.0)
  assert now > start + 0.3
  none = jax.jit(jax.grad(lambda x: value(x, rewards[False])))(image)
  np.testing.assert_array_equal(none, 0.0)


def test_words_and_broken_pictures_are_not_valid(rewards):
  info = info_of('a circle', 'the word "cat"', 'two squares')
  media = jnp.full((3, 24, 24, 3), 0.5).at[2, 0, 0, 0].set(jnp.nan)
  reward = rewards[True]

  def total(media):
    inputs = RewardInputs(media, info, 1)
    out = reward.score(reward.params, inputs, jax.random.key(0))
    return out.score.sum(), out

  grad, out = jax.jit(jax.grad(total, has_aux=True))(media)
  np.testing.assert_array_equal(out.valid, [True, False, False])
  assert np.isfinite(out.score).all() and np.isfinite(grad).all()
  merged = combine.merge({'detector': out}, {'detector': 1.0})
  np.testing.assert_array_equal(merged.score[1:], 0.0)


def test_prompts_that_do_not_say(rewards):
  inputs = RewardInputs(jnp.zeros((1, 24, 24, 3)), {}, 1)
  with pytest.raises(build.ConfigError, match='include_class'):
    rewards[True].score(rewards[True].params, inputs, jax.random.key(0))
