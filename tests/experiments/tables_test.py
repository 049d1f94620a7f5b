"""Tables of rows whose numbers are worked out by hand."""

import pytest

from experiments import study, tables

ROWS = [
  dict(arm='a', seed='0', base_strict='0.5', strict='0.6', base_diversity='0.2',
       diversity='0.1', kl='', samples='1000', wall_seconds='60', size='1234'),
  dict(arm='a', seed='1', base_strict='0.5', strict='0.8', base_diversity='0.2',
       diversity='0.3', kl='None', samples='1000', wall_seconds='90',
       size='1236', seeds_at_once='1'),
  dict(arm='gone', seed='0', strict='0.1'),
  dict(arm='b', seed='0', base_strict='0.5', strict='0.7', base_diversity='0',
       diversity='0.1', wall_seconds='30.4', size='0.25', seeds_at_once='3',
       base_task='0.25', task='0.5'),
]  # fmt: skip
STUDY = study.Study(
  file='run.py',
  title='Demo',
  arms={
    'a': study.Arm('configs/a.py', 'the first'),
    'b': study.Arm('configs/b.py:x', 'the next', {'lr': 0.1}, after='a'),
    'c': study.Arm('configs/c.py', 'not run yet'),
  },
  columns={'size': 'bytes'},
  by_task='b',
  tasks=('task',),
)


def test_summary():
  lines = tables.summary(STUDY, ROWS).splitlines()
  # Nobody measured a KL or a trained reward.
  assert lines[0] == (
    '| arm | seeds | gold: base | gold: trained | diversity kept | '
    'samples drawn | bytes | wall, s |'
  )
  assert lines[2] == (
    '| a | 2 | 0.500 | 0.700 (0.600 to 0.800) | 1.00 (0.50 to 1.50) | 1,000 '
    '| 1,235 (1,234 to 1,236) | 75 (60 to 90) |'
  )
  assert lines[3] == (
    '| b | 1 | 0.500 | 0.700 | – | – | 0.250 | 30, seeds together |'
  )
  assert len(lines) == 4


def test_arms_and_tasks():
  assert tables.arms(STUDY).splitlines()[3] == (
    '| b | the next; starts from `a` | `configs/b.py:x` with `lr=0.1` |'
  )
  both = dict(steps=6, ema=0.9)
  pair = STUDY._replace(arms={
    'a': study.Arm('configs/a.py', 'one', both, shared='other/a'),
    'b': study.Arm('configs/b.py', 'two', {**both, 'lr': 0.1}),
  })  # fmt: skip
  assert tables.arms(pair).splitlines()[2:] == [
    '| a | one; rows of `other/a` | `configs/a.py` |',
    '| b | two | `configs/b.py` with `lr=0.1` |',
    '',
    'All with `steps=6 ema=0.9`.',
  ]
  assert tables.by_task(STUDY, ROWS).splitlines() == [
    '| b, by task | base | trained |',
    '| --- | --- | --- |',
    '| task | 0.250 | 0.500 |',
  ]
  assert list(tables.report(STUDY, ROWS)) == ['arms', 'summary', 'by_task']
  assert list(tables.report(STUDY, [])) == ['arms']


def test_a_readme_gets_its_tables(tmp_path):
  path = tmp_path / 'README.md'
  tables.fill_file(path, dict(arms='new'))  # none: nothing to do
  assert not path.exists()
  path.write_text('Head\n<!-- arms -->\nold\n<!-- end -->\nWords\n')
  parts = dict(arms='| new |', summary='| not shown |')
  for _ in range(2):
    tables.fill_file(path, parts)
    assert path.read_text() == (
      'Head\n<!-- arms -->\n\n| new |\n\n<!-- end -->\nWords\n'
    )
  with pytest.raises(ValueError, match='arms --> has no <!-- end'):
    tables.fill('<!-- arms -->\n| cut |', parts)
