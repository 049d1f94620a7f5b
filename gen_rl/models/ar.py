"""An autoregressive image model: a prompt, then the codes of a picture.

The sequence of a row is [prompt | begin | codes], the codes of a grid row by
row as LlamaGen (arXiv 2406.06525) has them, and the decoder is that of
`decoder`. Codes have a table and a head of their own, and learned vectors say
which row and column of the grid a code is at, and which one is next.
"""

from typing import Literal

from flax import linen as nn
import jax.numpy as jnp

from gen_rl.fields import Count, NonNegative, Positive, Remat
from gen_rl.models import lm
from gen_rl.models.parts import decoder as decoder_lib
from gen_rl.models.parts.layers import PAD, TokenNet
from gen_rl.types import Array, PyTree

AXES = (
  (r'(^|/)(begin|row|column)$', (None, 'embed')),
  *lm.AXES,
)
_SMALL = nn.initializers.normal(0.1)


class AR(lm.Model):
  """`lm.Model` whose actions are the codes of a picture."""

  vocab: int
  codes: int
  grid: tuple[int, int]
  pad: int = PAD

  def setup(self):
    shape = self.decoder.shape
    d, (height, width) = shape.width, self.grid
    self.words = nn.Embed(self.vocab, d)
    self.table = nn.Embed(self.codes, d)
    self.begin = self.param('begin', _SMALL, (1, d))
    self.row = self.param('row', _SMALL, (height, d))
    self.column = self.param('column', _SMALL, (width, d))
    self.head = lm.Head(self.codes, dtype=shape.dtype)

  def place(self, at: Array) -> Array:
    """Of the code that is predicted at each place [s] -> [s d]."""
    at = jnp.minimum(at, self.grid[0] * self.grid[1] - 1)
    row, column = at // self.grid[1], at % self.grid[1]
    return self.row[row] + self.column[column]

  def prompt(self, cond: PyTree) -> tuple[Array, Array]:
    tokens = cond['tokens']
    x = self.words(tokens)
    begin = (self.begin + self.place(jnp.zeros(1, jnp.int32)))[None]
    begin = jnp.broadcast_to(begin, (len(x), 1, x.shape[-1]))
    visible = lm.visible_tokens(tokens, self.pad)
    seen = jnp.ones((len(x), 1), bool)
    x = jnp.concatenate([x, begin], 1).astype(self.decoder.shape.dtype)
    return x, jnp.concatenate([visible, seen], 1)

  def embed(self, actions: Array, first: Array | int) -> Array:
    at = first + 1 + jnp.arange(actions.shape[1])
    x = self.table(actions) + self.place(at)
    return x.astype(self.decoder.shape.dtype)

  def logits(self, h: Array) -> Array:
    return self.head(h)


def ar_image(
  vocab: int = 64,
  length: int = 16,
  codes: Count = 512,
  grid: tuple[Count, Count] = (4, 4),
  width: Count = 128,
  layers: Count = 4,
  heads: Count = 4,
  kv_heads: Count = 4,
  mlp: Count | None = None,
  head_dim: Count | None = None,
  theta: Positive = 1e4,
  qk_norm: bool = True,
  bias: bool = False,
  eps: NonNegative = 1e-6,
  scan: bool = False,
  remat: Remat = 'none',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  pad: int = PAD,
) -> TokenNet:
  """An image model: cond is dict(tokens [b l]), actions are codes.

  Args:
    vocab: of prompts, padding and unknown included.
    length: of a prompt, to initialise with.
    codes: ids of actions, the size of the codec's codebook.
    grid: rows and columns of codes of a picture.
    width: see `lm.lm`, as all that follows.
    layers: see `lm.lm`.
    heads: see `lm.lm`.
    kv_heads: see `lm.lm`.
    mlp: see `lm.lm`.
    head_dim: see `lm.lm`.
    theta: see `lm.lm`.
    qk_norm: see `lm.lm`.
    bias: see `lm.lm`.
    eps: see `lm.lm`.
    scan: see `lm.lm`.
    remat: see `lm.lm`.
    dtype: see `lm.lm`.
    pad: id of padding in prompts.

  Raises:
    ValueError: sizes that do not fit each other, naming them.
  """
  shape = decoder_lib.shape_of(
    'ar_image', width, heads, kv_heads, mlp, head_dim, dtype, layers=layers,
    theta=theta, qk_norm=qk_norm, bias=bias, eps=eps, scan=scan, remat=remat,
  )  # fmt: skip
  module = AR(decoder_lib.Decoder(shape), vocab, codes, tuple(grid), pad)

  def null(cond: PyTree) -> PyTree:
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], pad)}

  cond = dict(tokens=jnp.full((1, length), pad, jnp.int32))
  return lm.as_net(module, codes, cond, null, AXES)
