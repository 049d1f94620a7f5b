"""What the environment says to jax: checked, or kept from changing numbers."""

import os
import sys
import warnings

# What decides which numbers are drawn and how they are computed.
_FIXED = dict(
  jax_threefry_partitionable=True,
  jax_default_prng_impl='threefry2x32',
  jax_enable_x64=False,
  jax_disable_jit=False,
)


def check_xla_flags() -> None:
  """Raises ValueError for $XLA_FLAGS that would end the process in C++.

  Asks a fork of this process, so call it before jax is imported.
  """
  text = os.environ.get('XLA_FLAGS', '').strip()
  if not text or 'jax' in sys.modules:
    return
  from jaxlib import _jax

  child = os.fork()
  if child == 0:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    _jax.CompileOptions()  # reads them
    os._exit(0)
  if os.waitpid(child, 0)[1]:
    raise ValueError(
      f'XLA_FLAGS={text!r} has a flag, or a value of one, that this jaxlib '
      'does not know; correct or unset it'
    )


def fix_numbers() -> None:
  """The same seed gives the same numbers, whatever $JAX_... says."""
  import jax

  for name, value in _FIXED.items():
    found = getattr(jax.config, name, value)
    if found != value:
      jax.config.update(name, value)
      print(
        f'gen_rl: {name.upper()}={found} is not heeded: a run of the same seed '
        f'would have other numbers; it stays {value}',
        file=sys.stderr,
      )


def check_devices() -> None:
  """Raises ValueError where jax finds no device it may use."""
  import jax

  try:
    jax.devices()
  except RuntimeError as error:
    asked = os.environ.get('JAX_PLATFORMS')
    said = f'JAX_PLATFORMS={asked!r}: ' if asked else ''
    raise ValueError(
      f'jax finds no device ({said}{str(error).splitlines()[0]})'
    ) from error


def keep_warnings_of_others() -> None:
  """With `python -W error`, errors are ours: those of packages stay warnings.

  A run is not to end because one package calls what another deprecates.
  """
  if any(option.partition(':')[0] == 'error' for option in sys.warnoptions):
    warnings.simplefilter('default')
    warnings.filterwarnings('error', module=r'(gen_rl|configs)(\.|$)')
