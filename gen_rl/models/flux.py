"""The transformer of FLUX.1, dev and schnell, diffusers' names.

Squares of 2 x 2 numbers of a latent are image tokens. Blocks of the first kind
have weights of their own for text and image, like those of `mmdit`; blocks of
the second kind see one sequence, text first, and add attention and MLP at once,

  x <- x + g W [attend(n(x)), gelu(W_1 n(x))],   n(x) = (1 + m) LN(x) + s (1)

with s, m, g of the time, the pooled text and, in dev, the scale of guidance,
which the network has learned to apply itself. Queries and keys are normalised
(RMS) and turned by where they are: pair j of axis a by the angle

  p_a 10000^(-2j / d_a)                                                  (2)

for places p = (0, row, column) of the image and (0, 0, 0) of the text.

It predicts v = noise - data: the velocity of this project. Text comes as
features (`data.text_features.flux_text`): a cond has text [b l e] and pooled
[b p].
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, Literal

import einops
from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from gen_rl.fields import Count, Index, Kernel, NonNegative, Remat
from gen_rl.models import flow_files
from gen_rl.models.files import options, peft, released
from gen_rl.models.parts import adaln
from gen_rl.models.parts import layers as layers_lib
from gen_rl.models.parts.attention import sdpa
from gen_rl.models.parts.layers import Dense, Net, constrain
from gen_rl.types import Array

AXES = (
  (r'(^|/)proj_mlp/kernel$', ('embed', 'mlp')),
  (r'(^|/)proj_mlp/bias$', ('mlp',)),
  *adaln.AXES,
  (r'/(bias|scale)$', (None,)),
)
KINDS = ('FluxTransformer2DModel',)


def places(text: int, height: int, width: int) -> np.ndarray:
  """Places p of (2): [text + height * width, 3].

  Args:
    text: tokens of the text, which come first.
    height: rows of image tokens.
    width: columns of them.
  """
  out = np.zeros((text + height * width, 3))
  rows, columns = np.mgrid[:height, :width]
  out[text:, 1], out[text:, 2] = rows.ravel(), columns.ravel()
  return out


class Attention(nn.Module):
  """One sequence [b i d], or image and text with weights of their own.

  Returns attention's output of the whole sequence, text first, not projected;
  with text, both projected.
  """

  heads: int
  head_dim: int
  attention: str
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Array, by: adaln.Turns, text: Array | None = None
  ) -> Any:
    d = self.heads * self.head_dim
    dense = functools.partial(Dense, d, dtype=self.dtype)
    norm = functools.partial(nn.RMSNorm, epsilon=adaln.EPS, dtype=self.dtype)

    def project(x: Array, names: Sequence[str], norms: Sequence[str]):
      q, k, v = (
        einops.rearrange(
          dense(name=name)(x), 'b i (n c) -> b i n c', n=self.heads
        )
        for name in names
      )
      q, k = norm(name=norms[0])(q), norm(name=norms[1])(k)
      return [constrain(a, 'batch', None, 'heads', None) for a in (q, k, v)]

    qkv = project(x, ('to_q', 'to_k', 'to_v'), ('norm_q', 'norm_k'))
    if text is not None:
      first = project(
        text,
        ('add_q_proj', 'add_k_proj', 'add_v_proj'),
        ('norm_added_q', 'norm_added_k'),
      )
      qkv = [jnp.concatenate(pair, 1) for pair in zip(first, qkv, strict=True)]
    q, k, v = qkv
    out = sdpa(
      adaln.turned(q, by), adaln.turned(k, by), v, implementation=self.attention
    )
    out = einops.rearrange(out, 'b i n c -> b i (n c)')
    if text is None:
      return out
    of_text, of_image = jnp.split(out, [text.shape[1]], 1)
    return dense(name='to_out_0')(of_image), dense(name='to_add_out')(of_text)


class Double(nn.Module):
  """((x [b i d], text [b l d]), y [b d], turns) -> ((x, text), None)."""

  heads: int
  head_dim: int
  attention: str
  dtype: Any

  @nn.compact
  def __call__(
    self, carry: tuple[Array, Array], y: Array, by: adaln.Turns
  ) -> tuple[tuple[Array, Array], None]:
    x, text = carry
    d = x.shape[-1]
    norm = adaln.norm(self.dtype)
    modulation = functools.partial(adaln.Modulation, d, 6, self.dtype)
    feed = functools.partial(adaln.FeedForward, d, self.dtype)
    ours = modulation(name='norm1')(y)
    theirs = modulation(name='norm1_context')(y)
    attention = Attention(
      self.heads, self.head_dim, self.attention, self.dtype, name='attn'
    )
    change, change_text = attention(
      norm(x) * (1 + ours[1]) + ours[0], by,
      norm(text) * (1 + theirs[1]) + theirs[0],
    )  # fmt: skip
    out = []
    for a, move, vectors, name in (
      (x, change, ours, 'ff'), (text, change_text, theirs, 'ff_context'),
    ):  # fmt: skip
      _, _, gate, shift, scale, gate_f = vectors
      a += gate * move
      a += gate_f * feed(name=name)(norm(a) * (1 + scale) + shift)
      out.append(constrain(a, 'batch', None, None))
    return tuple(out), None


class Single(nn.Module):
  """(1): (x [b i d], y [b d], turns) -> (x, None)."""

  heads: int
  head_dim: int
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, y: Array, by: adaln.Turns) -> tuple[Array, None]:
    d = x.shape[-1]
    dense = functools.partial(Dense, dtype=self.dtype)
    shift, scale, gate = adaln.Modulation(d, 3, self.dtype, name='norm')(y)
    n = adaln.norm(self.dtype)(x) * (1 + scale) + shift
    h = nn.gelu(dense(4 * d, name='proj_mlp')(n))
    h = constrain(h, 'batch', None, 'mlp')
    seen = Attention(
      self.heads, self.head_dim, self.attention, self.dtype, name='attn'
    )(n, by)
    x += gate * dense(d, name='proj_out')(jnp.concatenate([seen, h], -1))
    return constrain(x, 'batch', None, None), None


class Flux(nn.Module):
  """See the module docstring. `encode`, then `denoise`."""

  image: tuple[int, int, int]
  double: int
  single: int
  heads: int
  head_dim: int
  turns: tuple[int, ...]
  guidance: float | None
  scan: bool
  remat: str
  attention: str
  dtype: Any

  def setup(self):
    d = self.heads * self.head_dim
    dense = functools.partial(Dense, dtype=self.dtype)
    self.time_text_embed = adaln.Embedders(
      d, self.guidance is not None, self.dtype
    )
    self.context_embedder, self.x_embedder = dense(d), dense(d)
    settings = self.heads, self.head_dim, self.attention, self.dtype

    def stack(block: type[nn.Module], length: int) -> Any:
      block = layers_lib.rematerialized(block, self.remat, in_scan=self.scan)
      if not self.scan:
        return [block(*settings) for _ in range(length)]
      return nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=length,
      )(*settings)

    self.transformer_blocks = stack(Double, self.double)
    self.single_transformer_blocks = stack(Single, self.single)
    self.norm_out = adaln.Modulation(d, 2, self.dtype)
    self.norm = adaln.norm(self.dtype)
    self.proj_out = dense(4 * self.image[-1])

  def encode(self, text: Array, pooled: Array) -> adaln.Encoded:
    """[b l e], [b p] -> what does not change."""
    return adaln.Encoded(
      self.context_embedder(text),
      self.time_text_embed.text(pooled, self.guidance or 0.0),
    )

  def denoise(self, x: Array, t: Array, encoded: adaln.Encoded) -> Array:
    """The velocity, in the type of the arithmetic: [b h w c]."""
    height, width = (n // 2 for n in x.shape[1:3])
    h = einops.rearrange(x, 'b (h p) (w q) c -> b (h w) (c p q)', p=2, q=2)
    h = self.x_embedder(h)
    y = self.time_text_embed.time(t) + encoded.pooled
    text = encoded.text.astype(self.dtype)
    l = text.shape[1]
    by = adaln.turns(places(l, height, width), self.turns)

    def through(blocks: Any, carry: Any) -> Any:
      for block in [blocks] if self.scan else blocks:
        carry, _ = block(carry, y, by)
      return carry

    h, text = through(self.transformer_blocks, (h, text))
    h = jnp.concatenate([text, h], 1)
    h = through(self.single_transformer_blocks, h)[:, l:]
    scale, shift = self.norm_out(y)
    h = self.proj_out(self.norm(h) * (1 + scale) + shift)
    return einops.rearrange(
      h, 'b (h w) (c p q) -> b (h p) (w q) c', p=2, q=2, h=height
    )

  def __call__(self, x: Array, t: Array, text: Array, pooled: Array) -> Array:
    return self.denoise(x, t, self.encode(text, pooled))


def flux(
  image: Sequence[Count] = (64, 64, 16),
  double: Index = 19,
  single: Index = 38,
  heads: Count = 24,
  head_dim: Count = 128,
  turns: Sequence[Count] = (16, 56, 56),
  text: Count = 4096,
  pooled: Count = 768,
  guidance: NonNegative | None = 3.5,
  scan: bool = False,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Net:
  """The transformer as a velocity network; the defaults are those of dev.

  Args:
    image: h w c of a latent; 64 is 512 pixels.
    double: blocks of the first kind.
    single: blocks of the second kind.
    heads: of attention.
    head_dim: numbers of a head.
    turns: how many of them an axis of (2) turns; their sum is head_dim.
    text: numbers of a text token.
    pooled: numbers of the pooled text.
    guidance: scale that dev applies itself; None for schnell, which has none.
    scan: one program for all blocks of a kind, their parameters stacked.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: see `attention.sdpa`; 'cudnn' in bfloat16 only.
    dtype: of the arithmetic. Norms' statistics, the softmax, angles and times
      are computed in float32.

  Raises:
    ValueError: sizes that do not fit each other.
  """
  image, turns = tuple(image), tuple(turns)
  if image[0] % 2 or image[1] % 2:
    raise ValueError(
      f'flux: image {image[0]}x{image[1]} does not divide into squares of 2x2'
    )
  if len(turns) != 3 or sum(turns) != head_dim or any(n % 2 for n in turns):
    raise ValueError(
      f'flux: turns={turns} are to be three even numbers whose sum is '
      f'head_dim={head_dim}'
    )
  if attention == 'cudnn' and dtype != 'bfloat16':
    raise ValueError('flux: attention="cudnn" needs dtype="bfloat16"')
  module = Flux(
    image, double, single, heads, head_dim, turns, guidance, scan, remat,
    attention, jnp.dtype(dtype),
  )  # fmt: skip
  said = dict(
    channels=image[-1], double=double, single=single, heads=heads,
    head_dim=head_dim, turns=turns, text=text, pooled=pooled,
    guided=guidance is not None,
  )  # fmt: skip

  init, apply, encode = adaln.functions(module, (2, 2, image[-1]), text, pooled)

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
  return Net(init, apply, image, null, encode, AXES, **files)


def names_of(scan: bool) -> released.Names:
  """Names of parameters, scanned or not."""
  if not scan:
    return released.PLAIN
  kinds = 'transformer_blocks', 'single_transformer_blocks'
  return released.Names(stacked={kind: (kind, 0) for kind in kinds})


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `flux`, channels and guided, for such a transformer's config.

  Raises:
    ValueError: options that are missing or not computed, all in one sentence.
  """
  get = config_json.get
  whole = (
    'in_channels', 'num_layers', 'num_single_layers', 'attention_head_dim',
    'num_attention_heads', 'joint_attention_dim', 'pooled_projection_dim',
  )  # fmt: skip
  options.typed(KINDS[0], config_json, whole=whole, wholes=('axes_dims_rope',))
  inputs = get('in_channels', 64)
  options.check(
    'FluxTransformer2DModel',
    config_json,
    dict(patch_size=(1,), out_channels=(None, inputs)),
    free=(*whole, 'guidance_embeds', 'axes_dims_rope'),
  )  # fmt: skip
  return dict(
    channels=inputs // 4,
    double=get('num_layers', 19),
    single=get('num_single_layers', 38),
    heads=get('num_attention_heads', 24),
    head_dim=get('attention_head_dim', 128),
    turns=tuple(get('axes_dims_rope', (16, 56, 56))),
    text=get('joint_attention_dim', 4096),
    pooled=get('pooled_projection_dim', 768),
    guided=get('guidance_embeds', False),
  )


def config_json(said: Mapping[str, Any]) -> dict[str, Any]:
  """The config of a transformer for keywords of `flux`: `config` undone."""
  return dict(
    _class_name=KINDS[0],
    patch_size=1,
    in_channels=4 * said['channels'],
    out_channels=None,
    num_layers=said['double'],
    num_single_layers=said['single'],
    num_attention_heads=said['heads'],
    attention_head_dim=said['head_dim'],
    axes_dims_rope=list(said['turns']),
    joint_attention_dim=said['text'],
    pooled_projection_dim=said['pooled'],
    guidance_embeds=said['guided'],
  )
