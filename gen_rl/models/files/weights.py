"""Parameter trees as safetensors files: names 'a/b/c', metadata as strings.

Every complaint is one sentence that names the file and all that is wrong with
it; nothing is skipped or padded silently, and numbers are only cast where they
stay numbers.
"""

from collections.abc import Mapping
import os
import pathlib
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from gen_rl.types import Params
from gen_rl.utils import files, origins
from gen_rl.utils import tree as tree_lib
from gen_rl.utils.words import few


class WeightsError(ValueError):
  """A weights file that cannot be used, said in one sentence."""


def readable(path: str | os.PathLike[str], what: str = '') -> None:
  """Raises WeightsError if a path is no regular file that can be read."""
  problem = files.trouble(path)
  if problem == files.ABSENT:
    raise WeightsError(f'There is no {what}{path}.')
  if problem:
    raise WeightsError(
      f'The {what or "file "}{path} cannot be read: {problem}.'
    )
  origins.note(path)


def save(
  path: str | os.PathLike[str],
  params: Params,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes nested dicts of arrays; an existing file is replaced as a whole."""
  leaves = {
    name: np.ascontiguousarray(leaf).reshape(np.shape(leaf))
    for name, leaf in tree_lib.named(params).items()
  }
  metadata = {str(k): str(v) for k, v in (metadata or {}).items()}
  write(path, safetensors.numpy.save(leaves, metadata))


def write(path: str | os.PathLike[str], data: bytes | str) -> None:
  """Makes or replaces a file as a whole, never half of it."""
  path = os.path.abspath(path)
  handle, partial = tempfile.mkstemp(dir=os.path.dirname(path))
  try:
    with os.fdopen(handle, 'wb') as f:
      f.write(data.encode() if isinstance(data, str) else data)
    os.chmod(partial, 0o644)
    os.replace(partial, path)
  except BaseException:
    os.unlink(partial)
    raise


def find(path: str) -> str:
  """The file a path means: "asset:NAME" is one that ships with the package.

  Raises:
    WeightsError: the path of another folder in place of a name.
  """
  if not path.startswith('asset:'):
    return os.path.expanduser(path)
  name = path.removeprefix('asset:')
  if not re.fullmatch(r'\w[\w.-]*', name):
    raise WeightsError(f'{path} is no asset: {name!r} is no name of a file.')
  folder = pathlib.Path(__file__).parents[2] / 'assets'
  return str(folder / f'{name}.safetensors')


def load(
  path: str | os.PathLike[str],
  like: Params | None = None,
  cast: bool = False,
) -> tuple[Params, dict[str, str]]:
  """Reads a parameter tree and its metadata.

  Args:
    path: a safetensors file.
    like: tree of arrays or ShapeDtypeStructs the file must hold exactly:
      names, shapes and types.
    cast: take the types of `like` instead of asking for them; floats as
      floats, see `floats`.

  Returns:
    (nested dicts of arrays, metadata).

  Raises:
    WeightsError: no such file, truncated or not safetensors, or (all in one
      sentence) missing, unexpected and mismatched names, numbers that are not
      finite or do not fit their type.
  """
  path = os.fspath(path)
  readable(path, 'weights file ')
  try:
    with safetensors.safe_open(path, 'numpy') as f:
      metadata = dict(f.metadata() or {})
      names = f.keys()  # a method: the file is no mapping
      leaves = {name: f.get_tensor(name) for name in names}
  except Exception as error:
    raise WeightsError(
      f'{path} ({os.path.getsize(path)} bytes) is truncated or not a'
      f' safetensors file: {error}.'
    ) from None
  if like is not None:
    wanted = tree_lib.named(like)
    _check(path, leaves, wanted, cast)
    leaves = {
      name: floats(path, name, leaves[name], leaf.dtype) if cast
      else leaves[name]
      for name, leaf in wanted.items()
    }  # fmt: skip
  # Not jnp.asarray, which compiles a program for every shape.
  params = tree_lib.nest({n: jax.device_put(x) for n, x in leaves.items()})
  if like is not None:
    params = jax.tree.unflatten(
      jax.tree.structure(like), list(tree_lib.named(params).values())
    )
  return params, metadata


def floats(
  path: str | os.PathLike[str], name: str, x: np.ndarray, dtype: Any
) -> np.ndarray:
  """Numbers of a file as another type; they stay what they are to its rounding.

  Args:
    path: of the file, for messages.
    name: of the tensor, likewise.
    x: its numbers.
    dtype: what they become.

  Returns:
    An array in C's order; the same if it is of that type and order.

  Raises:
    WeightsError: some are not finite, or too large for that type.
  """
  with np.errstate(over='ignore'):
    out = x.astype(dtype, order='C', copy=False)
  if finite(out):
    return out
  reason = f'too large for {out.dtype}' if finite(x) else 'not finite'
  raise WeightsError(f'{path} has numbers in {name} that are {reason}.')


def finite(x: np.ndarray) -> bool:
  """Whether all numbers are; parts of it at a time, for the sake of memory."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return True
  flat, size = x.reshape(-1), 1 << 20
  parts = (flat[i : i + size] for i in range(0, flat.size, size))
  if x.itemsize != 2:
    return all(np.isfinite(part).all() for part in parts)
  # Exponents of ones, some five times as fast as numpy on these types.
  ones = np.asarray(np.inf, x.dtype).view(np.uint16)
  return all(((part.view(np.uint16) & ones) != ones).all() for part in parts)


def _check(path, leaves, wanted, cast) -> None:
  problems = []
  missing = [n for n in wanted if n not in leaves]
  if missing:
    problems.append(f'missing {few(missing, 12)}')
  unexpected = [n for n in leaves if n not in wanted]
  if unexpected:
    problems.append(f'unexpected {few(unexpected, 12)}')
  wrong = []
  for name, leaf in wanted.items():
    if name not in leaves:
      continue
    got, want = leaves[name], leaf
    both = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (got, want))
    fits = got.dtype == want.dtype or (cast and both)
    if got.shape != want.shape or not fits:
      wrong.append(
        f'{name} is {got.dtype}{list(got.shape)} where'
        f' {want.dtype}{list(want.shape)} is wanted'
      )
  if wrong:
    problems.append(few(wrong, 12))
  if problems:
    raise WeightsError(f'{path} does not fit: {"; ".join(problems)}.')
