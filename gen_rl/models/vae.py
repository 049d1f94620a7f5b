"""The autoencoder of latent diffusion (arXiv 2112.10752), diffusers' names.

Its latents are Gaussian, given a picture x in [0, 1],

  z ~ N(mean, exp(logvar)),   (mean, logvar) = E(2 x - 1),
  x = (1 + D(z)) / 2,                                                    (1)

and a diffusion network sees them shifted and scaled to about mean 0 and
variance 1, as y (the `latents` of policies):

  y = (z - shift) scale.                                                 (2)

Released ones: Stable Diffusion 1 and 2 with 4 channels, a convolution of one
pixel behind the encoder and one before the decoder, and scale 0.18215; Stable
Diffusion 3 (scale 1.5305, shift 0.0609) and FLUX (0.3611, 0.1159) with 16
channels and without those. A latent's pixel is 8 x 8 of the picture.

Large pictures are decoded in tiles that overlap by a quarter, blended linearly
from the tile before into the next. Every tile has its own statistics of norms,
and attention ends at its border, so the result is not quite that of (1).
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
from typing import Any, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.diffusion import process
from gen_rl.fields import Count, Positive, Remat
from gen_rl.models.files import options, released
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts import resnet
from gen_rl.models.parts.attention import sdpa
from gen_rl.models.parts.layers import Dense
from gen_rl.types import Array, Axes, Params
from gen_rl.utils import rng

AXES = (
  (r'(^|/)to_[qkv]/kernel$', ('embed', 'heads')),
  (r'(^|/)to_out_0/kernel$', ('heads', 'embed')),
  (r'(^|/)(post_)?quant_conv/kernel$', (None, None)),
  *resnet.AXES,
)
NAMES = released.Names(
  # Attention of the first checkpoints; its products may be convolutions.
  aliases=(
    (r'\.query\.', '.to_q.'),
    (r'\.key\.', '.to_k.'),
    (r'\.value\.', '.to_v.'),
    (r'\.proj_attn\.', '.to_out.0.'),
  )
)
KINDS = ('AutoencoderKL',)
_OVERLAP = 0.25  # of tiles that are neighbours
_EPS = 1e-6


class Posterior(NamedTuple):
  """The Gaussian of a picture's latent z, before (2)."""

  mean: Array  # [b h w c]
  logvar: Array  # [b h w c], in [-30, 20]

  def mode(self) -> Array:
    """The likeliest z."""
    return self.mean

  def sample(self, key: Array) -> Array:
    """Draws z; `key` is one key, or per-row keys [b]."""
    keys = rng.per_row(key, self.mean.shape[0])
    noise = rng.normal(keys, self.mean.shape[1:])
    return self.mean + jnp.exp(0.5 * self.logvar) * noise


class VAE(NamedTuple):
  """An autoencoder as pure functions; pictures [b h w 3] in [0, 1]."""

  init: Callable[[Array], Params]  # key -> params
  encode: Callable[[Params, Array], Posterior]  # of z
  # (params, y [b h w c], clip=True) -> pictures: (1) of z, clipped to [0, 1]
  # with all of the gradient (process.clip), or as they are
  decode: Callable[..., Array]
  # The same in tiles, if a picture is larger than one
  tiled_decode: Callable[..., Array]
  scaled: Callable[[Array], Array]  # z -> y, (2)
  unscaled: Callable[[Array], Array]  # y -> z
  channels: int  # c
  factor: int  # pixels of a picture along the side of a latent's
  axes: Axes = AXES


class Attention(nn.Module):
  """Every pixel looks at all others, with one head: [b h w c], residual."""

  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, h, w, c = x.shape
    dense = functools.partial(Dense, c, dtype=self.dtype)
    norm = resnet.GroupNorm(
      self.groups, epsilon=_EPS, dtype=self.dtype, name='group_norm'
    )
    flat = norm(x).reshape(b, h * w, c)
    q, k, v = (dense(name=f'to_{n}')(flat)[:, :, None] for n in 'qkv')
    out = dense(name='to_out_0')(sdpa(q, k, v)[:, :, 0])
    return x + out.reshape(x.shape)


class _Part(nn.Module):
  """What the parts of both halves share."""

  groups: int
  remat: str
  dtype: Any

  def resnet(self, features: int, i: int) -> nn.Module:
    block = layers_lib.rematerialized(resnet.Resnet, self.remat, in_scan=False)
    return block(features, self.groups, _EPS, self.dtype, name=f'resnets_{i}')


class Middle(_Part):
  """[b h w c] -> [b h w c]."""

  attention: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = self.resnet(x.shape[-1], 0)(x)
    if self.attention:
      x = Attention(self.groups, self.dtype, name='attentions_0')(x)
    return self.resnet(x.shape[-1], 1)(x)


class Level(_Part):
  """Blocks at one resolution, and then half or twice of it, or neither."""

  features: int = 0
  blocks: int = 0
  then: Literal['half', 'twice', ''] = ''

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i in range(self.blocks):
      x = self.resnet(self.features, i)(x)
    if self.then == 'half':
      x = resnet.Downsample(True, self.dtype, name='downsamplers_0')(x)
    elif self.then == 'twice':
      x = resnet.Upsample(self.dtype, name='upsamplers_0')(x)
    return x


class Half(nn.Module):
  """The encoder, [b h w 3] -> [b h' w' 2c], or the decoder, the other way."""

  down: bool
  channels: tuple[int, ...]
  blocks: int
  groups: int
  out: int
  attention: bool
  remat: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    part = self.groups, self.remat, self.dtype
    widths = self.channels if self.down else self.channels[::-1]
    name, then = ('down', 'half') if self.down else ('up', 'twice')
    x = resnet.conv(widths[0], self.dtype, 'conv_in')(x)
    middle = Middle(*part, attention=self.attention, name='mid_block')
    x = x if self.down else middle(x)
    for i, features in enumerate(widths):
      x = Level(
        *part, features=features, blocks=self.blocks,
        then=then if i < len(widths) - 1 else '', name=f'{name}_blocks_{i}',
      )(x)  # fmt: skip
    x = middle(x) if self.down else x
    norm = resnet.GroupNorm(
      self.groups, epsilon=_EPS, dtype=self.dtype, name='conv_norm_out'
    )
    return resnet.conv(self.out, self.dtype, 'conv_out')(nn.silu(norm(x)))


class AutoencoderKL(nn.Module):
  """See the module docstring: pictures in [-1, 1], latents z."""

  channels: tuple[int, ...]
  blocks: int
  groups: int
  latent: int
  quant: bool
  post_quant: bool
  attention: bool
  remat: str
  dtype: Any

  def setup(self):
    def half(down: bool, blocks: int, out: int) -> Half:
      return Half(
        down, self.channels, blocks, self.groups, out, self.attention,
        self.remat, self.dtype,
      )  # fmt: skip

    self.encoder = half(True, self.blocks, 2 * self.latent)
    self.decoder = half(False, self.blocks + 1, 3)
    pixel = functools.partial(nn.Conv, kernel_size=(1, 1), dtype=self.dtype)
    if self.quant:
      self.quant_conv = pixel(2 * self.latent)
    if self.post_quant:
      self.post_quant_conv = pixel(self.latent)

  def encode(self, x: Array) -> Array:
    moments = self.encoder(x)
    return self.quant_conv(moments) if self.quant else moments

  def decode(self, z: Array) -> Array:
    return self.decoder(self.post_quant_conv(z) if self.post_quant else z)

  def __call__(self, x: Array) -> Array:
    return self.decode(self.encode(x)[..., : self.latent])


def vae(
  channels: Sequence[Count] = (128, 256, 512, 512),
  blocks: Count = 2,
  groups: Count = 32,
  latent: Count = 4,
  scale: Positive = 0.18215,
  shift: float = 0.0,
  quant: bool = True,
  post_quant: bool = True,
  attention: bool = True,
  tile: Count = 512,
  remat: Remat = 'none',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> VAE:
  """The autoencoder; the defaults are those of Stable Diffusion 1.5.

  Args:
    channels: of the levels, each half as high and wide as the one before.
    blocks: per level of the encoder; the decoder has one more.
    groups: of norms.
    latent: channels c of a latent.
    scale: of (2).
    shift: of (2).
    quant: there is a convolution behind the encoder.
    post_quant: there is one before the decoder.
    attention: the lowest level has attention.
    tile: side of a tile, pixels of the picture.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    dtype: of the arithmetic. In 16 bits the activations of Stable Diffusion's
      decoders may overflow float16, but not bfloat16.

  Raises:
    ValueError: sizes that do not fit each other, naming them.
  """
  odd = [c for c in channels if c % groups]
  if odd:
    raise ValueError(
      f'vae: channels {odd} are not divisible by groups={groups} of norms'
    )
  factor = 2 ** (len(channels) - 1)
  module = AutoencoderKL(
    tuple(channels), blocks, groups, latent, quant, post_quant, attention,
    remat, jnp.dtype(dtype),
  )  # fmt: skip

  def scaled(z: Array) -> Array:
    return (z - shift) * scale

  def unscaled(y: Array) -> Array:
    return y / scale + shift

  def init(key: Array) -> Params:
    return module.init(key, jnp.zeros((1, factor, factor, 3)))['params']

  def encode(params: Params, image: Array) -> Posterior:
    x = 2.0 * image.astype(jnp.float32) - 1.0
    moments = module.apply({'params': params}, x, method='encode')
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, -1)
    return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

  def picture(params: Params, z: Array) -> Array:
    x = module.apply({'params': params}, z, method='decode')
    return (1.0 + x.astype(jnp.float32)) / 2.0

  def decode(params: Params, y: Array, clip: bool = True) -> Array:
    x = picture(params, unscaled(y.astype(jnp.float32)))
    return process.clip(x) if clip else x

  def tiled_decode(params: Params, y: Array, clip: bool = True) -> Array:
    low = tile // factor
    if max(y.shape[1:3]) <= low:
      return decode(params, y, clip)
    z = unscaled(y.astype(jnp.float32))
    x = _tiled(functools.partial(picture, params), z, low, tile)
    return process.clip(x) if clip else x

  return VAE(
    init, encode, decode, tiled_decode, scaled, unscaled, latent, factor
  )


def _tiled(
  decode: Callable[[Array], Array], z: Array, low: int, high: int
) -> Array:
  """Decodes tiles of `low` latent pixels to `high` and blends them.

  Tiles of one shape are decoded one after the other by one program.

  Raises:
    ValueError: tiles are so small that neighbours would be the same.
  """
  height, width = z.shape[1:3]
  stride = int(low * (1 - _OVERLAP))
  if stride < 1:
    raise ValueError(
      f'vae: a tile of tile={high} pixels is {low} pixels of a latent, and it '
      'needs 2; make tile larger'
    )
  rows, columns = range(0, height, stride), range(0, width, stride)
  shapes: dict[tuple[int, int], list[tuple[int, int]]] = {}
  for i in rows:
    for j in columns:
      shape = (min(low, height - i), min(low, width - j))
      shapes.setdefault(shape, []).append((i, j))
  tiles = {}
  for (h, w), places in shapes.items():
    cut = [z[:, i : i + h, j : j + w] for i, j in places]
    if len(cut) == 1:
      out = [decode(cut[0])]
    else:
      out = jax.lax.map(decode, jnp.stack(cut))
    tiles |= dict(zip(places, out, strict=True))
  edge = int(high * _OVERLAP)
  kept, lines = high - edge, []
  for i in rows:
    line = []
    for j in columns:
      if i:
        tiles[i, j] = _blend(tiles[i - stride, j], tiles[i, j], edge, 1)
      if j:
        tiles[i, j] = _blend(tiles[i, j - stride], tiles[i, j], edge, 2)
      line.append(tiles[i, j][:, :kept, :kept])
    lines.append(jnp.concatenate(line, 2))
  return jnp.concatenate(lines, 1)


def _blend(before: Array, after: Array, edge: int, axis: int) -> Array:
  """`after`, its first pixels along an axis mixed with the last of `before`."""
  edge = min(before.shape[axis], after.shape[axis], edge)
  share = jnp.arange(edge) / edge
  share = share.reshape((-1,) + (1,) * (3 - axis))
  n = before.shape[axis]
  old = jax.lax.slice_in_dim(before, n - edge, n, axis=axis)
  new, rest = jnp.split(after, [edge], axis)
  return jnp.concatenate([old * (1 - share) + new * share, rest], axis)


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `vae` for the config.json of an AutoencoderKL.

  Raises:
    ValueError: options that are missing or not computed, all in one sentence.
  """
  options.typed(
    'AutoencoderKL', config_json,
    whole=('layers_per_block', 'latent_channels', 'norm_num_groups'),
    wholes=('block_out_channels',),
    each=('sample_size',),
  )  # fmt: skip
  levels = len(config_json.get('block_out_channels') or (64,))
  options.check(
    'AutoencoderKL',
    config_json,
    dict(
      in_channels=(3,),
      out_channels=(3,),
      down_block_types=(('DownEncoderBlock2D',) * levels,),
      up_block_types=(('UpDecoderBlock2D',) * levels,),
      act_fn=('silu',),
      latents_mean=(None,),
      latents_std=(None,),
    ),
    free=(
      'block_out_channels', 'layers_per_block', 'latent_channels',
      'norm_num_groups', 'sample_size', 'scaling_factor', 'shift_factor',
      'use_quant_conv', 'use_post_quant_conv', 'mid_block_add_attention',
      'force_upcast',  # when to leave float16
    ),
    required=('block_out_channels',),
  )  # fmt: skip
  get = config_json.get
  side = get('sample_size', 32)
  side = side if isinstance(side, int) else side[0]
  return dict(
    channels=tuple(config_json['block_out_channels']),
    blocks=get('layers_per_block', 1),
    groups=get('norm_num_groups', 32),
    latent=get('latent_channels', 4),
    scale=get('scaling_factor', 0.18215),
    shift=get('shift_factor') or 0.0,
    quant=get('use_quant_conv', True),
    post_quant=get('use_post_quant_conv', True),
    attention=get('mid_block_add_attention', True),
    tile=side,
  )


def load(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  **overrides: Any,
) -> tuple[VAE, Params]:
  """A released autoencoder.

  Args:
    folder: with config.json and weights, see `released.locate`.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    **overrides: keywords of `vae` over those of the config.

  Returns:
    (the autoencoder, its parameters).

  Raises:
    WeightsError: see `released.load`.
    ValueError: see `config` and `vae`.
  """
  said = released.config(folder, KINDS)
  net = vae(**config(said) | overrides)
  like = jax.eval_shape(net.init, jax.random.key(0))
  return net, released.load(folder, like, NAMES, param_dtype)
