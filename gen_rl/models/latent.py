"""A velocity network in the latents of an autoencoder (arXiv 2112.10752).

Parameters are {'net': ..., 'vae': ...}; the autoencoder's are not meant to be
trained: trainable='^net/'. Gradients of rewards pass through its decoder to the
latents.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, Literal

import jax

from gen_rl import build, minibatch, models
from gen_rl.build import ConfigError
from gen_rl.fields import RowsOrAll
from gen_rl.models import vae as vae_lib
from gen_rl.models.files import options, released
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.layers import Net
from gen_rl.types import Array, Params, PyTree
from gen_rl.utils import rng


def latent(
  net: Mapping[str, Any],
  vae: Mapping[str, Any],
  vocab: int,
  length: int,
  decode_rows: RowsOrAll = 0,
  tiled: bool = False,
  vae_dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32',
) -> Net:
  """A network and its autoencoder as one network.

  Args:
    net: spec of a velocity network of `models`.
    vae: spec of an autoencoder, name='vae'.
    vocab: token ids of prompts, for networks that read them.
    length: of prompts in tokens, likewise.
    decode_rows: rows a device decodes or encodes at a time; 0: all. What a
      decoder keeps of a large picture is many times the picture.
    tiled: decode in tiles.
    vae_dtype: type of the autoencoder's parameters.

  Returns:
    A Net whose released folder has the parts "vae" and that of the network.

  Raises:
    ConfigError: `vae` is no autoencoder, or latents of the two have unlike
      numbers of channels.
  """
  inner = build.build(models, net, vocab=vocab, length=length)
  coder = build.build(models, vae)
  if not isinstance(coder, vae_lib.VAE):
    raise ConfigError(f'latent: {vae["name"]} is no autoencoder; use vae')
  given = build.plain(vae)
  bound = inspect.signature(build.find(models, given.pop('name'))).bind(**given)
  bound.apply_defaults()
  coder_options = bound.arguments
  if inner.shape[-1] != coder.channels:
    raise ConfigError(
      f'latent: the network takes latents of {inner.shape[-1]} channels and '
      f'the autoencoder makes {coder.channels}'
    )

  def init(key: Array) -> Params:
    drawn = coder.init(rng.stream_keys(key, 'vae'))
    drawn = jax.tree.map(lambda x: x.astype(vae_dtype), drawn)
    return dict(net=inner.init(key), vae=drawn)

  def apply(params: Params, x: Array, t: Array, encoded: PyTree) -> Array:
    return inner.apply(params['net'], x, t, encoded)

  def encode(params: Params, cond: PyTree) -> PyTree:
    return inner.encode(params['net'], cond)

  def frozen(params: Params) -> Params:
    return jax.lax.stop_gradient(params['vae'])

  def in_parts(coded: Callable[[Array], Array], x: Array) -> Array:
    rows = decode_rows * layers_lib.shards('batch')  # of all devices
    if not decode_rows or rows >= len(x):
      return coded(x)
    if len(x) % rows == 0:  # every device takes rows of its own
      parts = minibatch.cut(x, len(x) // rows)
      return minibatch.join(jax.lax.map(coded, parts))
    return jax.lax.map(
      lambda row: coded(row[None])[0],
      x,
      batch_size=decode_rows if decode_rows > 1 else None,
    )

  def decode(params: Params, y: Array) -> Array:
    decoder = coder.tiled_decode if tiled else coder.decode
    return in_parts(lambda part: decoder(frozen(params), part), y)

  def compress(params: Params, image: Array) -> Array:
    def coded(part: Array) -> Array:
      return coder.scaled(coder.encode(frozen(params), part).mode())

    return in_parts(coded, image)

  def load(folder: str, dtype: str) -> Params:
    if inner.load is None:
      raise ConfigError(f'latent: {net} cannot be read from a released folder')
    part = released.locate(folder, 'vae')
    found = vae_lib.config(released.config(part, vae_lib.KINDS))
    found.pop('tile')
    options.same(part, found, coder_options, 'model.vae')
    like = jax.eval_shape(coder.init, jax.random.key(0))
    params = released.load(part, like, vae_lib.NAMES, vae_dtype, host=True)
    return dict(net=inner.load(folder, dtype), vae=params)

  def save(folder: str, params: Params) -> None:
    if inner.save is None:
      raise ConfigError(f'latent: {net} cannot be written as a released folder')
    inner.save(folder, params['net'])

  def adapt(path: str, params: Params) -> Params:
    return params | dict(net=inner.adapt(path, params['net']))

  return Net(
    init,
    apply,
    inner.shape,
    inner.null,
    encode,
    (*inner.axes, *coder.axes),
    decode,
    compress,
    load,
    save,
    adapt if inner.adapt else None,
  )
