"""A masked image model: a prompt, and the codes of a picture with gaps.

The sequence of a row is [prompt | codes] and every place sees all others but
padding (MaskGIT, arXiv 2202.04200). The prompt comes as the vectors of
`layers.TextEncoder`, a code as a row of a table, a masked one as a vector of
its own; `vlm.Blocks` adds a learned vector to each place. Logits are read at
the places of codes.
"""

import functools
from typing import Any, Literal

from flax import linen as nn
import jax.numpy as jnp

from gen_rl.fields import Count, Index
from gen_rl.models import lm, vlm
from gen_rl.models.parts.layers import PAD, Dense, MaskNet, TextEncoder
from gen_rl.types import Array, Params, PyTree

AXES = (
  (r'(^|/)project/kernel$', (None, 'embed')),
  (r'(^|/)masked$', (None, 'embed')),
  *lm.AXES,
)
_SMALL = nn.initializers.normal(0.1)


class MaskImage(nn.Module):
  """See the module docstring. `encode`, then `fill`."""

  codes: int
  width: int
  layers: int
  heads: int
  vocab: int
  text_width: int
  text_layers: int
  dtype: Any = jnp.float32
  pad: int = PAD

  def setup(self):
    d = self.width
    self.text = TextEncoder(
      self.vocab, self.text_width, self.text_layers, pad=self.pad
    )
    self.project = Dense(d, dtype=self.dtype)
    self.table = nn.Embed(self.codes, d)
    self.masked = self.param('masked', _SMALL, (1, d))
    self.blocks = vlm.Blocks(d, self.layers, self.heads, self.dtype)
    self.head = lm.Head(self.codes, dtype=self.dtype)

  def encode(self, tokens: Array) -> tuple[Array, Array]:
    """Prompts [b l] -> (vectors [b l d], visible [b l] bool)."""
    text, visible = self.text(tokens)
    return self.project(text), visible

  def fill(self, codes: Array, prompt: tuple[Array, Array]) -> Array:
    """Codes [b n], `self.codes` where masked -> logits [b n v] float32."""
    return self.head(self.hidden(codes, prompt))

  def logits(self, hidden: Array) -> Array:
    """The second half of `fill`."""
    return self.head(hidden)

  def hidden(self, codes: Array, prompt: tuple[Array, Array]) -> Array:
    """The first half of `fill`, [b n d]."""
    gap = (codes == self.codes)[..., None]
    known = self.table(jnp.minimum(codes, self.codes - 1))
    x = jnp.where(gap, self.masked, known).astype(self.dtype)
    text, visible = prompt
    length = text.shape[1]
    x = jnp.concatenate([text, x], 1)
    visible = jnp.concatenate([visible, jnp.ones(codes.shape, bool)], 1)
    return self.blocks(x, visible)[:, length:]

  def __call__(self, codes: Array, tokens: Array) -> Array:
    return self.fill(codes, self.encode(tokens))


def mask_image(
  vocab: int = 64,
  length: int = 16,
  codes: Count = 512,
  grid: tuple[Count, Count] = (4, 4),
  width: Count = 128,
  layers: Count = 4,
  heads: Count = 4,
  text_width: Count = 96,
  text_layers: Index = 2,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  pad: int = PAD,
) -> MaskNet:
  """A masked image model: cond is dict(tokens [b l]).

  Tested, not measured.

  Args:
    vocab: of prompts, padding and unknown included.
    length: l of prompts, which are padded to it.
    codes: v, the size of the codec's codebook.
    grid: rows and columns of codes of a picture, n = their product.
    width: d, of the blocks.
    layers: number of blocks.
    heads: attention heads per block.
    text_width: width of the text encoder.
    text_layers: its layers.
    dtype: of the blocks' arithmetic; parameters and logits are float32.
    pad: id of padding in prompts.

  Raises:
    ValueError: a width that the heads do not divide; when called, prompts of
      another length.
  """
  if width % heads:
    raise ValueError(
      f'mask_image: width={width} is not divisible by heads={heads}'
    )
  module = MaskImage(
    codes, width, layers, heads, vocab, text_width, text_layers,
    jnp.dtype(dtype), pad,
  )  # fmt: skip
  n = grid[0] * grid[1]

  def init(key: Array) -> Params:
    none = functools.partial(jnp.zeros, dtype=jnp.int32)
    return module.init(key, none((1, n)), none((1, length)))['params']

  def encode(params: Params, cond: PyTree) -> tuple[Array, Array]:
    tokens = cond['tokens']
    if tokens.shape[1] != length:
      raise ValueError(
        f'mask_image: the prompts have {tokens.shape[1]} tokens, the model '
        f'takes {length}; pad them to it or set length'
      )
    return module.apply({'params': params}, tokens, method='encode')

  def apply(params: Params, codes: Array, prompt: PyTree) -> Array:
    return module.apply({'params': params}, codes, prompt, method='fill')

  def hidden(params: Params, codes: Array, prompt: PyTree) -> Array:
    return module.apply({'params': params}, codes, prompt, method='hidden')

  def logits(params: Params, hidden: Array) -> Array:
    return module.apply({'params': params}, hidden, method='logits')

  def null(cond: PyTree) -> PyTree:
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], pad)}

  return MaskNet(init, codes, n, apply, null, encode, AXES, hidden, logits)
