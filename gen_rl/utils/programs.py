"""Traced and compiled programs on disk: a second start traces nothing.

jax's cache of compiled programs is asked with the program itself, so that it
has to be traced and lowered first. Here an entry is found by what the program
follows from (`origins`):

  <digest of all that has a name>.program
      SHA-256 of name and content [32 bytes], then, pickled: the state of every
      file that was read and of every module that was loaded until it was
      traced, the key of the compiled program in jax's cache, which keeps the
      executable itself, and how it is called

An entry is taken if all of it still holds, and if this start, which builds all
but the program, has read and loaded nothing else. One that is damaged, or that
says of a file what is no longer so, is made anew. Nothing is kept of what may
follow from anything else: modules that are not installed, programs that call
Python, hold many numbers of their own or run on several devices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import hashlib
import io
import os
import pathlib
import pickle
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from gen_rl.types import PyTree
from gen_rl.utils import compiled, files, origins

_FORMAT = 1
_DIGEST = hashlib.sha256().digest_size
_NUMBERS = 2**18  # that a program holds itself: tables, no weights
_DAYS, _ENTRIES = 30, 200  # unused entries go, and the oldest of too many


class Programs:
  """Those of a run, on one device."""

  def __init__(
    self,
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    reads: origins.Reads,
    since: float,
    ignored: Sequence[str] = (),
  ):
    """Where programs are kept, and what all of them follow from.

    Args:
      folder: made when something is written.
      config: all a run was asked for, of plain values.
      reads: entered before anything was read.
      since: `time.time()` when this process began.
      ignored: files and folders that a run writes itself.
    """
    self._folder, self._config = pathlib.Path(folder), config
    self._reads, self._origins = reads, origins.Origins(since, ignored)
    self._common: bytes | None = None

  def keep(
    self,
    name: str,
    function: Any,
    device: jax.Device,
    about: Callable[[Any], Any] | None = None,
  ) -> 'Kept':
    """A jitted function whose programs are kept.

    Args:
      name: tells it from the others of a run.
      function: jitted.
      device: what it runs on.
      about: traced program -> what is to be known of it without tracing.
    """
    return Kept(self, name, function, device, about or (lambda _: None))

  def _path(self, name: str, device: jax.Device, signature: Any) -> Any:
    """(name of an entry, its path); Unknown: it has none."""
    if jax.process_count() > 1:
      raise origins.Unknown('several processes')
    if ' at 0x' in signature[0]:
      raise origins.Unknown('arguments that do not say what they are')
    if self._common is None:
      said = dict(
        format=_FORMAT,
        config=origins.plain(self._config),
        sources=self._origins.sources(),
        **origins.surroundings([device]),
      )
      self._common = repr(said).encode()
    digest = hashlib.sha256(self._common)
    digest.update(repr((name, signature)).encode())
    found = digest.hexdigest()
    return found, self._folder / f'{found}.program'

  def read(self, name: str, device: jax.Device, signature: Any) -> Any:
    """An entry that still holds, or None."""
    with _or_traced(name):
      called, path = self._path(name, device, signature)
      if not path.is_file():
        return None
      stored = path.read_bytes()
      content = stored[_DIGEST:]
      if stored[:_DIGEST] != _digest(called, content):
        path.unlink()
        return None
      entry = pickle.loads(content)
      loaded, configs = origins.modules()
      read, modules = entry['read'], entry['modules']
      state, module_state = self._origins.state, origins.module_state
      if (
        read.keys() >= {*configs, *self._origins.read(self._reads)}
        and modules.items() >= loaded.items()
        and all(module_state(name) == said for name, said in modules.items())
        and all(state(name) == said for name, said in read.items())
      ):
        os.utime(path)
        return entry
    return None

  def write(
    self, name: str, device: jax.Device, signature: Any, **entry: Any
  ) -> None:
    """Writes an entry, of what was read and loaded until now."""
    called, path = self._path(name, device, signature)
    modules, configs = origins.modules()
    paths = *configs, *self._origins.read(self._reads)
    read = {path: self._origins.state(path) for path in paths}
    entry |= dict(read=read, modules=modules)
    content = pickle.dumps(entry)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._tidy()
    files.write_bytes(path, _digest(called, content) + content)

  def _tidy(self) -> None:
    """Removes what nobody has used for long, and of too many the oldest."""
    times = {}
    for path in self._folder.iterdir():
      with contextlib.suppress(OSError):
        times[path] = path.stat().st_mtime
    kept = sorted(times, key=times.__getitem__, reverse=True)
    old = time.time() - _DAYS * 86400
    for i, path in enumerate(kept):
      if i >= _ENTRIES or times[path] < old:
        with contextlib.suppress(OSError):
          path.unlink()


def entry(function: Any, *args: PyTree) -> Mapping[str, Any] | None:
  """`Kept.entry` of such a function; None for any other."""
  return function.entry(*args) if isinstance(function, Kept) else None


class Kept:
  """A jitted function; its programs are looked for before it is traced."""

  def __init__(
    self,
    programs: Programs,
    name: str,
    function: Any,
    device: jax.Device,
    about: Callable[[Any], Any],
  ):
    """As `Programs.keep`."""
    self._programs, self._name, self._function = programs, name, function
    self._device, self._about = device, about
    self._found: dict[Any, Any] = {}  # {signature: entry, or None}
    self._ready: dict[Any, Callable] = {}

  def trace(self, *args: PyTree) -> Any:
    """As that of the function."""
    return self._function.trace(*args)

  def entry(self, *args: PyTree) -> Mapping[str, Any] | None:
    """What is known of the program for such arguments; None: it is not kept.

    "about" is what `Programs.keep` was asked for.
    """
    return self._entry(_signature(args, self._device))

  def __call__(self, *args: PyTree) -> PyTree:
    """As the function."""
    signature = _signature(args, self._device)
    if signature not in self._ready:
      self._ready[signature] = self._made(signature, args)
    try:
      return self._ready[signature](*args)
    except (TypeError, ValueError):  # refused before it began
      self._ready[signature] = self._function
      return self._function(*args)

  def _entry(self, signature: Any) -> Any:
    if signature not in self._found:
      self._found[signature] = self._programs.read(
        self._name, self._device, signature
      )
    return self._found[signature]

  def _made(self, signature: Any, args: tuple[PyTree, ...]) -> Callable:
    if entry := self._entry(signature):
      with _or_traced(self._name):
        return _loaded(entry, args, self._device)
      self._found[signature] = None
    traced = self._function.trace(*args)
    lowered = traced.lower()
    with compiled.asked() as keys:
      program = lowered.compile()
    with _or_traced(self._name):
      self._programs.write(
        self._name, self._device, signature,
        about=self._about(traced), **_written(traced, program, keys),
      )  # fmt: skip
    return program


def _digest(name: str, content: bytes) -> bytes:
  return hashlib.sha256(name.encode() + content).digest()


def _signature(args: PyTree, device: jax.Device) -> Any:
  """What tells programs of one function and one device apart."""
  leaves, structure = jax.tree.flatten(args)
  usual = device.default_memory().kind

  def one(x: Any) -> tuple[Any, ...]:
    weak = getattr(x, 'weak_type', not hasattr(x, 'dtype'))
    x = x if hasattr(x, 'dtype') else np.asarray(x)
    memory = getattr(getattr(x, 'sharding', None), 'memory_kind', None)
    return tuple(x.shape), str(x.dtype), bool(weak), memory or usual

  return str(structure), tuple(map(one, leaves))


def _written(traced: Any, program: Any, keys: set[str]) -> dict[str, Any]:
  """How a program is called; Unknown: it is not known by its arguments."""
  inner = program._executable._unloaded_executable
  calls_python = inner.host_callbacks or inner.keepalive
  effects = inner.ordered_effects or inner.unordered_effects
  if calls_python or effects or inner.mut or program._params.const_args:
    raise origins.Unknown('it does more than to compute')
  if len(inner.device_list) > 1:
    raise origins.Unknown('several devices')
  if _held(traced.jaxpr, set()) > _NUMBERS:
    raise origins.Unknown('it holds many numbers')
  (key,) = keys
  if compiled.executable(key, inner.backend) is None:
    raise origins.Unknown('its executable is not kept')
  args, _ = jax.tree.flatten(program.args_info)
  with io.BytesIO() as file:
    _picklers()[0](file).dump(
      (inner, args, program._no_kwargs, program.out_tree)
    )
    return dict(key=key, called=file.getvalue())


def _held(jaxpr: Any, seen: set[int]) -> int:
  """How many numbers a program has that are no arguments."""
  if id(jaxpr) in seen:
    return 0
  seen.add(id(jaxpr))
  held = sum(map(np.size, getattr(jaxpr, 'consts', ())))
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    held += sum(np.size(x.val) for x in eqn.invars if hasattr(x, 'val'))
    for value in eqn.params.values():
      for x in value if isinstance(value, tuple | list) else (value,):
        if hasattr(getattr(x, 'jaxpr', x), 'eqns'):
          held += _held(x, seen)
  return held


def _loaded(
  entry: Mapping[str, Any], args: tuple[PyTree, ...], device: jax.Device
) -> Callable:
  written = compiled.executable(entry['key'], device.client)
  make = _picklers()[1]
  reader = make(io.BytesIO(entry['called']), device.client, (device,))
  reader.written = written
  inner, infos, no_kwargs, out_tree = reader.load()
  infos = jax.tree.structure((args, {})).unflatten(infos)
  return jax.stages.Compiled(
    inner.load(), [], infos, out_tree, no_kwargs=no_kwargs
  )


@functools.cache
def _picklers() -> tuple[type, type]:
  """Those of jax, which is to have private ones: without the executable."""
  from jax.experimental import serialize_executable as jax_lib
  from jaxlib import _jax

  class Pickler(jax_lib._JaxPjrtPickler):
    """Leaves out the executable."""

    def persistent_id(self, obj: Any) -> Any:
      kinds = jax_lib.xc.LoadedExecutable, _jax.Executable
      return ('exec', b'') if isinstance(obj, kinds) else (
        super().persistent_id(obj)
      )  # fmt: skip

  class Unpickler(jax_lib._JaxPjrtUnpickler):
    """Puts it in again."""

    written: bytes | None = None

    def persistent_load(self, pid: Any) -> Any:
      return super().persistent_load(
        ('exec', self.written) if pid[0] == 'exec' else pid
      )

  return Pickler, Unpickler


@contextlib.contextmanager
def _or_traced(name: str) -> Iterator[None]:
  """What goes wrong in it is no error of a run, which traces as ever.

  Names of jax that are its own may change, files may be damaged or forbidden,
  and some programs are not kept: --verbosity=1 says which, and why.
  """
  try:
    yield
  except Exception as error:
    logging.debug(
      'the program %s is traced: %s: %s',
      name, type(error).__name__, error,
    )  # fmt: skip
