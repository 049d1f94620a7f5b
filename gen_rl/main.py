"""Command line: train, evaluate, sample, search, export, or encode prompts.

  python -m gen_rl.main --config=configs/flow_grpo.py
  python -m gen_rl.main --config=flow_grpo:fast --workdir=runs/fast
  python -m gen_rl.main --config=... --workdir=... --mode=eval
  python -m gen_rl.main --config=... --mode=sample --prompt="two red circles"
  python -m gen_rl.main --config=... --mode=search --config.search.name=pruned
  python -m gen_rl.main --config=... --mode=export --config.export=final
  python -m gen_rl.main --config=... --mode=embed

A config is the path of a file or the name of an installed one, with
":variant" if it has any; fields are set with --config.path.to.field=value.
`train` goes on where the newest checkpoint of the workdir stopped.

What a person did wrong ends in one sentence and exit code 2; with
GEN_RL_TRACEBACK=1 in the environment the traceback comes as well. Anything
else is a bug of ours and always shows its traceback.
"""

from collections.abc import Iterator
import contextlib
import dis
import errno
import os
import sys
import tempfile
import time
import types
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import gen_rl
from gen_rl import arguments
from gen_rl.utils import memory, surroundings, terminal

# Before jax is imported: TensorFlow and XLA are not to fill the terminal.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Path or name of a config, with ":variant" if it has any.',
  lock_config=False,  # `arguments` says which fields may be added
  accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for everything written; default runs/<config>.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'sample', 'search', 'export', 'embed'],
  'What to do; search: the evaluation with and without config.search; embed: '
  'fill data.embed.cache.',
)
_PROMPT = flags.DEFINE_string('prompt', None, 'What to sample.')
_NUM = flags.DEFINE_integer('num', 8, 'Pictures to sample.')
_BEST_OF = flags.DEFINE_integer(
  'best_of',
  1,
  'Candidates of each sampled picture, of which the rewards of the config '
  'choose; config.search names other searches.',
)
_STEP = flags.DEFINE_integer(
  'step',
  None,
  'Checkpoint to evaluate, sample, search or export; default: the newest.',
)
_OUT = flags.DEFINE_string(
  'out', None, 'PNG to write; default <workdir>/sample.png.'
)
_PROFILE = flags.DEFINE_string(
  'profile',
  '',
  'START:STOP: updates of a training to record, both included, for the profile '
  'page of TensorBoard.',
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  'Folder of traced and compiled programs, so that a second start is fast; '
  '"" is off; default $JAX_COMPILATION_CACHE_DIR, else ~/.cache/gen_rl/xla.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of process 0, for several processes that no cluster describes.',
)
_PROCESSES = flags.DEFINE_integer('processes', None, 'How many there are.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, from 0.')

_CANNOT_WRITE = (
  errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG,
)  # fmt: skip


def use_compilation_cache(folder: str | None) -> None:
  """Keeps compiled programs on disk; without, where that cannot be.

  Args:
    folder: None: $JAX_COMPILATION_CACHE_DIR, else one in the user's cache;
      '' is off.
  """
  import jax

  from gen_rl.utils import compiled

  compiled.check_entries()
  if folder is None:
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if folder is None:
    caches = os.environ.get('XDG_CACHE_HOME', '')
    if not os.path.isabs(caches):  # to be ignored then, says its specification
      caches = os.path.expanduser('~/.cache')
    folder = os.path.join(caches, 'gen_rl', 'xla')
    if not os.path.isabs(folder):
      print(
        'gen_rl: this user has no home folder, so compiled programs are not '
        'kept; --compilation_cache=FOLDER keeps them',
        file=sys.stderr,
      )
      folder = ''
  if folder and '://' not in folder:
    try:
      os.makedirs(folder, exist_ok=True)
      tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
      print(
        f'gen_rl: compiled programs cannot be kept in {folder} '
        f'({error.strerror}), so every start compiles anew',
        file=sys.stderr,
      )
      folder = ''
  jax.config.update('jax_compilation_cache_dir', folder or None)
  for name, value in (
    ('jax_persistent_cache_min_compile_time_secs', 0.5),
    ('jax_persistent_cache_min_entry_size_bytes', 0),
  ):
    if name.upper() not in os.environ:
      jax.config.update(name, value)


@contextlib.contextmanager
def _kept_programs(config: Any, workdir: str) -> Iterator[Any]:
  """Programs beside the compiled ones, or None where these are not kept."""
  import jax

  folder = jax.config.jax_compilation_cache_dir
  if not folder or '://' in folder:
    yield None
    return
  from gen_rl import run_folder
  from gen_rl.utils import origins, programs

  since = time.time() - (time.monotonic() - gen_rl.STARTED)
  written = 'checkpoints', run_folder.LOCK, *run_folder.WRITTEN
  ours = os.path.join(folder, 'gen_rl-programs')
  ignored = [ours, *(os.path.join(workdir, name) for name in written)]
  with origins.Reads() as reads:
    config = config.to_dict()
    yield programs.Programs(ours, config, reads, since, ignored)


def main(argv: list[str]) -> None:
  """Does what the parsed flags say; `argv` is what no flag took."""
  if len(argv) > 1:
    raise ValueError(f'unexpected arguments: {" ".join(argv[1:])}')
  config = _CONFIG.value
  if config is None:
    raise ValueError(
      '--config says what to run: the path of a config, or one of the '
      f'installed {", ".join(arguments.installed_configs())}'
    )
  arguments.drop_leftovers(config, arguments.overrides_of(sys.argv))
  if _MODE.value == 'sample' and not _PROMPT.value:
    raise ValueError('--mode=sample needs --prompt="what to draw"')
  if _MODE.value == 'train' and _STEP.value is not None:
    raise ValueError(
      f'--step={_STEP.value} names a checkpoint to evaluate, sample or export; '
      'training goes on from the newest (--mode=train)'
    )
  if _MODE.value != 'train' and _PROFILE.value:
    raise ValueError(
      f'--profile={_PROFILE.value} records updates of a training, and '
      f'--mode={_MODE.value} takes none'
    )
  if (_WORKDIR.value or '').startswith('~'):
    raise ValueError(
      f'--workdir={_WORKDIR.value} begins with a ~ that no shell replaced; '
      f'write the folder, {os.path.expanduser(_WORKDIR.value)}'
    )
  workdir = _WORKDIR.value or f'runs/{config.name.replace(":", "_")}'
  logging.set_verbosity(logging.WARNING)
  surroundings.fix_numbers()
  use_compilation_cache(_CACHE.value)
  from gen_rl.utils import hosts

  hosts.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  surroundings.check_devices()
  if _MODE.value == 'train':
    with _kept_programs(config, workdir) as kept:
      from gen_rl import train

      train.train_and_evaluate(
        config, workdir, None, gen_rl.STARTED, _PROFILE.value, kept
      )
    return
  if _MODE.value == 'embed':
    from gen_rl import embed

    embed.fill(config)
    return
  from gen_rl import inference

  if _MODE.value == 'eval':
    inference.evaluate(config, workdir, _STEP.value)
  elif _MODE.value == 'search':
    from gen_rl import searching

    searching.compare(config, workdir, _STEP.value)
  elif _MODE.value == 'export':
    inference.export_params(config, workdir, _STEP.value)
  else:
    inference.sample(
      config,
      workdir,
      _PROMPT.value,
      _NUM.value,
      _OUT.value,
      _BEST_OF.value,
      _STEP.value,
    )


def sentence(error: BaseException) -> str | None:
  """What to tell a person, or None for a bug that needs its traceback.

  A sentence is an error of a class of ours, of the flags, of the operating
  system about a file, or one that a `raise` in our code or in a config says:
  what numpy or Python complain about inside our code is a bug.
  """
  if isinstance(error, OSError) and error.strerror and error.filename:
    return f'{error.filename}: {error.strerror}'
  if isinstance(error, MemoryError):
    return 'this machine has not the memory for what the config asks for' + (
      f': {error}' if str(error) else ''
    )
  if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
    return (
      f'nothing more can be written: {error.strerror}; the newest whole '
      'checkpoint is kept, and once there is room the same command goes on '
      'from it'
    )
  if isinstance(error, flags.Error) or type(error).__module__.startswith(
    'gen_rl.'
  ):
    return str(error)
  said = ValueError, OSError, ArithmeticError, NotImplementedError
  if isinstance(error, said) and _raised_by_us(error.__traceback__):
    return str(error)
  return None


def _raised_by_us(traceback: types.TracebackType | None) -> bool:
  """Whether the innermost frame is ours, and stands at a `raise`."""
  if traceback is None:
    return False
  while traceback.tb_next:
    traceback = traceback.tb_next
  frame = traceback.tb_frame
  code = frame.f_code
  ours = frame.f_globals.get('__name__', '').partition('.')[0] in (
    'gen_rl',
    'configs',
    '__main__',
    '<run_path>',
  )
  at = code.co_code[traceback.tb_lasti]
  return ours and at == dis.opmap['RAISE_VARARGS']


def _lost(error: BaseException) -> str | None:
  if 'jax' not in sys.modules:
    return None
  from gen_rl.utils import hosts

  return hosts.lost(error)


def cli() -> None:
  """Entry point of the command."""
  terminal.make_lasting()
  memory.keep_freed_memory()
  surroundings.keep_warnings_of_others()
  try:
    surroundings.check_xla_flags()
    argv = arguments.resolve(sys.argv)
    sys.argv = arguments.with_whole_parts(sys.argv)
    app.run(main, arguments.with_whole_parts(argv), flags_parser=flags.FLAGS)
  except KeyboardInterrupt:
    if os.environ.get('GEN_RL_TRACEBACK'):
      raise
    print(
      '\ngen_rl: interrupted; a training run goes on from its newest '
      'checkpoint when the same command is run again',
      file=sys.stderr,
    )
    sys.exit(130)
  except Exception as error:
    text = sentence(error)
    if text is None and (gone := _lost(error)):
      print(f'gen_rl: {gone}', file=sys.stderr, flush=True)
      os._exit(3)  # jax would wait for the others to leave, too
    if text is None:
      raise
    if os.environ.get('GEN_RL_TRACEBACK'):
      sys.excepthook(type(error), error, error.__traceback__)
    print(f'gen_rl: {text}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  cli()
