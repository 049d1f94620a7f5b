"""How well a text that was read matches the one that was asked for.

The reward of Flow-GRPO's text rendering task (arXiv 2505.05470): with the text
r read from the image, the target t (between the first pair of double quotes of
the prompt), both in lower case and without spaces,

  (1)  dist = 0 if t is a substring of r, else min(Levenshtein(r, t), |t|)
  (2)  score = 1 - dist / |t|

The recursion of Wagner and Fischer, one row of the table at a time, as

  (3)  u[j] = min(d[i-1, j] + 1, d[i-1, j-1] + [a_i != b_j])
  (4)  d[i, j] = min(u[j], d[i, j-1] + 1) = j + min_{k <= j} (u[k] - k)

where (4) is a running minimum, so only rows are sequential.
"""

from collections.abc import Sequence
import re

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int, Int32
import numpy as np

from gen_rl.types import AnyArray, Array


def levenshtein(
  a: Int[AnyArray, 'b l_a'],
  b: Int[AnyArray, 'b l_b'],
  a_len: Int[AnyArray, ' b'],
  b_len: Int[AnyArray, ' b'],
) -> Int32[Array, ' b']:
  """Edit distance (insert, delete, replace: 1 each) of padded int strings.

  Args:
    a: strings; what stands after a_len does not matter.
    b: likewise.
    a_len: 0..l_a.
    b_len: 0..l_b.
  """
  a, b, a_len, b_len = map(jnp.asarray, (a, b, a_len, b_len))
  column = jnp.arange(b.shape[1] + 1)
  start = jnp.broadcast_to(column, (b.shape[0], b.shape[1] + 1))

  def row(d: Array, x: tuple[Array, Array]) -> tuple[Array, None]:
    i, a_i = x
    replace = d[:, :-1] + (a_i[:, None] != b)
    u = jnp.minimum(
      d + 1, jnp.pad(replace, ((0, 0), (1, 0)), constant_values=i + 1)
    )
    new = column + jax.lax.cummin(u - column, axis=1)
    return jnp.where(i < a_len[:, None], new, d), None

  d, _ = jax.lax.scan(row, start, (jnp.arange(a.shape[1]), a.T))
  return jnp.take_along_axis(d, b_len[:, None], axis=1)[:, 0]


def contains(
  a: Int[AnyArray, 'b l_a'],
  b: Int[AnyArray, 'b l_b'],
  a_len: Int[AnyArray, ' b'],
  b_len: Int[AnyArray, ' b'],
) -> Bool[Array, ' b']:
  """Is b[:b_len] a substring of a[:a_len]?"""
  a, b, a_len, b_len = map(jnp.asarray, (a, b, a_len, b_len))
  m, n = a.shape[1], b.shape[1]
  offset, at = jnp.arange(m + 1)[:, None], jnp.arange(n)
  window = jnp.pad(a, ((0, 0), (0, n)))[:, offset + at]  # [b m+1 n]
  same = (window == b[:, None]) | (at >= b_len[:, None, None])
  fits = offset[:, 0] + b_len[:, None] <= a_len[:, None]
  return (same.all(-1) & fits).any(-1)


def ocr_score(
  read: Int[AnyArray, 'b l_r'],
  target: Int[AnyArray, 'b l_t'],
  read_len: Int[AnyArray, ' b'],
  target_len: Int[AnyArray, ' b'],
) -> Float32[Array, ' b']:
  """Equations (1) and (2) on padded int strings, made by `encode`.

  In [0, 1]; NaN where the target is empty (nothing to score: such a row is
  not valid).
  """
  dist = levenshtein(read, target, read_len, target_len)
  dist = jnp.minimum(dist, target_len)
  dist = jnp.where(contains(read, target, read_len, target_len), 0, dist)
  score = 1 - dist / jnp.maximum(target_len, 1)
  return jnp.where(target_len > 0, score, jnp.nan).astype(jnp.float32)


def normalize(text: str) -> str:
  """Lower case, without spaces."""
  return text.lower().replace(' ', '')


def encode(
  texts: Sequence[str], length: int
) -> tuple[Int32[np.ndarray, 'b {length}'], Int32[np.ndarray, ' b']]:
  """Normalised texts as code points, padded with 0, and their lengths.

  Raises:
    ValueError: a text is longer than `length`.
  """
  out = np.zeros((len(texts), length), np.int32)
  for i, text in enumerate(map(normalize, texts)):
    if len(text) > length:
      raise ValueError(f'{text!r} has {len(text)} characters, over {length}')
    out[i, : len(text)] = [ord(c) for c in text]
  lengths = [len(normalize(text)) for text in texts]
  return out, np.array(lengths, np.int32)


def text_distance(a: str, b: str) -> int:
  """Levenshtein distance of two strings, in plain Python."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    corner, row[0] = row[0], i
    for j, y in enumerate(b, 1):
      corner, row[j] = (
        row[j],
        min(row[j] + 1, row[j - 1] + 1, corner + (x != y)),
      )
  return row[-1]


def text_score(read: str, target: str) -> float:
  """Equations (1) and (2) for strings, for readers that run on the host.

  Raises:
    ValueError: the target is empty.
  """
  read, target = normalize(read), normalize(target)
  if not target:
    raise ValueError('there is no text to look for')
  if target in read:
    return 1.0
  return 1 - min(text_distance(read, target), len(target)) / len(target)


def quoted(prompt: str) -> str:
  """The text between the first pair of double quotes; '' without one."""
  match = re.search(r'"([^"]*)"', prompt)
  return match[1] if match else ''


def quoted_text(prompt: str) -> str:
  """The same of a prompt that has one.

  Raises:
    ValueError: there is no such pair, or nothing in it.
  """
  text = quoted(prompt)
  if not normalize(text):
    raise ValueError(f'no text in double quotes in the prompt {prompt!r}')
  return text
