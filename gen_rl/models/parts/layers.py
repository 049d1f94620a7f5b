"""Parts that several networks share."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.models.parts import attention
from gen_rl.types import Array, Axes, Params, PyTree

PAD = 0  # token id of padding, where no tokenizer says another
# What the dimensions of parameters of `TextEncoder` and of transformer blocks
# are (sharding.logical_axes).
AXES = (
  (r'(^|/)(qkv|kv_text)\d*/kernel$', ('embed', 'heads')),
  (r'(^|/)(qkv|kv_text)\d*/bias$', ('heads',)),
  (r'(^|/)out\d*/kernel$', ('heads', 'embed')),
  (r'(^|/)up\d*/kernel$', ('embed', 'mlp')),
  (r'(^|/)up\d*/bias$', ('mlp',)),
  (r'(^|/)down\d*/kernel$', ('mlp', 'embed')),
  (r'(^|/)phrase/kernel$', (None, 'embed')),
  (r'/embedding$', ('vocab', 'embed')),
  (r'(^|/)(position|table)$', (None, 'embed')),
  (r'/(bias|scale)$', (None,)),
)


class Net(NamedTuple):
  """A velocity network as pure functions."""

  init: Callable[[Array], Params]  # key -> params
  # (params, x [b ...], t [b], encode(params, cond)) -> velocity [b ...],
  # float32
  apply: Callable[[Params, Array, Array, PyTree], Array]
  shape: tuple[int, ...]  # of a latent: h w c of pictures
  null: Callable[[PyTree], PyTree]  # cond -> the unconditional cond
  # (params, cond) -> what does not change along a trajectory, rows [b ...]
  encode: Callable[[Params, PyTree], PyTree] = lambda params, cond: cond
  axes: Axes = ()  # of the parameters' dimensions, see sharding.logical_axes
  # (params, latents [b ...]) -> pictures [b h w c] in [0, 1], and back. None:
  # latents are pictures in [-1, 1].
  decode: Callable[[Params, Array], Array] | None = None
  compress: Callable[[Params, Array], Array] | None = None
  # (folder of a released model, type of its parameters) -> params, on the host
  load: Callable[[str, str], Params] | None = None
  # (folder, params) -> None: writes what diffusers can load, its adapters or,
  # where there are none, the whole network
  save: Callable[[str, Params], None] | None = None
  # (file or folder of adapters, params with new ones) -> params that compute
  # what those of the file do
  adapt: Callable[[str, Params], Params] | None = None


class TokenNet(NamedTuple):
  """A next-token network as pure functions.

  A cond is a dict with rows first: `tokens` [b l] int32, the prompt, and for
  networks that see pictures `image` [b h w c] in [0, 1]. Padding is masked and
  takes no position, so a prompt means the same however far it is padded. No
  row's output depends on another's. A cache has the same shapes before and
  after a step, so it can be the carry of a loop.
  """

  init: Callable[[Array], Params]  # key -> params
  vocab: int  # v, ids of actions
  # (params, cond, length) -> (cache, logits [b v] float32 of the first action);
  # `length`, a Python int, actions will follow
  prefill: Callable[[Params, PyTree, int], tuple[PyTree, Array]]
  # (params, cache, token [b] int32) -> (cache, logits [b v] float32 of the next
  # action)
  step: Callable[[Params, PyTree, Array], tuple[PyTree, Array]]
  # (params, cond, actions [b k] int32) -> logits [b k v] float32; those at j
  # depend on cond and on actions before j only
  score: Callable[[Params, PyTree, Array], Array]
  null: Callable[[PyTree], PyTree]  # cond -> the unconditional cond
  axes: Axes = ()  # of the parameters' dimensions, see sharding.logical_axes
  # `score` in two: (params, cond, actions) -> vectors [b k d], and (params,
  # vectors [b s d]) -> logits [b s v] float32
  hidden: Callable[[Params, PyTree, Array], Array] | None = None
  logits: Callable[[Params, Array], Array] | None = None
  # (cache that `prefill` made, r) -> that of r neighbours for each of its rows
  repeat: Callable[[PyTree, int], PyTree] | None = None


class MaskNet(NamedTuple):
  """A network that fills gaps, as pure functions.

  A cond is a dict with rows first: `tokens` [b l] int32, the prompt. Every
  place of a row may depend on all others; no row's output depends on another's.
  """

  init: Callable[[Array], Params]  # key -> params
  vocab: int  # v, ids of codes; v itself stands for a code that is masked
  length: int  # n, codes of a row
  # (params, codes [b n] int32 in 0..v, encode(params, cond)) -> logits [b n v]
  # float32 of the code at each place
  apply: Callable[[Params, Array, PyTree], Array]
  null: Callable[[PyTree], PyTree]  # cond -> the unconditional cond
  # (params, cond) -> what does not depend on the codes, rows [b ...]
  encode: Callable[[Params, PyTree], PyTree] = lambda params, cond: cond
  axes: Axes = ()  # of the parameters' dimensions, see sharding.logical_axes
  # `apply` in two: (params, codes, encode(params, cond)) -> vectors [b n d],
  # and (params, vectors [b s d]) -> logits [b s v] float32
  hidden: Callable[[Params, Array, PyTree], Array] | None = None
  logits: Callable[[Params, Array], Array] | None = None


def traced_once(net: Any) -> Any:
  """A network whose calls of equal shapes are traced and differentiated once.

  A training step calls it for the rollout, both halves of guidance, the replay
  and the reference.

  Args:
    net: a Net, TokenNet or MaskNet of which there is one `sharding.Layout`.
  """
  called = ('apply', 'encode', 'score', 'step', 'hidden')
  made = {f: jax.jit(getattr(net, f)) for f in called if getattr(net, f, None)}
  return net._replace(**made)


class Dense(nn.Dense):
  """nn.Dense that computes one [rows d] x [d f] product.

  XLA's CPU backend runs the gradients of products with more than two axes
  several times slower. Adds low-rank adapters where there are any (lora.py).
  """

  def __call__(self, x: Array) -> Array:
    flat = x.reshape(-1, x.shape[-1])
    out = super().__call__(flat)
    if self.has_variable('params', 'kernel_lora_a'):
      a, b, scale = (
        jnp.asarray(self.get_variable('params', f'kernel_lora_{k}'), out.dtype)
        for k in ('a', 'b', 'scale')
      )
      out += scale * ((flat.astype(out.dtype) @ a) @ b)
    return out.reshape(*x.shape[:-1], self.features)


def null_features(cond: PyTree) -> PyTree:
  """The features of no prompt in place of the prompt's.

  Args:
    cond: features by name, and those of no prompt as null_<name>.

  Raises:
    ValueError: there are none of no prompt.
  """
  free = {
    name.removeprefix('null_'): x
    for name, x in cond.items()
    if name.startswith('null_')
  }
  if not free:
    raise ValueError(
      'guidance needs the features of no prompt: set data.embed.negative to '
      "'' or another text, or policy.guidance_scale=1"
    )
  return {**cond, **free}


def rematerialized(
  module: type[nn.Module], policy: str, in_scan: bool
) -> type[nn.Module]:
  """A block whose backward pass computes activations anew.

  Args:
    module: a class.
    policy: 'none' keeps them all; 'dots' keeps the products with parameters,
      and what splash attention computed; 'full' keeps the block's input alone.
    in_scan: blocks are scanned, where the compiler cannot merge the two
      computations of a block into one; else that has to be prevented.

  Raises:
    ValueError: another policy.
  """
  keep = dict(
    none=None,
    dots=jax.checkpoint_policies.save_from_both_policies(
      jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
      # What a fused kernel leaves for its backward pass.
      jax.checkpoint_policies.save_only_these_names('attention'),
    ),
    full=jax.checkpoint_policies.nothing_saveable,
  )
  if policy not in keep:
    raise ValueError(f'remat={policy!r} is none of {", ".join(keep)}')
  if policy == 'none':
    return module
  return nn.remat(module, policy=keep[policy], prevent_cse=not in_scan)


def constrain(x: Array, *axes: str | None) -> Array:
  """Says what the dimensions of an activation are (sharding.Layout.scope)."""
  return nn.with_logical_constraint(x, axes)


def shards(axis: str) -> int:
  """Over how many devices a logical axis is split where this is traced."""
  mesh = jax.sharding.get_abstract_mesh()
  (names,) = nn.logical_to_mesh_axes((axis,)) or (None,)
  names = (names,) if isinstance(names, str) else names or ()
  return math.prod(mesh.shape.get(name, 1) for name in names)


def over_batch(x: Array) -> Array:
  """Splits the first dimension as rows are, and leaves the others as they are.

  For what has a part for each device, `shards('batch')` of them.
  """
  (names,) = nn.logical_to_mesh_axes(('batch',)) or (None,)
  free = (jax.sharding.PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  spec = jax.sharding.PartitionSpec(names, *free)
  return jax.lax.with_sharding_constraint(x, spec)


def time_embedding(t: Array, width: int) -> Array:
  """Sinusoidal features of t in [0, 1]: [b] -> [b width]."""
  half = width // 2
  frequency = jnp.exp(jnp.linspace(0.0, jnp.log(1000.0), half))
  angle = t[:, None] * frequency
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class TextEncoder(nn.Module):
  """Pre-norm transformer over prompt tokens.

  A convolution over five neighbouring words comes first: "red" belongs to the
  "circle" next to it, which attention is slow to find out.

  tokens [b l] int -> (features [b l d], mask [b l] bool).
  """

  vocab: int
  width: int
  layers: int
  heads: int = 4
  pad: int = PAD

  @nn.compact
  def __call__(self, tokens: Array) -> tuple[Array, Array]:
    b, length = tokens.shape
    d, n = self.width, self.heads
    # The first position is always seen: an all-padding (null) prompt has no
    # other one.
    mask = (tokens != self.pad) | (jnp.arange(length) == 0)
    x = nn.Embed(
      self.vocab, d, embedding_init=nn.initializers.normal(0.3), name='embed'
    )(tokens)
    x += self.param('position', nn.initializers.normal(0.1), (length, d))
    near = jnp.pad(nn.gelu(x), ((0, 0), (2, 2), (0, 0)))
    near = jnp.concatenate([near[:, i : i + length] for i in range(5)], -1)
    x += Dense(d, name='phrase')(near)
    for i in range(self.layers):
      h = nn.LayerNorm(name=f'norm_a{i}')(x)
      qkv = Dense(3 * d, name=f'qkv{i}')(h).reshape(b, length, 3, n, d // n)
      x += Dense(d, name=f'out{i}')(
        attention.attend(*jnp.moveaxis(qkv, 2, 0), mask)
      )
      h = nn.LayerNorm(name=f'norm_b{i}')(x)
      h = nn.gelu(Dense(2 * d, name=f'up{i}')(h))
      x += Dense(d, name=f'down{i}')(h)
    return nn.LayerNorm(name='norm')(x), mask
