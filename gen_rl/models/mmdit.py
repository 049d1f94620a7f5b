"""The transformer of Stable Diffusion 3 and 3.5 (MMDiT), diffusers' names.

Text and image tokens have weights of their own and attend to each other in one
softmax (arXiv 2403.03206, section 4). With y = E_t(1000 t) + E_p(pooled) and
LN a norm without parameters, a block moves the image tokens x by

  s, m, g, s', m', g' = W silu(y)                                        (1)
  x <- x + g attend((1 + m) LN(x) + s, text)                             (2)
  x <- x + g' mlp((1 + m') LN(x) + s')                                   (3)

and the text likewise with vectors of its own; the last block leaves the text as
it is. The first blocks of Stable Diffusion 3.5 medium add to (2) a second
attention of the image to itself, with three more vectors; 3.5 normalises
queries and keys (RMS). Positions are sines and cosines of the place in a large
grid, of which the middle is cut out.

The network predicts v = noise - data on x_t = (1 - t) data + t noise: the
velocity of this project. Text comes as features, those that `data.embeddings`
makes: a cond has text [b l e] and pooled [b p], and for guidance null_text and
null_pooled.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import os
from typing import Any, Literal, NamedTuple

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.models import folders, options, released
from gen_rl.models import layers as layers_lib
from gen_rl.models.layers import Dense, Net, constrain, sdpa
from gen_rl.models.weights import WeightsError
from gen_rl.types import Array, Params, PyTree

AXES = (
  (r'(^|/)(add_)?[qkv]_proj/kernel$', ('embed', 'heads')),
  (r'(^|/)to_[qkv]/kernel$', ('embed', 'heads')),
  (r'(^|/)to_(out_0|add_out)/kernel$', ('heads', 'embed')),
  (r'(^|/)net_0/proj/kernel$', ('embed', 'mlp')),
  (r'(^|/)net_0/proj/bias$', ('mlp',)),
  (r'(^|/)net_2/kernel$', ('mlp', 'embed')),
  (r'(^|/)(linear|linear_2|proj_out)/kernel$', ('embed', None)),
  (r'(^|/)(linear_1|context_embedder|pos_embed/proj)/kernel$', (None, 'embed')),
  (r'/(bias|scale)$', (None,)),
)
_EPS = 1e-6
_TABLE = 'pos_embed.pos_embed'  # follows from the sizes


class Modulation(nn.Module):
  """(1): [b d] -> `parts` vectors [b 1 d]."""

  width: int
  parts: int
  dtype: Any

  @nn.compact
  def __call__(self, y: Array) -> list[Array]:
    out = Dense(self.parts * self.width, dtype=self.dtype, name='linear')
    return jnp.split(out(nn.silu(y))[:, None], self.parts, -1)


class TwoLayers(nn.Module):
  """[b f] -> [b d], through a layer of d."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(Dense, self.width, dtype=self.dtype)
    return dense(name='linear_2')(nn.silu(dense(name='linear_1')(x)))


class Projection(nn.Module):
  """A layer, then GELU."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return nn.gelu(Dense(self.width, dtype=self.dtype, name='proj')(x))


class FeedForward(nn.Module):
  """[b i d] -> [b i d], through four times as many."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = Projection(4 * self.width, self.dtype, name='net_0')(x)
    x = constrain(x, 'batch', None, 'mlp')
    return Dense(self.width, dtype=self.dtype, name='net_2')(x)


class Attention(nn.Module):
  """Image tokens [b i d], and text tokens [b l d] if they take part.

  Returns both, the text's as None where they are not moved.
  """

  heads: int
  head_dim: int
  qk_norm: bool
  text: Literal['none', 'seen', 'moved']
  attention: str
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Array, text: Array | None = None
  ) -> tuple[Array, Array | None]:
    d = self.heads * self.head_dim
    dense = functools.partial(Dense, d, dtype=self.dtype)

    def project(x: Array, names: Sequence[str], norms: Sequence[str]):
      out = []
      for name, norm in zip(names, (*norms, None), strict=True):
        a = einops.rearrange(
          dense(name=name)(x), 'b i (n c) -> b i n c', n=self.heads
        )
        if self.qk_norm and norm:
          a = nn.RMSNorm(epsilon=_EPS, dtype=self.dtype, name=norm)(a)
        out.append(constrain(a, 'batch', None, 'heads', None))
      return out

    qkv = project(x, ('to_q', 'to_k', 'to_v'), ('norm_q', 'norm_k'))
    if text is not None:
      more = project(
        text,
        ('add_q_proj', 'add_k_proj', 'add_v_proj'),
        ('norm_added_q', 'norm_added_k'),
      )
      qkv = [jnp.concatenate(pair, 1) for pair in zip(qkv, more, strict=True)]
    out = sdpa(*qkv, implementation=self.attention)
    out = einops.rearrange(out, 'b i n c -> b i (n c)')
    own, rest = jnp.split(out, [x.shape[1]], 1)
    moved = None
    if self.text == 'moved':
      moved = dense(name='to_add_out')(rest)
    return dense(name='to_out_0')(own), moved


class Block(nn.Module):
  """(2) and (3) for image and text; `dual` adds a second attention.

  ((x [b i d], text [b l d]), y [b d]) -> ((x, text), None), as a scan has it.
  """

  heads: int
  head_dim: int
  qk_norm: bool
  attention: str
  dtype: Any
  dual: bool = False
  last: bool = False

  @nn.compact
  def __call__(
    self, carry: tuple[Array, Array], y: Array
  ) -> tuple[tuple[Array, Array], None]:
    x, text = carry
    d = x.shape[-1]
    norm = nn.LayerNorm(
      epsilon=_EPS, use_bias=False, use_scale=False, dtype=self.dtype
    )
    part = self.heads, self.head_dim, self.qk_norm
    kinds = functools.partial(
      Attention, *part, attention=self.attention, dtype=self.dtype
    )
    ours = Modulation(d, 9 if self.dual else 6, self.dtype, name='norm1')(y)
    shift, scale, gate, shift_m, scale_m, gate_m, *second = ours
    theirs = Modulation(
      d, 2 if self.last else 6, self.dtype, name='norm1_context'
    )(y)
    # The last block's vectors are in the other order, and there are two.
    shift_t, scale_t = theirs[:2][:: -1 if self.last else 1]

    normed = norm(x)
    seen = norm(text) * (1 + scale_t) + shift_t
    moved = kinds(text='seen' if self.last else 'moved', name='attn')
    out, out_text = moved(normed * (1 + scale) + shift, seen)
    x += gate * out
    if self.dual:
      shift_2, scale_2, gate_2 = second
      again, _ = kinds(text='none', name='attn2')(
        normed * (1 + scale_2) + shift_2
      )
      x += gate_2 * again
    feed = functools.partial(FeedForward, d, self.dtype)
    x += gate_m * feed(name='ff')(norm(x) * (1 + scale_m) + shift_m)
    if not self.last:
      gate_t, shift_f, scale_f, gate_f = theirs[2:]
      text += gate_t * out_text
      change = feed(name='ff_context')(norm(text) * (1 + scale_f) + shift_f)
      text += gate_f * change
    x = constrain(x, 'batch', None, None)
    return (x, constrain(text, 'batch', None, None)), None


class Patches(nn.Module):
  """[b h w c] -> [b (h/p w/p) d], one product; `proj` is a convolution."""

  patch: int
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    p, d = self.patch, self.width
    x = einops.rearrange(x, 'b (h p) (w q) c -> b (h w) (p q c)', p=p, q=p)
    return _Kernel((p, p), d, self.dtype, name='proj')(x)


class _Kernel(nn.Module):
  """A convolution of patches that are rows already."""

  size: tuple[int, int]
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    p, q = self.size
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (p, q, x.shape[-1] // (p * q), self.width),
    )
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    x, kernel, bias = (jnp.asarray(a, self.dtype) for a in (x, kernel, bias))
    return x @ kernel.reshape(-1, self.width) + bias


class _Embedders(nn.Module):
  """What the time and the pooled text become; released names of the two."""

  width: int
  dtype: Any

  def setup(self):
    self.timestep_embedder = TwoLayers(self.width, self.dtype)
    self.text_embedder = TwoLayers(self.width, self.dtype)

  def time(self, t: Array) -> Array:
    return self.timestep_embedder(time_features(1000.0 * t))

  def text(self, pooled: Array) -> Array:
    return self.text_embedder(pooled)


def time_features(t: Array, size: int = 256) -> Array:
  """Cosines and sines of t at frequencies from 1 to 1e-4: [b] -> [b size]."""
  half = size // 2
  frequency = jnp.exp(-np.log(1e4) * jnp.arange(half) / half)
  angle = t.astype(jnp.float32)[:, None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def positions(
  height: int, width: int, d: int, grid: int, base: int
) -> np.ndarray:
  """The middle of a grid of sines and cosines: float32 [(height width) d].

  Args:
    height: rows of tokens.
    width: columns of tokens.
    d: numbers of a token; the first half says the column, the second the row.
    grid: side of the grid.
    base: side of the grid that a place is measured in.
  """

  def along(count: int) -> np.ndarray:
    place = np.arange(grid)[(grid - count) // 2 :][:count] / (grid / base)
    omega = 1e4 ** -(np.arange(d // 4) / (d / 4))
    angle = place[:, None] * omega
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)

  rows, columns = along(height), along(width)
  table = np.concatenate(
    np.broadcast_arrays(columns[None, :], rows[:, None]), -1
  )
  return table.reshape(height * width, d).astype(np.float32)


class Encoded(NamedTuple):
  """What the blocks need of the prompts: the same at every denoising step."""

  text: Array  # [b l d]
  pooled: Array  # [b d]


class MMDiT(nn.Module):
  """See the module docstring. `encode`, then `denoise`."""

  image: tuple[int, int, int]
  patch: int
  layers: int
  heads: int
  head_dim: int
  dual: tuple[int, ...]
  qk_norm: bool
  grid: int
  base: int
  scan: bool
  remat: str
  attention: str
  dtype: Any

  def setup(self):
    d, p, channels = self.heads * self.head_dim, self.patch, self.image[-1]
    self.pos_embed = Patches(p, d, self.dtype)
    self.time_text_embed = _Embedders(d, self.dtype)
    self.context_embedder = Dense(d, dtype=self.dtype)
    block = layers_lib.rematerialized(Block, self.remat, in_scan=self.scan)
    settings = (
      self.heads, self.head_dim, self.qk_norm, self.attention, self.dtype,
    )  # fmt: skip
    if self.scan:

      def stack(length: int, dual: bool) -> nn.Module:
        return nn.scan(
          block,
          variable_axes={'params': 0},
          split_rngs={'params': True},
          in_axes=nn.broadcast,
          length=length,
        )(*settings, dual=dual)

      # Blocks of two kinds are two loops, and the last one is of a third.
      dual, plain = len(self.dual), self.layers - 1 - len(self.dual)
      self.dual_blocks = stack(dual, True) if dual else None
      self.blocks = stack(plain, False) if plain else None
      self.last_block = block(*settings, last=True)
    else:
      self.transformer_blocks = [
        block(
          *settings, dual=i in self.dual, last=i == self.layers - 1
        )
        for i in range(self.layers)
      ]  # fmt: skip
    self.norm_out = Modulation(d, 2, self.dtype)
    self.norm = nn.LayerNorm(
      epsilon=_EPS, use_bias=False, use_scale=False, dtype=self.dtype
    )
    self.proj_out = Dense(p * p * channels, dtype=self.dtype)

  def encode(self, text: Array, pooled: Array) -> Encoded:
    """[b l e], [b p] -> what does not change."""
    return Encoded(
      self.context_embedder(text), self.time_text_embed.text(pooled)
    )

  def denoise(self, x: Array, t: Array, encoded: Encoded) -> Array:
    """The velocity, in the type of the arithmetic: [b h w c]."""
    p, (height, width, _) = self.patch, x.shape[1:]
    h = self.pos_embed(x)
    d = h.shape[-1]
    place = positions(height // p, width // p, d, self.grid, self.base)
    h += jnp.asarray(place, self.dtype)
    y = self.time_text_embed.time(t) + encoded.pooled
    carry = h, encoded.text.astype(self.dtype)
    if self.scan:
      parts = self.dual_blocks, self.blocks, self.last_block
      blocks = [part for part in parts if part is not None]
    else:
      blocks = self.transformer_blocks
    for block in blocks:
      carry, _ = block(carry, y)
    scale, shift = self.norm_out(y)
    h = self.proj_out(self.norm(carry[0]) * (1 + scale) + shift)
    return einops.rearrange(
      h, 'b (h w) (p q c) -> b (h p) (w q) c', p=p, q=p, h=height // p
    )

  def __call__(self, x: Array, t: Array, text: Array, pooled: Array) -> Array:
    return self.denoise(x, t, self.encode(text, pooled))


def mmdit(
  image: Sequence[int] = (64, 64, 16),
  patch: int = 2,
  layers: int = 24,
  heads: int = 24,
  head_dim: int = 64,
  dual: int | Sequence[int] = 13,
  qk_norm: bool = True,
  text: int = 4096,
  pooled: int = 2048,
  grid: int = 384,
  sample_size: int = 128,
  scan: bool = False,
  remat: Literal['none', 'dots', 'full'] = 'none',
  attention: Literal['xla', 'cudnn'] = 'xla',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Net:
  """The transformer as a velocity network; defaults are those of 3.5 medium.

  Args:
    image: h w c of a latent; 64 is 512 pixels.
    patch: side of a token.
    layers: blocks.
    heads: of attention.
    head_dim: numbers of a head.
    dual: blocks with a second attention, how many from the first one on or
      which.
    qk_norm: queries and keys are normalised.
    text: numbers of a text token.
    pooled: numbers of the pooled text.
    grid: side of the grid of positions.
    sample_size: side of latents that positions are measured by.
    scan: one program for all blocks of a kind, their parameters stacked.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: see `layers.sdpa`; 'cudnn' in bfloat16 only.
    dtype: of the arithmetic. Norms' statistics, the softmax, positions and
      times are computed in float32.

  Raises:
    ValueError: sizes that do not fit each other.
  """
  image = tuple(image)
  dual = tuple(range(dual)) if isinstance(dual, int) else tuple(dual)
  if image[0] % patch or image[1] % patch:
    raise ValueError(
      f'mmdit: image {image[0]}x{image[1]} is not divisible by patch={patch}'
    )
  if max(image[:2]) // patch > grid:
    raise ValueError(
      f'mmdit: image {image[0]}x{image[1]} has more tokens along a side than '
      f'grid={grid} has positions'
    )
  if heads * head_dim % 4:
    raise ValueError(
      f'mmdit: heads={heads} x head_dim={head_dim} is not divisible by 4'
    )
  if any(i >= layers - 1 for i in dual):
    raise ValueError(
      f'mmdit: dual={dual} names blocks that are not before the last one of '
      f'layers={layers}'
    )
  if scan and dual != tuple(range(len(dual))):
    raise ValueError(
      f'mmdit: dual={dual} are not the first blocks, so they cannot be scanned;'
      ' set scan=False'
    )
  if attention == 'cudnn' and dtype != 'bfloat16':
    raise ValueError('mmdit: attention="cudnn" needs dtype="bfloat16"')
  module = MMDiT(
    image, patch, layers, heads, head_dim, dual, qk_norm, grid,
    sample_size // patch, scan, remat, attention, jnp.dtype(dtype),
  )  # fmt: skip
  said = dict(
    patch=patch, channels=image[-1], layers=layers, heads=heads,
    head_dim=head_dim, dual=dual, qk_norm=qk_norm, text=text, pooled=pooled,
    grid=grid, sample_size=sample_size,
  )  # fmt: skip

  def init(key: Array) -> Params:
    few = jnp.zeros((1, patch, patch, image[-1]))
    words = jnp.zeros((1, 1, text)), jnp.zeros((1, pooled))
    return module.init(key, few, jnp.zeros(1), *words)['params']

  def encode(params: Params, cond: PyTree) -> Encoded:
    return module.apply(
      {'params': params}, cond['text'], cond['pooled'], method='encode'
    )

  def apply(params: Params, x: Array, t: Array, encoded: Encoded) -> Array:
    v = module.apply({'params': params}, x, t, encoded, method='denoise')
    return v.astype(jnp.float32)

  def load(folder: str, dtype: str) -> Params:
    folder = released.locate(folder, 'transformer')
    options.same(folder, config(released.config(folder, KINDS)), said)
    names = names_of(layers, len(dual), scan)
    _same_positions(folder, said)
    like = jax.eval_shape(init, jax.random.key(0))
    return released.load(folder, like, names, dtype)

  return Net(init, apply, image, null, encode, AXES, load=load)


KINDS = ('SD3Transformer2DModel',)


def null(cond: PyTree) -> PyTree:
  """The features of no prompt in place of the prompt's.

  Raises:
    ValueError: there are none.
  """
  if 'null_text' not in cond:
    raise ValueError(
      'guidance needs the features of no prompt: set data.embed.negative to '
      "'' or another text, or policy.guidance_scale=1"
    )
  return {
    **cond, 'text': cond['null_text'], 'pooled': cond['null_pooled'],
  }  # fmt: skip


def names_of(layers: int, dual: int, scan: bool) -> released.Names:
  """Names of parameters, scanned or not."""
  if not scan:
    return released.Names(ignored=(rf'^{_TABLE}$',))
  stacked = dict(
    dual_blocks=('transformer_blocks', 0),
    blocks=('transformer_blocks', dual),
  )
  rename = ((r'^last_block\.', f'transformer_blocks.{layers - 1}.'),)
  return released.Names(rename, stacked, (rf'^{_TABLE}$',))


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `mmdit`, and channels, for the config of such a transformer.

  Raises:
    ValueError: options that are missing or not computed, all in one sentence.
  """
  get = config_json.get
  inputs = get('in_channels', 16)
  options.check(
    'SD3Transformer2DModel',
    config_json,
    dict(
      out_channels=(16, inputs, None) if inputs == 16 else (inputs, None),
      qk_norm=(None, 'rms_norm'),
      caption_projection_dim=(
        get('num_attention_heads', 18) * get('attention_head_dim', 64),
      ),
    ),
    free=(
      'sample_size', 'patch_size', 'in_channels', 'num_layers',
      'attention_head_dim', 'num_attention_heads', 'joint_attention_dim',
      'pooled_projection_dim', 'pos_embed_max_size', 'dual_attention_layers',
    ),
  )  # fmt: skip
  return dict(
    patch=get('patch_size', 2),
    channels=inputs,
    layers=get('num_layers', 18),
    heads=get('num_attention_heads', 18),
    head_dim=get('attention_head_dim', 64),
    dual=tuple(get('dual_attention_layers', ())),
    qk_norm=get('qk_norm') == 'rms_norm',
    text=get('joint_attention_dim', 4096),
    pooled=get('pooled_projection_dim', 2048),
    grid=get('pos_embed_max_size', 96),
    sample_size=get('sample_size', 128),
  )


def _same_positions(folder: str, said: Mapping[str, Any]) -> None:
  """Positions are computed; those of the file have to be the same.

  Of the middle 64 x 64 (or fewer) of the grid.

  Raises:
    WeightsError: they are not.
  """
  grid, d = said['grid'], said['heads'] * said['head_dim']
  side = min(grid, 64)
  with contextlib.ExitStack() as stack:
    files = folders.open_tensors(folder, stack)
    if _TABLE not in files:
      return
    part = files[_TABLE].get_slice(_TABLE)
    shape = list(part.get_shape())
    if shape != [1, grid * grid, d]:
      raise WeightsError(
        f'{folder}: {_TABLE} is {shape} where [1, {grid * grid}, {d}] is wanted'
      )
    first = (grid - side) // 2
    rows = slice(first * grid, (first + side) * grid)
    table = np.asarray(part[:, rows], np.float32)
  table = table.reshape(side, grid, d)[:, first : first + side]
  base = said['sample_size'] // said['patch']
  want = positions(side, side, d, grid, base).reshape(table.shape)
  far = np.abs(table - want).max()
  if far > 5e-3:  # files may be float16
    raise WeightsError(
      f'{folder}: {_TABLE} differs by {far:.2g} from the sines and cosines of '
      f'grid={grid} and sample_size={said["sample_size"]}, which are computed '
      'here.'
    )


def save(
  folder: str | os.PathLike[str],
  params: Params,
  config_json: Mapping[str, Any],
  scan: bool = False,
) -> None:
  """Writes a folder that diffusers can load, positions included.

  Args:
    folder: see `released.save`.
    params: of `mmdit`, without adapters.
    config_json: of the transformer.
    scan: see `mmdit`.
  """
  said = config(config_json)
  d = said['heads'] * said['head_dim']
  base = said['sample_size'] // said['patch']
  table = positions(said['grid'], said['grid'], d, said['grid'], base)
  names = names_of(said['layers'], len(said['dual']), scan)
  released.save(folder, params, names, config_json, extra={_TABLE: table[None]})
