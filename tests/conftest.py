"""What holds for every test: CPU, checked shapes, a shared compile cache."""

import os
import shutil
import sys
import tempfile
import types

# Before anything imports jax. Tests of meshes start processes of their own,
# with as many host devices as they want.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import beartype
import jaxtyping

_CACHE = 'JAX_COMPILATION_CACHE_DIR'
_CONF = beartype.BeartypeConf(is_pep484_tower=True)  # an int is a float


def _check(function):
  """Beartype, but not for constructors.

  A pytree's constructor is called with whatever a transformation puts in the
  place of arrays (shapes, shardings, None), so its fields are not checked.
  """
  if getattr(function, '__name__', '') == '__init__':
    return function
  return beartype.beartype(function, conf=_CONF)


# The hook finds its checker by name, so it needs a module that has a name.
_checker = types.ModuleType('gen_rl_checker')
_checker.check = _check
sys.modules[_checker.__name__] = _checker
jaxtyping.install_import_hook('gen_rl', 'gen_rl_checker.check')


def pytest_configure(config):
  """Gives this session a compile cache, and its child processes the same."""
  if _CACHE not in os.environ:
    config.compile_cache = tempfile.mkdtemp(prefix='gen_rl_compile_cache_')
    os.environ[_CACHE] = config.compile_cache


def pytest_unconfigure(config):
  """Removes the compile cache."""
  if hasattr(config, 'compile_cache'):
    del os.environ[_CACHE]
    shutil.rmtree(config.compile_cache, ignore_errors=True)
