"""Parameter trees: names, partition by name, sizes, selection, comparison.

A leaf's name is its path joined by '/', e.g. 'down_0/conv/kernel': the same
name in regular expressions, checkpoints and safetensors files.
"""

import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.types import Array, PyTree


def named(tree: PyTree) -> dict[str, Any]:
  """{name: leaf} of any pytree, in flattening order."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_name(path): leaf for path, leaf in leaves}


def checksum(tree: PyTree) -> int:
  """CRC-32 over names, types, shapes and bytes of all leaves."""
  crc = 0
  for name, leaf in named(tree).items():
    leaf = np.ascontiguousarray(jax.device_get(leaf))
    crc = zlib.crc32(f'{name} {leaf.dtype} {leaf.shape}'.encode(), crc)
    crc = zlib.crc32(leaf.reshape(-1).view(np.uint8), crc)
  return crc


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
  """{'a/b': leaf} as nested dicts {'a': {'b': leaf}}.

  Raises ValueError where one name is the beginning of another.
  """
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ValueError(f'{name!r} lies inside another leaf.')
    if last in node:
      raise ValueError(f'{name!r} names a leaf twice, or a leaf and a branch.')
    node[last] = leaf
  return tree


def split(tree: PyTree, regex: str) -> tuple[PyTree, PyTree]:
  """Parts nested dicts in (leaves whose name `regex` finds, the others).

  `re.search` semantics: '' takes every leaf, '^lora' anchors. Both parts are
  nested dicts without the branches they have nothing in. Raises ConfigError
  if nothing matches: training nothing is always a typing error.
  """
  leaves = named(tree)
  chosen = {n: x for n, x in leaves.items() if re.search(regex, n)}
  if not chosen:
    some = ', '.join(list(leaves)[:6])
    raise ConfigError(
      f'{regex!r} matches none of the {len(leaves)} parameters ({some}, ...).'
    )
  rest = {n: x for n, x in leaves.items() if n not in chosen}
  return nest(chosen), nest(rest)


def merge(a: PyTree, b: PyTree) -> PyTree:
  """Inverse of `split`: the union of two nested dicts without common leaves."""
  both = set(named(a)) & set(named(b))
  if both:
    raise ValueError(f'Both trees hold {", ".join(sorted(both))}.')
  return nest(named(a) | named(b))


def size(tree: PyTree) -> int:
  """Number of elements in all leaves."""
  return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
  """Bytes of all leaves: arrays or ShapeDtypeStructs."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def where(pred: Array, a: PyTree, b: PyTree) -> PyTree:
  """Leaf-wise `a` where `pred` else `b`.

  Args:
    pred: bool, scalar or [b]; an axis of `pred` is a leading axis of each leaf.
    a: pytree, leaves [...] or [b ...].
    b: pytree like `a`.
  """
  pred = jnp.asarray(pred)

  def select(x, y):
    x, y = jnp.asarray(x), jnp.asarray(y)
    return jnp.where(
      pred.reshape(pred.shape + (1,) * (x.ndim - pred.ndim)), x, y
    )

  return jax.tree.map(select, a, b)


def finite_rows(tree: PyTree, rows: int) -> Array:
  """Which rows of the leaves [b ...] hold finite numbers only: bool [b]."""
  fine = jnp.ones(rows, bool)
  for leaf in jax.tree.leaves(tree):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      fine &= jnp.isfinite(leaf).reshape(rows, -1).all(1)
  return fine


def zero_rows(tree: PyTree, keep: Array) -> PyTree:
  """Leaves [b ...] with 0 in place of the real numbers of rows not to `keep`.

  Integers and keys stay: they are finite, and name things.
  """

  def one(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
      return leaf
    return where(keep, leaf, jnp.zeros_like(leaf))

  return jax.tree.map(one, tree)


def differing(a: PyTree, b: PyTree) -> list[str]:
  """Names of leaves that are not bitwise equal (or of another shape or type).

  NaNs with the same payload are equal, 0.0 and -0.0 are not. Leaves that only
  one tree has are named too.
  """
  a, b = named(a), named(b)
  return [
    n
    for n in dict.fromkeys([*a, *b])
    if n not in a or n not in b or _bits(a[n]) != _bits(b[n])
  ]


def equal(a: PyTree, b: PyTree) -> bool:
  """True if two trees have the same structure and bitwise equal leaves."""
  return jax.tree.structure(a) == jax.tree.structure(b) and not differing(a, b)


def path_name(path: Any) -> str:
  """A leaf's name, of its path in `tree_flatten_with_path`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(getattr(x, 'dtype', None), jax.dtypes.prng_key)


def _bits(x: Any) -> tuple[str, tuple[int, ...], bytes]:
  kind = str(getattr(x, 'dtype', np.asarray(x).dtype if not _is_key(x) else ''))
  value = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
  return kind, value.shape, value.tobytes()
