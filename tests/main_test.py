"""The command line, and what it says when a person gets something wrong."""

import errno
import os
import pathlib
import subprocess
import sys

from absl import flags
import jax
import numpy as np
import pytest

from configs import flow_grpo
from gen_rl import (
  arguments,
  assemble,
  build,
  checkpoint,
  initial,
  main,
  sharding,
  train,
  train_step,
)
from gen_rl.types import Reward

ROOT = pathlib.Path(main.__file__).parents[1]


def run(*args, cwd, **env):
  """(exit code, stdout, stderr) of the command, run from a folder."""
  env = {**os.environ, 'PYTHONPATH': str(ROOT), **env}
  done = subprocess.run(
    [sys.executable, '-m', 'gen_rl.main', *args],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  'args, words',
  [
    ([], ['--config', 'flow_grpo', 'pretrain_shapes']),
    (['--config=nope'], ["'nope'", 'flow_grpo', 'pretrain_shapes']),
    (['--config=flow_grpo:nope'], ["'nope'", 'fast', 'tiny']),
    (['--config=flow_grpo', '--wrkdir=x'], ['wrkdir', 'workdir']),
    (['--config=flow_grpo', 'train'], ['unexpected', 'train']),
    (['--config=flow_grpo', '--config.steps=abc'], ['config.steps', 'abc']),
    (['--config=flow_grpo', '--mode=sample'], ['--prompt']),
    (['--config=flow_grpo', '--step=1'], ['--step=1', '--mode=train']),
    (['--config=flow_grpo', '--workdir=~/x'], ['~/x', 'write the folder, /']),
    (
      ['--config=flow_grpo', '--config.objective.pg.clpi=1'],
      ["'clpi'", "did you mean 'clip'", 'weight'],
    ),
  ],
)
def test_a_mistake_is_one_sentence(args, words, tmp_path):
  code, out, error = run(*args, cwd=tmp_path)
  assert code == 2
  assert out == ''
  assert error.startswith('gen_rl: ') and error.count('\n') == 1
  assert all(word in error for word in words)


def test_traceback_on_request_and_for_bugs(tmp_path):
  code, _, error = run('--config=nope', cwd=tmp_path, GEN_RL_TRACEBACK='1')
  assert code == 2 and 'Traceback' in error and 'gen_rl: there is' in error
  (tmp_path / 'bug.py').write_text(
    'def get_config(arg=""):\n  return {}["missing"]\n'
  )
  code, _, error = run('--config=bug.py', cwd=tmp_path)
  assert code == 1 and 'Traceback' in error and 'KeyError' in error


def test_help_needs_no_config(tmp_path):
  _, out, _ = run('--help', cwd=tmp_path)
  assert '--config=configs/flow_grpo.py' in out and '--workdir' in out


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('eval.every', 0, 'at least 1'),
    ('microbatches', 0, 'at least 1'),
    ('rewards.oracle.weight', 0.0, 'no reward with a weight'),
    ('objective.pg.weight', 0.0, 'no term with a weight'),
    ('trainable', '(', 'must be a regular expression'),
  ],
)
def test_runs_that_could_not_train(field, value, words):
  with pytest.raises(build.ConfigError, match=words):
    assemble.setup(_config(**{'objective.kl.weight': 0.0, field: value}))


def _caught(function):
  try:
    function()
  except Exception as error:
    return error
  raise AssertionError('nothing was raised')


def test_sentences_and_bugs():
  def says(function):
    return main.sentence(_caught(function))

  # Raised by our code, whatever the class.
  assert "'nope'" in says(lambda: arguments.find_config('nope'))
  assert 'valid:' in says(lambda: build.find(train_step, 'nope'))
  # Complaints of the system about a file, of absl about flags.
  assert says(lambda: pathlib.Path('/no/such/file').read_text()) == (
    '/no/such/file: No such file or directory'
  )
  full = OSError(errno.ENOSPC, 'No space left on device')  # of a write
  assert 'newest whole checkpoint is kept' in main.sentence(full)
  unknown = flags.UnrecognizedFlagError('x')
  assert main.sentence(unknown) == str(unknown)
  # Raised in our code, but not by it: numpy, Python, a wrong call.
  assert says(lambda: build.weight(dict)) is None
  assert says(lambda: main.sentence()) is None
  assert says(lambda: np.zeros(2) + np.zeros(3)) is None
  assert says(lambda: [][0]) is None


def test_a_value_error_of_numpy_within_our_code_is_a_bug():
  """The same class as a sentence, and its frame is ours, but no `raise`."""
  code = compile('def f(a, b):\n  return a + b\n', 'x.py', 'exec')
  space = {'__name__': 'gen_rl.somewhere'}
  exec(code, space)
  error = _caught(lambda: space['f'](np.zeros(2), np.zeros(3)))
  assert isinstance(error, ValueError) and main.sentence(error) is None


@pytest.fixture
def cache_config():
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_compilation_cache(tmp_path, monkeypatch, capsys, cache_config):
  def used(flag=None):
    main.use_compilation_cache(flag)
    return jax.config.jax_compilation_cache_dir

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'env'))
  assert used() == str(tmp_path / 'env')
  assert used(str(tmp_path / 'flag')) == str(tmp_path / 'flag')
  assert not used('')
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  assert used() == str(tmp_path / 'xdg' / 'gen_rl' / 'xla')
  assert os.path.isdir(used())
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '7')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 7.0)
  used()
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
  assert capsys.readouterr().err == ''
  (tmp_path / 'file').write_text('')
  assert not used(str(tmp_path / 'file' / 'cache'))
  error = capsys.readouterr().err
  assert 'file/cache' in error and error.count('\n') == 1


# What follows is said before anything is compiled.


def _builds(config):
  built = assemble.setup(config)
  return assemble.make_step(config, built, sharding.one_device()), built


def _config(**changes):
  config = flow_grpo.get_config('tiny')
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize(
  'changes, words',
  [
    # 4 prompts x 2 samples: 8 rows
    ({'microbatches': 3}, ['8 rows', 'may be 1, 2, 4, 8']),
    ({'updates': 2, 'microbatches': 3}, ['updates=2', 'may be 1, 2, 4']),
    ({'updates': 3}, ['updates=3', 'must divide 8']),
    ({'rewards.oracle.name': 'nope'}, ["'nope'", 'valid', 'shapes_geneval']),
    ({'objective.pg.name': 'clipped_gp'}, ["did you mean 'clipped_pg'"]),
    ({'advantage.name': 'nope'}, ["'nope'", 'grpo', 'rloo']),
    ({'policy.name': 'nope'}, ["'nope'", 'denoising']),
    ({'model.name': 'nope'}, ["'nope'", 'dit']),
    ({'tokenizer.name': 'nope'}, ["'nope'", 'shapes_words']),
    ({'policy.transition.name': 'nope'}, ["'nope'", 'flow_sde', 'cps']),
    ({'data.prompts.split': 'nope'}, ["'nope'", 'train, rl, heldout']),
  ],
)
def test_names_and_numbers_that_cannot_be(changes, words):
  with pytest.raises(ValueError) as error:
    _builds(_config(**changes))
  assert main.sentence(error.value)
  assert all(word in str(error.value) for word in words)


def test_unknown_key_of_a_named_function():
  config = _config()
  config.rewards.oracle.strict = 1.0
  with pytest.raises(build.ConfigError) as error:
    _builds(config)
  message = str(error.value)
  assert (
    message.startswith('config.rewards.oracle: ')
    and "has no key 'strict'" in message
  )
  assert 'strict_weight=0.5' in message


def test_rows_over_devices():
  assert sharding.rows_error(9, 3) is None
  assert '6 or 9 would' in sharding.rows_error(8, 3)
  assert '3 would' in sharding.rows_error(2, 3)
  assert '4 devices; 8 or 16 would' in sharding.rows_error(12, 4, parts=2)


def _prompts(path, name='txt', **more):
  config = _config()
  config.data.prompts = dict(name=name, path=str(path), **more)
  config.eval.prompts = {}
  return config


def test_a_remote_reward_is_refused_before_anything_is_compiled(tmp_path):
  own = dict(far=(Reward('far', (), None, where='remote'), 1.0))
  with pytest.raises(ValueError, match='where=.remote.*asks a server') as error:
    train.train_and_evaluate(_config(), str(tmp_path / 'run'), own)
  assert main.sentence(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'name, text, words',
  [
    ('txt', None, ['does not exist']),
    ('txt', ' \n\n', ['is empty']),
    ('metadata_jsonl', None, ['does not exist']),
    ('metadata_jsonl', '', ['is empty']),
    (
      'metadata_jsonl',
      '{"prompt": "a cat"}\n\n{"prompt": }\n',
      ['line 3', 'not valid JSON', 'column 12'],
    ),
    ('metadata_jsonl', '{"text": "a cat"}\n', ['line 1', 'no "prompt"']),
  ],
)
def test_prompt_files_name_file_and_line(name, text, words, tmp_path):
  path = tmp_path / 'prompts.file'
  if text is not None:
    path.write_text(text)
  with pytest.raises((ValueError, OSError)) as error:
    assemble.setup(_prompts(path, name))
  message = main.sentence(error.value)
  assert all(word in message for word in (str(path), *words))


def test_oracle_on_prompts_that_say_nothing_about_themselves(tmp_path):
  path = tmp_path / 'prompts.txt'
  path.write_text('a red dragon\n' * 4)
  config = _prompts(path)
  (step, tx, advantage), built = _builds(config)
  key = jax.random.key(0)

  def first_step():
    params = built.policy.init(key)
    state = initial.state(config, built, params, tx, advantage)
    batch = dict(
      tokens=np.zeros((4, config.data.length), np.int32),
      prompt_id=np.arange(4),
      info={},
    )
    return step.train_step(state, batch, key)

  with pytest.raises(build.ConfigError) as error:
    jax.eval_shape(first_step)
  assert 'include_class' in str(error.value)
  assert 'data.prompts.name="world_prompts"' in str(error.value)


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(build.ConfigError) as error:
    train.train_and_evaluate(_config(), str(tmp_path / 'file' / 'run'))
  assert 'file/run' in main.sentence(error.value)


def test_another_config_in_the_same_workdir(tmp_path, monkeypatch):
  config = _config()
  (_, tx, advantage), built = _builds(config)
  shapes = jax.eval_shape(built.policy.init, jax.random.key(0))
  params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  monkeypatch.setattr(initial, 'params', lambda *_: params)
  state = initial.state(config, built, params, tx, advantage)
  manager = checkpoint.open_manager(f'{tmp_path}/checkpoints')
  checkpoint.save(manager, 1, state, config.to_dict(), {})
  checkpoint.close(manager)
  other = _config(**{'policy.noise': 0.25, 'eval.every': 7, 'seed': 3})
  with pytest.raises(build.ConfigError) as error:
    train.train_and_evaluate(other, str(tmp_path))
  message = main.sentence(error.value)
  assert f'policy.noise: {config.policy.noise} -> 0.25' in message
  assert 'seed: 0 -> 3' in message and 'eval' not in message
