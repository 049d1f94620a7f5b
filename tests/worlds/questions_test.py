"""Questions: true of their scenes, cut by scene, in words the tokenizer has."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, rollout
from gen_rl.data import pictures, pipeline, prompts, tokenizers
from gen_rl.worlds import grammar, questions
from gen_rl.worlds.grammar import COLORS, RELATIONS, SHAPES


def answer(question):
  """Read off the scene, from the words of the question alone."""
  words, scene = question.text.rstrip(' ?.').split(), question.scene
  here = [
    (s, c, n)
    for s, c, n in zip(scene.shape, scene.color, scene.count, strict=True)
    if n
  ]
  colors = [COLORS.index(w) for w in words if w in COLORS]
  shapes = [i for w in words for i, s in enumerate(SHAPES) if w in (s, s + 's')]
  shapes += [SHAPES.index('cross')] * ('crosses' in words)
  if words[:2] == ['how', 'many']:
    like = [
      n for s, c, n in here
      if s == shapes[0] and (not colors or c == colors[0])
    ]  # fmt: skip
    return questions.COUNTS[sum(like) - 1]
  if words[:2] == ['what', 'color'] or 'or' in words:
    (color,) = [c for s, c, _ in here if s == shapes[0]]
    return COLORS[color]
  if words[:2] == ['what', 'shape']:
    (shape,) = [s for s, c, _ in here if c == colors[0]]
    return SHAPES[shape]
  if words[:2] == ['is', 'there']:
    return 'yes' if (shapes[0], colors[0], 1) in here else 'no'
  if words[:2] == ['what', 'word']:
    return grammar.TEXTS[scene.word].lower()
  if words[0] == 'describe':
    assert grammar.canonical(grammar.parse(question.answer)) == scene
    return question.answer
  relation = next(i for i, r in enumerate(RELATIONS) if r in question.text)
  asked = grammar.Spec(
    4, tuple(shapes), count=(1, 1), relation=relation
  )  # fmt: skip
  return 'yes' if grammar.canonical(asked) == scene else 'no'


def test_answers_are_true():
  every = questions.questions()
  assert {q.kind for q in every} == set(questions.KINDS)
  for question in every:
    assert question.answer == answer(question), question


def test_yes_is_as_frequent_as_no():
  for kind in ('exists', 'position'):
    found = collections.Counter(
      (q.scene, q.answer) for q in questions.questions() if q.kind == kind
    )
    assert set(found.values()) == {2}


def test_the_language_has_the_ids_of_the_words():
  tokenizer, plain = tokenizers.shapes_language(), tokenizers.shapes_words()
  ids = plain.encode(['two red circles'], 4)
  np.testing.assert_array_equal(tokenizer.encode(['two red circles'], 4), ids)
  assert tokenizer.end_id == tokenizer.size - 1 and plain.end_id is None
  assert tokenizer.token_id('yes') == tokenizer.encode(['yes'], 1)[0, 0]
  with pytest.raises(ValueError, match="no '<eot>'"):
    tokenizer.token_id('<eot>')
  longest = max(len(q.text.split()) for q in questions.questions())
  assert longest <= questions.MAX_QUESTION


def batch(length=3, **options):
  source = prompts.shapes_questions('rl', ('count', 'exists'))
  tokenizer = tokenizers.shapes_language()
  batches = pipeline.prompt_batches(
    source, 6, 0, tokenizer, 9, answer_length=length, **options
  )
  return tokenizer, *next(batches)


def test_a_batch_has_answers_and_a_group_one_picture():
  tokenizer, prompts_, texts = batch()
  assert prompts_['info']['answer'].shape == (6, 3)
  view = pictures.shapes_pictures(shared=True)
  rows = rollout.make_rows(prompts_, 2, jax.random.key(0), jnp.int32(0), view)
  image = rows.cond['image']
  assert image.shape == (12, 24, 24, 3)
  np.testing.assert_array_equal(image[::2], image[1::2])
  np.testing.assert_array_equal(image, rows.media)
  assert np.abs(image[0] - image[2]).max() > 0.1
  said, _ = pictures.answers(tokenizer.end_id)(rows)
  sentences = tokenizer.decode(said[::2])
  source = prompts.shapes_questions('rl')
  wanted = dict(zip(source.ids, source.answers, strict=True))
  ids = prompts_['prompt_id']
  assert sentences == [wanted[i] for i in ids]
  assert ((said == tokenizer.end_id).sum(1) == 1).all()


def test_checks_of_prompts():
  """What a judge is to say yes to, in its ids; or nothing."""
  ask = {
    'a red circle': ('is there a red circle ?',),
    'a blue square above a cross': ('is the square above the cross ?',),
    'a red circle and a blue square': (
      'is there a red circle ?', 'is there a blue square ?',
    ),
    'three red circles': (),
    'a circle': (),
  }  # fmt: skip
  for text, asked in ask.items():
    found = questions.checks(grammar.parse(text))
    if 'above' in text:  # colours of a relation are not asked by the grammar
      assert found[-1] == asked[0]
    else:
      assert found == asked
  source = prompts.shapes('rl')
  reader = pipeline.Reader(
    tokenizers.shapes_language(), 12, dict(caption='{prompt}')
  )
  batches = pipeline.prompt_batches(
    source, 24, 0, tokenizers.shapes_words(), 16, balance=True, reader=reader
  )
  for _ in range(2):
    found, texts = next(batches)
    checks, captions = found['info']['checks'], found['info']['caption']
    assert checks.shape == (24, 2, 12) and captions.shape == (24, 12)
    assert reader.tokenizer.decode(captions) == [
      ' '.join(text.replace('"', ' " ').lower().split()) for text in texts
    ]
    for row, text in zip(checks, texts, strict=True):
      wanted = questions.checks(grammar.parse(text))
      assert tuple(reader.tokenizer.decode(row))[: len(wanted)] == wanted
      assert not row[len(wanted) :].any()


def test_answers_that_do_not_fit():
  with pytest.raises(ValueError, match='data.answer_length is 0'):
    batch(length=0)
  with pytest.raises(build.ConfigError, match='world_words with end=True'):
    pictures.answers(None)
  rows = rollout.make_rows(
    dict(tokens=np.zeros((1, 2), np.int32), prompt_id=np.zeros(1, np.int32),
         info={}),
    1, jax.random.key(0), jnp.int32(0),
  )  # fmt: skip
  with pytest.raises(build.ConfigError, match='source with answers'):
    pictures.answers(5)(rows)
