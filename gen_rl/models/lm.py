"""Next-token networks on a decoder: the language model of Llama and Qwen.

A row is its prompt, padded to l slots, and then its actions. The logits of
action j are read at the token before it: the last real one of the prompt, then
action j - 1,

  log p(a | prompt) = sum_j log softmax(W n(h_j))[a_j]                    (1)

with h of `decoder`. `score` runs a row at once; `prefill` runs the prompt and
keeps keys and values, and `step` appends an action to those of the actions, at
the same slot in all rows, while positions differ from row to row as the
prompts' lengths do. Rows that ask the same read the prompt's once, side by side
(`repeat`; arXiv 2402.05099).

Released models of this shape (tables 1 of arXiv 2407.10671 and 2505.09388,
table 3 of arXiv 2407.21783, their config.json):

                width layers heads kv_heads head_dim   mlp  theta tied   other
  Qwen2.5-0.5B    896     24    14        2       64  4864    1e6  yes    bias
  Qwen2.5-1.5B   1536     28    12        2      128  8960    1e6  yes    bias
  Qwen2.5-3B     2048     36    16        2      128 11008    1e6  yes    bias
  Qwen2.5-7B     3584     28    28        4      128 18944    1e6   no    bias
  Qwen3-0.6B     1024     28    16        8      128  3072    1e6  yes qk_norm
  Qwen3-1.7B     2048     28    16        8      128  6144    1e6  yes qk_norm
  Qwen3-4B       2560     36    32        8      128  9728    1e6  yes qk_norm
  Llama-3-8B     4096     32    32        8      128 14336    5e5   no

eps is 1e-5 in Llama 3 and 1e-6 in the others. `convert.load_lm` reads sizes and
parameters from a checkpoint's folder. (Llama 3.1 and later scale rotations,
which is not computed here.)
"""

import functools
from typing import Any, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.fields import Count, Index, NonNegative, Positive, Remat
from gen_rl.models.parts import decoder as decoder_lib
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.decoder import Decoder, Past
from gen_rl.models.parts.layers import PAD, Dense, TokenNet
from gen_rl.types import Array, Params, PyTree

AXES = (
  (r'(^|/)head/kernel$', ('embed', 'vocab')),
  *decoder_lib.AXES,
)


class Cache(NamedTuple):
  """What a step needs of what came before; rows first, but for the scalar."""

  prompt: Past  # of b rows, or of fewer, see `Past`
  keys_values: Any  # of the actions, as `decoder.Past` has them
  position: Array  # [b] of the next token
  action: Array  # [] how many there are, the slot of the next one


def positions_of(visible: Array) -> Array:
  """Real tokens before each slot: [b l] bool -> [b l]; padding takes none."""
  return jnp.maximum(jnp.cumsum(visible, 1) - 1, 0)


def visible_tokens(tokens: Array, pad: int = PAD) -> Array:
  """[b l] bool: what is no padding; of an empty prompt, its first slot."""
  real = tokens != pad
  first = jnp.arange(tokens.shape[1]) == 0
  return real | (first & ~real.any(1, keepdims=True))


class Model(nn.Module):
  """A prompt and then actions, whatever they are: three ways to run a decoder.

  Subclasses say how both are embedded and what a head reads.
  """

  decoder: Decoder

  def prompt(self, cond: PyTree) -> tuple[Array, Array]:
    """Cond -> (embeddings [b l d], visible [b l] bool)."""
    raise NotImplementedError

  def embed(self, actions: Array, first: Array | int) -> Array:
    """Actions `first`, `first` + 1, ... [b s] -> [b s d]."""
    raise NotImplementedError

  def logits(self, h: Array) -> Array:
    """What the decoder returns, [b s d] -> [b s v] float32."""
    raise NotImplementedError

  def score(self, cond: PyTree, actions: Array) -> Array:
    """Logits [b k v] of actions [b k], all at once."""
    return self.logits(self.hidden(cond, actions))

  def hidden(self, cond: PyTree, actions: Array) -> Array:
    """What the logits of actions [b k] are read from, [b k d]."""
    x, visible = self.prompt(cond)
    prompt, (b, k) = visible, actions.shape
    visible = jnp.concatenate([visible, jnp.ones((b, k - 1), bool)], 1)
    x = jnp.concatenate([x, self.embed(actions[:, :-1], 0)], 1)
    h, _ = self.decoder(x, positions_of(visible), visible)
    length = prompt.shape[1]
    return jnp.concatenate([_last(h[:, :length], prompt), h[:, length:]], 1)

  def prefill(self, cond: PyTree, length: int) -> tuple[Cache, Array]:
    """A cache with room for `length` actions, and the first one's logits."""
    x, visible = self.prompt(cond)
    h, keys_values = self.decoder(x, positions_of(visible), visible)
    cache = Cache(
      Past(keys_values, visible),
      jax.tree.map(lambda a: decoder_lib.room(a, length), keys_values),
      visible.sum(1, dtype=jnp.int32),
      jnp.int32(0),
    )
    return cache, self.logits(_last(h, visible))[:, 0]

  def step(self, cache: Cache, token: Array) -> tuple[Cache, Array]:
    """Appends an action [b]; the logits of the next one."""
    x = self.embed(token[:, None], cache.action)
    slots = jax.tree.leaves(cache.keys_values)[0].shape[3]
    filled = jnp.arange(slots) < cache.action
    said = Past(
      cache.keys_values, jnp.broadcast_to(filled, (len(token), slots))
    )
    h, new = self.decoder(
      x, cache.position[:, None], jnp.ones_like(token[:, None], bool),
      cache.prompt, said,
    )  # fmt: skip
    # What is written depends on all that was read, so XLA writes in place.
    # Without that it copies the cache in every step, with a barrier, too.
    broken = jnp.isnan(h[:, 0, 0])[:, None, None, None, None]
    new = jax.tree.map(lambda a: jnp.where(broken, jnp.nan, a), new)
    cache = cache._replace(
      keys_values=decoder_lib.write(cache.keys_values, new, cache.action),
      position=cache.position + 1,
      action=cache.action + 1,
    )
    return cache, self.logits(h)[:, 0]


def repeat(cache: Cache, count: int) -> Cache:
  """Every row of a new cache `count` times, the prompt's part once."""
  keys_values, position = jax.tree.map(
    lambda a: jnp.repeat(a, count, 0), (cache.keys_values, cache.position)
  )
  return cache._replace(keys_values=keys_values, position=position)


def _last(h: Array, visible: Array) -> Array:
  """The vector at the last slot that is visible: [b l d] -> [b 1 d]."""
  at = visible.shape[1] - 1 - jnp.argmax(visible[:, ::-1], 1)
  return jnp.take_along_axis(h, at[:, None, None], 1)


# The return type is spelled so that a config cannot ask for this function by
# name (models.BUILDS).
def as_net(
  module: Model, vocab: int, cond: PyTree, null: Any, axes: Any = AXES
) -> layers_lib.TokenNet:
  """A model as pure functions.

  Args:
    module: a model.
    vocab: of its actions.
    cond: an example of one row, to initialise with.
    null: see TokenNet.
    axes: see TokenNet.
  """

  def run(method: str):
    return lambda params, *args: module.apply(
      {'params': params}, *args, method=method
    )

  def init(key: Array) -> Params:
    actions = jnp.zeros((1, 2), jnp.int32)
    return module.init(key, cond, actions, method='score')['params']

  return TokenNet(
    init, vocab, run('prefill'), run('step'), run('score'), null, axes,
    run('hidden'), run('logits'), repeat,
  )  # fmt: skip


class Head(Dense):
  """[b s d] -> logits [b s v], in float32 whatever is multiplied."""

  use_bias: bool = False
  kernel_init: Any = nn.initializers.normal(0.02)
  dot_general: Any = functools.partial(
    jax.lax.dot_general, preferred_element_type=jnp.float32
  )


class LM(Model):
  """Prompt and actions are tokens of one vocabulary."""

  vocab: int
  rows: int
  tied: bool
  pad: int

  def setup(self):
    shape = self.decoder.shape
    self.table = nn.Embed(self.rows, shape.width)
    if not self.tied:
      self.head = Head(self.rows, dtype=shape.dtype)

  def prompt(self, cond: PyTree) -> tuple[Array, Array]:
    tokens = cond['tokens']
    return self.embed(tokens, 0), visible_tokens(tokens, self.pad)

  def embed(self, actions: Array, first: Array | int) -> Array:
    del first
    return self.table(actions).astype(self.decoder.shape.dtype)

  def logits(self, h: Array) -> Array:
    if self.tied:
      out = jnp.einsum(
        'bsd,vd->bsv', h, self.table.embedding.astype(h.dtype),
        preferred_element_type=jnp.float32,
      )  # fmt: skip
    else:
      out = self.head(h)
    return out[..., : self.vocab]


def table_rows(name: str, vocab: int, rows: int | None) -> int:
  """Rows of a table of embeddings, by default one for each id.

  Raises:
    ValueError: there are fewer rows than ids.
  """
  if rows is not None and rows < vocab:
    raise ValueError(
      f'{name}: the tokenizer has {vocab} ids, the table {rows} rows; it needs '
      'one for each'
    )
  return rows or vocab


def lm(
  vocab: int = 64,
  length: int = 16,
  width: Count = 96,
  layers: Count = 4,
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
  """A language model that continues prompts: cond is dict(tokens [b l]).

  Tested, not measured.

  Args:
    vocab: token ids, padding and unknown included; of prompts and of actions.
    length: of a prompt, to initialise with; others will do.
    width: d, of the residual stream.
    layers: number of blocks.
    heads: of queries, per block.
    kv_heads: of keys and values; each serves heads / kv_heads of the queries.
    mlp: hidden width of a block's MLP; by default 4 width.
    head_dim: c, numbers per head; by default width / heads.
    theta: base of the rotations' wavelengths.
    qk_norm: RMS-normalise queries and keys, each head alone (Qwen3).
    bias: of the products that give queries, keys and values (Qwen2).
    tied: the head is the table of embeddings.
    eps: added to mean squares.
    rows: of the table; by default `vocab`. Released tables are larger than
      their tokenizers; ids from `vocab` on get no logits.
    pad: id of padding in prompts.
    scan: one program for all blocks, their parameters stacked [layers ...].
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    dtype: of the arithmetic and the cache; parameters are float32.

  Raises:
    ValueError: sizes that do not fit each other, naming them.
  """
  shape = decoder_lib.shape_of(
    'lm', width, heads, kv_heads, mlp, head_dim, dtype, layers=layers,
    theta=theta, qk_norm=qk_norm, bias=bias, eps=eps, scan=scan, remat=remat,
  )  # fmt: skip
  rows = table_rows('lm', vocab, rows)
  module = LM(Decoder(shape), vocab, rows, tied, pad)

  def null(cond: PyTree) -> PyTree:
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], pad)}

  cond = dict(tokens=jnp.full((1, length), pad, jnp.int32))
  return as_net(module, vocab, cond, null)
