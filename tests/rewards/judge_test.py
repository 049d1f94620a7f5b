"""Judges against cached decoding, and against judges whose answer is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from configs import pretrain_vlm
from gen_rl import testing
from gen_rl.build import ConfigError
from gen_rl.data import pipeline, prompts, tokenizers
from gen_rl.models import vlm
from gen_rl.models.files import weights
from gen_rl.rewards import judge
from gen_rl.types import RewardInputs
from gen_rl.worlds import grammar, questions, shapes

READER = tokenizers.shapes_language()
MODEL = dict(
  name='vlm', width=16, layers=1, heads=2, patch=12, vision_width=16,
  vision_layers=1, vision_heads=2,
)  # fmt: skip
WIDE = MODEL | dict(image=(24, 48, 3))
TEXTS = ['a red circle', 'a blue square left of a red circle', 'three squares']
ASK = 'is there a red circle ?'


def net(model=MODEL):
  keywords = {k: v for k, v in model.items() if k != 'name'}
  return vlm.vlm(vocab=READER.size, **keywords)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """Paths of random weights, of both sizes of pictures, large enough to say
  something."""
  out = {}
  for name, model in dict(one=MODEL, two=WIDE).items():
    params = jax.jit(net(model).init)(jax.random.key(3))
    params = jax.tree.map(lambda x: 3.0 * x, params)
    out[name] = str(tmp_path_factory.mktemp('judge') / f'{name}.safetensors')
    weights.save(out[name], params)
  return out


def uniform(tmp_path, prefers=None, model=MODEL):
  """Weights of a judge that says all words equally often, but for one.

  `prefers` is (word, its probability).
  """
  shapes = jax.eval_shape(net(model).init, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  if prefers:
    word, p = prefers
    # The last vector is all ones in the first place, whatever was read: the
    # position of squares and words is the table's, whose first column is 1.
    table = np.zeros(params['table']['embedding'].shape, np.float32)
    table[:, 0] = 1.0
    params['decoder']['norm']['scale'] = jnp.ones(16)
    # rms of (1, 0, ...) is 1/4: the norm gives (4, 0, ...).
    at = READER.token_id(word)
    table[at, 0] = 1.0 + np.log(p / (1 - p) * (READER.size - 1)) / 4.0
    params['table']['embedding'] = jnp.asarray(table)
  path = str(tmp_path / 'uniform.safetensors')
  weights.save(path, params)
  return path


def inputs(media=None, group_size=1, checks=(), **info):
  media = pictures(len(TEXTS)) if media is None else media
  reader = pipeline.Reader(
    READER, 16, dict(caption='{prompt}', question='is there {prompt} ?')
  )
  info = reader.read(TEXTS, checks) | info
  return RewardInputs(jnp.asarray(media), info, group_size)


def pictures(b, width=24):
  return np.random.default_rng(0).random((b, 24, width, 3), np.float32)


def run(reward, given):
  score = jax.jit(
    lambda media, info: reward.score(
      reward.params, given.replace(media=media, info=info), jax.random.key(0)
    )
  )
  return jax.device_get(score(given.media, dict(given.info)))


@functools.cache
def compiled():
  """(shapes of parameters, the network), once for all."""
  network = testing.jitted(net())
  return jax.eval_shape(network.init, jax.random.key(0)), network


def decoded(path, media, query, texts):
  """Log-probs of the words of a text, one after the other, from a cache."""
  like, network = compiled()
  params, _ = weights.load(path, like)
  out = []
  for picture, text in zip(media, texts, strict=True):
    ids = READER.encode([query], 16)
    ids = ids[:, ids[0] > 0]
    cond = dict(tokens=jnp.asarray(ids), image=jnp.asarray(picture)[None])
    words = [READER.token_id(word) for word in text.split()]
    cache, logits = network.prefill(params, cond, len(words))
    row = []
    for word in words:
      row.append(special.log_softmax(np.asarray(logits)[0])[word])
      cache, logits = network.step(params, cache, jnp.array([word]))
    out.append(np.array(row))
  return out


@pytest.mark.parametrize('reduce', ['mean', 'sum'])
def test_echo_is_what_cached_decoding_would_say(drawn, reduce):
  reward = judge.echo(READER, MODEL, drawn['one'], reduce=reduce)
  given = inputs()
  out = run(reward, given)
  rows = decoded(drawn['one'], given.media, judge.DESCRIBE, TEXTS)
  want = [getattr(row, reduce)() for row in rows]
  np.testing.assert_allclose(out.score, want, rtol=1e-5)
  worst = [row.min() for row in rows]
  np.testing.assert_allclose(out.parts['worst'], worst, rtol=1e-5)
  assert np.ptp(out.score) > 0.1 and out.valid.all()


def test_echo_of_a_judge_that_does_not_look(tmp_path):
  reward = judge.echo(READER, MODEL, uniform(tmp_path))
  out = run(reward, inputs())
  np.testing.assert_allclose(out.score, -np.log(READER.size), rtol=1e-6)


def test_the_word_in_quotes_is_echoed(drawn):
  """Label and question of text rendering; what has no quotes is not judged."""
  texts = ['the word "cat" in blue', 'a photo of the word "247"', 'a circle']
  reader = pipeline.Reader(READER, 16, dict(caption='{quoted}'))
  ask = 'what word is written ?'
  reward = judge.echo(READER, MODEL, drawn['one'], query=ask)
  out = run(reward, inputs(**reader.read(texts)))
  rows = decoded(drawn['one'], pictures(2), ask, ['cat', '247'])
  np.testing.assert_allclose(out.score[:2], np.concatenate(rows), rtol=1e-5)
  assert out.valid.tolist() == [True, True, False]


def test_pictures_get_gradients(drawn):
  reward = judge.echo(READER, MODEL, drawn['one'])
  given = inputs()

  @jax.jit
  def total(media):
    return reward.score(
      reward.params, given.replace(media=media), jax.random.key(0)
    ).score.sum()

  slope = jax.jit(jax.grad(total))(given.media)
  assert np.isfinite(slope).all() and (np.abs(slope).max((1, 2, 3)) > 0).all()
  way = slope / jnp.linalg.norm(slope)
  up = total(given.media + 1e-4 * way) - total(given.media - 1e-4 * way)
  np.testing.assert_allclose(up / 2e-4, jnp.linalg.norm(slope), rtol=3e-2)


def test_yes_and_no_share_what_there_is(drawn):
  options = dict(least=0.0)
  yes = judge.yes_probability(READER, MODEL, drawn['one'], **options)
  no = judge.yes_probability(
    READER, MODEL, drawn['one'], yes=('no',), no=('yes',), **options
  )
  odds = judge.yes_probability(
    READER, MODEL, drawn['one'], odds=True, **options
  )
  a, b, c = (run(x, inputs()) for x in (yes, no, odds))
  np.testing.assert_allclose(a.score + b.score, 1.0, rtol=1e-5)
  np.testing.assert_allclose(c.score, np.log(a.score / b.score), rtol=1e-3)
  said = [
    decoded(drawn['one'], inputs().media, f'is there {text} ?', [word] * 3)[i]
    for i, text in enumerate(TEXTS)
    for word in ('yes', 'no')
  ]
  said = np.exp(np.array(said).reshape(3, 2))
  np.testing.assert_allclose(a.score, said[:, 0] / said.sum(1), rtol=1e-4)
  np.testing.assert_allclose(a.parts['mass'], said.sum(1), rtol=1e-4)


def test_what_is_no_judgement_is_not_valid(tmp_path):
  """Never a 0: two words of many say too little; NaN pixels say nothing."""
  path = uniform(tmp_path)
  reward = judge.yes_probability(READER, MODEL, path, question=ASK)
  assert 2 / READER.size < 0.1
  out = run(reward, inputs())
  np.testing.assert_allclose(out.parts['mass'], 2 / READER.size, rtol=1e-5)
  assert not out.valid.any()
  media = pictures(3)
  media[1, 0, 0, 0] = np.nan
  reward = judge.yes_probability(READER, MODEL, path, question=ASK, least=0.01)
  out = run(reward, inputs(media))
  assert out.valid.tolist() == [True, False, True]
  np.testing.assert_allclose(out.score, 0.5, rtol=1e-6)


def test_a_judge_that_says_yes(tmp_path):
  path = uniform(tmp_path, ('yes', 0.9))
  reward = judge.yes_probability(READER, MODEL, path)
  out = run(reward, inputs())
  rest = 0.1 / (READER.size - 1)
  np.testing.assert_allclose(out.parts['mass'], 0.9 + rest, rtol=1e-4)
  np.testing.assert_allclose(out.score, 0.9 / (0.9 + rest), rtol=1e-4)


def test_expected_score_by_hand(tmp_path):
  words, values = ('one', 'two', 'three', 'four'), (1.0, 2.0, 3.0, 6.0)
  reward = judge.expected_score(
    READER, MODEL, words, values, uniform(tmp_path), ASK, least=0.0
  )
  out = run(reward, inputs())
  np.testing.assert_allclose(out.score, 3.0, rtol=1e-5)
  np.testing.assert_allclose(out.parts['spread'], np.sqrt(14 / 4), rtol=1e-5)
  path = uniform(tmp_path, ('four', 0.7))
  reward = judge.expected_score(READER, MODEL, words, (), path, ASK)
  out = run(reward, inputs())
  rest = 0.3 / (READER.size - 1)
  mean = (6 * rest + 4 * 0.7) / (3 * rest + 0.7)
  np.testing.assert_allclose(out.score, mean, rtol=1e-4)


def test_checklist_is_the_mean_over_the_questions_there_are(drawn):
  one = 'is there a red circle ?'
  two = 'is the circle left of the square ?'
  reward = judge.checklist(READER, MODEL, drawn['one'], least=0.0)
  given = inputs(checks=[(one, two), (two, ''), ('', '')])
  out = run(reward, given)
  single = [
    run(
      judge.yes_probability(
        READER, MODEL, drawn['one'], question=text, least=0.0
      ),
      given,
    ).score
    for text in (one, two)
  ]
  np.testing.assert_allclose(
    out.score[:2], [(single[0][0] + single[1][0]) / 2, single[1][1]], rtol=1e-4
  )
  np.testing.assert_allclose(
    out.parts['all'][0], single[0][0] * single[1][0], rtol=1e-4
  )
  assert out.parts['questions'].tolist() == [2, 1, 0]
  assert out.valid.tolist() == [True, True, False]
  hard = judge.checklist(READER, MODEL, drawn['one'], hard=True, least=0.0)
  want = np.mean([single[0][0] > 0.5, single[1][0] > 0.5])
  assert run(hard, given).score[0] == want


def test_win_rates_side_by_side(drawn):
  """Both orders are asked, so a judge that likes a side has no say."""
  given = RewardInputs(pictures(6), {}, 3)
  options = dict(
    reader=READER, model=WIDE, weights=drawn['two'], first='left',
    second='right', question='what is there ?', least=0.0,
  )  # fmt: skip
  soft = run(judge.judged_win_rate(**options, soft=True), given)
  network = testing.jitted(net(WIDE))
  like = jax.eval_shape(network.init, jax.random.key(0))
  params, _ = weights.load(drawn['two'], like)
  words = [READER.token_id(word) for word in ('left', 'right')]
  ids = READER.encode(['what is there ?'], 4)

  def asked(i, j):
    both = np.concatenate([given.media[i], given.media[j]], 1)[None]
    _, logits = network.prefill(
      params, dict(tokens=jnp.asarray(ids), image=both), 1
    )
    left, right = np.exp(np.asarray(logits)[0, np.array(words)])
    return left / (left + right)

  want = np.full((6, 6), np.nan)
  for group in (range(3), range(3, 6)):
    for i in group:
      for j in group:
        if i != j:
          want[i, j] = (asked(i, j) + 1 - asked(j, i)) / 2
  np.testing.assert_allclose(soft.score, np.nanmean(want, 1), atol=1e-5)
  hard = run(judge.judged_win_rate(**options), given)
  wins = np.where(np.isnan(want), np.nan, want > 0.5)
  np.testing.assert_allclose(hard.score, np.nanmean(wins, 1), atol=1e-6)
  tied = run(judge.judged_win_rate(**options, tie=1.0), given)
  np.testing.assert_allclose(tied.score, 0.5)
  np.testing.assert_allclose(tied.parts['ties'], 1.0)
  media = np.array(given.media)
  media[1] = np.nan
  broken = run(
    judge.judged_win_rate(**options), given.replace(media=jnp.asarray(media))
  )
  assert broken.valid.tolist() == [True, False, True, True, True, True]
  assert broken.parts['opponents'].tolist() == [1, 0, 1, 2, 2, 2]


def test_bad_input_is_one_sentence(drawn):
  with pytest.raises(ConfigError, match=r'set data\.reader\.tokenizer\.name'):
    judge.echo(None, MODEL)
  with pytest.raises(ConfigError, match='says tokens'):
    judge.echo(READER, dict(name='dit'))
  with pytest.raises(ConfigError, match="has no 'yeah'"):
    judge.yes_probability(READER, MODEL, drawn['one'], yes=('yeah',))
  with pytest.raises(ConfigError, match='does not know some words.*unicorn'):
    judge.echo(READER, MODEL, drawn['one'], query='a unicorn ?')
  with pytest.raises(ConfigError, match='a value for each word'):
    judge.expected_score(READER, MODEL, ('one', 'two'), (1,), drawn['one'])
  with pytest.raises(weights.WeightsError):
    judge.echo(READER, MODEL | dict(width=32), drawn['one'])
  reward = judge.echo(READER, MODEL, drawn['one'], text='title')
  with pytest.raises(ConfigError, match=r'data\.reader\.texts\.title'):
    run(reward, inputs())
  reward = judge.echo(READER, MODEL, drawn['one'])
  with pytest.raises(ValueError, match=r'the pictures are \[24, 48, 3\]'):
    run(reward, inputs(pictures(3, 48)))
  with pytest.raises(ConfigError, match='this reward looks at pictures'):
    run(reward, inputs(np.zeros((3, 4), np.int32)))
  with pytest.raises(ValueError, match=r'needs a "\{prompt\}"'):
    pipeline.Reader(READER, 8, dict(caption='a red circle')).read(TEXTS)


def test_the_shipped_judge_knows_its_world():
  """Of a picture it says what is true rather than four things that are not."""
  source = prompts.shapes_contrasts('heldout')
  rows = np.random.default_rng(0).choice(len(source), 32, replace=False)
  spec = {name: x[rows] for name, x in source.info.items()}
  keys = jax.random.split(jax.random.key(0), 32)
  media = jax.jit(jax.vmap(shapes.render))(keys, spec)
  model = pretrain_vlm.model()
  echo = judge.echo(READER, model)
  texts = [t for i in rows for t in (source.texts[i], *source.wrong[i])]
  given = RewardInputs(
    jnp.repeat(media, 5, 0), dict(caption=READER.encode(texts, 16)), 1
  )
  said = run(echo, given).score.reshape(32, 5)
  assert (said.argmax(1) == 0).mean() >= 0.8
  checks = judge.checklist(READER, model)
  asked = [questions.checks(grammar.parse(source.texts[i])) for i in rows]
  asked = np.stack(
    [READER.encode([*q, *[''] * (2 - len(q))], 16) for q in asked]
  )
  right = run(checks, RewardInputs(media, dict(checks=asked), 1))
  has = (asked > 0).any((1, 2))
  assert 0 < has.sum() < 32 and (right.valid == has).all()
