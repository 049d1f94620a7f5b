"""What setup.py declares, what the code imports, what the README promises."""

import ast
import graphlib
import importlib
from importlib import metadata
import pathlib
import pkgutil
import re
import runpy
import subprocess
import sys
from unittest import mock

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import setuptools

import configs
import gen_rl
from gen_rl import build, types

_ROOT = pathlib.Path(__file__).parent.parent

_OURS = {'gen_rl', 'configs', 'experiments'}
# Import name -> distribution, where they differ.
_DISTRIBUTION = {
  'PIL': 'pillow',
  'absl': 'absl-py',
  'orbax': 'orbax-checkpoint',
  'rapidocr_onnxruntime': 'rapidocr-onnxruntime',
  'skimage': 'scikit-image',
  'sklearn': 'scikit-learn',
  'tensorflow_datasets': 'tensorflow-datasets',
  'yaml': 'PyYAML',
}
# Imported where it is asked for; a sentence says so where it is missing.
_OPTIONAL = {'libtpu', 'rapidocr-onnxruntime', 'scikit-learn'}
# Needed, but by our dependencies: nothing of ours imports them.
_INDIRECT = {
  'tensorflow': 'clu imports it; the build for machines other than x86 Linux',
  'tensorflow-cpu': 'clu imports it',
  'tensorboard': 'a person starts it',
  'array_record': 'tensorflow-datasets and grain import it',
  'importlib_resources': 'tensorflow-datasets imports it, undeclared',
}


def _setup_arguments():
  """The keyword arguments setup.py calls setuptools.setup with."""
  with (
    pytest.MonkeyPatch.context() as patch,
    mock.patch.object(setuptools, 'setup') as setup,
  ):
    patch.chdir(_ROOT)
    runpy.run_path(str(_ROOT / 'setup.py'))
  return setup.call_args.kwargs


def _names(requirements):
  return {re.match(r'[\w-]+', requirement)[0] for requirement in requirements}


def _imported(*folders):
  """{distribution: files that import it} of the folders' Python files."""
  found = {}
  for folder in folders:
    for path in sorted((_ROOT / folder).rglob('*.py')):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
          modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
          modules = [node.module] if not node.level else []
        else:
          continue
        for module in modules:
          top = module.split('.')[0]
          if top not in sys.stdlib_module_names | _OURS:
            name = _DISTRIBUTION.get(top, top)
            found.setdefault(name, set()).add(str(path.relative_to(_ROOT)))
  return found


def _modules(package):
  names = (package.__name__,)
  return names + tuple(
    module.name
    for module in pkgutil.walk_packages(
      package.__path__, package.__name__ + '.', onerror=lambda name: None
    )
  )


@pytest.mark.parametrize('name', _modules(gen_rl) + _modules(configs))
def test_every_module_imports(name):
  importlib.import_module(name)


def test_imports_are_declared():
  declared = _names(_setup_arguments()['install_requires'])
  undeclared = {
    name: sorted(files)
    for name, files in _imported('gen_rl', 'configs').items()
    if name not in declared | _OPTIONAL
  }
  assert not undeclared
  test = _setup_arguments()['extras_require']['test']
  assert any(requirement.startswith('jax[tpu]') for requirement in test)
  assert _names(test) | {'libtpu'} >= _OPTIONAL


def test_test_imports_are_declared():
  arguments = _setup_arguments()
  declared = _names(arguments['install_requires'])
  declared |= _names(arguments['extras_require']['test'])
  undeclared = {
    name: sorted(files)
    for name, files in _imported('tests').items()
    # tool_package is written by the test that imports it.
    if name not in declared | {'setuptools', 'tool_package'}
  }
  assert not undeclared


@pytest.mark.skipif(
  not (_ROOT / 'gen_rl/main.py').exists(), reason='the package is not whole'
)
def test_declared_is_imported():
  declared = _names(_setup_arguments()['install_requires'])
  used = set(_imported('gen_rl', 'configs')) | set(_INDIRECT)
  assert not declared - used


def test_no_package_is_above_and_below_another():
  """What imports what within gen_rl, by package or module, has no circle."""
  below = {}
  for path in sorted((_ROOT / 'gen_rl').rglob('*.py')):
    own = path.relative_to(_ROOT / 'gen_rl').with_suffix('').parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.ImportFrom) or node.level:
        continue
      top, _, inner = node.module.partition('.')
      names = [inner] if inner else [alias.name for alias in node.names]
      for name in names if top == 'gen_rl' else ():
        below.setdefault(own, set()).add(name.split('.')[0])
  for own, found in below.items():
    found.discard(own)
  assert list(graphlib.TopologicalSorter(below).static_order())


def test_every_dependency_has_a_reason():
  for line in (_ROOT / 'setup.py').read_text().splitlines():
    if re.match(r"  f?'[\w-]+>=", line):
      assert re.search(r',  # \w', line), line


def test_extras():
  assert set(_setup_arguments()['extras_require']) == {
    'test',
    'gpu',
    'tpu',
    'plan',
    'colab',
    'ocr',
    'parity',
  }


def test_packages_and_data_are_all_installed():
  """A folder without __init__.py would be missing from an install."""
  packages = set(_setup_arguments()['packages'])
  for folder in ('gen_rl', 'configs'):
    for path in (_ROOT / folder).rglob('*.py'):
      assert '.'.join(path.parent.relative_to(_ROOT).parts) in packages, path
  assert not any(name.startswith('tests') for name in packages)
  data = _setup_arguments()['package_data']
  for path in (_ROOT / 'gen_rl').rglob('*'):
    inside = path.relative_to(_ROOT / 'gen_rl')
    if path.is_file() and path.suffix not in ('.py', '.pyc'):
      assert any(inside.match(pattern) for pattern in data['gen_rl']), path


def test_installed_metadata():
  try:
    installed = metadata.metadata('gen_rl')
  except metadata.PackageNotFoundError:
    pytest.skip('run from a checkout that is not installed')
  assert installed['Version'] == _setup_arguments()['version']
  assert installed['Requires-Python'] == '>=3.11'


def test_modules_that_moved_are_found_where_they_were():
  from gen_rl.models import lora, weights
  from gen_rl.models.files import weights as moved_weights
  from gen_rl.models.parts import lora as moved_lora

  assert importlib.import_module('gen_rl.models.lora') is moved_lora is lora
  assert weights.WeightsError is moved_weights.WeightsError


def test_import_is_light():
  """`import gen_rl` and the shared types load none of the heavy packages."""
  heavy = ('tensorflow', 'transformers', 'tensorflow_datasets', 'grain', 'clu')
  code = (
    'import sys, gen_rl, gen_rl.types\n'
    f'print([name for name in {heavy} if name in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == '[]'


def test_shapes_are_checked_while_testing(tmp_path, monkeypatch):
  """The checker of conftest.py checks stated shapes, but not constructors."""
  assert type(types.__loader__).__name__ == '_JaxtypingLoader'
  assert types.Term(value=(4, 2), mask=None).value == (4, 2)

  (tmp_path / 'shaped.py').write_text(
    'import jax\nfrom jaxtyping import Float\n'
    "def add(x: Float[jax.Array, 'b k'], y: Float[jax.Array, 'b k'],\n"
    '        scale: float = 1.0):\n'
    '  return x + scale * y\n'
    'def bare(x: jax.Array): return x\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  with jaxtyping.install_import_hook('shaped', 'gen_rl_checker.check'):
    shaped = importlib.import_module('shaped')
  ones = jnp.ones
  assert shaped.add(ones((3, 2)), ones((3, 2)), 1).shape == (3, 2)
  assert shaped.bare(np.ones(3)).shape == (3,)
  with pytest.raises(jaxtyping.TypeCheckError):
    shaped.add(ones((3, 2)), ones((2, 3)))


@pytest.mark.parametrize(
  'name, ends',
  [
    ('run', '-m gen_rl.main --config=configs/flow_grpo.py'),
    ('test', '-m pytest'),
  ],
)
def test_readme_commands(name, ends):
  readme = (_ROOT / 'README.md').read_text()
  (command,) = re.findall(
    rf'^<!-- command: {name} -->\n```sh\n(.+)\n```$', readme, re.MULTILINE
  )
  venv, install, then = command.split(' && ')
  assert venv == 'python3 -m venv .venv'
  extra = "'.[test]'" if name == 'test' else '.'
  assert install == f'.venv/bin/pip install -e {extra}'
  assert then == f'.venv/bin/python {ends}'


@pytest.mark.parametrize(
  'module',
  [
    'advantages', 'learners', 'measures', 'mixers', 'models', 'objectives',
    'policies', 'ramps', 'rewards', 'searches',
  ],
)  # fmt: skip
def test_parts_say_whether_they_were_measured(module):
  """What no config and no study names is marked, and nothing else."""
  homes = (('configs', '*.py'), ('experiments', '*/*.py'), ('colab', '*.ipynb'))
  used = ''.join(
    path.read_text(encoding='utf-8')
    for folder, files in homes
    for path in sorted((_ROOT / folder).glob(files))
  )
  parts = importlib.import_module(f'gen_rl.{module}')
  for name in build.names(parts):
    said = 'Tested, not measured.' in build.find(parts, name).__doc__
    short = name.rpartition('.')[2]
    named = re.search(rf"""['"\\\\]{short}['"\\\\]""", used)
    assert said == (named is None), f'{module}.{name}'


@pytest.mark.parametrize('command', [['check'], ['format', '--check']])
def test_style(command):
  done = subprocess.run(
    [sys.executable, '-m', 'ruff', *command, '--no-cache', '.'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
