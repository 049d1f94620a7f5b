import collections
import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest
from scipy import stats

from gen_rl.build import ConfigError
from gen_rl.data import draws, embeddings, pipeline, prompts, tokenizers
from gen_rl.worlds import grammar

TOKENIZER = tokenizers.word_level(grammar.WORDS)
LENGTH = grammar.MAX_WORDS


def _source(sizes):
  """Tasks "t0", "t1", .. of the given sizes; the text is the number."""
  tasks = [f't{i}' for i, n in enumerate(sizes) for _ in range(n)]
  index = np.arange(len(tasks), dtype=np.int32)
  return prompts.Prompts(
    'test', tuple('a' for _ in tasks), index, {'double': 2 * index}, tasks=tasks
  )


def _batches(source, per_step, seed=0, **kwargs):
  return pipeline.prompt_batches(
    source, per_step, seed, TOKENIZER, LENGTH, **kwargs
  )


def _ids(iterator, steps):
  return np.array(
    [b['prompt_id'] for b, _ in itertools.islice(iterator, steps)]
  )


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_is_what_its_prompts_say():
  source = prompts.shapes('rl')
  batch, texts = next(_batches(source, 5))
  assert batch['tokens'].shape == (5, LENGTH)
  assert batch['tokens'].dtype == batch['prompt_id'].dtype == np.int32
  assert batch['info']['include_class'].shape == (5, 2)
  for i, text in enumerate(texts):
    record = source.by_id(batch['prompt_id'][i])
    assert record['text'] == text
    np.testing.assert_array_equal(
      batch['tokens'][i], TOKENIZER.encode([text], LENGTH)[0]
    )
    for name, value in record['info'].items():
      np.testing.assert_array_equal(batch['info'][name][i], value)
  jax.eval_shape(lambda b: b, batch)  # every leaf may enter a jitted step


def test_the_seed_decides():
  source = prompts.shapes('rl')
  a, b, c = (_ids(_batches(source, 8, seed), 20) for seed in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any(1).all()


@pytest.mark.parametrize('balance', [False, True])
@pytest.mark.parametrize('n', [0, 1, 2, 7, 40, 101])
def test_resume_is_bitwise(n, balance):
  def stream():
    return _batches(prompts.shapes('rl'), 12, 3, balance=balance)

  whole = stream()
  for _ in range(n):
    next(whole)
  state = json.loads(json.dumps(whole.get_state()))
  resumed = stream()
  next(resumed)  # whatever was read before is forgotten
  resumed.set_state(state)
  for _ in range(70):  # over the end of the epoch (768 prompts)
    _assert_equal(next(resumed), next(whole))
  assert resumed.get_state() == whole.get_state()


def test_resume_of_the_same_iterator():
  stream = _batches(prompts.shapes('rl'), 4)
  state = stream.get_state()
  before = _ids(stream, 5)
  stream.set_state(state)
  np.testing.assert_array_equal(_ids(stream, 5), before)


@pytest.mark.parametrize(
  'name, change',
  [
    ('prompts_per_step', dict(per_step=6)),
    ('group_size', dict(group_size=2)),
    ('seed', dict(seed=1)),
    ('weights', dict(balance=True)),
    ('source', dict(source=_source([5, 10]))),
  ],
)
def test_resume_of_something_else_names_it(name, change):
  base = dict(source=_source([5, 9]), per_step=4, group_size=4)
  state = _batches(**base).get_state()
  with pytest.raises(ValueError, match=f'{name} was .* and is now') as e:
    _batches(**{**base, **change}).set_state(state)
  assert str(e.value).count(' was ') == 1


@pytest.mark.parametrize('weights', [None, {'t0': 1, 't1': 1, 't2': 1}])
@pytest.mark.parametrize(
  'sizes', [(1, 2, 3), (3, 3, 3), (2, 50, 7), (4, 16, 100)]
)
def test_prompts_of_a_step_are_distinct(sizes, weights):
  total = sum(sizes)
  for per_step in {1, 2, 5, total // 2, total - 1, total}:
    if per_step > total:
      continue
    ids = _ids(_batches(_source(sizes), per_step, weights=weights), 60)
    assert ids.shape == (60, per_step)
    assert all(len(set(row)) == per_step for row in ids)


def test_an_epoch_is_a_permutation():
  ids = _ids(_batches(_source([12]), 4), 9).reshape(3, 12)
  assert all(sorted(epoch) == list(range(12)) for epoch in ids)
  assert (ids[0] != ids[1]).any() and (ids[1] != ids[2]).any()


def test_a_remainder_is_left_out_evenly():
  # 3 of 10 prompts a step: 9 an epoch, one left out at random.
  epochs = _ids(_batches(_source([10]), 3), 3 * 2000).reshape(2000, 9)
  assert all(len(set(epoch)) == 9 for epoch in epochs)
  left_out = 2000 - np.bincount(epochs.ravel(), minlength=10)
  assert stats.chisquare(left_out).pvalue > 1e-3


def test_fewer_prompts_than_asked_for_repeat_evenly():
  for row in _ids(_batches(_source([3]), 8), 20):
    counts = np.bincount(row, minlength=3)
    assert counts.max() - counts.min() <= 1


def test_balance_is_exact_on_average_and_close_in_every_step():
  source, per_step, steps = prompts.shapes('rl'), 16, 500
  tasks = source.tasks
  # single_object has 4 sentences: 16 / 7 = 2.29 of them fit.
  total = collections.Counter()
  stream = _batches(source, per_step, balance=True)
  for batch, _ in itertools.islice(stream, steps):
    names = [grammar.TASKS[t] for t in batch['info']['task']]
    counts = collections.Counter(names)
    assert all(counts[t] in (2, 3) for t in set(tasks))
    total.update(counts)
  # The golden-ratio offsets leave an error of O(log n), not sqrt(n) = 22.
  for task in set(tasks):
    assert abs(total[task] - per_step * steps / 7) < 4


def test_small_tasks_give_their_share_away():
  # 9 over (2, 100, 100): 3 > 2, so 2 and (9 - 2) / 2 = 3.5 each.
  ids = _ids(_batches(_source([2, 100, 100]), 9, balance=True), 400)
  task = np.digitize(ids, [2, 102])
  counts = np.stack([(task == t).sum(1) for t in range(3)], 1)
  assert (counts[:, 0] == 2).all()
  assert set(counts[:, 1]) == set(counts[:, 2]) == {3, 4}
  np.testing.assert_allclose(counts.mean(0), [2, 3.5, 3.5], atol=0.01)


def test_prompts_of_a_task_are_equally_frequent():
  # 7 prompts a step over three tasks: chunks of 3, of which 2 or 3 are used.
  ids = _ids(_batches(_source([7, 11, 13]), 7, balance=True), 3000)
  for low, high in ((0, 7), (7, 18), (18, 31)):
    counts = np.bincount(ids.ravel(), minlength=31)[low:high]
    np.testing.assert_allclose(counts.sum(), 7000, atol=4)
    # Sampling without replacement: less spread than a multinomial.
    assert stats.chisquare(counts).pvalue > 0.5


def test_weights():
  weights = {'t0': 3, 't1': 1, 't2': 0}
  source = _source([50, 50, 50])
  ids = _ids(_batches(source, 2, weights=weights), 400)
  share = [((ids // 50) == t).mean() for t in range(3)]
  np.testing.assert_allclose(share, [0.75, 0.25, 0], atol=0.01)


def test_pictures_and_features_of_some_rows():
  """What they are is what they are among all; no others are read or made."""
  read, made = [], []

  class Pictures:
    def __getitem__(self, rows):
      read.extend(rows.tolist())
      return rows[:, None] * np.ones((1, 3), np.float32)

  def encode(texts):
    made.extend(texts)
    sizes = [[float(text.split()[-1])] for text in texts]
    return dict(size=np.array(sizes, np.float32))

  index = np.arange(20, dtype=np.int32)
  source = prompts.Prompts(
    'test', tuple(f'a {i}' for i in index), index, media=Pictures(),
    wrong=[(f'no {i}',) for i in index],
  )  # fmt: skip
  shapes = dict(size=jax.ShapeDtypeStruct((1,), np.float32))
  embed = embeddings.Embed(encode, shapes, 'test')
  whole, texts = next(_batches(source, 6, embed=embed))
  ids = whole['prompt_id']
  assert sorted(read) == sorted(ids.tolist()) and len(made) == 12
  read.clear(), made.clear()
  held = np.array([1, 4])
  some, same = next(_batches(source, 6, embed=embed, held=held))
  assert same == texts and read == ids[held].tolist()
  assert made == [f'{word} {i}' for word in ('a', 'no') for i in read]
  for find in (
    lambda batch: batch.pop('media'),
    lambda batch: batch['cond'].pop('size'),
    lambda batch: batch['info'].pop('wrong_size'),
  ):
    all_, part = find(whole), find(some)
    assert part.shape == all_.shape and part.dtype == all_.dtype
    for i in held:
      _assert_equal(part[i : i + 1], all_[i : i + 1])
    moved = part.take(np.array([0, 4, 5]))
    _assert_equal(moved[1:2, :1], all_[4:5, :1])
    for lacking in (slice(0, 2), slice(None)):
      with pytest.raises(IndexError, match='are held by this process'):
        part[lacking]
  _assert_equal(some, whole)
  # Of no rows there are shapes alone.
  blank = embeddings.blank(embed)
  none, _ = next(_batches(source, 6, embed=blank, held=np.arange(0)))
  assert none['media'].shape == (6, 3) and none['cond']['size'].shape == (6, 1)


def test_mixed_order_within_a_step():
  # A third of the rows sees every task about equally often.
  stream = _batches(_source([100, 100, 100]), 9, balance=True)
  task = _ids(stream, 500)[:, :3] // 100
  assert stats.chisquare(np.bincount(task.ravel())).pvalue > 1e-3


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(per_step=0), 'must be positive'),
    (dict(per_step=2, seed=-1), 'seed non-negative'),
    (
      dict(per_step=2, weights={'t9': 1}),
      'the task t9; .* has t0, t1. Set weights',
    ),
    (dict(per_step=2, weights={'t0': -1}), 'non-negative'),
    (dict(per_step=2, weights={'t0': 0}), 'not all zero'),
  ],
)
def test_bad_arguments(kwargs, message):
  with pytest.raises(ValueError, match=message) as e:
    _batches(_source([4, 4]), **kwargs)
  assert '\n' not in str(e.value)


def test_balance_needs_tasks():
  source = dataclasses.replace(_source([4]), tasks=())
  with pytest.raises(ValueError, match='no task labels'):
    _batches(source, 1, balance=True)


def test_lines_of_a_file_are_drawn_as_they_stand(tmp_path):
  lines = ['a red circle'] * 30 + ['two squares'] * 10
  (tmp_path / 'p.txt').write_text('\n'.join(lines))
  source = prompts.txt(str(tmp_path / 'p.txt'))
  ids = _ids(_batches(source, 4, balance=True), 100)
  # Ten passes over the file: every line ten times, whatever its task.
  np.testing.assert_array_equal(np.bincount(ids.reshape(-1)), [10] * 40)
  # Weights are of what a person asked for.
  weights = dict(colors=1.0, counting=1.0)
  ids = _ids(_batches(source, 4, balance=True, weights=weights), 100)
  assert (ids.reshape(-1) < 30).mean() == 0.5


def test_long_prompts_fail_at_once_and_may_be_cut(tmp_path):
  (tmp_path / 'p.txt').write_text('a circle\n' + 'red ' * 17)
  source = prompts.txt(str(tmp_path / 'p.txt'))
  with pytest.raises(ValueError, match='17 tokens but the limit is 16'):
    _batches(source, 1)
  assert next(_batches(source, 2, truncate=True))[0]['tokens'].shape == (2, 16)


def test_unknown_words_are_reported_once(tmp_path, monkeypatch):
  (tmp_path / 'p.txt').write_text('a zebra\na blue zebra\na gnu\n')
  source = prompts.txt(str(tmp_path / 'p.txt'))
  messages = []
  monkeypatch.setattr(
    pipeline.logging,
    'warning',
    lambda text, *args: messages.append(text % args),
  )
  stream = _batches(source, 2)
  _ids(stream, 5)
  assert len(messages) == 1
  assert '3 words' in messages[0] and 'zebra (2), gnu (1)' in messages[0]


def test_a_tokenizer_of_other_prompts(tmp_path, caplog):
  source = prompts.Prompts(
    'of zebras', ('gnus graze', 'zebras drink'), np.arange(2, dtype=np.int32)
  )
  with pytest.raises(ConfigError, match='next to none of the words'):
    _batches(source, 1)
  (tmp_path / 'p.txt').write_text('gnus graze\nzebras drink\n')
  _batches(prompts.txt(str(tmp_path / 'p.txt')), 1)
  assert '"unknown", nearly all there are: gnus' in caplog.text


def test_gather_is_plain_indexing():
  source = prompts.shapes('heldout')
  batch, texts = pipeline.gather(source, range(3, 9), TOKENIZER, LENGTH)
  assert texts == list(source.texts[3:9])
  np.testing.assert_array_equal(batch['prompt_id'], source.ids[3:9])


def _with_wrong(count=4):
  """Prompt i has i + 1 false texts, of i red circles."""
  source = _source([count])
  words = itertools.cycle(grammar.COLORS)
  wrong = tuple(
    tuple(f'{next(words)} circle' for _ in range(i + 1)) for i in range(count)
  )
  return dataclasses.replace(source, wrong=wrong)


def _chosen(stream, steps):
  """{prompt: [text of each step]}."""
  out = collections.defaultdict(list)
  for batch, _ in itertools.islice(stream, steps):
    tokens = batch['info']['wrong_tokens']
    for i, row in zip(batch['prompt_id'], tokens, strict=True):
      out[int(i)].append(tuple(row))
  return out


def test_a_step_takes_one_of_the_false_texts():
  source = _with_wrong()
  steps = 200
  one = _chosen(_batches(source, 4), steps)
  for i, texts in enumerate(source.wrong):
    known = set(map(tuple, TOKENIZER.encode(list(texts), LENGTH)))
    counts = collections.Counter(one[i])
    assert set(counts) == known  # all come
    share = np.array(list(counts.values())) / steps
    np.testing.assert_allclose(share, 1 / (i + 1), atol=0.12)
  # A pure function of (seed, step, prompt).
  resumed = _batches(source, 4)
  state = resumed.get_state() | {'next_step': 150}
  resumed.set_state(state)
  again = _chosen(resumed, 50)
  assert all(again[i] == one[i][150:] for i in range(4))
  assert _chosen(_batches(source, 4, seed=1), steps) != one


def test_false_texts_have_features():
  """What a network is given of them is what it is given of prompts."""

  def encode(texts):
    return dict(text=np.array([[len(text), 1.0] for text in texts]))

  shapes = dict(text=jax.ShapeDtypeStruct((2,), np.float32))
  embed = embeddings.cached(embeddings.Encoder(encode, shapes, 'test'))
  batch, _ = next(_batches(_with_wrong(), 4, embed=embed))
  info = batch['info']
  assert {n for n in info if 'wrong' in n} == {'wrong_tokens', 'wrong_text'}
  assert set(batch['cond']) == {'text', 'null_text'}
  np.testing.assert_array_equal(batch['cond']['text'][:, 0], 1)
  for tokens, (size, _) in zip(
    info['wrong_tokens'], info['wrong_text'], strict=True
  ):
    assert size == len(TOKENIZER.decode(tokens[None])[0])


def test_a_false_text_that_is_too_long_fails_at_once():
  source = dataclasses.replace(_source([1]), wrong=(('red ' * 99,),))
  with pytest.raises(ValueError, match='99'):
    _batches(source, 1)


def test_systematic_counts_by_hand():
  # P = 4 over weights (1/2, 1/4, 1/4) are whole numbers: always (2, 1, 1).
  weights = {'t0': 2, 't1': 1, 't2': 1}
  ids = _ids(_batches(_source([9, 9, 9]), 4, weights=weights), 50)
  counts = [[(row // 9 == t).sum() for t in range(3)] for row in ids]
  assert set(map(tuple, counts)) == {(2, 1, 1)}
  assert math.isclose(np.mean(counts), 4 / 3)


@pytest.mark.parametrize('weights', [None, {'t0': 1, 't1': 3}])
def test_what_some_steps_draw(weights):
  """As the batches have it, each once; two of the tasks are drawn from."""
  source = _source([9, 5, 4])
  batches = _ids(_batches(source, 3, weights=weights), 6)
  found = draws.every(source, 3, 0, range(2, 6), weights)
  assert list(found) == list(dict.fromkeys(batches[2:].ravel()))
  # It ends when nothing is left to draw.
  endless = draws.every(source, 3, 0, range(10**12), weights)
  assert sorted(endless) == list(range(14 if weights else 18))
