"""Rules on token ids: tables worked by hand."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import advantages, build, rewards, testing
from gen_rl.build import ConfigError
from gen_rl.data import tokenizers
from gen_rl.rewards import rules
from gen_rl.types import RewardInputs

END, THINK, THOUGHT, BEGIN, CLOSE = 9, 1, 2, 3, 4
BASE = 100  # the id of the number 0


def padded(rows, width, pad=0):
  out = np.full((len(rows), width), pad, np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return jnp.asarray(out)


def scored(spec, rows, answers=None, width=6, **info):
  """(scores, valid, parts) of completions, through jit."""
  reward = build.build(rewards, spec)
  if answers is not None:
    info['answer'] = padded(answers, 4, tokenizers.NONE)
  media = padded(rows, width)
  out = jax.jit(
    lambda media, info: reward.score(
      reward.params, RewardInputs(media, info, 1), jax.random.key(0)
    )
  )(media, info)
  assert out.score.shape == out.valid.shape == (len(rows),)
  assert out.score.dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in out.parts.values())
  return np.asarray(out.score), np.asarray(out.valid), out.parts


def table(spec, cases, **kwargs):
  """Cases: (completion, answer, score)."""
  rows, answers, expected = zip(*cases, strict=True)
  score, valid, parts = scored(spec, rows, answers, **kwargs)
  np.testing.assert_allclose(score, expected, rtol=1e-6)
  assert valid.all()
  return parts


# --- answers


def test_exact_match():
  parts = table(
    dict(name='exact_match', end=END),
    [
      ([5, 6, END], [5, 6], 1),
      ([5, END], [5], 1),
      ([5, 6, END], [5], 0),  # more
      ([5, END], [5, 6], 0),  # less
      ([6, 5, END], [5, 6], 0),
      ([END], [5], 0),  # nothing
      ([5, 6, 7, 8, 5, 6], [5, 6], 0),  # no end
      ([5, 6], [5, 6], 0),  # padding is no end
      ([5, 6, 7, 8, 5, END], [5, 6, 7, 8], 0),
      ([5, 6, 7, 8, END], [5, 6, 7, 8], 1),
      ([5, END, 5, 6], [5], 1),  # what stands behind the end is not read
    ],
  )
  np.testing.assert_array_equal(
    parts['finished'], [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1]
  )


def test_an_answer_longer_than_any_completion():
  table(
    dict(name='exact_match', end=END),
    [([5, 6], [5, 6, 7], 0), ([5, END], [5, 6, 7], 0), ([5, END], [5], 1)],
    width=2,
  )


def test_tagged_answer():
  cases = [
    ([BEGIN, 5, 6, CLOSE, END], [5, 6], 1),
    ([7, BEGIN, 5, CLOSE, 8, END], [5], 1),
    ([BEGIN, 5, CLOSE, 7, 7, 7], [5], 1),  # need not end
    ([BEGIN, 5, CLOSE, END], [5, 6], 0),
    ([BEGIN, 5, 6, CLOSE, END], [5], 0),
    ([BEGIN, CLOSE, 5, END], [5], 0),  # nothing in it
    ([CLOSE, BEGIN, 5, CLOSE, END], [5], 1),
    ([CLOSE, 5, BEGIN, END], [5], 0),
    ([BEGIN, 5, END, CLOSE], [5], 0),  # closed behind the end
    ([BEGIN, 6, CLOSE, BEGIN, 5, CLOSE], [5], 0),  # the first counts
    ([5, END], [5], 0),
  ]
  spec = dict(name='tagged_answer', begin=BEGIN, close=CLOSE, end=END)
  parts = table(spec, cases)
  np.testing.assert_array_equal(
    parts['tagged'], [1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0]
  )
  # CLS-RL compares the whole text where there are no tags
  whole = [(*c[:2], 1 if c[0] == [5, END] else c[2]) for c in cases]
  table({**spec, 'whole': True}, whole)


def test_choices():
  spec = dict(name='choice_accuracy', choices=(20, 21, 22), end=END)
  parts = table(
    spec,
    [
      ([20, END], [20], 1),
      ([7, 8, 21, END], [21], 1),
      ([21, 20, END], [20], 0),  # the first counts
      ([7, 8, END], [20], 0),
      ([END, 20], [20], 0),  # behind the end
    ],
  )
  np.testing.assert_array_equal(parts['named'], [1, 1, 1, 0, 0])
  table(
    {**spec, 'tags': (BEGIN, CLOSE)},
    [
      ([21, BEGIN, 20, CLOSE, END], [20], 1),
      ([21, BEGIN, 20, CLOSE, END], [21], 0),
      ([20, END], [20], 0),
    ],
  )
  # An answer that is no choice, or more than one token.
  _, valid, _ = scored(spec, [[20, END]] * 4, [[20], [7], [20, 21], []])
  np.testing.assert_array_equal(valid, [True, False, False, False])


def number_row(*values):
  return [BASE + v for v in values]


def test_iou():
  # [0 4] x [0 4] and [2 6] x [0 4]: 8 of 24; [1 3] x [1 3] inside: 4 of 16
  spec = dict(name='iou', base=BASE, size=10, end=END)
  box = number_row(0, 0, 4, 4)
  cases = [
    ([*box, END], box, 1),
    ([*number_row(2, 0, 6, 4), END], box, 8 / 24),
    ([*number_row(1, 1, 3, 3), END], box, 4 / 16),
    ([7, *number_row(2, 0), 8, *number_row(6, 4), END], box, 8 / 24),
    ([*number_row(4, 0, 8, 4), END], box, 0),  # side by side
    ([*number_row(5, 5, 6, 6), END], box, 0),
    ([*number_row(4, 4, 0, 0), END], box, 0),  # corners swapped
    ([*number_row(0, 0, 4), END], box, 0),  # three numbers
    ([*box, BASE, END], box, 0),  # five
    ([*number_row(0, 0, 4), BASE + 10, END], box, 0),  # no number
    ([END, *box], box, 0),
  ]
  parts = table(spec, cases, width=8)
  np.testing.assert_array_equal(
    parts['parsed'], [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
  )
  strict = [(row, true, float(score >= 1 / 3)) for row, true, score in cases]
  table({**spec, 'threshold': 1 / 3}, strict, width=8)
  table(
    {**spec, 'tags': (BEGIN, CLOSE)},
    [
      ([*number_row(9), BEGIN, *box, CLOSE, END], box, 1),
      ([*box, END], box, 0),
    ],
    width=8,
  )
  # An answer that is no box.
  answers = [box, number_row(0, 0, 4), number_row(4, 4, 0, 0), []]
  _, valid, _ = scored(spec, [[*box, END]] * 4, answers, width=8)
  np.testing.assert_array_equal(valid, [True, False, False, False])


def test_iou_against_counted_pixels():
  """Boxes of whole numbers on a grid of 10 x 10."""
  rng = np.random.default_rng(0)
  corners = rng.integers(0, 9, (40, 2, 2))  # of both boxes
  sizes = 1 + rng.integers(0, 8, (40, 2, 2)) % (9 - corners)
  boxes = np.concatenate([corners, corners + sizes], -1)
  y, x = np.mgrid[:10, :10]
  covered = (
    (x >= boxes[..., 0, None, None]) & (x < boxes[..., 2, None, None])
    & (y >= boxes[..., 1, None, None]) & (y < boxes[..., 3, None, None])
  )  # fmt: skip
  a, b = covered[:, 0], covered[:, 1]
  expected = (a & b).sum((1, 2)) / (a | b).sum((1, 2))
  rows = [[*number_row(*box), END] for box in boxes[:, 0]]
  answers = [number_row(*box) for box in boxes[:, 1]]
  score, valid, _ = scored(
    dict(name='iou', base=BASE, size=10, end=END), rows, answers
  )
  assert valid.all() and 0 < (expected > 0).sum() < 40
  np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_count_error():
  spec = dict(name='count_error', base=BASE, size=10, end=END)
  parts = table(
    spec,
    [
      ([BASE + 4, END], [BASE + 4], 1),
      ([7, BASE + 3, 8, END], [BASE + 4], 3 / 4),
      ([BASE + 5, END], [BASE + 4], 3 / 4),
      ([BASE + 9, END], [BASE + 4], 0),  # not -1/4
      ([BASE + 1, BASE + 4, END], [BASE + 4], 1 / 4),  # the first counts
      ([BASE, END], [BASE], 1),
      ([BASE + 1, END], [BASE], 0),
      ([7, END], [BASE], 0),  # no number is not the number 0
    ],
  )
  np.testing.assert_array_equal(parts['exact'], [1, 0, 0, 0, 0, 1, 0, 0])
  np.testing.assert_array_equal(parts['parsed'], [1, 1, 1, 1, 1, 1, 1, 0])
  table(
    {**spec, 'tags': (BEGIN, CLOSE)},
    [([BASE, BEGIN, BASE + 2, CLOSE, END], [BASE + 2], 1)],
  )
  _, valid, _ = scored(spec, [[BASE, END]] * 2, [[7], []])
  assert not valid.any()


# --- templates


def test_tag_format():
  spec = dict(name='tag_format', tags=(THINK, THOUGHT, BEGIN, CLOSE), end=END)
  whole = [THINK, 5, 5, THOUGHT, BEGIN, 6, CLOSE, END]
  cases = [
    (whole, 1),
    ([THINK, THOUGHT, BEGIN, CLOSE, END], 1),
    (whole[:-1], 0),  # no end
    ([7, *whole], 0),
    ([*whole[:-1], 7, END], 0),
    ([*whole[:4], 7, *whole[4:]], 0),  # between the pairs
    ([*whole[:4], END], 0),  # a pair is missing
    (whole[4:], 0),
    ([*whole[4:7], *whole[:4], END], 0),  # order
    ([*whole[:4], *whole[:4], *whole[4:]], 0),  # twice
    ([*whole[:7], BEGIN, CLOSE, END], 0),
    ([THINK, 5, BEGIN, THOUGHT, BEGIN, 6, CLOSE, END], 0),  # a tag as text
    ([THINK, 5, THOUGHT, BEGIN, 6, END], 0),  # not closed
    ([END], 0),
  ]
  rows, expected = zip(*cases, strict=True)
  score, valid, _ = scored(spec, rows, width=12)
  np.testing.assert_array_equal(score, expected)
  assert valid.all()
  score, *_ = scored(
    {**spec, 'tags': (BEGIN, CLOSE)}, [whole[4:], whole], width=12
  )
  np.testing.assert_array_equal(score, [1, 0])


def test_an_automaton_of_ones_own():
  """(ab)+ with a in {5, 6} and b = 7."""
  spec = dict(
    name='format_automaton', classes=((5, 6), (7,)), end=END, accept=(2,),
    table=((-1, 1, -1), (-1, -1, 2), (-1, 1, -1)),
  )  # fmt: skip
  cases = [
    ([5, 7, END], 1),
    ([6, 7, 5, 7, END], 1),
    ([5, END], 0),
    ([END], 0),
    ([5, 6, 7, END], 0),
    ([5, 7, 8, END], 0),
    ([7, 5, END], 0),
    ([5, 7, 5, 7, 5, 7], 0),
  ]
  rows, expected = zip(*cases, strict=True)
  score, _, parts = scored(spec, rows)
  np.testing.assert_array_equal(score, expected)
  np.testing.assert_array_equal(parts['finished'], [1, 1, 1, 1, 1, 1, 1, 0])


def test_the_automaton_against_a_regular_expression():
  """All rows of up to six of the four tags and a word: 19,531."""
  alphabet = (THINK, THOUGHT, BEGIN, CLOSE, 5)
  rows = [
    [*row, END]
    for n in range(7)
    for row in itertools.product(alphabet, repeat=n)
  ]
  text = [''.join(map(str, row)) for row in rows]
  expected = [bool(re.fullmatch('15*235*49', t)) for t in text]
  assert sum(expected) == 6  # 0, 1 or 2 words in two places
  spec = dict(name='tag_format', tags=alphabet[:4], end=END)
  score, *_ = scored(spec, rows, width=7)
  np.testing.assert_array_equal(score, expected)
  # other ids are text to a shorter template, however they look
  expected = [bool(re.fullmatch('3[125]*49', t)) for t in text]
  score, *_ = scored(spec | dict(tags=(BEGIN, CLOSE)), rows, width=7)
  np.testing.assert_array_equal(score, expected)
  assert sum(expected) == 1 + 3 + 9 + 27 + 81


# --- what cannot be scored, and what cannot be


def test_rows_without_an_answer_are_not_valid():
  for spec in (
    dict(name='exact_match', end=END),
    dict(name='tagged_answer', begin=BEGIN, close=CLOSE, end=END),
  ):
    _, valid, _ = scored(spec, [[END], [5, END], [5, END]], [[], [5], [5, END]])
    # an answer with the end token in it could never be given
    np.testing.assert_array_equal(valid, [False, True, False])


@pytest.mark.parametrize('pad', [0, 7, END, 151643])
def test_ids_of_padding_are_what_the_tokenizer_says(pad):
  """Id 0 is "!", and padding may be the end token, or have been said."""
  yes, bang = 5, 0
  ids = {'yes': yes, '!': bang}
  encode = lambda texts, length, truncate=False: tokenizers.padded(
    texts, [[ids[w] for w in t.split()] for t in texts], length, pad, truncate
  )
  vocabulary = tokenizers.Tokenizer(
    encode, None, lambda t: 0, 9, pad, -1, None, END
  )
  texts = ['yes !', 'yes'] if pad else ['yes', 'yes']
  answer = jnp.asarray(tokenizers.encode_answers(vocabulary, texts, 3))
  said = [[yes, bang, END], [yes, END]] if pad else [[yes, END]] * 2
  wrong = [[yes, pad, END], [yes, END]] if pad == 7 else said
  for rows, right in ((said, [1, 1]), (wrong, [int(wrong is said), 1])):
    inputs = RewardInputs(padded(rows, 6, pad), dict(answer=answer), 1)
    exact = rules.exact_match(END)
    out = exact.score((), inputs, None)
    assert out.score.tolist() == right and out.valid.all()
  tagged = rules.tagged_answer(BEGIN, CLOSE, END)
  rows = [[8, bang, BEGIN, *row[:-1], CLOSE, END] for row in said]
  inputs = RewardInputs(padded(rows, 9, pad), dict(answer=answer), 1)
  assert tagged.score((), inputs, None).score.tolist() == [1, 1]


def test_a_missing_answer_is_named():
  for spec in (
    dict(name='exact_match', end=END),
    dict(name='iou', base=BASE, size=4, end=END),
    dict(name='choice_accuracy', choices=(5,), end=END),
  ):
    with pytest.raises(ConfigError, match=r"info\['answer'\].*they have color"):
      scored(spec, [[5, END]], color=jnp.zeros(1))
  with pytest.raises(ConfigError, match=r'token ids \[b a\]'):
    scored(
      dict(name='exact_match', end=END), [[5, END]], answer=jnp.zeros((1, 2))
    )


def test_pictures_are_no_tokens():
  reward = rules.exact_match(END)
  with pytest.raises(ConfigError, match=r'float32 of shape \(2, 4, 4, 3\)'):
    reward.score((), RewardInputs(jnp.zeros((2, 4, 4, 3)), {}, 1), None)


@pytest.mark.parametrize(
  'spec, match',
  [
    (dict(name='exact_match', end=-1), 'from 0 on'),
    (dict(name='exact_match', end=1.5), 'a whole number'),
    (dict(name='tagged_answer', begin=3, close=3, end=9), 'id of its own'),
    (dict(name='choice_accuracy', choices=(5, 9), end=9), 'id of its own'),
    (
      dict(name='choice_accuracy', choices=(5,), end=9, tags=(1,)),
      'begin, close',
    ),
    (dict(name='iou', base=5, size=10, end=9), 'id 9 is a number'),
    (dict(name='iou', base=5, size=0, end=9), 'at least 1'),
    (dict(name='iou', base=5, size=3, end=9, threshold=50), 'between 0 and 1'),
    (dict(name='count_error', base=-1, size=4, end=9), 'from 0 on'),
    (dict(name='tag_format', tags=(1, 2, 3), end=9), 'pairs'),
    (dict(name='tag_format', tags=(1, 9), end=9), 'id of its own'),
    (
      dict(name='format_automaton', classes=((1,),), table=((0,),), accept=(0,),
           end=9),
      r'rows of \[1\] columns; 1 classes .* make 2',
    ),
    (
      dict(name='format_automaton', classes=((1,),), table=((0, 1),),
           accept=(0,), end=9),
      r'states are 0 \.\. 0 .* moves to \[0, 1\]',
    ),
  ],
)  # fmt: skip
def test_what_cannot_be_is_refused(spec, match):
  with pytest.raises(ConfigError, match=match):
    build.build(rewards, spec)


def test_a_rule_in_a_step():
  """Ids come from the tokenizer; scores go where any reward's go."""
  words = tokenizers.shapes_words()
  red, square = (int(words.encode([w], 1)[0, 0]) for w in ('red', 'square'))
  spec = dict(name='exact_match', end=words.size)
  score, *_ = scored(
    spec, [[red, words.size], [square, words.size]], [[red]] * 2
  )
  adv, *_ = testing.advantages_of(advantages.dr_grpo(2), score)
  np.testing.assert_array_equal(adv, [0.5, -0.5])
