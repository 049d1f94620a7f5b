"""What a program follows from, said without tracing it.

A traced program follows from code, from settings, from devices, and from files
that were read before it was traced. `Reads` records the last: Python reports
what it opens and lists (sys.addaudithook), and readers in other languages call
`note`, or `give_up` where they cannot tell. Where anything may have had a say
that is not known here, `Unknown` is raised: a program is traced anew then.
"""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import site
import stat
import sys
import sysconfig
import threading
from typing import Any

import jax

CONFIG = 'config_config'  # what the file of --config is as a module
LARGE = 64 * 2**20  # bytes of files that are known by their time, not content
_MOST = 5000  # files that are compared at a start
_PACKAGE = pathlib.Path(__file__).parents[1]

# Of variables that jax, XLA, drivers and readers of files heed.
_HEEDED = (
  'CUBLAS', 'CUDA', 'CUDNN', 'DNNL', 'EIGEN', 'FLAX', 'GEN_RL', 'HF_', 'HIP',
  'HOME', 'HSA', 'HUGGINGFACE', 'JAX', 'KMP', 'LD_', 'LIBTPU', 'LLVM',
  'MEGASCALE', 'MIOPEN', 'MKL', 'ML_DTYPES', 'MOSAIC', 'NCCL', 'NPY', 'NVIDIA',
  'OMP', 'ONEDNN', 'OPENBLAS', 'PALLAS', 'PJRT', 'PYTHON', 'ROCM', 'ROCR', 'TF',
  'TOKAMAX', 'TOKENIZERS', 'TPU', 'TRANSFORMERS', 'TRITON', 'XDG_CACHE_HOME',
  'XDG_DATA_HOME', 'XLA',
)  # fmt: skip


class Unknown(Exception):
  """Something had a say in a program that is not known here."""


class Reads:
  """What this process reads while it is entered.

  Attributes:
    paths: of files and folders, absolute.
    known: whether these are all.
  """

  def __init__(self):
    self.paths, self.known = set(), True

  def __enter__(self) -> 'Reads':
    if not _hooked:
      sys.addaudithook(_hook)
      _hooked.append(True)
    _active.append(self)
    return self

  def __exit__(self, *_: Any) -> None:
    _active.remove(self)


_active: list[Reads] = []
_hooked: list[bool] = []
_here = threading.local()


def note(path: str | os.PathLike[str]) -> None:
  """Says that a file, or a folder and the files in it, is read."""
  path = os.path.abspath(path)
  for reads in _active:
    reads.paths.add(path)
    if os.path.isdir(path):
      reads.paths.update(os.path.join(path, n) for n in os.listdir(path))


def give_up() -> None:
  """Says that something is read that cannot be named."""
  for reads in _active:
    reads.known = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
  if event not in ('open', 'os.listdir', 'os.scandir') or not _active:
    return
  path = args[0]
  if getattr(_here, 'quiet', False) or isinstance(path, int):
    return
  if event == 'open':
    mode, flags = args[1:3]
    if isinstance(mode, str):
      writes = bool(set(mode) & set('wax+'))
    else:
      writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
    if writes:
      return
  path = os.path.abspath(os.fsdecode('.' if path is None else path))
  for reads in _active:
    reads.paths.add(path)


@contextlib.contextmanager
def _quiet():
  """What this thread reads in it is not recorded."""
  _here.quiet = True
  try:
    yield
  finally:
    _here.quiet = False


class Origins:
  """States of files, each looked at once.

  A file that changed after the process began may have been read before it did:
  nothing is said of it.
  """

  def __init__(self, since: float, ignored: Sequence[str] = ()):
    """What is looked at, and what is not.

    Args:
      since: `time.time()` when this process began.
      ignored: files and folders that a run writes itself.
    """
    self._since = since
    self._ignored = tuple(map(os.path.abspath, ignored))
    self._states: dict[str, str] = {}

  def state(self, path: str) -> str:
    """What a file holds, or a folder lists; Unknown if it has just changed."""
    if path not in self._states:
      with _quiet():
        self._states[path] = self._state(path)
    return self._states[path]

  def _state(self, path: str) -> str:
    try:
      found = os.stat(path)
      if stat.S_ISDIR(found.st_mode):
        listed = '\0'.join(sorted(os.listdir(path)))
        return f'lists {_digest(os.fsencode(listed))}'
      if not stat.S_ISREG(found.st_mode):
        raise Unknown(f'{path} is no regular file')
      if found.st_ctime >= self._since:
        raise Unknown(f'{path} has just changed')
      if found.st_size > LARGE:
        return f'{found.st_size} {found.st_mtime_ns}'
      with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
    except FileNotFoundError:
      return 'absent'
    except OSError as error:
      raise Unknown(f'{path}: {error.strerror}') from None

  def read(self, reads: Reads) -> list[str]:
    """What was read that is neither a module nor what a run writes itself."""
    if not reads.known:
      raise Unknown('something is read that cannot be named')
    listed = set(sys.path_importer_cache)  # for modules, which are known
    paths = [
      path
      for path in sorted(list(reads.paths))
      if not path.startswith(('/proc/', '/sys/', '/dev/'))
      and not path.endswith(('.pyc', '-sha256-cache'))  # of Python, of jax
      and path not in listed
      and not _inside(path, str(_PACKAGE))
      and not any(_inside(path, folder) for folder in self._ignored)
    ]
    if len(paths) > _MOST:
      raise Unknown(f'{len(paths)} files are read')
    return paths

  def sources(self) -> dict[str, str]:
    """{path: state} of all this package holds, loaded or not."""
    found = {}
    for folder, folders, names in os.walk(_PACKAGE):
      folders[:] = [name for name in folders if name != '__pycache__']
      for name in names:
        path = os.path.join(folder, name)
        found[os.path.relpath(path, _PACKAGE)] = self.state(path)
    return found


def _inside(path: str, folder: str) -> bool:
  return path == folder or path.startswith(folder + os.sep)


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def modules() -> tuple[dict[str, str], list[str]]:
  """({path: size and time} of installed modules, paths of configs), loaded.

  Those of this package are left out: all of it is in `Origins.sources`.

  Raises:
    Unknown: others are loaded, which may do and read whatever they like.
  """
  installed, configs = {}, []
  for name, module in list(sys.modules.items()):
    path = getattr(module, '__file__', None)
    if not isinstance(path, str) or _inside(
      os.path.abspath(path), str(_PACKAGE)
    ):
      continue
    if name in ('configs', CONFIG) or name.startswith('configs.'):
      configs.append(os.path.abspath(path))
    elif not os.path.exists(path):
      # Made by its package, as torch.ops is, or by nobody knows whom.
      top = sys.modules.get(name.partition('.')[0])
      if top is module or not _is_installed(getattr(top, '__file__', '') or ''):
        raise Unknown(f'the module {name} is of {path}, which is not there')
    elif _is_installed(path):
      installed[path] = module_state(path)
    else:
      raise Unknown(f'the module {name} is of {path}')
  return installed, sorted(configs)


def module_state(path: str) -> str:
  """Size and time of an installed file."""
  try:
    status = os.stat(path)
  except OSError as error:
    raise Unknown(f'{path}: {error.strerror}') from None
  return f'{status.st_size} {status.st_mtime_ns}'


def _is_installed(path: str) -> bool:
  return any(_inside(path, folder) for folder in _folders()) or any(
    _inside(os.path.realpath(path), folder) for folder in _folders(True)
  )


@functools.cache
def _folders(real: bool = False) -> tuple[str, ...]:
  """Of Python and of installed packages; with `real`, without links."""
  paths = sysconfig.get_paths()
  keys = 'stdlib', 'platstdlib', 'purelib', 'platlib', 'scripts'
  folders = [*(paths[key] for key in keys), *site.getsitepackages()]
  if site.ENABLE_USER_SITE:
    folders.append(site.getusersitepackages())
  return tuple(map(os.path.realpath, folders) if real else folders)


def surroundings(devices: Iterable[jax.Device]) -> dict[str, Any]:
  """What this machine, its packages and its settings are.

  Args:
    devices: that a program is for.
  """
  devices = list(devices)
  client = devices[0].client
  return dict(
    python=(sys.version, platform.machine(), sys.flags, sys.byteorder),
    packages=_packages(),
    settings=sorted((k, repr(v)) for k, v in jax.config.values.items()),
    variables=sorted(
      (k, v) for k, v in os.environ.items() if k.startswith(_HEEDED)
    ),
    folder=os.getcwd(),  # where relative paths begin
    backend=(client.platform, client.platform_version),
    devices=[_device(device) for device in (*devices, *jax.devices())],
    processes=(jax.process_index(), jax.process_count()),
    processor=_processor(),
  )


def _packages() -> list[str]:
  """Names with versions of all that is installed."""
  found = set()
  with _quiet():
    for folder in sys.path:
      if os.path.isdir(folder):
        found |= {
          name
          for name in os.listdir(folder)
          if name.endswith(('.dist-info', '.egg-info', '.egg-link', '.pth'))
        }
  return sorted(found)


def _device(device: jax.Device) -> tuple[Any, ...]:
  places = 'coords', 'core_on_chip', 'slice_index', 'compute_capability'
  return (
    device.id, device.process_index, device.platform, device.device_kind,
    *(str(getattr(device, name, None)) for name in places),
  )  # fmt: skip


def _processor() -> tuple[Any, ...]:
  """The host's; programs of CPUs are made for its instructions and cores."""
  cores = os.cpu_count(), len(getattr(os, 'sched_getaffinity', lambda _: ())(0))
  says = [platform.processor()]
  with contextlib.suppress(OSError), _quiet():
    text = pathlib.Path('/proc/cpuinfo').read_text(errors='replace')
    first = text.partition('\n\n')[0].splitlines()
    names = 'model', 'flags', 'Features', 'CPU part', 'vendor_id'
    says += [line for line in first if line.startswith(names)]
  return cores, says


def plain(x: Any) -> Any:
  """A value as its repr tells it from others, of sorted mappings.

  Raises:
    Unknown: one of a type that does not say what it is.
  """
  if isinstance(x, Mapping):
    return {str(k): plain(x[k]) for k in sorted(x, key=str)}
  if isinstance(x, list | tuple):
    return type(x)(plain(v) for v in x) if type(x) in (list, tuple) else (
      type(x).__name__, [plain(v) for v in x],
    )  # fmt: skip
  if x is None or isinstance(x, str | bytes | bool | int | float):
    return x
  raise Unknown(f'{type(x).__name__} in a config')
