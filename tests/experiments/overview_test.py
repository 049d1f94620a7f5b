"""The overview of all studies, and how lines of code are counted."""

import re
import textwrap

import pytest

from experiments import overview, rows, study, tables, verdicts


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
    row = dict(arm='a', seed=seed, base_strict=0.4, strict=strict)
    rows.append(tmp_path, row)
  for seed, strict in (('0', 0.65), ('1', 0.8)):
    rows.append(tmp_path, dict(arm='c', seed=seed, strict=strict))
  demo = study.Study(
    file=str(tmp_path / 'run.py'),
    title='Demo',
    arms={name: study.Arm('c', '') for name in 'abc'},
    claims=[
      study.Claim('it learns', 'gold', 'a.base_strict', 'a.strict'),
      study.Claim('b is better', 'gold', 'a.strict', 'b.strict'),
      study.Claim('c is', 'gold', 'a.strict', 'c.strict'),
    ],
  )
  assert overview.claims({'demo': demo}).splitlines()[2:] == [
    # Deviations .1 sqrt(2) of 2 seeds: e = .1, and 0 of the base's equal ones.
    '| [demo](demo) | it learns | gold | 0.400, a base | '
    '0.700 (0.600 to 0.800), a | +0.300 ± 0.200 | 2 | holds |',
    '| [demo](demo) | b is better | gold | 0.700 (0.600 to 0.800), a | '
    '–, b | – | 2 and 0 | not measured |',
    # 2 sqrt(.1^2 + .075^2)
    '| [demo](demo) | c is | gold | 0.700 (0.600 to 0.800), a | '
    '0.725 (0.650 to 0.800), c | +0.025 ± 0.250 | 2 | too few seeds |',
  ]


def test_verdicts():
  one = verdicts.difference([0.5], [0.9])
  assert verdicts.verdict(*one) == 'too few seeds'  # a single seed says nothing
  d, error = verdicts.difference([0.5, 0.5], [0.4, 0.4])
  assert (d, error) == (pytest.approx(-0.1), 0.0)
  assert verdicts.verdict(d, error) == 'does not hold here'
  assert verdicts.verdict(d, 0.05, margin=0.1 - 0.04) == 'too few seeds'
  assert verdicts.verdict(d, 0.05, margin=0.16) == 'holds'


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
