"""Parts that released vision transformers share.

Blocks are pre-norm (ViT, arXiv 2010.11929), with attention A, layer norms n and
a two-layer perceptron M,

  x <- x + A(n(x)),  x <- x + M(n(x))                                    (1)

A learned table of positions is of one grid; for pictures of another size it is
resampled, along either axis, from h to h' places with

  y_i = sum_j k(u_i - j) x_j,  u_i = (i + 1/2) h / h' - 1/2              (2)
  k(s) = (a + 2)|s|^3 - (a + 3) s^2 + 1          |s| <= 1
         a (|s|^3 - 5 s^2 + 8 |s| - 4)       1 < |s| < 2                 (3)

Keys' kernel (1981). torch's plain bicubic resampling takes a = -3/4 and repeats
the first and the last place beyond the edges; its antialiased one takes
a = -1/2, stretches the kernel by max(h / h', 1), and leaves out what lies
beyond the edges, so that weights are divided by their sum.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.models.parts import attention as attention_lib
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.types import Array, Axes, Params

# Of the pictures that CLIP was trained on, red, green and blue.
CLIP_MEAN = 0.48145466, 0.4578275, 0.40821073
CLIP_STD = 0.26862954, 0.26130258, 0.27577711
# As config.json calls them.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_pytorch_tanh': functools.partial(nn.gelu, approximate=True),
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}
AXES = (
  (r'(^|/)([qkv]_proj|qkv)/kernel$', ('embed', 'heads')),
  (r'(^|/)([qkv]_proj|qkv)/bias$', ('heads',)),
  (r'(^|/)(out_proj|proj)/kernel$', ('heads', 'embed')),
  (r'(^|/)fc1/kernel$', ('embed', 'mlp')),
  (r'(^|/)fc1/bias$', ('mlp',)),
  (r'(^|/)fc2/kernel$', ('mlp', 'embed')),
  (r'/embedding$', ('vocab', 'embed')),
  (r'/(bias|scale)$', (None,)),
)


class Features(NamedTuple):
  """What an encoder says of a picture, float32."""

  pooled: Array | None  # [b d]; None: the model has no vector of the whole
  patches: Array  # [b h w d] of squares of pixels


class ImageEncoder(NamedTuple):
  """A network that looks at pictures, as pure functions."""

  init: Callable[[Array], Params]  # key -> params
  # (params, pixels [b h w c], normalised as the model wants) -> Features
  apply: Callable[[Params, Array], Features]
  axes: Axes = ()  # of the parameters' dimensions, see sharding.logical_axes


class Patches(nn.Module):
  """Squares of p x p pixels as vectors: [b h w c] -> [b h/p w/p d].

  A convolution whose windows do not overlap, as one product: its gradient is
  fast on CPUs, too.

  Raises:
    ValueError: a size that is no multiple of p.
  """

  width: int
  patch: int
  dtype: Any = jnp.float32
  bias: bool = True

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    p, (h, w, c) = self.patch, pixels.shape[1:]
    if h % p or w % p:
      raise ValueError(
        f'pictures of {h}x{w} pixels do not divide into squares of {p}x{p}; '
        'resize them'
      )
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), (p, p, c, self.width)
    )
    x = einops.rearrange(
      pixels.astype(self.dtype), 'b (h p) (w q) c -> b h w (p q c)', p=p, q=p
    )
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    x = x @ kernel
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, (self.width,))
      x += bias.astype(self.dtype)
    return x


class Attention(nn.Module):
  """Every place sees every other one: [b i d] -> [b i d].

  With a mask, broadcastable to [b n i j], those that it says.
  """

  heads: int
  bias: bool = True  # of queries, keys and values
  attention: str = 'auto'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None) -> Array:
    dense = functools.partial(Dense, x.shape[-1], dtype=self.dtype)
    q, k, v = (
      split_heads(dense(use_bias=self.bias, name=f'{n}_proj')(x), self.heads)
      for n in 'qkv'
    )
    seen = attention_lib.sdpa(q, k, v, mask, self.attention)
    return dense(name='out_proj')(seen.reshape(x.shape))


class Mlp(nn.Module):
  """Two layers: [b i d] -> [b i d]."""

  hidden: int
  act: str = 'gelu'  # of ACTIVATIONS
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = Dense(self.hidden, dtype=self.dtype, name='fc1')(x)
    h = constrain(ACTIVATIONS[self.act](h), 'batch', None, 'mlp')
    return Dense(x.shape[-1], dtype=self.dtype, name='fc2')(h)


class Block(nn.Module):
  """(1), with the names that CLIP and SigLIP have in transformers' files."""

  heads: int
  mlp: int
  act: str = 'gelu'
  eps: float = 1e-6
  attention: str = 'auto'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None) -> Array:
    norm = functools.partial(nn.LayerNorm, self.eps, dtype=self.dtype)
    attention = Attention(
      self.heads, attention=self.attention, dtype=self.dtype, name='self_attn'
    )
    x += attention(norm(name='layer_norm1')(x), mask)
    mlp = Mlp(self.mlp, self.act, self.dtype, name='mlp')
    x += mlp(norm(name='layer_norm2')(x))
    return constrain(x, 'batch', None, None)


class Depth(NamedTuple):
  """How many blocks there are, and how they are compiled."""

  layers: int
  scan: bool = False  # one program for all, parameters stacked [layers ...]
  remat: str = 'none'  # see layers.rematerialized


def stack(
  block: type[nn.Module],
  settings: Mapping[str, Any],
  depth: Depth,
  name: str,
  x: Array,
  *shared: Array,
) -> Array:
  """Equal blocks, one after the other, called in a compact method.

  Args:
    block: its class; called with x and what is shared, it gives the next x.
    settings: its fields.
    depth: how many, and how they are compiled.
    name: of the blocks `<name>_<i>`, or of the stack of them.
    x: [b i d].
    *shared: what all blocks see alike.
  """
  block = layers_lib.rematerialized(block, depth.remat, in_scan=depth.scan)
  if not depth.scan:
    for i in range(depth.layers):
      x = block(**settings, name=f'{name}_{i}')(x, *shared)
    return x
  over = nn.scan(
    lambda one, x, *shared: (one(x, *shared), None),
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=nn.broadcast,
    length=depth.layers,
  )
  return over(block(**settings, name=name), x, *shared)[0]


class Encoder(nn.Module):
  """`stack` as a module of its own."""

  block: type[nn.Module]
  settings: Mapping[str, Any]
  depth: Depth
  name_of_block: str = 'layers'

  @nn.compact
  def __call__(self, x: Array, *shared: Array) -> Array:
    return stack(
      self.block, self.settings, self.depth, self.name_of_block, x, *shared
    )


def split_heads(x: Array, heads: int) -> Array:
  """[b i (n c)] -> [b i n c]."""
  x = einops.rearrange(x, 'b i (n c) -> b i n c', n=heads)
  return constrain(x, 'batch', None, 'heads', None)


def resampling(old: int, new: int, antialias: bool = False) -> np.ndarray:
  """The weights of (2), [new old], float32."""
  a = -0.5 if antialias else -0.75
  u = (np.arange(new) + 0.5) * old / new - 0.5

  def kernel(s: np.ndarray) -> np.ndarray:
    s = np.abs(s)
    near = ((a + 2) * s - (a + 3)) * s * s + 1
    far = (((s - 5) * s + 8) * s - 4) * a
    return np.where(s <= 1, near, np.where(s < 2, far, 0))

  if antialias:
    at = (u[:, None] - np.arange(old)) / max(old / new, 1)
    weights = kernel(at)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    j = np.floor(u).astype(int) + tap
    np.add.at(weights, (np.arange(new), j.clip(0, old - 1)), kernel(u - j))
  return weights.astype(np.float32)


def resized(
  table: Array, size: tuple[int, int], antialias: bool = False
) -> Array:
  """A table of positions [h w d] for another grid: [h' w' d], float32."""
  if table.shape[:2] == size:
    return table
  rows, columns = (
    resampling(old, new, antialias)
    for old, new in zip(table.shape[:2], size, strict=True)
  )
  return jnp.einsum(
    'ih,jw,hwd->ijd', rows, columns, table.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )  # fmt: skip


def fitted(
  images: Array,
  side: int,
  mean: Sequence[float],
  std: Sequence[float],
  short: int | None = None,
  floor: bool = False,
  rounded: bool = False,
) -> Array:
  """Pictures as an encoder is given them: [b h w 3] -> [b side side 3].

  The short side becomes `short` pixels, with the antialiased weights of (2), as
  Pillow's bicubic ones; the middle is cut out, and x becomes (x - mean) / std.

  Args:
    images: RGB in [0, 1]; what the kernel overshoots is clipped to that.
    side: in pixels.
    mean: of each colour.
    std: of each colour.
    short: at least `side`; None: `side`.
    floor: where the middle begins, if that is half a pixel: transformers take
      the pixel before, torchvision the even one.
    rounded: to 8 bits where Pillow does it: before, after the rows and after
      the columns. The gradient passes as if they were not.
  """
  short = short or side
  h, w = images.shape[1:3]
  sizes = [max(short, int(short * n / min(h, w))) for n in (h, w)]
  begin = [
    (new - side) // 2 if floor else round((new - side) / 2) for new in sizes
  ]
  rows, columns = (
    resampling(old, new, antialias=True)[at:][:side]
    for old, new, at in zip((h, w), sizes, begin, strict=True)
  )
  x = _scaled(images, rows, columns, rounded)
  return (jnp.clip(x, 0, 1) - np.float32(mean)) / np.float32(std)


def framed(
  images: Array,
  side: int,
  mean: Sequence[float],
  std: Sequence[float],
  rounded: bool = False,
) -> Array:
  """Likewise, whole: the long side becomes `side` pixels, the rest is black.

  As HPS v2 does it: floats are resized, and what the kernel overshoots is kept.

  Args:
    images: RGB in [0, 1].
    side: in pixels.
    mean: of each colour.
    std: of each colour.
    rounded: to 8 bits, before.
  """
  sizes = images.shape[1:3]
  new = [round(n * (side / max(sizes))) for n in sizes]
  rows, columns = (
    np.pad(
      resampling(n, m, antialias=True),
      (((side - m) // 2, side - m - (side - m) // 2), (0, 0)),
    )
    for n, m in zip(sizes, new, strict=True)
  )
  x = _scaled(_levels(images) if rounded else images, rows, columns, False)
  return (x - np.float32(mean)) / np.float32(std)


def _scaled(
  images: Array, rows: np.ndarray, columns: np.ndarray, rounded: bool
) -> Array:
  """[b h w c] -> [b i j c] by weights [i h] and [j w]."""
  step = _levels if rounded else lambda x: x
  product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  x = step(images.astype(jnp.float32))
  x = step(product('jw,bhwc->bhjc', columns, x))
  return step(product('ih,bhjc->bijc', rows, x))


def _levels(x: Array) -> Array:
  """In [0, 1], on one of 256 levels; the gradient is that of the clipping."""
  x = jnp.clip(x, 0, 1)
  return x + jax.lax.stop_gradient(jnp.floor(255 * x + 0.5) / 255 - x)
