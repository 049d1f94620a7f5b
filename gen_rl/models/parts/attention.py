"""Softmax attention, by the kernel that suits the devices of a program.

  out_i = sum_j softmax_j(q_i k_j / sqrt(c)) v_j                          (1)

'xla' writes the n i j scores of a row to memory, forward and backward. Fused
kernels keep a block of them at a time (FlashAttention, arXiv 2205.14135):
'splash', of Pallas, on TPUs, and 'cudnn' on NVIDIA's GPUs. 'auto' takes one of
these where it moves less, where it can, and 'xla' everywhere else. A kernel
that the devices' compiler refuses for a shape is replaced by 'xla', and a line
of the log says so, before a program is made with it.
"""

import concurrent.futures
import functools
from typing import Any, NamedTuple

from absl import logging
import einops
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.types import Array
from gen_rl.utils import chips, origins

LANES = 128  # of a TPU's registers: blocks are multiples of it
_LARGEST = 1024  # block of queries, or of keys
# A block costs what so many more queries (or keys) do.
_OVERHEAD = 96


class Shape(NamedTuple):
  """What a kernel is chosen by, of one row."""

  queries: int  # i
  keys: int  # j
  heads: int  # n, of queries
  shared: int  # n / heads of keys
  width: int  # c
  dtype: Any
  causal: bool  # no query sees the keys behind it
  hidden: bool  # not all keys may be seen, by all queries or by some


def sdpa(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None = None,
  implementation: str = 'auto',
  *,
  visible: Array | None = None,
  causal: bool = False,
) -> Array:
  """Equation (1); the softmax is float32.

  Args:
    q: [b i n c] queries.
    k: [b j m c] keys; every one serves n / m of the n heads.
    v: [b j m c] values.
    mask: bool, broadcastable to [b n i j]: which keys a query may see, where
      `visible` and `causal` do not say it; only 'xla' and 'cudnn' take it.
    implementation: 'auto', 'xla', 'cudnn' or 'splash', see the module.
    visible: [b j] bool, keys that may be seen; None: all.
    causal: query i sees the keys up to i.

  Returns:
    [b i n c]. A query that sees no key has numbers that mean nothing: 0 of
    'splash', a mean over all keys of others.
  """
  masked = mask is not None
  kernel = _kernel(q, k, implementation, masked, visible, causal)
  if kernel == 'splash':
    function = functools.partial(splash, causal=causal)
    return _over_mesh(function, q, k, v, visible)
  if visible is not None:
    seen = visible[:, None, None]
    mask = seen if mask is None else mask & seen
  if mask is not None and kernel == 'cudnn':  # takes whole ones
    shape = (*mask.shape[:2], q.shape[1], k.shape[1])
    mask = jnp.broadcast_to(mask, shape)
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, is_causal=causal, implementation=kernel
  )


def attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
  """Equation (1) in float32, for nets that are not of a published checkpoint.

  Args:
    q: [b i n c] queries.
    k: [b j n c] keys.
    v: [b j n c] values.
    mask: [b j] bool, the keys that may be seen.

  Returns:
    [b i (n c)], the heads side by side.
  """
  if _kernel(q, k, visible=mask) == 'xla':
    scores = jnp.einsum('binc,bjnc->bnij', q, k).astype(jnp.float32)
    scores = scores / jnp.sqrt(jnp.float32(q.shape[-1]))
    weights = nn.softmax(jnp.where(mask[:, None, None], scores, -1e9))
    out = jnp.einsum('bnij,bjnc->binc', weights.astype(v.dtype), v)
  else:
    out = sdpa(q, k, v, visible=mask)
  return out.reshape(*out.shape[:2], -1)


def grouped(q: Array, *parts: tuple[Array, Array, Array]) -> Array:
  """Grouped queries over several parts of a sequence, the softmax in float32.

  Args:
    q: [b n g s c], g queries for each of n keys.
    *parts: (keys [p n j c], values [p n j c], mask [p s j] or [p 1 j] bool of
      what each query may see); one softmax runs over all of them. Nobody has
      to lay them side by side. Where p is not b, b / p neighbours share each.

  Returns:
    [b s (n g c)], the heads side by side.
  """

  def shared(x: Array, rows: int) -> Array:  # [b ...] -> [p b/p ...]
    return x.reshape(rows, -1, *x.shape[1:])

  scores = []
  for k, _, mask in parts:
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    own = shared(q, len(k))
    if q.shape[3] == 1:  # few queries: on CPUs a quarter of the time
      score = product('pnjc,prngsc->pnjrgs', k, own)
      score = einops.rearrange(score, 'p n j r g s -> p r n g s j')
    else:
      score = product('prngsc,pnjc->prngsj', own, k)
    score = score / np.sqrt(q.shape[-1])
    score = jnp.where(mask[:, None, None, None], score, -1e9)
    scores.append(score.reshape(*q.shape[:-1], -1))
  weights = nn.softmax(jnp.concatenate(scores, -1))
  ends = np.cumsum([s.shape[-1] for s in scores])[:-1]
  out = sum(
    jnp.einsum(
      'prngsj,pnjc->prngsc', shared(w, len(v)).astype(v.dtype), v
    ).reshape(q.shape)
    for w, (_, v, _) in zip(jnp.split(weights, ends, -1), parts, strict=True)
  )
  return einops.rearrange(out, 'b n g s c -> b s (n g c)')


def causal(q: Array, k: Array, v: Array, visible: Array) -> Array:
  """Grouped queries over a sequence that begins here.

  Args:
    q: [b n g s c], see `grouped`.
    k: [b n s c].
    v: [b n s c].
    visible: [b s] bool, False at padding.

  Returns:
    [b s (n g c)].
  """
  flat = einops.rearrange(q, 'b n g s c -> b s (n g) c')
  keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
  if _kernel(flat, keys, visible=visible, causal=True) == 'xla':
    return grouped(q, (k, v, behind(visible)))
  out = sdpa(flat, keys, values, visible=visible, causal=True)
  return out.reshape(*out.shape[:2], -1)


def behind(visible: Array) -> Array:
  """What each place of a sequence may see of it: [b s] -> [b s s]."""
  order = jnp.arange(visible.shape[1])
  return visible[:, None] & (order <= order[:, None])


def _kernel(
  q: Array,
  k: Array,
  asked: str = 'auto',
  masked: bool = False,
  visible: Array | None = None,
  causal: bool = False,
) -> str:
  shape = Shape(
    q.shape[1], k.shape[1], q.shape[2], q.shape[2] // k.shape[2], q.shape[3],
    jnp.dtype(q.dtype), causal, visible is not None or masked,
  )  # fmt: skip
  # Of every process its own: all are of one kind, and choose alike.
  device = chips.TRACED_FOR.value or jax.local_devices()[0]
  return choose(shape, device, asked, masked)


def choose(
  shape: Shape, device: jax.Device, asked: str = 'auto', masked: bool = False
) -> str:
  """The kernel for a shape.

  Args:
    shape: of a row.
    device: one of those a program is for.
    asked: see `sdpa`.
    masked: keys are hidden from single queries.
  """
  kernel = asked
  if asked == 'auto':
    kernel = dict(tpu='splash', gpu='cudnn').get(device.platform, 'xla')
    if kernel != 'xla' and not worthwhile(shape, kernel):
      return 'xla'
  if kernel == 'xla' or (kernel == 'splash' and masked):
    return 'xla'
  return 'xla' if refused(shape, device, kernel) else kernel


def worthwhile(shape: Shape, kernel: str) -> bool:
  """Whether a kernel saves more than it costs in padding and in blocks."""
  if shape.queries < LANES:
    return False
  if kernel == 'cudnn':
    half = shape.dtype in (jnp.bfloat16, jnp.float16)
    fits = shape.width % 8 == 0 and shape.width <= 128
    # With keys that are hidden it takes even lengths only.
    even = shape.queries % 2 == shape.keys % 2 == 0
    return half and fits and (even or not shape.hidden)
  _, queries = _blocks(shape.queries)
  _, keys = _blocks(shape.keys)
  scores = shape.queries * shape.keys
  return queries * keys <= 2 * scores


@functools.cache
def refused(shape: Shape, device: jax.Device, kernel: str) -> str:
  """What a device's compiler says against a kernel; '' if it takes it.

  That is logged once. A small program of one row is compiled, forward and
  backward, in a thread of its own: what is being traced here does not reach it.
  """

  def compile_one() -> str:
    if kernel == 'splash' and device.platform != 'tpu':
      return 'it is for TPUs'
    sharding = jax.sharding.SingleDeviceSharding(device)
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    heads, width, dtype = shape.heads, shape.width, shape.dtype
    q = array((1, shape.queries, heads, width), dtype)
    k = array((1, shape.keys, heads // shape.shared, width), dtype)
    visible = array((1, shape.keys), bool) if shape.hidden else None

    def loss(q: Array, k: Array, v: Array, visible: Array | None) -> Array:
      if kernel == 'splash':
        out = splash(q, k, v, visible, shape.causal)
      else:
        mask = visible
        if visible is not None:
          whole = (1, 1, shape.queries, shape.keys)
          mask = jnp.broadcast_to(visible[:, None, None], whole)
        out = jax.nn.dot_product_attention(
          q, k, v, mask=mask, is_causal=shape.causal, implementation=kernel
        )
      return out.astype(jnp.float32).sum()

    try:
      jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, visible).compile()
    except Exception as error:  # of any library below
      return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    return ''

  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    problem = thread.submit(compile_one).result()
  if problem:
    origins.give_up()  # it may have been out of memory
    logging.warning(
      'attention of %d queries and %d keys, %d heads of %d, in %s is left to '
      'XLA, as %s does not compile here (%s)',
      shape.queries, shape.keys, shape.heads, shape.width, shape.dtype.name,
      kernel, problem,
    )  # fmt: skip
  return problem


def _blocks(n: int) -> tuple[int, int]:
  """(size of a block, n filled up to whole ones)."""

  def padded(block: int) -> int:
    return -(-n // block) * block

  sizes = range(LANES, _LARGEST + 1, LANES)
  block = min(sizes, key=lambda b: (padded(b) * (1 + _OVERHEAD / b), b))
  return block, padded(block)


def splash(
  q: Array,
  k: Array,
  v: Array,
  visible: Array | None = None,
  causal: bool = False,
  interpret: bool = False,
) -> Array:
  """`sdpa` by Pallas' splash attention; lengths are filled up to blocks.

  Queries are scaled before the products, which rounds them in bfloat16 where
  sqrt(c) is no power of 2. `interpret` runs it on any device, slowly.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  heads, shared = q.shape[2], q.shape[2] // k.shape[2]
  block_q, queries = _blocks(q.shape[1])
  block_k, keys = _blocks(k.shape[1])

  def filled(x: Array, length: int) -> Array:  # [b n length c]
    room = (0, length - x.shape[1])
    return jnp.pad(x, ((0, 0), room, (0, 0), (0, 0))).swapaxes(1, 2)

  scaled = (q * q.shape[3] ** -0.5).astype(q.dtype)
  k, v = (jnp.repeat(x, shared, 2) for x in (k, v))
  one = masks.FullMask((queries, keys))
  if causal:
    one = masks.CausalMask((queries, keys))
  sizes = kernels.BlockSizes(
    block_q=block_q, block_kv=block_k, block_kv_compute=block_k,
    block_q_dkv=block_q, block_kv_dkv=block_k, block_kv_dkv_compute=block_k,
    block_q_dq=block_q, block_kv_dq=block_k,
  )  # fmt: skip
  attend = kernels.make_splash_mha(
    masks.MultiHeadMask([one] * heads), block_sizes=sizes, head_shards=1,
    q_seq_shards=1, interpret=interpret, residual_checkpoint_name='attention',
  )  # fmt: skip
  segments = None
  if visible is not None or keys != k.shape[1]:
    # Queries are of segment 0, and so are keys that may be seen.
    hidden = jnp.arange(keys) >= k.shape[1]
    hidden = jnp.broadcast_to(hidden, (q.shape[0], keys))
    if visible is not None:
      room = (0, keys - k.shape[1])
      hidden |= jnp.pad(~visible, ((0, 0), room))
    segments = kernels.SegmentIds(
      jnp.zeros((q.shape[0], queries), jnp.int32), hidden.astype(jnp.int32)
    )
  out = jax.vmap(attend)(
    filled(scaled, queries), filled(k, keys), filled(v, keys), segments
  )
  out = out.swapaxes(1, 2)[:, : q.shape[1]].astype(v.dtype)
  if visible is None:
    return out
  # Where no key is seen, gradients would be those of a sum over all of them.
  return jnp.where(visible.any(1)[:, None, None, None], out, 0)


def _over_mesh(
  function: Any, q: Array, k: Array, v: Array, visible: Array | None
) -> Array:
  """A kernel of one device on every device's own rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(q, k, v, visible)

  def over(axis: str, n: int) -> tuple[str, ...] | None:
    """The first of its mesh axes that split n places evenly."""
    (names,) = nn.logical_to_mesh_axes((axis,))
    taken, parts = [], 1
    for name in (names,) if isinstance(names, str) else names or ():
      parts *= mesh.shape[name]
      if n % parts:
        break
      taken.append(name)
    return tuple(taken) or None

  rows, heads = over('batch', q.shape[0]), over('heads', q.shape[2])
  if heads != over('heads', k.shape[2]):  # fewer keys than devices
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
  spec = jax.sharding.PartitionSpec(rows, None, heads, None)
  of_keys = jax.sharding.PartitionSpec(rows, None)
  return jax.shard_map(
    function,
    in_specs=(spec, spec, spec, None if visible is None else of_keys),
    out_specs=spec,
    check_vma=False,
  )(q, k, v, visible)
