"""Features of prompts: computed once each, kept, and the same from a file."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import ml_dtypes
import numpy as np
import pytest

from gen_rl.data import embeddings, feeds, pipeline, tokenizers
from gen_rl.models.files.weights import WeightsError

SHAPES = dict(
  text=jax.ShapeDtypeStruct((3, 2), jnp.bfloat16),
  pooled=jax.ShapeDtypeStruct((4,), np.float32),
)


def features(text):
  rng = np.random.default_rng(list(text.encode()))
  return dict(
    text=rng.normal(size=(3, 2)).astype(ml_dtypes.bfloat16),
    pooled=rng.normal(size=4).astype(np.float32),
  )


@pytest.fixture
def asked():
  return []


@pytest.fixture
def encoder(asked):
  def encode(texts):
    asked.extend(texts)
    rows = [features(text) for text in texts]
    return {name: np.stack([row[name] for row in rows]) for name in SHAPES}

  return embeddings.Encoder(encode, SHAPES, 'test')


def check(rows, texts):
  assert {n: x.dtype for n, x in rows.items()} == dict(
    text=ml_dtypes.bfloat16, pooled=np.float32,
    null_text=ml_dtypes.bfloat16, null_pooled=np.float32,
  )  # fmt: skip
  for i, text in enumerate(texts):
    for name, want in features(text).items():
      np.testing.assert_array_equal(rows[name][i], want)
    for name, want in features('').items():
      np.testing.assert_array_equal(rows[f'null_{name}'][i], want)


def test_each_text_is_encoded_once(encoder, asked):
  embed = embeddings.cached(encoder)
  for texts in (['a', 'b', 'a'], ['b'], ['c', 'b', '']):
    check(embed.rows(texts), texts)
  assert sorted(asked) == ['', 'a', 'b', 'c']


@pytest.mark.parametrize('judged', [False, True])
def test_a_prompt_of_no_source(encoder, judged):
  """It has what prompts of a source have: features, and what judges read."""
  words = tokenizers.shapes_words()
  config = ml_collections.ConfigDict(dict(data=dict(length=4, truncate=False)))
  freed = []
  encoder = encoder._replace(free=lambda: freed.append(1))
  embed = embeddings.cached(encoder)
  built = types.SimpleNamespace(
    tokenizer=words,
    reader=pipeline.Reader(words, 7, dict(judge='{prompt}')),
    embed=embed,
  )
  text = 'a red circle and a blue cross'  # longer than words may be
  asked = dict(count=np.arange(2))
  batch = feeds.alone(config, built, text, asked, judged)
  check(batch['cond'], [text])
  assert freed  # no other prompt is left
  np.testing.assert_array_equal(batch['info']['count'], [[0, 1]])
  if judged:
    want = words.encode([text], 7)
    np.testing.assert_array_equal(batch['info']['judge'], want)
  else:
    assert 'judge' not in batch['info']

  def refuse(texts):
    raise ValueError(f'{texts} too long')

  long = types.SimpleNamespace(**{**vars(built), 'embed': None})
  with pytest.raises(ValueError, match='7 tokens but the limit is 4'):
    feeds.alone(config, long, text, asked, judged)
  strict = embeddings.cached(encoder._replace(check=refuse))
  long.embed = strict
  with pytest.raises(ValueError, match='too long'):
    feeds.alone(config, long, text, asked, judged)


def test_the_oldest_are_forgotten(encoder, asked):
  embed = embeddings.cached(encoder, keep=2)
  for text in 'abcb':
    check(embed.rows([text]), [text])
  # The empty text is used at every call, so it stays.
  assert asked == ['', 'a', 'b', 'c', 'b']
  wide = ['d', 'e', 'f', 'g']
  check(embed.rows(wide), wide)


def test_without_a_negative(encoder, asked):
  embed = embeddings.cached(encoder, negative=None)
  rows = embed.rows(['a'])
  assert set(rows) == set(embed.shapes) == {'text', 'pooled'}
  assert asked == ['a']


def test_files_outlive_a_run(encoder, asked, tmp_path):
  check(embeddings.cached(encoder, folder=tmp_path).rows(['a', 'b']), 'ab')
  del asked[:]
  check(embeddings.cached(encoder, folder=tmp_path).rows(['b', 'a']), 'ba')
  assert not asked
  other = encoder._replace(identity='other weights')
  embeddings.cached(other, folder=tmp_path).rows(['a'])
  assert asked == ['', 'a']


def test_a_broken_file_is_named(encoder, tmp_path):
  embeddings.cached(encoder, negative=None, folder=tmp_path).rows(['a'])
  (path,) = tmp_path.rglob('*.safetensors')
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  embed = embeddings.cached(encoder, negative=None, folder=tmp_path)
  with pytest.raises(WeightsError, match=rf'{path.name}.*delete it'):
    embed.rows(['a'])
  path.write_bytes(whole)
  shapes = SHAPES | dict(pooled=jax.ShapeDtypeStruct((5,), np.float32))
  embed = embeddings.cached(
    encoder._replace(shapes=shapes), negative=None, folder=tmp_path
  )
  with pytest.raises(WeightsError, match='not the features of this encoder'):
    embed.rows(['a'])


def test_blank_has_the_shapes_and_asks_nobody(encoder, asked):
  embed = embeddings.cached(encoder)
  blank = embeddings.blank(embed).rows(['a', 'b'])
  assert not asked
  real = embed.rows(['a', 'b'])
  assert {n: (x.shape, x.dtype) for n, x in blank.items()} == {
    n: (x.shape, x.dtype) for n, x in real.items()
  }


@pytest.mark.parametrize('count', [1, 3, 4, 7])
def test_chunks_have_one_shape(count):
  shapes = []

  def encode(ids, mask):
    shapes.append(ids.shape)
    return dict(sum=ids.sum(1) * mask)

  ids = np.arange(count * 5).reshape(count, 5)
  mask = np.arange(count) % 2
  got = embeddings.in_chunks(encode, 3, ids, mask)
  np.testing.assert_array_equal(got['sum'], ids.sum(1) * mask)
  assert set(shapes) == {(3, 5)}
