"""Questions about classes: answerable, cut in halves, in known words."""

import collections

import numpy as np
import pytest

from gen_rl import build, worlds
from gen_rl.data import tokenizers
from gen_rl.worlds import classes, grammar

COUNTS = dict(things=16, numbers=12, words=10)


def named(name):
  """What a name says, by the grammar: 'red circle', 'two circles', 'cat'."""
  spec = grammar.parse(f'a {name}') or grammar.parse(name)
  return spec or grammar.parse(f'the word "{name}"')


def test_every_class_is_in_one_half_and_named_by_its_scene():
  found = collections.defaultdict(set)
  for question in classes.questions():
    if not question.lesson:
      found[question.kind, question.split].add(question.answer)
      assert named(question.answer) == question.scene
  for kind, count in COUNTS.items():
    base, new = found[kind, 'base'], found[kind, 'new']
    assert len(base) == len(new) == count // 2 and not base & new


@pytest.mark.parametrize('think', [False, True])
def test_a_list_has_all_names_of_a_half_in_one_order(think):
  asked = collections.defaultdict(set)
  for question in classes.questions():
    if not question.lesson and question.think == think:
      asked[question.kind, question.split].add(question.text)
      names = question.text.removeprefix('which of ').partition(' ?')[0]
      names = names.split(' , ')
      assert question.answer in names and len(set(names)) == len(names)
      assert len(names) == COUNTS[question.kind] // 2
      assert question.text.endswith('think .') == think
  assert len(asked) == 6 and all(len(texts) == 1 for texts in asked.values())


def test_completions_say_what_is_seen_and_then_the_name():
  for question in classes.questions():
    if not question.lesson:
      continue
    if question.kind == 'captions':
      assert grammar.parse(question.answer) == question.scene
      continue
    thought, _, answer = question.answer.rpartition('} ')
    if question.think:
      assert grammar.parse(thought.removeprefix('{ ').strip()) == question.scene
      answer = answer.removeprefix('[ ').removesuffix(' ]')
    assert named(answer) == question.scene
    names = question.text.removeprefix('which of ').partition(' ?')[0]
    assert answer in names.split(' , ')


def test_words_and_lengths():
  asked = build.build(worlds, dict(name='shapes_classes', think=True))
  tokenizer = tokenizers.world_words('shapes_classes', end=True)
  lessons = build.build(worlds, 'shapes_lessons')
  assert lessons.words == asked.words
  sentences = asked.sentences() + lessons.sentences()
  texts = [s.text for s in sentences]
  assert not tokenizer.unknown(texts + [s.answer for s in sentences])
  longest = [
    max(np.count_nonzero(tokenizer.encode(column, 64), axis=1))
    for column in (texts, [s.answer for s in sentences])
  ]
  assert longest[0] == classes.MAX_QUESTION
  assert longest[1] <= classes.MAX_ANSWER
  ids = [s.prompt_id for s in sentences]
  assert len(set(ids)) == len(ids)


def test_a_scene_has_one_id_with_and_without_a_thought():
  ids = [
    {s.answer: s.prompt_id for s in world.sentences() if s.split == 'base'}
    for think in (False, True)
    for world in [build.build(worlds, dict(name='shapes_classes', think=think))]
  ]
  assert ids[0] == ids[1] and len(ids[0]) == 19
