"""Name lookup, its error sentences, and comparing configs."""

import os
import pathlib
import subprocess
import sys
import textwrap
import types

import ml_collections
import pytest

from gen_rl import build


def module_of(source, name='toolbox'):
  module = types.ModuleType(name)
  exec(textwrap.dedent(source), module.__dict__)
  return module


TOOLBOX = module_of("""
  from math import hypot
  def clipped(model, clip=0.2, *, norm: bool = False):
    return ('clipped', model, clip, norm)
  def kl(ref, weight=1.0):
    return ('kl', ref, weight)
  def plain():
    return 'plain'
  def anything(**kw):
    return kw
  def _hidden():
    pass
  class Thing:
    pass
""")


@pytest.fixture
def package(tmp_path, monkeypatch):
  root = tmp_path / 'tool_package'
  root.mkdir()
  (root / '__init__.py').write_text('def top(): return "top"\n')
  (root / 'a.py').write_text('def one(x=1): return x\ndef both(): return "a"\n')
  (root / 'b.py').write_text('def both(): return "b"\ndef _no(): pass\n')
  (root / 'c.py').write_text(
    '__all__ = ("three",)\ndef three(): pass\ndef helper(): pass\n'
  )
  (root / 'heavy.py').write_text('raise ImportError\ndef four(): pass\n')
  monkeypatch.syspath_prepend(tmp_path)
  import tool_package

  yield tool_package
  for name in [n for n in sys.modules if n.startswith('tool_package')]:
    del sys.modules[name]


def test_a_package_says_what_its_functions_return(package, tmp_path):
  (tmp_path / 'tool_package' / 'd.py').write_text(
    'def real() -> Thing: pass\ndef helper() -> int: pass\ndef bare(): pass\n'
  )
  package.BUILDS = ('Thing',)
  assert build.names(package) == ['real', 'top']
  with pytest.raises(build.ConfigError, match=r'def bare\(...\) -> Thing:'):
    build.build(package, 'bare')
  with pytest.raises(build.ConfigError, match="no 'nothing'"):
    build.build(package, 'nothing')


def test_spec_and_bound_arguments_meet_in_the_signature():
  assert build.build(
    TOOLBOX, dict(name='clipped', clip=1e-4), model='m', unused=3
  ) == ('clipped', 'm', 1e-4, False)
  spec = ml_collections.ConfigDict(dict(name='clipped', norm=True))
  assert build.build(TOOLBOX, spec, model='m') == ('clipped', 'm', 0.2, True)
  assert spec.name == 'clipped'  # not consumed
  assert build.build(TOOLBOX, 'plain') == 'plain'
  nested = ml_collections.ConfigDict(dict(name='anything', a=dict(b=(1, 2))))
  assert build.build(TOOLBOX, nested) == {'a': {'b': (1, 2)}}


def test_weight_goes_to_those_who_take_it():
  assert build.build(TOOLBOX, dict(name='plain', weight=2.0)) == 'plain'
  assert build.build(TOOLBOX, dict(name='kl', ref='r', weight=2.0)) == (
    'kl',
    'r',
    2.0,
  )


@pytest.mark.parametrize(
  'spec, says',
  [
    (
      dict(name='cliped'),
      "toolbox has no 'cliped' (did you mean 'clipped'?); valid: anything,"
      ' clipped, kl, plain.',
    ),
    (
      dict(name='clipped', clp=1),
      "clipped in toolbox has no key 'clp' (did you mean 'clip'?); valid:"
      ' clip=0.2, norm=False.',
    ),
    (
      dict(name='clipped', model=1),
      "clipped in toolbox has no key 'model'; valid: clip=0.2, norm=False.",
    ),
    (
      dict(name='kl'),
      "kl in toolbox needs 'ref'; valid: ref (required), weight=1.0.",
    ),
    (
      dict(name='plain', x=1),
      "plain in toolbox has no key 'x'; valid: (none).",
    ),
    (
      dict(clip=1),
      "A spec for toolbox needs a name, got {'clip': 1}; valid: any",
    ),
    (dict(name='hypot'), "toolbox has no 'hypot'"),
    (dict(name='_hidden'), "toolbox has no '_hidden'"),
    (dict(name='Thing'), "toolbox has no 'Thing'"),
  ],
)
def test_mistakes_are_one_sentence(spec, says):
  with pytest.raises(build.ConfigError) as error:
    build.build(TOOLBOX, spec, model='m')
  assert str(error.value).startswith(says)
  assert isinstance(error.value, ValueError)


def test_errors_of_the_function_itself_pass_through():
  module = module_of('def f(x): return 1 / x')
  with pytest.raises(ZeroDivisionError):
    build.build(module, dict(name='f', x=0))


def test_build_all():
  specs = ml_collections.ConfigDict(
    dict(
      a=dict(name='clipped', weight=0.5),
      b=dict(name='kl', ref='r', weight=0.0),
      c=dict(name='plain'),
    )
  )
  built = build.build_all(TOOLBOX, specs, model='m')
  assert built == {'a': ('clipped', 'm', 0.2, False), 'c': 'plain'}
  assert [build.weight(s) for s in specs.values()] == [0.5, 0.0, 1.0]
  assert list(build.build_all(TOOLBOX, specs, False, model='m')) == [*'abc']
  with pytest.raises(build.ConfigError, match='^c: plain in toolbox has no'):
    build.build_all(TOOLBOX, dict(c=dict(name='plain', z=1)))


def test_packages_are_searched_without_importing_them(package):
  assert build.build(package, 'top') == 'top'
  assert build.build(package, dict(name='one', x=5)) == 5
  assert 'tool_package.b' not in sys.modules
  assert build.names(package) == ['both', 'four', 'one', 'three', 'top']
  assert 'tool_package.b' not in sys.modules
  with pytest.raises(build.ConfigError, match='write a.both or b.both'):
    build.build(package, 'both')
  assert build.build(package, 'b.both') == 'b'
  with pytest.raises(build.ConfigError, match="no 'helper'"):
    build.build(package, 'helper')


def test_diff_names_fields():
  a = ml_collections.ConfigDict(
    dict(
      lr=1e-4,
      betas=(0.9, 0.99),
      on=True,
      nan=float('nan'),
      pg=dict(clip=0.2),
      gone=1,
      empty={},
    )
  )
  b = dict(
    lr=2e-4,
    betas=[0.9, 0.99],
    on=1,
    nan=float('nan'),
    pg=dict(clip=0.2, norm='x'),
  )
  assert build.diff(a, b) == [
    'gone: 1 -> (absent)',
    'lr: 0.0001 -> 0.0002',
    'on: True -> 1',
    "pg.norm: (absent) -> 'x'",
  ]
  assert build.diff(a, a) == []


def test_names_are_found_in_any_locale():
  """Sources hold letters that ASCII has not."""
  program = (
    'from gen_rl import build\n'
    'from gen_rl.data import tokenizers\n'
    'assert build.names(tokenizers)\n'
  )
  ascii_only = dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
  subprocess.run(
    [sys.executable, '-c', program], check=True, env=os.environ | ascii_only,
    cwd=pathlib.Path(__file__).parents[1],
  )  # fmt: skip
