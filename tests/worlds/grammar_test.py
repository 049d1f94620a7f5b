"""The grammar of ShapesWorld: wordings, combinations and splits."""

import collections
import re

import numpy as np
import pytest

from gen_rl.worlds import grammar
from gen_rl.worlds.grammar import Spec


def test_parse_by_hand():
  table = {
    'a circle': Spec(0, (0, -1), count=(1, 0)),
    'A photo of a cross.': Spec(0, (3, -1), count=(1, 0)),
    'a square and a triangle': Spec(1, (1, 2), count=(1, 1)),
    'three crosses': Spec(2, (3, -1), count=(3, 0)),
    'two red circles': Spec(2, (0, -1), (0, -1), (2, 0)),
    'one cyan square': Spec(3, (1, -1), (5, -1), (1, 0)),
    'a circle left of a square': Spec(4, (0, 1), count=(1, 1), relation=0),
    'a circle to the right of a cross': Spec(4, (0, 3), (-1, -1), (1, 1), 1),
    'a circle above a square': Spec(4, (0, 1), count=(1, 1), relation=2),
    'a red circle and a blue square': Spec(5, (0, 1), (0, 2), (1, 1)),
    'an image of the word "owl"': Spec(6, word=3),
    'the word "247" in purple': Spec(6, word=8, word_color=4),
  }
  for text, spec in table.items():
    assert grammar.parse(text) == spec, text


@pytest.mark.parametrize(
  'text',
  [
    '',
    'circle',
    'a hexagon',
    'a red',
    'five circles',
    'three circles and two squares',  # the canvas has four cells
    'the word "xyz"',
    'the word owl',
    'a circle beside a square',
    'a circle, a square',
  ],
)
def test_parse_refuses(text):
  assert grammar.parse(text) is None


def test_wordings_parse_back_to_their_combination():
  for spec in grammar.combinations():
    texts = grammar.wordings(spec)
    assert len(set(texts)) == len(texts)
    for text in texts:
      parsed = grammar.parse(text)
      assert grammar.canonical(parsed) == spec, text
      words = re.findall(r'"|[a-z0-9]+', text)
      assert set(words) <= set(grammar.WORDS), text
      assert len(words) < grammar.MAX_WORDS


def test_mirror_sentences_are_one_combination():
  left = 'a circle left of a square'
  same = [
    (left, 'a square right of a circle'),
    (left, 'a photo of a square to the right of a circle'),
    ('a cross above a square', 'a square below a cross'),
    ('a circle and a square', 'a square and a circle'),
    ('a red circle and a blue cross', 'a blue cross and a red circle'),
  ]
  for a, b in same:
    assert grammar.canonical(grammar.parse(a)) == grammar.canonical(
      grammar.parse(b)
    )
    assert grammar.canonical(grammar.parse(a)) in grammar.combinations()
  other = [
    (left, 'a square left of a circle'),
    (left, 'a circle above a square'),
    ('a red circle and a blue cross', 'a blue circle and a red cross'),
  ]
  for a, b in other:
    assert grammar.canonical(grammar.parse(a)) != grammar.canonical(
      grammar.parse(b)
    )


def test_canonical_is_idempotent():
  for spec in grammar.combinations():
    assert grammar.canonical(spec) == spec


def test_splits_share_no_combination_in_any_wording():
  held = {}
  for prompt in grammar.prompts():
    spec = grammar.canonical(prompt.spec)
    assert grammar.combinations()[spec] == prompt.split
    held.setdefault(spec, set()).add(prompt.text)
  for spec, texts in held.items():
    assert texts == set(grammar.wordings(spec))
  assert held.keys() == grammar.combinations().keys()


def test_number_of_combinations_by_hand():
  # 4 shapes; 6 pairs; 4 shapes x 7 colours x 3 counts; 4 x 6; 6 pairs x 4
  # relations; 12 ordered pairs x 30 ordered colours / 2; 10 words x 7 colours
  count = collections.Counter(spec.task for spec in grammar.combinations())
  assert [count[t] for t in range(7)] == [4, 6, 84, 24, 24, 180, 70]
  for task in range(7):
    splits = collections.Counter(
      split
      for spec, split in grammar.combinations().items()
      if spec.task == task
    )
    assert set(splits) == set(grammar.SPLITS)
    assert splits['train'] == round(0.5 * count[task])


def test_spec_arrays():
  arrays = grammar.spec_arrays(grammar.parse('two red circles'))
  assert all(np.asarray(x).dtype == np.int32 for x in arrays.values())
  assert arrays['include_class'].tolist() == [0, -1]
  assert arrays['include_color'].tolist() == [0, -1]
  assert arrays['include_count'].tolist() == [2, 0]
  assert (arrays['relation'], arrays['word'], arrays['word_color']) == (
    -1, -1, -1,
  )  # fmt: skip
