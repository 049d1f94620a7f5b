"""A vision-language model: a picture and a prompt, then what is said.

The sequence of a row is [picture | prompt | actions], in this order, and the
decoder is that of `decoder`. The picture is cut into squares of p x p pixels; a
small vision transformer (ViT, arXiv 2010.11929; pre-norm, learned positions,
every square sees every other) turns them into vectors, and two layers project
those to the width of the decoder (LLaVA-1.5, arXiv 2310.03744). Squares take
positions of the decoder as tokens do, row by row.
"""

import functools
from typing import Any, Literal

import einops
from flax import linen as nn
import jax.numpy as jnp

from gen_rl.fields import Count, Index, NonNegative, Positive, Remat
from gen_rl.models import lm
from gen_rl.models.parts import attention
from gen_rl.models.parts import decoder as decoder_lib
from gen_rl.models.parts.layers import PAD, Dense, TokenNet
from gen_rl.types import Array, PyTree

AXES = (
  (r'(^|/)patches/kernel$', (None, 'embed')),
  (r'(^|/)project_up/kernel$', ('embed', 'mlp')),
  (r'(^|/)project_up/bias$', ('mlp',)),
  (r'(^|/)project_down/kernel$', ('mlp', 'embed')),
  *lm.AXES,
)


class Blocks(nn.Module):
  """Pre-norm transformer blocks in which all see all: [b i d] -> [b i d].

  But for what is not in `visible` [b i] bool, which nobody sees.
  """

  width: int
  layers: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, visible: Array | None = None) -> Array:
    dense = functools.partial(Dense, dtype=self.dtype)
    norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
    d = self.width
    x += self.param(
      'position', nn.initializers.normal(0.1), (x.shape[1], d)
    ).astype(self.dtype)
    if visible is None:
      visible = jnp.ones(x.shape[:2], bool)
    for i in range(self.layers):
      qkv = dense(3 * d, name=f'qkv{i}')(norm(name=f'norm_a{i}')(x))
      q, k, v = einops.rearrange(
        qkv, 'b i (m n c) -> m b i n c', m=3, n=self.heads
      )
      seen = attention.attend(q, k, v, visible)
      x += dense(d, name=f'out{i}')(seen)
      h = dense(4 * d, name=f'up{i}')(norm(name=f'norm_b{i}')(x))
      x += dense(d, name=f'down{i}')(nn.gelu(h))
    return norm(name='norm')(x)


class ViT(nn.Module):
  """Pictures [b h w c] in [0, 1] -> a vector per square [b i d]."""

  image: tuple[int, int, int]
  patch: int
  width: int
  layers: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Array) -> Array:
    p = self.patch
    x = einops.rearrange(
      2.0 * image - 1.0, 'b (h p) (w q) c -> b (h w) (p q c)', p=p, q=p
    ).astype(self.dtype)
    x = Dense(self.width, dtype=self.dtype, name='patches')(x)
    return Blocks(
      self.width, self.layers, self.heads, self.dtype, name='blocks'
    )(x)


class VLM(lm.LM):
  """`lm.LM` whose prompt starts with a picture."""

  tower: ViT

  def setup(self):
    super().setup()
    shape = self.decoder.shape
    self.project_up = Dense(shape.width, dtype=shape.dtype)
    self.project_down = Dense(shape.width, dtype=shape.dtype)

  def prompt(self, cond: PyTree) -> tuple[Array, Array]:
    if 'image' not in cond:
      raise ValueError(
        'vlm: the prompts come without a picture; data.view.name says which, '
        'such as shapes_pictures'
      )
    image = cond['image']
    if image.shape[1:] != self.tower.image:
      raise ValueError(
        f'vlm: the pictures are {list(image.shape[1:])}, the model takes '
        f'{list(self.tower.image)}; resize them or set model.image'
      )
    squares = self.project_down(nn.gelu(self.project_up(self.tower(image))))
    words, visible = super().prompt(cond)
    seen = jnp.ones(squares.shape[:2], bool)
    return (
      jnp.concatenate([squares, words], 1),
      jnp.concatenate([seen, visible], 1),
    )


def vlm(
  vocab: int = 64,
  length: int = 16,
  image: tuple[Count, Count, Count] = (24, 24, 3),
  patch: Count = 6,
  vision_width: Count = 96,
  vision_layers: Count = 2,
  vision_heads: Count = 4,
  width: Count = 96,
  layers: Count = 3,
  heads: Count = 4,
  kv_heads: Count = 2,
  mlp: Count | None = None,
  head_dim: Count | None = None,
  theta: Positive = 1e4,
  qk_norm: bool = True,
  bias: bool = False,
  tied: bool = True,
  eps: NonNegative = 1e-6,
  rows: Count | None = None,
  pad: Index = PAD,
  scan: bool = False,
  remat: Remat = 'none',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> TokenNet:
  """A vision-language model: cond is dict(tokens [b l], image [b h w c]).

  Args:
    vocab: see `lm.lm`, as all that is not named here.
    length: see `lm.lm`.
    image: h w c of the pictures, which are in [0, 1].
    patch: side of a square, pixels.
    vision_width: of the vision transformer.
    vision_layers: its layers.
    vision_heads: its heads.
    width: of the decoder.
    layers: see `lm.lm`.
    heads: see `lm.lm`.
    kv_heads: see `lm.lm`.
    mlp: see `lm.lm`.
    head_dim: see `lm.lm`.
    theta: see `lm.lm`.
    qk_norm: see `lm.lm`.
    bias: see `lm.lm`.
    tied: see `lm.lm`.
    eps: see `lm.lm`.
    rows: see `lm.lm`.
    pad: see `lm.lm`.
    scan: of the decoder, see `lm.lm`.
    remat: of the decoder, see `lm.lm`.
    dtype: see `lm.lm`.

  Raises:
    ValueError: sizes that do not fit each other, naming them; when called,
      pictures that are missing or of another size.
  """
  if image[0] % patch or image[1] % patch:
    raise ValueError(
      f'vlm: image {image[0]}x{image[1]} is not divisible by patch={patch}'
    )
  if vision_width % vision_heads:
    raise ValueError(
      f'vlm: vision_width={vision_width} is not divisible by '
      f'vision_heads={vision_heads}'
    )
  shape = decoder_lib.shape_of(
    'vlm', width, heads, kv_heads, mlp, head_dim, dtype, layers=layers,
    theta=theta, qk_norm=qk_norm, bias=bias, eps=eps, scan=scan, remat=remat,
  )  # fmt: skip
  tower = ViT(
    tuple(image), patch, vision_width, vision_layers, vision_heads, shape.dtype
  )
  rows = lm.table_rows('vlm', vocab, rows)
  module = VLM(decoder_lib.Decoder(shape), vocab, rows, tied, pad, tower)

  def null(cond: PyTree) -> PyTree:
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], pad)}

  cond = dict(
    tokens=jnp.full((1, length), pad, jnp.int32), image=jnp.zeros((1, *image))
  )
  return lm.as_net(module, vocab, cond, null, AXES)
