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

from collections.abc import Sequence
import functools
from typing import Any, Literal

import einops
from flax import linen as nn
import jax.numpy as jnp

from gen_rl.fields import Count, Index, Kernel, Remat
from gen_rl.models import mmdit_files
from gen_rl.models.files import peft
from gen_rl.models.parts import adaln, vit
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.attention import sdpa
from gen_rl.models.parts.layers import Dense, Net, constrain
from gen_rl.types import Array

AXES = (
  (r'(^|/)pos_embed/proj/kernel$', (None, 'embed')),
  *adaln.AXES,
  (r'/(bias|scale)$', (None,)),
)


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
          a = nn.RMSNorm(epsilon=adaln.EPS, dtype=self.dtype, name=norm)(a)
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
    norm = adaln.norm(self.dtype)
    part = self.heads, self.head_dim, self.qk_norm
    kinds = functools.partial(
      Attention, *part, attention=self.attention, dtype=self.dtype
    )
    ours = adaln.Modulation(d, 9 if self.dual else 6, self.dtype, name='norm1')(
      y
    )
    shift, scale, gate, shift_m, scale_m, gate_m, *second = ours
    theirs = adaln.Modulation(
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
    feed = functools.partial(adaln.FeedForward, d, self.dtype)
    x += gate_m * feed(name='ff')(norm(x) * (1 + scale_m) + shift_m)
    if not self.last:
      gate_t, shift_f, scale_f, gate_f = theirs[2:]
      text += gate_t * out_text
      change = feed(name='ff_context')(norm(text) * (1 + scale_f) + shift_f)
      text += gate_f * change
    x = constrain(x, 'batch', None, None)
    return (x, constrain(text, 'batch', None, None)), None


class PatchEmbed(nn.Module):
  """[b h w c] -> [b h/p w/p d]."""

  patch: int
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return vit.Patches(self.width, self.patch, self.dtype, name='proj')(x)


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
    self.pos_embed = PatchEmbed(p, d, self.dtype)
    self.time_text_embed = adaln.Embedders(d, False, self.dtype)
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
    self.norm_out = adaln.Modulation(d, 2, self.dtype)
    self.norm = adaln.norm(self.dtype)
    self.proj_out = Dense(p * p * channels, dtype=self.dtype)

  def encode(self, text: Array, pooled: Array) -> adaln.Encoded:
    """[b l e], [b p] -> what does not change."""
    return adaln.Encoded(
      self.context_embedder(text), self.time_text_embed.text(pooled)
    )

  def denoise(self, x: Array, t: Array, encoded: adaln.Encoded) -> Array:
    """The velocity, in the type of the arithmetic: [b h w c]."""
    p, (height, width, _) = self.patch, x.shape[1:]
    h = self.pos_embed(x)
    d = h.shape[-1]
    h = h.reshape(len(x), -1, d)
    place = adaln.positions(height // p, width // p, d, self.grid, self.base)
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
  image: Sequence[Count] = (64, 64, 16),
  patch: Count = 2,
  layers: Count = 24,
  heads: Count = 24,
  head_dim: Count = 64,
  dual: Index | Sequence[Index] = 13,
  qk_norm: bool = True,
  text: Count = 4096,
  pooled: Count = 2048,
  grid: Count = 384,
  sample_size: Count = 128,
  scan: bool = False,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
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
    attention: see `attention.sdpa`; 'cudnn' in bfloat16 only.
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

  init, apply, encode = adaln.functions(
    module, (patch, patch, image[-1]), text, pooled
  )

  files = peft.in_folders(
    'transformer',
    mmdit_files.KINDS,
    said,
    init,
    mmdit_files.names_of(layers, len(dual), scan),
    mmdit_files.config,
    mmdit_files.config_json,
    lambda folder: mmdit_files.check(folder, said),
    lambda: mmdit_files.position_table(said),
  )
  null = layers_lib.null_features
  return Net(init, apply, image, null, encode, AXES, **files)
