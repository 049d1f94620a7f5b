"""What policies share that say the codes of a picture, in whatever order."""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp

from gen_rl import build, models, types
from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.models import vq
from gen_rl.models.files import weights
from gen_rl.types import Array, Params
from gen_rl.utils import rng


def codec_of(
  spec: Mapping[str, Any], size: int, length: int | None = None
) -> vq.Codec:
  """The codec of a spec, for a net of `size` codes (and `length` places).

  Raises:
    ConfigError: it has another number of codes, or pictures of more or fewer.
  """
  book = build.build(models, spec)
  if book.size != size:
    raise ConfigError(
      f'the codec has {book.size} codes and the net says {size}: set '
      f'model.codes={book.size}'
    )
  places = math.prod(book.grid)
  if length not in (None, places):
    raise ConfigError(
      f'a picture of the codec is {places} codes and the net fills {length} '
      f'places: set model.grid={book.grid}'
    )
  return book


# The return type is spelled so that a config cannot ask for this function by
# name (policies.BUILDS).
def coded(
  said: types.Policy, book: vq.Codec, codec_weights: str = ''
) -> types.Policy:
  """A policy of codes as one of pictures.

  Parameters are dict(net, codec); the codec's get no gradient, and trainable
  should leave them out: trainable='^net/'. Samples are codes.

  Args:
    said: samples are codes [b n].
    book: the codec.
    codec_weights: "asset:NAME" or the path of a safetensors file that `init`
      takes the codec's parameters from; '' draws them.
  """

  def init(key: Array) -> Params:
    drawn = book.init(rng.stream_keys(key, 'codec'))
    if codec_weights:
      shapes = jax.eval_shape(lambda: drawn)
      drawn, _ = weights.load(weights.find(codec_weights), shapes, cast=True)
    return dict(net=said.init(key), codec=drawn)

  def of_net(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *args: op(params['net'], *args)

  def compress(params: Params, pictures: Array) -> Array:
    codes = jax.ShapeDtypeStruct((1, math.prod(book.grid)), jnp.int32)
    size = jax.eval_shape(book.decode, params['codec'], codes).shape[1:3]
    return jax.lax.stop_gradient(
      book.encode(params['codec'], process.resized(pictures, size))
    )

  return types.Policy(
    init,
    of_net(said.rollout),
    lambda params, codes: book.decode(
      jax.lax.stop_gradient(params['codec']), codes
    ),
    {name: of_net(op) for name, op in said.ops.items()}
    | dict(compress=compress),
    axes=(*said.axes, *book.axes),
  )
