"""Parameter trees as safetensors files: names 'a/b/c', metadata as strings.

Every complaint is one sentence that names the file and all that is wrong with
it; nothing is skipped, cast or padded silently.
"""

from collections.abc import Mapping
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from gen_rl.types import Params
from gen_rl.utils import tree as tree_lib


class WeightsError(ValueError):
  """A weights file that cannot be used, said in one sentence."""


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
  """The file a path means: "asset:NAME" is one that ships with the package."""
  if not path.startswith('asset:'):
    return path
  folder = pathlib.Path(__file__).parents[1] / 'assets'
  return str(folder / f'{path.removeprefix("asset:")}.safetensors')


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
    cast: take the types of `like` instead of asking for them.

  Returns:
    (nested dicts of arrays, metadata).

  Raises:
    WeightsError: no such file, truncated or not safetensors, or (all in one
      sentence) missing, unexpected and mismatched names.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise WeightsError(f'There is no weights file {path}.')
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
      name: leaves[name].astype(leaf.dtype) for name, leaf in wanted.items()
    }
  params = tree_lib.nest({n: jnp.asarray(x) for n, x in leaves.items()})
  if like is not None:
    params = jax.tree.unflatten(
      jax.tree.structure(like), list(tree_lib.named(params).values())
    )
  return params, metadata


def _check(path, leaves, wanted, cast) -> None:
  problems = []
  missing = [n for n in wanted if n not in leaves]
  if missing:
    problems.append(f'missing {", ".join(missing)}')
  unexpected = [n for n in leaves if n not in wanted]
  if unexpected:
    problems.append(f'unexpected {", ".join(unexpected)}')
  for name, leaf in wanted.items():
    if name not in leaves:
      continue
    got, want = leaves[name], leaf
    if got.shape != want.shape or (got.dtype != want.dtype and not cast):
      problems.append(
        f'{name} is {got.dtype}{list(got.shape)} where'
        f' {want.dtype}{list(want.shape)} is wanted'
      )
  if problems:
    raise WeightsError(f'{path} does not fit: {"; ".join(problems)}.')
