"""Prompts as features, for networks whose text encoders are not trained.

A feature of a prompt does not change during a run, so it is computed once per
different prompt and kept: the newest ones in memory, all of them in a folder if
one is given. Encoders are loaded when the first prompt has to be encoded, not
before, until they are freed: a run whose prompts are all in the folder never
loads them.

What no prompt means to a network (classifier-free guidance) is the features of
a text as well, in every row under the names null_*.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
import math
import os
from typing import NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from gen_rl.data.text_networks import Network
from gen_rl.models.files import weights

Features = dict[str, np.ndarray]


class Encoder(NamedTuple):
  """What makes features of texts."""

  encode: Callable[[Sequence[str]], Features]  # n texts -> {name: [n ...]}
  shapes: Mapping[str, jax.ShapeDtypeStruct]  # {name: of one text}
  identity: str  # other features have another one
  # Raises ValueError for a text that is too long, without the networks.
  check: Callable[[Sequence[str]], None] = lambda texts: None
  weights: Callable[[], str] = lambda: ''  # of the networks: a checksum
  # Of which configs alone are read; None: features are made without any.
  networks: Callable[[], Sequence[Network]] | None = None
  free: Callable[[], None] = lambda: None  # the devices, of the networks


class Embed(NamedTuple):
  """An encoder that remembers."""

  rows: Callable[[Sequence[str]], Features]  # n texts -> {name: [n ...]}
  shapes: Mapping[str, jax.ShapeDtypeStruct]  # {name: of one row}
  identity: str
  check: Callable[[Sequence[str]], None] = lambda texts: None
  known: Callable[[str], bool] = lambda text: False  # without encoding it
  keep: float = math.inf  # texts that are remembered
  networks: Callable[[], Sequence[Network]] | None = None  # see Encoder
  free: Callable[[], None] = lambda: None


def cached(
  encoder: Encoder,
  negative: str | None = '',
  folder: str = '',
  keep: int = 256,
) -> Embed:
  """Encodes every different text once.

  Args:
    encoder: what is asked for texts that are not known yet.
    negative: text whose features every row has as null_*; None: none.
    folder: features are read from and written to files in it, one for each
      text, in a folder of the encoder's own; '': no files.
    keep: texts held in memory, the newest ones.

  Raises:
    WeightsError: on use, a file of the folder does not hold what it should.
  """
  if keep < 1:
    raise ValueError(f'data.embed.keep={keep} must be at least 1')
  folder = os.path.expanduser(folder)
  held: collections.OrderedDict[str, Features] = collections.OrderedDict()

  @functools.cache
  def own() -> str:
    said = f'{encoder.identity} {encoder.weights()}'
    return hashlib.sha256(said.encode()).hexdigest()[:16]

  def path(text: str) -> str:
    name = hashlib.sha256(text.encode()).hexdigest()
    return os.path.join(folder, own(), name[:2], f'{name}.safetensors')

  def known(text: str) -> bool:
    return text in held or bool(folder) and os.path.isfile(path(text))

  def recall(text: str) -> Features | None:
    if text in held:
      held.move_to_end(text)
      return held[text]
    if folder and os.path.isfile(path(text)):
      return _read(path(text), encoder.shapes)
    return None

  def of(texts: Sequence[str]) -> dict[str, Features]:
    """Features of different texts."""
    found = {text: recall(text) for text in texts}
    new = [text for text in texts if found[text] is None]
    if new:
      made = encoder.encode(new)
      for i, text in enumerate(new):
        # A copy, or all would be held for as long as one of them is.
        found[text] = {name: np.array(x[i]) for name, x in made.items()}
        if folder:
          os.makedirs(os.path.dirname(path(text)), exist_ok=True)
          data = safetensors.numpy.save(found[text])
          weights.write(path(text), data)
    held.update(found)
    while len(held) > max(keep, len(texts)):
      held.popitem(last=False)
    return found

  def rows(texts: Sequence[str]) -> Features:
    free = [] if negative is None else [negative]
    found = of(list(dict.fromkeys([*free, *texts])))
    out = {
      name: np.stack([found[text][name] for text in texts])
      for name in encoder.shapes
    }
    for text in free:
      for name, x in found[text].items():
        out[f'null_{name}'] = np.broadcast_to(x, (len(texts), *x.shape))
    return out

  shapes = dict(encoder.shapes)
  if negative is not None:
    shapes |= {f'null_{name}': x for name, x in encoder.shapes.items()}
  identity = f'{encoder.identity} negative={negative!r}'
  return Embed(
    rows,
    shapes,
    identity,
    encoder.check,
    known,
    math.inf if folder else keep,
    encoder.networks,
    encoder.free,
  )


def _read(path: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Features:
  try:
    found = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise weights.WeightsError(
      f'{path}, features of a prompt, cannot be read ({error}); delete it and '
      'they are computed again.'
    ) from None
  holds = {n: (x.shape, x.dtype) for n, x in found.items()}
  if holds != {n: (x.shape, x.dtype) for n, x in shapes.items()}:
    raise weights.WeightsError(
      f'{path} holds {holds}, not the features of this encoder; delete it and '
      'they are computed again.'
    )
  return found


def blank(embed: Embed) -> Embed:
  """The same shapes without a network: zeros."""

  def rows(texts: Sequence[str]) -> Features:
    return {
      name: np.zeros((len(texts), *x.shape), x.dtype)
      for name, x in embed.shapes.items()
    }

  return embed._replace(rows=rows)


def in_chunks(
  encode: Callable[..., Features], size: int, *ids: np.ndarray
) -> Features:
  """`encode` of arrays [n ...], `size` rows at a time: one program for all.

  The last rows are filled up with copies of the first one.
  """
  count = len(ids[0])
  filled = -(-count // size) * size
  at = np.arange(filled) * (np.arange(filled) < count)
  parts = [
    jax.device_get(encode(*(x[rows] for x in ids)))
    for rows in np.split(at, filled // size)
  ]
  joined = functools.partial(jax.tree.map, lambda *x: np.concatenate(x)[:count])
  return joined(*parts)
