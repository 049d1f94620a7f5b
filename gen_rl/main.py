"""Command line: train, evaluate or sample.

  python -m gen_rl.main --config=configs/flow_grpo.py
  python -m gen_rl.main --config=configs/flow_grpo.py:fast --workdir=runs/fast
  python -m gen_rl.main --config=... --workdir=... --mode=eval
  python -m gen_rl.main --config=... --mode=sample --prompt="two red circles"

Fields are set with --config.path.to.field=value. A config is a path or the
name of one that is installed ("flow_grpo"). `train` goes on where the newest
checkpoint of the workdir stopped.
"""

import importlib
import os
import pathlib
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags

# Before jax is imported: TensorFlow and XLA are not to fill the terminal.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with ":variant" if it has any.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for everything written; default runs/<config>.'
)
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'sample'], 'What to do.'
)
_PROMPT = flags.DEFINE_string('prompt', None, 'What to sample.')
_NUM = flags.DEFINE_integer('num', 8, 'Pictures to sample.')
_OUT = flags.DEFINE_string(
  'out', None, 'PNG to write; default <workdir>/sample.png.'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  os.path.join(
    os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache')),
    'gen_rl',
    'xla',
  ),
  'Folder of compiled programs, so that a second start is fast; "" is off.',
)


def find_config(value: str) -> str:
  """The file a --config value names: a path, or an installed config.

  Raises:
    ValueError: there is neither, listing the installed ones.
  """
  name, colon, variant = value.partition(':')
  if pathlib.Path(name).exists():
    return value
  stem = pathlib.Path(name).stem
  folder = pathlib.Path(importlib.import_module('configs').__path__[0])
  known = sorted(p.stem for p in folder.glob('*.py') if p.stem != '__init__')
  if stem not in known:
    raise ValueError(
      f'there is no config {name!r}: neither a file nor one of the installed '
      f'{", ".join(known)}'
    )
  return f'{folder / stem}.py{colon}{variant}'


def _use_compilation_cache() -> None:
  import jax

  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', _CACHE.value)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def _run() -> None:
  config = _CONFIG.value
  workdir = _WORKDIR.value or f'runs/{config.name.replace(":", "_")}'
  _use_compilation_cache()
  if _MODE.value == 'train':
    from gen_rl import train

    train.train_and_evaluate(config, workdir)
    return
  from gen_rl import inference

  if _MODE.value == 'eval':
    inference.evaluate(config, workdir)
  else:
    if not _PROMPT.value:
      raise ValueError('--mode=sample needs --prompt="what to draw"')
    out = _OUT.value or f'{workdir}/sample.png'
    inference.sample(config, workdir, _PROMPT.value, _NUM.value, out)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  from gen_rl.build import ConfigError
  from gen_rl.checkpoint import CheckpointError
  from gen_rl.models.weights import WeightsError

  logging.set_verbosity(logging.WARNING)
  expected = ConfigError, CheckpointError, WeightsError, FloatingPointError
  try:
    _run()
  except (*expected, ValueError, FileNotFoundError, OSError) as error:
    if os.environ.get('GEN_RL_TRACEBACK') or not _is_sentence(error, expected):
      raise
    print(f'gen_rl: {error}', file=sys.stderr)
    sys.exit(2)


def _is_sentence(error: Exception, expected: tuple) -> bool:
  """Ours to say in one sentence, or somebody's bug that needs a traceback?"""
  if isinstance(error, (*expected, OSError)):
    return True
  frame = error.__traceback__
  while frame and frame.tb_next:
    frame = frame.tb_next
  module = frame.tb_frame.f_globals.get('__name__', '') if frame else ''
  return module.startswith(('gen_rl', '__main__', 'configs'))


def cli() -> None:
  """Entry point: resolves the config, then parses flags."""
  started = time.time()
  args = list(sys.argv)
  try:
    for i, arg in enumerate(args):
      flag, equals, value = arg.partition('=')
      if flag.lstrip('-') == 'config' and equals:
        args[i] = f'--config={find_config(value)}'
  except ValueError as error:
    print(f'gen_rl: {error}', file=sys.stderr)
    sys.exit(2)
  flags.mark_flag_as_required('config')
  del started
  app.run(main, argv=args)


if __name__ == '__main__':
  cli()
