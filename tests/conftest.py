"""What holds for every test: CPU, checked shapes, a shared compile cache."""

import atexit
import ctypes
import gc
import importlib.metadata
import inspect
import os
import shutil
import sys
import tempfile
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
  * importlib.metadata.version('jaxlib').startswith('0.10.'),
)

# The compile cache of this run of the tests, and of its child processes.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _cache = tempfile.mkdtemp(prefix='gen_rl_compile_cache_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)

import beartype
import jax
import jaxtyping
import pytest

_CONF = beartype.BeartypeConf(is_pep484_tower=True)  # an int is a float


def _states_a_shape(annotation):
  if isinstance(annotation, type):
    return issubclass(annotation, jaxtyping.AbstractArray)
  return any(map(_states_a_shape, typing.get_args(annotation)))


def _check(function):
  """Beartype, for the functions whose annotations state a shape.

  A bare Array is documentation: closed forms are often run on float64 numpy.
  Constructors are never checked: jax calls a pytree's with whatever stands in
  for its arrays (shapes, shardings, None).
  """
  annotations = inspect.get_annotations(function).values()
  if function.__name__ != '__init__' and any(map(_states_a_shape, annotations)):
    return beartype.beartype(function, conf=_CONF)
  return function


# The hook finds its checker by name, so it needs a module that has a name.
_checker = types.ModuleType('gen_rl_checker')
_checker.check = _check
sys.modules[_checker.__name__] = _checker
jaxtyping.install_import_hook('gen_rl', 'gen_rl_checker.check')

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
