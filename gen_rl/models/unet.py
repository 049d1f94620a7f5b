"""The U-Net of latent diffusion (arXiv 2112.10752), diffusers' names.

Levels of residual blocks, each half as high and wide as the one before, most of
them with a transformer behind every block (`pixel_transformer`). The way up
sees, block by block, what the way down computed. The time is an embedding that
every residual block adds; consistency models (LCM, arXiv 2310.04378) embed the
scale of the guidance that they have learned as well.

Such a network predicts noise, at one of N levels of a discrete process. It is
wrapped as a velocity (`diffusion.ddpm`), so policies and objectives see a flow:
with policy.grid=dict(name='ddim') and transition=dict(name='ddim') that of
Stable Diffusion's own sampler.

A cond is dict(text [b l d], null_text [b l d]): features of the prompts, and of
"" or of what else guidance shall lead away from, without masks.

The sizes of Stable Diffusion 1.5 are the defaults: 860M parameters.
"""

from collections.abc import Sequence
import functools
import os
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.diffusion import ddpm
from gen_rl.fields import Count, Fraction, Kernel, NonNegative, Positive, Remat
from gen_rl.models import pixel_transformer, unet_files
from gen_rl.models.files import folders, options, peft, released
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts import resnet
from gen_rl.models.parts.layers import Dense, Net
from gen_rl.models.pixel_transformer import Settings, Transformer
from gen_rl.types import Array, Params

AXES = (
  (r'(^|/)linear_1/kernel$', ('embed', 'mlp')),
  (r'(^|/)linear_2/kernel$', ('mlp', 'embed')),
  (r'(^|/)cond_proj/kernel$', (None, 'embed')),
  *pixel_transformer.AXES,
)
_LOG = np.float32(np.log(1e4))  # of the slowest wave's period


class _Level(nn.Module):
  """What the levels share. Those without heads have no transformers."""

  features: int
  blocks: int
  heads: int
  depth: int
  settings: Settings

  def block(self, i: int, x: Array, time: Array, text: Array) -> Array:
    """Residual block i, and its transformer."""
    s = self.settings
    whole = functools.partial(
      layers_lib.rematerialized, policy=s.remat, in_scan=False
    )
    make = whole(resnet.Resnet)
    x = make(self.features, s.groups, s.eps, s.dtype, name=f'resnets_{i}')(
      x, time
    )
    if not self.heads or i >= self.blocks:
      return x
    make = whole(Transformer)
    return make(self.heads, self.depth, s, name=f'attentions_{i}')(x, text)


class Down(_Level):
  """-> (x, what the way up will see)."""

  half: bool = True

  @nn.compact
  def __call__(
    self, x: Array, time: Array, text: Array
  ) -> tuple[Array, list[Array]]:
    seen = []
    for i in range(self.blocks):
      x = self.block(i, x, time, text)
      seen.append(x)
    if self.half:
      dtype = self.settings.dtype
      x = resnet.Downsample(dtype=dtype, name='downsamplers_0')(x)
      seen.append(x)
    return x, seen


class Middle(_Level):
  """A transformer between two residual blocks: `blocks` is 1."""

  @nn.compact
  def __call__(self, x: Array, time: Array, text: Array) -> Array:
    for i in range(2):
      x = self.block(i, x, time, text)
    return x


class Up(_Level):
  """Takes from the end of what was seen; then as large as `size`."""

  @nn.compact
  def __call__(
    self,
    x: Array,
    time: Array,
    text: Array,
    seen: list[Array],
    size: tuple[int, int] | None,
  ) -> Array:
    for i, more in enumerate(reversed(seen)):
      x = self.block(i, jnp.concatenate([x, more], -1), time, text)
    if size is not None:
      dtype = self.settings.dtype
      x = resnet.Upsample(dtype=dtype, name='upsamplers_0')(x, size)
    return x


class TimeEmbedding(nn.Module):
  """Waves [b c] -> [b width]; `guidance` [b g] is added to them."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, waves: Array, guidance: Array | None) -> Array:
    dense = functools.partial(Dense, dtype=self.dtype)
    if guidance is not None:
      c = waves.shape[-1]
      waves += dense(c, use_bias=False, name='cond_proj')(guidance)
    h = nn.silu(dense(self.width, name='linear_1')(waves))
    return dense(self.width, name='linear_2')(h)


class UNet(nn.Module):
  """x [b h w c], levels [b], text [b l d] -> what is predicted [b h w c]."""

  channels: tuple[int, ...]
  blocks: int
  heads: tuple[int, ...]
  middle_heads: int
  depth: tuple[int, ...]
  guidance_width: int | None
  guidance: float
  settings: Settings

  @nn.compact
  def __call__(self, x: Array, time: Array, text: Array) -> Array:
    s, widths, out = self.settings, self.channels, x.shape[-1]
    half = widths[0] // 2
    waves = _waves(
      time, np.arange(half, dtype=np.float32) * -_LOG / np.float32(half)
    )
    waves = jnp.concatenate(jnp.split(waves, 2, -1)[::-1], -1)
    guidance = None
    if self.guidance_width:
      half = self.guidance_width // 2
      w = np.full(x.shape[0], 1000 * (self.guidance - 1), np.float32)
      guidance = _waves(
        w, np.arange(half, dtype=np.float32) * -(_LOG / np.float32(half - 1))
      )
    embed = TimeEmbedding(4 * widths[0], s.dtype, name='time_embedding')
    time = embed(waves, guidance)
    x = resnet.conv(widths[0], s.dtype, 'conv_in')(x)
    seen = [[x]]
    levels = list(zip(widths, self.heads, self.depth, strict=True))
    for i, (c, heads, depth) in enumerate(levels):
      x, more = Down(
        c, self.blocks, heads, depth, s, half=i < len(levels) - 1,
        name=f'down_blocks_{i}',
      )(x, time, text)  # fmt: skip
      seen.append(more)
    x = Middle(
      widths[-1], 1, self.middle_heads, self.depth[-1], s, name='mid_block'
    )(x, time, text)
    seen, n = sum(seen, []), self.blocks + 1
    for i, (c, heads, depth) in enumerate(levels[::-1]):
      seen, here = seen[:-n], seen[-n:]
      size = seen[-1].shape[1:3] if seen else None
      x = Up(c, n, heads, depth, s, name=f'up_blocks_{i}')(
        x, time, text, here, size
      )
    norm = resnet.GroupNorm(
      s.groups, epsilon=s.eps, dtype=s.dtype, name='conv_norm_out'
    )
    return resnet.conv(out, s.dtype, 'conv_out')(nn.silu(norm(x)))


def _waves(x: Any, log_rate: np.ndarray) -> Array:
  """[b] -> [b width]: sines, then cosines.

  Angles are in the thousands, so the last bit of a rate shows: it is rounded
  once, from a float32 logarithm, as in the reference.
  """
  log_rate = log_rate.astype(np.float32).astype(np.float64)
  angle = x[:, None] * np.exp(log_rate).astype(np.float32)
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def unet(
  image: tuple[Count, Count, Count] = (64, 64, 4),
  channels: Sequence[Count] = (320, 640, 1280, 1280),
  blocks: Count = 2,
  transformers: Sequence[bool] = (True, True, True, False),
  heads: Count | Sequence[Count] = 8,
  depth: Count | Sequence[Count] = 1,
  text: Count = 768,
  linear: bool = False,
  groups: Count = 32,
  eps: NonNegative = 1e-5,
  guidance_width: Count | None = None,
  guidance: NonNegative = 8.5,
  prediction: ddpm.Prediction = 'epsilon',
  boundary: Positive | None = None,
  betas: ddpm.Betas = 'scaled_linear',
  beta_start: Fraction = 0.00085,
  beta_end: Fraction = 0.012,
  train_steps: Count = 1000,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Net:
  """The U-Net as a velocity network.

  Args:
    image: h w c of the latent.
    channels: of the levels.
    blocks: per level on the way down; there is one more on the way up.
    transformers: which levels have them.
    heads: of attention, of all levels or each.
    depth: blocks of a transformer, of all levels or each.
    text: d, numbers of a text token.
    linear: the products around transformers are products, or convolutions of
      one pixel.
    groups: of norms.
    eps: of the norms of residual blocks.
    guidance_width: numbers that embed the scale of guidance, for networks that
      have learned it (LCM), or None.
    guidance: that scale; it is embedded as guidance - 1.
    prediction: see `ddpm.velocity`.
    boundary: see `ddpm.velocity`; 10 for LCM.
    betas: as the next ones, see `ddpm.flow_times`.
    beta_start: see betas.
    beta_end: see betas.
    train_steps: see betas.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: see `attention.sdpa`; 'cudnn' in bfloat16 only.
    dtype: of the arithmetic; parameters and the velocity are float32.

  Raises:
    ValueError: sizes that do not fit each other, naming them.
  """
  said = unet_files.sizes(
    image, channels, blocks=blocks, transformers=transformers, heads=heads,
    depth=depth, text=text, linear=linear, groups=groups, eps=eps,
    guidance_width=guidance_width,
  ) | dict(
    betas=betas, beta_start=beta_start, beta_end=beta_end,
    train_steps=train_steps, prediction=prediction, boundary=boundary,
  )  # fmt: skip
  levels, heads = len(channels), said['heads']
  wrong = [
    f'{len(said[name])} of {name}'
    for name in ('transformers', 'heads', 'depth')
    if len(said[name]) != levels
  ]
  if wrong:
    raise ValueError(f'unet: {levels} levels of channels, {", ".join(wrong)}')
  for c, n in zip(channels, heads, strict=True):
    if c % n or c % groups:
      raise ValueError(
        f'unet: {c} channels are not divisible by heads={n} and groups={groups}'
      )
  if attention == 'cudnn' and dtype != 'bfloat16':
    raise ValueError('unet: attention="cudnn" needs dtype="bfloat16"')
  module = UNet(
    tuple(channels), blocks,
    tuple(n * on for n, on in zip(heads, said['transformers'])),
    heads[-1], said['depth'], guidance_width, guidance,
    Settings(groups, eps, linear, remat, attention, jnp.dtype(dtype)),
  )  # fmt: skip
  times = ddpm.flow_times(betas, beta_start, beta_end, train_steps)

  def init(key: Array) -> Params:
    few = jnp.zeros((1, 2**levels, 2**levels, image[-1]))
    words = jnp.zeros((1, 1, text))
    return module.init(key, few, jnp.zeros(1), words)['params']

  def apply(params: Params, x: Array, t: Array, words: Array) -> Array:
    return ddpm.velocity(
      lambda x, i: module.apply({'params': params}, x, i, words),
      x.astype(jnp.float32), t, times, prediction, boundary,
    )  # fmt: skip

  def same_process(folder: str) -> None:
    at = released.locate(folder, 'scheduler')
    scheduler = folders.read_json(os.path.join(at, 'scheduler_config.json'))
    options.same(at, unet_files.process(scheduler), said, 'model.net')

  files = peft.in_folders(
    'unet',
    unet_files.KINDS,
    said,
    init,
    unet_files.NAMES,
    lambda found: unet_files.sizes(**unet_files.config(found)),
    lambda said: unet_files.config_json(said, image),
    same_process,
  )
  encode = lambda params, cond: cond['text']

  null = layers_lib.null_features
  return Net(init, apply, tuple(image), null, encode, AXES, **files)


def load(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  **overrides: Any,
) -> tuple[Net, Params]:
  """A released U-Net.

  `Net.load` is for folders of pipelines, and for a network that a config has
  described.

  Args:
    folder: with config.json and weights.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    **overrides: keywords of `unet` over those of the config, `process` of
      the scheduler among them.

  Returns:
    (the network, its parameters).

  Raises:
    WeightsError: see `released.load`.
    ValueError: see `config` and `unet`.
  """
  said = released.config(folder, unet_files.KINDS)
  net = unet(**unet_files.config(said) | overrides)
  like = jax.eval_shape(net.init, jax.random.key(0))
  return net, released.load(folder, like, unet_files.NAMES, param_dtype)
