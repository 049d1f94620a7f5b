"""The overview of all studies, and how lines of code are counted."""

import re
import textwrap

import pytest

from experiments import overview, rows, study, tables


def test_lines_of_code(tmp_path):
  (tmp_path / 'a.py').write_text(
    textwrap.dedent("""\
    import functools

    @functools.cache
    def one(x):
      '''Doc.'''

      return x  # comment

    def two(x): return x
    """)
  )
  assert overview.lines_of('a.py', tmp_path) == 5
  assert overview.lines_of('a.py:one', tmp_path) == 3
  assert overview.lines_of('a.py:two', tmp_path) == 1
  with pytest.raises(ValueError, match="no 'three'; it has one, two"):
    overview.lines_of('a.py:three', tmp_path)


def test_claims(tmp_path):
  for seed, strict in (('0', 0.6), ('1', 0.8)):
    row = dict(arm='a', seed=seed, base_strict=0.5, strict=strict)
    rows.append(tmp_path, row)
  demo = study.Study(
    file=str(tmp_path / 'run.py'),
    title='Demo',
    arms={'a': study.Arm('c', ''), 'b': study.Arm('c', '')},
    claims=[
      study.Claim('it learns', 'gold', 'a.base_strict', 'a.strict', 'holds'),
      study.Claim('b is better', 'gold', 'a.strict', 'b.strict'),
    ],
  )
  assert overview.claims({'demo': demo}).splitlines()[2:] == [
    '| [demo](demo) | it learns | gold | 0.500, a base | '
    '0.700 (0.600 to 0.800), a | 2 | holds |',
    '| [demo](demo) | b is better | gold | 0.700 (0.600 to 0.800), a | '
    '–, b | 2 and 0 | not measured |',
  ]


def test_the_studies_of_this_repository():
  found = overview.studies()
  assert found['flow_grpo'].arms['main'].config == 'configs/flow_grpo.py'
  for name, each in found.items():
    study.check(each)
    for arm in each.arms.values():
      assert (study.ROOT / arm.config.partition(':')[0]).is_file(), name
    readme = (each.folder / 'README.md').read_text()
    assert '<!-- arms -->' in readme, name
    now = tables.report(each, rows.read(each.folder))
    assert tables.fill(readme, now) == readme, f'{name}: run.py --report'
  readme = (study.ROOT / 'experiments' / 'README.md').read_text()
  assert tables.fill(readme, overview.tables_of(found)) == readme, 'overview.py'
  table = overview.claims(found)
  assert '[flow_grpo](flow_grpo)' in table and '| holds |' in table
  assert '**median**' in overview.code(found)


def test_the_loop_and_the_step_know_no_method():
  names = {'grpo', 'dpo', 'ppo'}
  for each in overview.studies().values():
    for methods in each.code:
      names |= {name.lower() for name in re.split('[, -]+', methods)}
  # Said of other things.
  names -= {'flow', 'diffusion', 'adv', 'pref', 'tp', 'rl'}
  assert {'ddpo', 'alignprop', 'draft', 'rebel', 'tpo'} <= names
  for file in ('train.py', 'train_step.py'):
    text = (study.ROOT / 'gen_rl' / file).read_text().lower()
    found = {n for n in names if re.search(rf'\b{n}\b', text.replace('_', ' '))}
    assert not found, file
