"""The video transformer of Wan 2.1, from text, diffusers' names.

Tokens are p_t x p x p numbers of a latent video. A block moves them by six
vectors of the time t, each a learned one of its own plus one that all blocks
share (arXiv 2503.20314),

  x <- x + g_1 A_1((1 + m_1) LN(x) + s_1)            all of the video       (1)
  x <- x + A_2(n(x), text)                           all of the text        (2)
  x <- x + g_2 F((1 + m_2) LN(x) + s_2)                                     (3)

with n a norm that has a scale and a bias. Queries and keys are normalised (RMS,
over all heads at once), and those of (1) turned by where they are in time, row
and column, (1) of `adaln`.

It predicts v = noise - data: the velocity of this project. A cond has text
[b l e], features of the prompt, zeros past its end. The encoder that makes them
(UMT5) and the autoencoder of videos are not here: features and latents come
from elsewhere.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, Literal

import einops
from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from gen_rl.fields import Count, Kernel, Remat
from gen_rl.models import flow_files
from gen_rl.models.files import options, peft, released
from gen_rl.models.parts import adaln
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.attention import sdpa
from gen_rl.models.parts.layers import Dense, Net, constrain
from gen_rl.types import Array, Params, PyTree

AXES = (
  (r'(^|/)patch_embedding/kernel$', (None, None, None, None, 'embed')),
  (r'(^|/)text_embedder/linear_1/kernel$', (None, 'embed')),
  (r'(^|/)time_proj/kernel$', ('embed', None)),
  (r'(^|/)scale_shift_table$', (None, None, None)),
  *adaln.AXES,
  (r'/(bias|scale)$', (None,)),
)
KINDS = ('WanTransformer3DModel',)
_DRAWN = nn.initializers.normal


def turned_by(head_dim: int) -> tuple[int, int, int]:
  """Numbers of a head that time, row and column turn."""
  of_side = 2 * (head_dim // 6)
  return head_dim - 2 * of_side, of_side, of_side


class Patches(nn.Module):
  """[b f h w c] -> [b (f/p_t h/p w/p) d], as one product."""

  width: int
  patch: tuple[int, int, int]
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = *self.patch, x.shape[-1], self.width
    fan_in = nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3))
    kernel = self.param('kernel', fan_in, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    p, q, r = self.patch
    x = einops.rearrange(
      x.astype(self.dtype), 'b (f p) (h q) (w r) c -> b (f h w) (p q r c)',
      p=p, q=q, r=r,
    )  # fmt: skip
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    return x @ kernel + bias.astype(self.dtype)


class Attention(nn.Module):
  """Of a sequence [b i d] on itself, turned, or on `text` [b l d]."""

  heads: int
  attention: str
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Array, by: adaln.Turns | None = None, text: Array | None = None
  ) -> Array:
    dense = functools.partial(Dense, x.shape[-1], dtype=self.dtype)
    norm = functools.partial(nn.RMSNorm, epsilon=adaln.EPS, dtype=self.dtype)
    seen = x if text is None else text
    q = norm(name='norm_q')(dense(name='to_q')(x))
    k = norm(name='norm_k')(dense(name='to_k')(seen))
    q, k, v = (
      constrain(
        einops.rearrange(a, 'b i (n c) -> b i n c', n=self.heads),
        'batch', None, 'heads', None,
      )
      for a in (q, k, dense(name='to_v')(seen))
    )  # fmt: skip
    if by is not None:
      q, k = adaln.turned(q, by), adaln.turned(k, by)
    out = sdpa(q, k, v, implementation=self.attention)
    return dense(name='to_out_0')(einops.rearrange(out, 'b i n c -> b i (n c)'))


class Block(nn.Module):
  """(1) to (3): (x [b i d], y [b 6 d], text [b l d], turns) -> (x, None)."""

  heads: int
  mlp: int
  attention: str
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Array, y: Array, text: Array, by: adaln.Turns
  ) -> tuple[Array, None]:
    d = x.shape[-1]
    norm = adaln.norm(self.dtype)
    attend = functools.partial(
      Attention, self.heads, self.attention, self.dtype
    )
    table = self.param('scale_shift_table', _DRAWN(d**-0.5), (1, 6, d))
    shift, scale, gate, shift_f, scale_f, gate_f = jnp.split(
      (table + y).astype(self.dtype), 6, 1
    )
    x += gate * attend(name='attn1')(norm(x) * (1 + scale) + shift, by)
    affine = nn.LayerNorm(epsilon=adaln.EPS, dtype=self.dtype, name='norm2')
    x += attend(name='attn2')(affine(x), text=text)
    feed = adaln.FeedForward(d, self.dtype, self.mlp, name='ffn')
    x += gate_f * feed(norm(x) * (1 + scale_f) + shift_f)
    return constrain(x, 'batch', None, None), None


class TextLayers(nn.Module):
  """Features of the text as the blocks see them: [b l e] -> [b l d]."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(Dense, self.width, dtype=self.dtype)
    return dense(name='linear_2')(nn.gelu(dense(name='linear_1')(x)))


class Embedders(nn.Module):
  """What time and text become; their names in files."""

  width: int
  dtype: Any

  def setup(self):
    self.time_embedder = adaln.TwoLayers(self.width, self.dtype)
    self.time_proj = Dense(6 * self.width, dtype=self.dtype)
    self.text_embedder = TextLayers(self.width, self.dtype)

  def time(self, t: Array) -> tuple[Array, Array]:
    """[b] -> [b d] for the end, [b 6 d] for the blocks, float32."""
    y = self.time_embedder(adaln.time_features(1000.0 * t))
    of_blocks = self.time_proj(nn.silu(y)).reshape(len(t), 6, self.width)
    return y.astype(jnp.float32), of_blocks.astype(jnp.float32)

  def text(self, text: Array) -> Array:
    return self.text_embedder(text)


class Wan(nn.Module):
  """See the module docstring. `encode`, then `denoise`."""

  video: tuple[int, int, int, int]
  patch: tuple[int, int, int]
  layers: int
  heads: int
  head_dim: int
  mlp: int
  scan: bool
  remat: str
  attention: str
  dtype: Any

  def setup(self):
    d = self.heads * self.head_dim
    self.patch_embedding = Patches(d, self.patch, self.dtype)
    self.condition_embedder = Embedders(d, self.dtype)
    block = layers_lib.rematerialized(Block, self.remat, in_scan=self.scan)
    settings = self.heads, self.mlp, self.attention, self.dtype
    if self.scan:
      self.blocks = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(nn.broadcast,) * 3,
        length=self.layers,
      )(*settings)
    else:
      self.blocks = [block(*settings) for _ in range(self.layers)]
    self.scale_shift_table = self.param(
      'scale_shift_table', _DRAWN(d**-0.5), (1, 2, d)
    )
    self.norm = adaln.norm(self.dtype)
    out = int(np.prod(self.patch)) * self.video[-1]
    self.proj_out = Dense(out, dtype=self.dtype)

  def encode(self, text: Array) -> Array:
    """[b l e] -> [b l d], what does not change."""
    return self.condition_embedder.text(text)

  def denoise(self, x: Array, t: Array, text: Array) -> Array:
    """The velocity, in the type of the arithmetic: [b f h w c]."""
    p, q, r = self.patch
    f, h, w = (n // m for n, m in zip(x.shape[1:4], self.patch, strict=True))
    places = np.stack(np.mgrid[:f, :h, :w], -1).reshape(-1, 3)
    by = adaln.turns(places, turned_by(self.head_dim))
    x = self.patch_embedding(x)
    y, of_blocks = self.condition_embedder.time(t)
    text = text.astype(self.dtype)
    for block in [self.blocks] if self.scan else self.blocks:
      x, _ = block(x, of_blocks, text, by)
    shift, scale = jnp.split(
      (self.scale_shift_table + y[:, None]).astype(self.dtype), 2, 1
    )
    x = self.proj_out(self.norm(x) * (1 + scale) + shift)
    return einops.rearrange(
      x, 'b (f h w) (p q r c) -> b (f p) (h q) (w r) c',
      f=f, h=h, p=p, q=q, r=r,
    )  # fmt: skip

  def __call__(self, x: Array, t: Array, text: Array) -> Array:
    return self.denoise(x, t, self.encode(text))


def wan(
  video: Sequence[Count] = (21, 60, 104, 16),
  patch: Sequence[Count] = (1, 2, 2),
  layers: Count = 30,
  heads: Count = 12,
  head_dim: Count = 128,
  mlp: Count = 8960,
  text: Count = 4096,
  scan: bool = False,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Net:
  """The transformer as a velocity network; the defaults are those of T2V-1.3B.

  Tested, not measured.

  Args:
    video: f h w c of a latent; (21, 60, 104) is 81 frames of 480 x 832 pixels.
    patch: frames, rows and columns of a token.
    layers: blocks.
    heads: of attention.
    head_dim: numbers of a head.
    mlp: hidden numbers of F in (3).
    text: numbers of a text token.
    scan: one program for all blocks, their parameters stacked.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: see `attention.sdpa`; 'cudnn' in bfloat16 only.
    dtype: of the arithmetic. Norms' statistics, the softmax, angles and times
      are computed in float32.

  Raises:
    ValueError: sizes that do not fit each other.
  """
  video, patch = tuple(video), tuple(patch)
  if len(video) != 4 or len(patch) != 3:
    raise ValueError(
      f'wan: video={video} is to be frames, height, width and channels, and '
      f'patch={patch} three numbers'
    )
  if any(n % p for n, p in zip(video, patch, strict=False)):
    raise ValueError(
      f'wan: video={video} does not divide into tokens of patch={patch}'
    )
  if head_dim % 2:
    raise ValueError(
      f'wan: head_dim={head_dim} numbers cannot be turned in pairs; make it '
      'even'
    )
  if attention == 'cudnn' and dtype != 'bfloat16':
    raise ValueError('wan: attention="cudnn" needs dtype="bfloat16"')
  module = Wan(
    video, patch, layers, heads, head_dim, mlp, scan, remat, attention,
    jnp.dtype(dtype),
  )  # fmt: skip
  said = dict(
    channels=video[-1], patch=patch, layers=layers, heads=heads,
    head_dim=head_dim, mlp=mlp, text=text,
  )  # fmt: skip

  def init(key: Array) -> Params:
    x, words = jnp.zeros((1, *patch, video[-1])), jnp.zeros((1, 1, text))
    return module.init(key, x, jnp.zeros(1), words)['params']

  def encode(params: Params, cond: PyTree) -> Array:
    return module.apply({'params': params}, cond['text'], method='encode')

  def apply(params: Params, x: Array, t: Array, encoded: Array) -> Array:
    v = module.apply({'params': params}, x, t, encoded, method='denoise')
    return v.astype(jnp.float32)

  files = peft.in_folders(
    'transformer',
    KINDS,
    said,
    init,
    names_of(scan),
    config,
    config_json,
    flow_files.is_flow,
  )
  null = layers_lib.null_features
  return Net(init, apply, video, null, encode, AXES, **files)


def names_of(scan: bool) -> released.Names:
  """Names of parameters, scanned or not."""
  stacked = {'blocks': ('blocks', 0)} if scan else {}
  return released.Names(stacked=stacked)


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `wan` and channels, for such a transformer's config.

  Raises:
    ValueError: options that are missing or not computed, all in one sentence.
  """
  get = config_json.get
  whole = (
    'in_channels', 'num_layers', 'num_attention_heads', 'attention_head_dim',
    'ffn_dim', 'text_dim', 'rope_max_seq_len',
  )  # fmt: skip
  options.typed(KINDS[0], config_json, whole=whole, wholes=('patch_size',))
  inputs = get('in_channels', 16)
  options.check(
    'WanTransformer3DModel',
    config_json,
    dict(
      out_channels=(inputs, None),
      freq_dim=(256,),
      cross_attn_norm=(True,),
      qk_norm=('rms_norm_across_heads',),
      eps=(adaln.EPS,),
      image_dim=(None,),
      added_kv_proj_dim=(None,),
      pos_embed_seq_len=(None,),
    ),
    free=(*whole, 'patch_size'),
  )  # fmt: skip
  return dict(
    channels=inputs,
    patch=tuple(get('patch_size', (1, 2, 2))),
    layers=get('num_layers', 40),
    heads=get('num_attention_heads', 40),
    head_dim=get('attention_head_dim', 128),
    mlp=get('ffn_dim', 13824),
    text=get('text_dim', 4096),
  )


def config_json(said: Mapping[str, Any]) -> dict[str, Any]:
  """The config of a transformer for keywords of `wan`: `config` undone."""
  return dict(
    _class_name=KINDS[0],
    patch_size=list(said['patch']),
    in_channels=said['channels'],
    out_channels=said['channels'],
    num_layers=said['layers'],
    num_attention_heads=said['heads'],
    attention_head_dim=said['head_dim'],
    ffn_dim=said['mlp'],
    text_dim=said['text'],
    freq_dim=256,
    cross_attn_norm=True,
    qk_norm='rms_norm_across_heads',
    eps=adaln.EPS,
  )
