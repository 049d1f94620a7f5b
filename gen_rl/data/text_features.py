"""Text encoders of released image generators, as their pipelines use them.

Stable Diffusion 1.5 is given the states of CLIP L/14. Stable Diffusion 3 is
given the states before the last block of CLIP L/14 and bigG side by side, with
zeros up to the width of T5's, and T5's states after them; pooled are both
projected vectors, side by side. FLUX is given T5's states, and pooled is CLIP
L/14's vector, not projected. Padding is not masked anywhere.

Folders are those of diffusers: text_encoder, text_encoder_2, text_encoder_3 and
tokenizer, tokenizer_2, tokenizer_3. Without a folder features are drawn, the
text being the seed: they say nothing, but a run with drawn weights can be timed
and tested.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.data import embeddings, text_networks, tokenizers
from gen_rl.data.embeddings import Encoder, Features
from gen_rl.data.text_networks import Network
from gen_rl.fields import Chunk, Count
from gen_rl.models import clip, t5
from gen_rl.models.files import folders, weights

_CLIP_LENGTH = 77
Real = Literal['float32', 'bfloat16', 'float16']
_KINDS = 'text_encoder', 'tokenizer'
_SAMPLES, _BLOCK = 256, 4096  # of a file of weights, bytes


def sd15_text(
  folder: str = '',
  truncate: bool = False,
  dtype: Real = 'float32',
  chunk: Chunk = 16,
  width: Count = 768,
) -> Encoder:
  """Of Stable Diffusion 1.5: text [77 width].

  Args:
    folder: of the pipeline; '': features are drawn.
    truncate: cut texts that are too long, as the pipelines do, in place of an
      error.
    dtype: of the parameters, the arithmetic and the features.
    chunk: texts encoded at a time, by all devices of a process.
    width: where features are drawn.
  """
  if not folder:
    return _drawn(dict(text=(_CLIP_LENGTH, width)), dtype)
  parts = {'': _CLIP_LENGTH}
  shapes = dict(text=(_CLIP_LENGTH, _hidden(folder, 'text_encoder')))

  def networks() -> list[Network]:
    return [_clip(folder, 'text_encoder', dtype)]

  def features(said: clip.Text) -> dict[str, jax.Array]:
    return dict(text=said.last)

  return _encoder(
    folder, parts, shapes, networks, features, truncate, dtype, chunk
  )


def sd3_text(
  folder: str = '',
  truncate: bool = False,
  t5_length: Count = 256,
  use_t5: bool = True,
  dtype: Real = 'bfloat16',
  chunk: Chunk = 8,
  width: Count = 4096,
  pooled: Count = 2048,
) -> Encoder:
  """Of Stable Diffusion 3 and 3.5: text [77 + t5_length, width], pooled.

  Args:
    folder: of the pipeline; '': features are drawn.
    truncate: cut texts that are too long, as the pipelines do, in place of an
      error.
    t5_length: tokens of T5; 128 in Flow-GRPO.
    use_t5: False has zeros in place of its states, as the pipeline without it.
    dtype: of the parameters, the arithmetic and the features.
    chunk: texts encoded at a time, by all devices of a process.
    width: of a token, where features are drawn or T5 is not used.
    pooled: where features are drawn.
  """
  length = _CLIP_LENGTH + t5_length
  if not folder:
    return _drawn(dict(text=(length, width), pooled=(pooled,)), dtype)
  names = 'text_encoder', 'text_encoder_2'
  parts = {'': _CLIP_LENGTH, '_2': _CLIP_LENGTH}
  if use_t5:
    parts['_3'] = t5_length
    width = _hidden(folder, 'text_encoder_3')

  def networks() -> list[Network]:
    found = [_clip(folder, name, dtype, projected=True) for name in names]
    return found + [_t5(folder, 'text_encoder_3', dtype)] * use_t5

  def features(*said: Any) -> dict[str, jax.Array]:
    text = jnp.concatenate([s.before for s in said[:2]], -1)
    text = jnp.pad(text, ((0, 0), (0, 0), (0, width - text.shape[-1])))
    more = said[2] if use_t5 else jnp.zeros((len(text), t5_length, width))
    return dict(
      text=jnp.concatenate([text, more], 1),
      pooled=jnp.concatenate([s.projected for s in said[:2]], -1),
    )

  size = sum(clip.config(_config(folder, name))['projection'] for name in names)
  shapes = dict(text=(length, width), pooled=(size,))
  return _encoder(
    folder, parts, shapes, networks, features, truncate, dtype, chunk
  )


def flux_text(
  folder: str = '',
  truncate: bool = False,
  t5_length: Count = 512,
  dtype: Real = 'bfloat16',
  chunk: Chunk = 8,
  width: Count = 4096,
  pooled: Count = 768,
) -> Encoder:
  """Of FLUX.1: text [t5_length width], pooled.

  Args:
    folder: of the pipeline; '': features are drawn.
    truncate: cut texts that are too long, as the pipelines do, in place of an
      error.
    t5_length: tokens of T5; 256 for schnell.
    dtype: of the parameters, the arithmetic and the features.
    chunk: texts encoded at a time, by all devices of a process.
    width: of a token, where features are drawn.
    pooled: likewise.
  """
  if not folder:
    return _drawn(dict(text=(t5_length, width), pooled=(pooled,)), dtype)
  parts = {'': _CLIP_LENGTH, '_2': t5_length}

  def networks() -> list[Network]:
    return [
      _clip(folder, 'text_encoder', dtype),
      _t5(folder, 'text_encoder_2', dtype),
    ]

  def features(said: clip.Text, states: jax.Array) -> dict[str, jax.Array]:
    return dict(text=states, pooled=said.pooled)

  shapes = dict(
    text=(t5_length, _hidden(folder, 'text_encoder_2')),
    pooled=(_hidden(folder, 'text_encoder'),),
  )
  return _encoder(
    folder, parts, shapes, networks, features, truncate, dtype, chunk
  )


def _config(folder: str, part: str) -> dict[str, Any]:
  return folders.config(folders.locate(folder, part))


def _hidden(folder: str, part: str) -> int:
  found = _config(folder, part)
  width = found.get('d_model', found.get('hidden_size'))
  if not isinstance(width, int):
    raise ValueError(
      f'{folder}: the config of {part} has no d_model or hidden_size'
    )
  return width


def _tokenizer(folder: str, end: str) -> tokenizers.Tokenizer:
  """The tokenizer of an encoder, which has to have its words.

  T5's table has some rows beyond its words, up to a multiple of 128.

  Raises:
    ValueError: it has other ones.
  """
  path = folders.locate(folder, f'tokenizer{end}')
  reader = tokenizers.pretrained(path)
  said = _config(folder, f'text_encoder{end}')
  rows = said.get('vocab_size')
  if not isinstance(rows, int):
    raise ValueError(
      f'{folder}: the config of text_encoder{end} has no vocab_size'
    )
  fits = reader.size == rows
  if 'd_model' in said:
    ends = said.get('pad_token_id', 0), said.get('eos_token_id', 1)
    ids = reader.pad_id, reader.end_id
    fits = reader.size <= rows < reader.size + 128 and ids == ends
  if not fits:
    raise ValueError(
      f'{path} has {reader.size} words, with {reader.pad_id} for padding and '
      f'{reader.end_id} for the end, and text_encoder{end} has a table of '
      f'{rows}: it is another tokenizer, or not whole'
    )
  return reader


def _clip(
  folder: str, part: str, dtype: str, projected: bool = False
) -> Network:
  kind = 'CLIPTextModelWithProjection' if projected else 'CLIPTextModel'
  path = folders.locate(folder, part)
  net, *read = clip.unread(path, (kind,), dtype=dtype)
  return text_networks.network(net.text, net.axes, path, dtype, *read)


def _t5(folder: str, part: str, dtype: str) -> Network:
  path = folders.locate(folder, part)
  net, *read = t5.unread(path, dtype=dtype)
  return text_networks.network(net.apply, net.axes, path, dtype, *read)


def _encoder(
  folder: str,
  parts: Mapping[str, int],
  shapes: Mapping[str, tuple[int, ...]],
  networks: Callable[[], Sequence[Network]],
  features: Callable[..., dict[str, jax.Array]],
  truncate: bool,
  dtype: str,
  chunk: int,
) -> Encoder:
  """Tokenizers and networks that are loaded when they are needed.

  Args:
    folder: of the pipeline.
    parts: {ending of a tokenizer's folder: tokens}, in the order of the
      networks that are given their ids.
    shapes: of a text's features.
    networks: one for each tokenizer, of which the configs are read.
    features: of what they say.
    truncate: cut what is too long.
    dtype: of the features.
    chunk: texts encoded at a time, by all devices of a process.
  """
  networks = functools.cache(networks)

  @functools.cache
  def run() -> Callable[..., Features]:
    return text_networks.load(networks(), features)

  @functools.cache
  def readers() -> list[tokenizers.Tokenizer]:
    return [_tokenizer(folder, end) for end in parts]

  def ids(texts: Sequence[str]) -> list[np.ndarray]:
    pairs = zip(readers(), parts.values(), strict=True)
    return [read.encode(texts, l, truncate=truncate) for read, l in pairs]

  def encode(texts: Sequence[str]) -> Features:
    rows = text_networks.rows(chunk)
    made = embeddings.in_chunks(run(), rows, *ids(texts))
    return {name: x.astype(jnp.dtype(dtype)) for name, x in made.items()}

  def check(texts: Sequence[str]) -> None:
    if not truncate:
      ids(texts)

  said = _fingerprint(folder, parts), dict(parts), dict(shapes)
  return Encoder(
    encode,
    {n: jax.ShapeDtypeStruct(x, jnp.dtype(dtype)) for n, x in shapes.items()},
    f'{said} {truncate} {dtype}',
    check,
    lambda: _checksum(folder, parts),
    networks,
    run.cache_clear,
  )


def _fingerprint(folder: str, parts: Mapping[str, int]) -> str:
  """Of configs, tokenizers' vocabularies and sizes of weights."""
  digest = hashlib.sha256()
  for part in [f'{kind}{end}' for end in parts for kind in _KINDS]:
    root = folders.locate(folder, part)
    for name in sorted(os.listdir(root)):
      path = os.path.join(root, name)
      digest.update(f'{part}/{name} {os.path.getsize(path)}'.encode())
      if name.endswith(('.json', '.txt', '.model')):
        weights.readable(path)
        with open(path, 'rb') as f:
          digest.update(f.read())
  return digest.hexdigest()[:16]


def _checksum(folder: str, parts: Mapping[str, int]) -> str:
  """Of the weights: of blocks that lie evenly in every file.

  Networks that were trained further differ everywhere; to read 11 GB at every
  start would take longer than to encode a step's prompts.
  """
  digest = hashlib.sha256()
  for part in [f'text_encoder{end}' for end in parts]:
    root = folders.locate(folder, part)
    for name in sorted(os.listdir(root)):
      if name.endswith(('.safetensors', '.bin')):
        path = os.path.join(root, name)
        weights.readable(path)
        size = os.path.getsize(path)
        with open(path, 'rb') as f:
          for i in range(_SAMPLES):
            f.seek(size * i // _SAMPLES)
            digest.update(f.read(_BLOCK))
  return digest.hexdigest()[:16]


def _drawn(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Encoder:
  """Normal numbers that a text is the seed of."""

  def of(text: str) -> Features:
    seed = hashlib.sha256(text.encode()).digest()
    rng = np.random.default_rng(list(seed))
    return {
      name: rng.standard_normal(shape, np.float32)
      for name, shape in shapes.items()
    }

  def encode(texts: Sequence[str]) -> Features:
    each = [of(text) for text in texts]
    return {
      name: np.stack([x[name] for x in each]).astype(jnp.dtype(dtype))
      for name in shapes
    }

  return Encoder(
    encode,
    {n: jax.ShapeDtypeStruct(x, jnp.dtype(dtype)) for n, x in shapes.items()},
    f'drawn {dict(shapes)} {dtype}',
  )
