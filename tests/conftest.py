"""What holds for every test: CPU, checked shapes, a shared compile cache."""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import inspect
import os
import shutil
import sys
import tempfile
import time
import types
import typing

# Before anything imports jax. Tests of meshes start processes of their own,
# with as many host devices as they want.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Most of the time is compilation, and these take three quarters of it away.
# XLA_FLAGS= (empty) in front of pytest compiles as a run does.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  # A process that is given a flag its jaxlib does not know ends.
  + ' --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
  ' --xla_cpu_enable_concurrency_optimized_scheduler=false'
  * importlib.metadata.version('jaxlib').startswith('0.10.'),
)

# Compiled programs are kept for the next run, and found by child processes:
# in a folder of this jaxlib, in a temporary one where that cannot be written.
# Their names follow from the flags of XLA too. One that was cut short is
# compiled again.
if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
  _programs = None  # of whoever started this
else:
  _programs = os.path.join(
    os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'),
    'gen_rl',
    'tests-' + importlib.metadata.version('jaxlib'),
  )
  try:
    os.makedirs(_programs, exist_ok=True)
    tempfile.TemporaryFile(dir=_programs).close()
  except OSError:
    _programs = tempfile.mkdtemp(prefix='gen_rl_compile_cache_')
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _programs
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import beartype
import jax
import jaxtyping
import pytest

_CONF = beartype.BeartypeConf(is_pep484_tower=True)  # an int is a float


def _states_a_shape(annotation):
  if isinstance(annotation, type):
    return issubclass(annotation, jaxtyping.AbstractArray)
  return any(map(_states_a_shape, typing.get_args(annotation)))


_jaxtyped = jaxtyping.jaxtyped


def _where_a_shape_is_stated(*, typechecker):
  """Of the import hook: a decorator of every function, and of classes.

  A bare Array is documentation: closed forms are often run on float64 numpy.
  Constructors are never checked: jax calls a pytree's with whatever stands in
  for its arrays (shapes, shardings, None). What is not checked is not wrapped:
  wrappers of inner functions are made anew in every call of the outer one.
  """

  def decorate(function):
    plain = getattr(function, '__func__', function)  # of a class method
    plain = getattr(plain, 'fget', plain)  # of a property
    if inspect.isclass(plain) or plain.__name__ == '__init__':
      return function
    annotations = inspect.get_annotations(plain).values()
    if any(map(_states_a_shape, annotations)):
      return _jaxtyped(function, typechecker=typechecker)
    return function

  return decorate


jaxtyping.jaxtyped = _where_a_shape_is_stated

# The hook finds its checker by name, so it needs a module that has a name.
_checker = types.ModuleType('gen_rl_checker')
_checker.check = functools.partial(beartype.beartype, conf=_CONF)
sys.modules[_checker.__name__] = _checker
jaxtyping.install_import_hook('gen_rl', 'gen_rl_checker.check')

# Traced programs are many objects, nearly all of which stay: as often as Python
# does by itself, looking for those that do not takes a tenth of the time.
gc.set_threshold(200_000, 50, 1000)

# Programs a test may compile. Called an operation at a time, there are soon
# hundreds, which take most of its time: `testing.jitted` makes one of a call.
_PROGRAMS = 110
_compiled = 0


def _count(event, duration, **_):
  global _compiled
  _compiled += event == '/jax/core/compile/backend_compile_duration'


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  before = _compiled
  result = yield
  if _compiled - before > _PROGRAMS:
    pytest.fail(
      f'{_compiled - before} programs were compiled, where a test may have '
      f'{_PROGRAMS}: see testing.jitted',
      pytrace=False,
    )
  return result


# Age, in seconds, at which a kept program goes.
_OLD = 30 * 24 * 3600


def pytest_sessionfinish():
  """Nothing else bounds our folder of programs."""
  for entry in os.scandir(_programs) if _programs else ():
    with contextlib.suppress(FileNotFoundError):  # another session was faster
      if entry.stat().st_mtime < time.time() - _OLD:
        os.remove(entry)


# Of memory, in bytes: what a process of the tests keeps of its programs.
_ENOUGH = 2.5e9


@pytest.fixture(autouse=True, scope='module')
def _forget():
  """Programs of the modules before, once they are many.

  Thousands are compiled; kept, they take 8 GB of a process, and the garbage
  collector walks through what was traced for them again and again.
  """
  yield
  try:
    with open('/proc/self/statm') as file:
      held = int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:  # not on Linux
    return
  if held > _ENOUGH:
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):
      trim(0)
