"""What a benchmark that was stopped runs next."""

import json

import pytest

from experiments.benchmarks import accelerator
from experiments.benchmarks.accelerator import Arm

KEY = dict(commit='c', device='d', size='full', set='')


def record(task, contestant, end, **other):
  return dict(KEY, task=task, contestant=contestant, end=end) | other


def test_the_most_valuable_arms_come_first():
  assert accelerator.order(('a', 'b'), ('ours', 'tuned', 'eager')) == [
    ('a', 'ours'), ('a', 'tuned'), ('b', 'ours'), ('b', 'tuned'),
    ('a', 'eager'), ('b', 'eager'),
  ]  # fmt: skip
  assert accelerator.order(('a',), ('tuned',)) == [('a', 'tuned')]


def test_what_is_left():
  arms = [Arm(task, name) for name in ('ours', 'tuned') for task in 'abc']
  records = [
    record('a', 'ours', 'stopped'),
    record('b', 'ours', 'done'),
    record('b', 'ours', 'stopped'),
    record('c', 'ours', 'failed'),
    record('a', 'tuned', 'stopped'),
    record('a', 'tuned', 'done'),
    record('b', 'tuned', 'done', commit='before'),
    record('c', 'tuned', 'done', set='microbatches=2'),
  ]

  def left(key):
    return [''.join(arm)[:2] for arm in accelerator.left(arms, records, key)]

  # Fields are ours: PyTorch's c has run. What was stopped comes last.
  assert left(KEY) == ['bt', 'ao']
  assert left(KEY | dict(commit='before')) == ['ao', 'bo', 'co', 'at', 'ct']
  assert left(KEY | dict(device='other')) == [''.join(a)[:2] for a in arms]
  assert left(KEY | dict(set='x=1')) == ['ao', 'bo', 'co', 'bt']


@pytest.mark.parametrize(
  ('seconds', 'again', 'expected'),
  [(500.0, False, 270.0), (100.0, False, 100.0), (500.0, True, 500.0),
   (44.0, False, 0.0), (44.0, True, 0.0)],
)  # fmt: skip
def test_an_arm_gets_what_is_left(seconds, again, expected):
  assert accelerator.limit(seconds, 270.0, 45.0, again) == expected


def test_how_a_process_ended(tmp_path):
  half = json.dumps(dict(each=[1]))
  ended = accelerator.ended
  # Steps that were counted before it was stopped count.
  assert ended(f'noise\n{half}\n', '', -9, True) == dict(
    end='done', found=dict(each=[1])
  )
  assert ended('', '', -9, True)['end'] == 'stopped'
  failed = ended('', 'jax: RESOURCE_EXHAUSTED: no\nlast', 1, False)
  assert failed == dict(end='failed', says='out of memory')
  assert ended('', 'a\nValueError: b\n', 1, False)['says'] == (
    'failed: ValueError: b'
  )
  # A line that was being written when the machine died is left out.
  path = tmp_path / 'results.jsonl'
  assert accelerator.read(path) == []
  path.write_text(f'{half}\n{{"each": [')
  accelerator.append(path, dict(each=[2]))
  assert accelerator.read(path) == [dict(each=[1]), dict(each=[2])]


def test_a_line_of_the_table():
  found = dict(
    each=[dict(whole=s) for s in (3.0, 2.0, 9.0)], makes=24, unit='images',
    operations=6e12, warm=False, planned=3 * 2**30, peak=2**30, bound=1.5,
  )  # fmt: skip
  ours = record('sd3', 'ours', 'done', found=found)
  theirs = dict(found, each=[dict(whole=6.0)], warm=True)
  theirs = record('sd3', 'torch tuned', 'done', found=theirs)
  name = accelerator.LABELS['sd3']
  assert accelerator.row(ours, ours, 4e12) == (
    f'{name}: ours', '8 images', '–', '3.000', '1.500', '2.00', '50%', '1.00',
    '3.00', '3', '–',
  )  # fmt: skip
  assert accelerator.row(theirs, ours, 4e12)[:7] == (
    f'{name}: torch tuned', '4 images', '2.00 x as fast', '6.000', '1.500',
    '1.00', '25%',
  )  # fmt: skip
  gone = record('sd3', 'ours', 'failed', says='out of memory')
  assert accelerator.row(gone, None, None)[1:3] == ('out of memory', '–')
