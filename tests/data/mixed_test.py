"""Mixtures of sources: what is drawn, what rows lack, what does not fit."""

import collections
import json

import numpy as np
import pytest

from gen_rl import build
from gen_rl.data import pipeline, prompts, tokenizers


def write(path, lines):
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


@pytest.fixture
def files(tmp_path):
  rows = [dict(prompt=f'red {i}', n=i, note=f'r{i}') for i in range(5)]
  return dict(
    words=dict(
      name='txt',
      path=write(tmp_path / 'a.txt', (f'word {i}' for i in range(9))),
    ),
    numbers=dict(
      name='metadata_jsonl',
      path=write(tmp_path / 'b.jsonl', map(json.dumps, rows)),
    ),
    shapes=dict(name='shapes', split='heldout'),
  )  # fmt: skip


def make(files, **weights):
  spec = {k: {**files[k], 'weight': w} for k, w in weights.items()}
  return build.build(prompts, dict(name='mixed', of=spec))


def test_columns_and_ids(files):
  source = make(files, words=3.0, numbers=1.0)
  assert len(source) == 14 and len(set(source.ids.tolist())) == 14
  assert source.tasks == ('words',) * 9 + ('numbers',) * 5
  assert source.extra['n'] == [None] * 9 + [*range(5)]
  assert source.extra['note'] == [None] * 9 + [f'r{i}' for i in range(5)]
  record = source.by_id(int(source.ids[11]))
  assert record['text'] == 'red 2' and record['info']['note'] == 'r2'


def test_shares_of_steps(files):
  """3 to 1 of four a step, in every one of them."""
  source = make(files, words=3.0, numbers=1.0)
  tokenizer = build.build(tokenizers, dict(name='shapes_words'))
  batches = pipeline.prompt_batches(source, 4, 0, tokenizer, 4, balance=True)
  for _ in range(5):
    _, texts = next(batches)
    count = collections.Counter(text.split()[0] for text in texts)
    assert count == dict(word=3, red=1)
  state = batches.get_state()
  other = make(files, words=1.0, numbers=1.0)
  changed = pipeline.prompt_batches(other, 4, 0, tokenizer, 4, balance=True)
  with pytest.raises(ValueError, match='weights was'):
    changed.set_state(state)


def test_tasks_of_a_source_keep_their_names(files):
  source = make(files, words=1.0, shapes=1.0, numbers=0.0)
  own = {t for t in source.tasks if t.startswith('shapes/')}
  alone = build.build(prompts, files['shapes'])
  for name, column in alone.info.items():  # 0 where a source has no facts
    np.testing.assert_array_equal(source.info[name][9:], column)
    assert not source.info[name][:9].any()
  assert own and set(source.tasks) == own | {'words'}
  assert sum(source.weights[t] for t in own) == pytest.approx(1.0)
  assert len({source.weights[t] for t in own}) == 1


@pytest.mark.parametrize(
  ('of', 'words'),
  [
    ({}, 'names no source'),
    (dict(a=dict(name='shapes', weight=-1.0)), 'weight of a is -1.0'),
    (dict(a=dict(name='shapes', weight=0.0)), 'no source of `of` has a weight'),
    (dict(a=dict(name='nope')), "a: gen_rl.data.prompts has no 'nope'"),
    (
      dict(a=dict(name='shapes'), b=dict(name='shapes_contrasts')),
      'sources differ in their `wrong` texts: a has none, b has',
    ),
  ],
)
def test_what_does_not_go_together(of, words):
  with pytest.raises(build.ConfigError, match=words):
    build.build(prompts, dict(name='mixed', of=of))
