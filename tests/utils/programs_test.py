import os

import jax
from jax._src import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import testing
from gen_rl.models.files import weights
from gen_rl.utils import compiled, files, origins, programs

INSTALLED = origins._is_installed
LATER = 2**40  # s: a process that began after every file was written


@pytest.fixture(autouse=True)
def checked(monkeypatch):
  """Compiled programs are kept as a run keeps them; tests are installed."""
  name = 'get_file_cache'
  monkeypatch.setattr(compilation_cache, name, compilation_cache.get_file_cache)
  testing.all_installed(monkeypatch)
  compilation_cache.reset_cache()
  compiled.check_entries()
  yield
  compilation_cache.reset_cache()


def double(state, x):
  state = {'w': state['w'] * 2 + x}
  return state, {'sum': state['w'].sum()}


def start(folder, function=double, config=(), reads=None, since=LATER, **about):
  """As a process that starts; the function is traced if nothing is kept."""
  jax.clear_caches()
  kept = programs.Programs(
    folder, dict(config), reads or origins.Reads(), since, [str(folder)]
  )
  function = jax.jit(function, donate_argnums=0)
  return kept.keep('double', function, jax.devices()[0], **about)


def arguments(n=3):
  return {'w': jnp.arange(float(n))}, np.float32([0.5])


def never(state, x):
  raise AssertionError('it is traced')


def test_a_second_start_traces_nothing(tmp_path):
  folder = tmp_path / 'programs'
  first = start(folder, about=lambda traced: len(traced.jaxpr.eqns))
  assert first.entry(*arguments()) is None
  state, out = first(*arguments())
  second = start(folder, never)
  assert second.entry(*arguments())['about'] == 3  # *, + and sum
  given = arguments()
  again, seen = second(*given)
  assert given[0]['w'].is_deleted()  # donated
  np.testing.assert_array_equal(again['w'], state['w'])
  np.testing.assert_array_equal(again['w'], [0.5, 2.5, 4.5])
  assert seen == out == {'sum': 7.5}
  # and on, from what it returned
  assert second(again, arguments()[1])[1] == {'sum': 16.5}
  with pytest.raises(AssertionError, match='it is traced'):
    second(*arguments(4))
  weak = {'w': jnp.full(3, 1.0)}, 0.5
  with pytest.raises(AssertionError, match='it is traced'):
    second(*weak)


@pytest.mark.parametrize('name', ['XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'HF_HOME'])
def test_a_program_of_other_variables_is_another(name, tmp_path, monkeypatch):
  start(tmp_path)(*arguments())
  assert start(tmp_path).entry(*arguments())
  monkeypatch.setenv(name, '--one=2')
  assert start(tmp_path).entry(*arguments()) is None


def test_a_program_of_other_settings_is_another(tmp_path, monkeypatch):
  start(tmp_path, config={'lr': 1.0})(*arguments())
  assert start(tmp_path, config={'lr': 1.0}).entry(*arguments())
  for other in ({'lr': 1}, {'lr': 2.0}, {'lr': 1.0, 'b': (1,)}):
    assert start(tmp_path, config=other).entry(*arguments()) is None
  with jax.default_matmul_precision('highest'):
    jax.config.update('jax_softmax_custom_jvp', True)
    changed = start(tmp_path, config={'lr': 1.0}).entry(*arguments())
    jax.config.update('jax_softmax_custom_jvp', False)
  assert changed is None
  monkeypatch.chdir(tmp_path)  # relative paths mean other files
  assert start(tmp_path, config={'lr': 1.0}).entry(*arguments()) is None


def test_what_does_not_say_what_it_is_is_not_kept(tmp_path):
  start(tmp_path, config={'f': double})(*arguments())
  assert not list(tmp_path.iterdir())


def test_a_program_of_other_sources_is_another(tmp_path, monkeypatch):
  package, folder = tmp_path / 'package', tmp_path / 'programs'
  package.mkdir()
  source = package / 'a.py'
  source.write_text('x = 1')
  monkeypatch.setattr(origins, '_PACKAGE', package)
  start(folder)(*arguments())
  assert start(folder).entry(*arguments())
  source.write_text('x = 2')
  assert start(folder).entry(*arguments()) is None
  source.write_text('x = 1')
  assert start(folder).entry(*arguments())
  (package / 'b.py').write_text('')
  assert start(folder).entry(*arguments()) is None


def _content(path):
  path.write_text('a blue circle')


def _gone(path):
  path.unlink()


def _more(path):
  path.with_name('other.txt').write_text('')


@pytest.mark.parametrize('change', [_content, _gone, _more])
def test_a_program_of_other_prompts_is_another(change, tmp_path):
  folder, prompts = tmp_path / 'programs', tmp_path / 'data' / 'prompts.txt'
  prompts.parent.mkdir()
  prompts.write_text('a red square!')
  with origins.Reads() as reads:
    assert os.listdir(prompts.parent) and prompts.read_text()
  assert str(prompts) in reads.paths
  start(folder, reads=reads)(*arguments())
  assert start(folder).entry(*arguments())
  times = prompts.stat()
  change(prompts)
  if prompts.exists():
    os.utime(prompts, ns=(times.st_atime_ns, times.st_mtime_ns))
  assert start(folder).entry(*arguments()) is None
  # and is kept again
  start(folder, reads=reads)(*arguments())
  assert start(folder).entry(*arguments())


def test_a_start_that_reads_more_is_another(tmp_path):
  folder, prompts = tmp_path / 'programs', tmp_path / 'prompts.txt'
  prompts.write_text('a red square')
  start(folder)(*arguments())
  with origins.Reads() as reads:
    prompts.read_text()
  assert start(folder).entry(*arguments())
  assert start(folder, reads=reads).entry(*arguments()) is None
  start(folder, reads=reads)(*arguments())
  assert start(folder, reads=reads).entry(*arguments())


def test_what_is_not_opened_by_python_is_noted(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  with origins.Reads() as reads:
    (tmp_path / 'written').write_text('')
    origins.note(tmp_path)
  names = {os.path.relpath(path, tmp_path) for path in reads.paths}
  assert names == {'.', 'tokenizer.json', 'written'}
  with origins.Reads() as reads:
    (tmp_path / 'new').write_text('')
  assert not reads.paths


def _calls_python(state, x):
  jax.debug.print('{}', x)
  return double(state, x)


_LARGE = np.zeros(2**19, np.float32)


def _holds_weights(state, x):
  return double(state, x + jax.jit(lambda: jnp.cumsum(_LARGE))()[0])


@pytest.mark.parametrize('function', [_calls_python, _holds_weights])
def test_a_program_that_is_more_is_not_kept(function, tmp_path):
  _, out = start(tmp_path, function)(*arguments())
  assert out == {'sum': 7.5}
  assert not list(tmp_path.iterdir())


def test_weights_are_noted(tmp_path):
  path = tmp_path / 'a.safetensors'
  weights.save(path, {'w': np.zeros(3, np.float32)})
  with origins.Reads() as reads:
    weights.load(path)  # mapped, which Python does not see
  assert str(path) in reads.paths


def test_what_cannot_be_followed_is_not_kept(tmp_path, monkeypatch):
  with origins.Reads() as reads:
    origins.give_up()
  start(tmp_path, reads=reads)(*arguments())
  # a file that was written after the process began
  start(tmp_path, since=0)(*arguments())
  # and this one is no installed module
  monkeypatch.setattr(origins, '_is_installed', INSTALLED)
  start(tmp_path)(*arguments())
  assert not list(tmp_path.iterdir())


def _cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
  data = bytearray(path.read_bytes())
  data[40] ^= 1
  path.write_bytes(data)


def _of_another(path):
  data = path.read_bytes()
  path.write_bytes(b'0' * 32 + data[32:])


@pytest.mark.parametrize(
  'damage', [_cut, _flip, _of_another, lambda path: path.write_bytes(b'')]
)
def test_a_damaged_entry_is_made_anew(damage, tmp_path):
  _, out = start(tmp_path)(*arguments())
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  damage(path)
  second = start(tmp_path)
  assert second.entry(*arguments()) is None
  assert second(*arguments())[1] == out
  assert path.stat().st_size == len(whole)
  assert start(tmp_path, never)(*arguments())[1] == out


def test_without_its_executable_a_program_is_made_anew(tmp_path, monkeypatch):
  _, out = start(tmp_path)(*arguments())
  with monkeypatch.context() as m:
    m.setattr(compiled, 'executable', lambda key, client: b'damaged')
    assert start(tmp_path)(*arguments())[1] == out
    m.setattr(compiled, 'executable', lambda key, client: None)
    assert start(tmp_path)(*arguments())[1] == out


def test_killed_while_writing(tmp_path, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  path = tmp_path / 'a'
  with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
    m.setattr(os, 'replace', killed)
    files.write_bytes(path, b'new')
  assert not list(tmp_path.iterdir())
  files.write_bytes(path, b'new')
  assert path.read_bytes() == b'new'


def test_old_entries_go(tmp_path):
  old, part = tmp_path / 'old.program', tmp_path / '.part-x'
  for path in (old, part):
    path.write_text('')
    os.utime(path, (0, 0))
  start(tmp_path)(*arguments())
  (entry,) = tmp_path.iterdir()
  assert entry not in (old, part)
