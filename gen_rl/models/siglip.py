"""SigLIP: pictures and texts as vectors whose product says if they belong.

Two transformers (`vit.Block`; arXiv 2303.15343), and the log-odds that picture
i and text j are a pair,

  l_ij = e^s <x_i, y_j> + b,  |x_i| = |y_j| = 1                          (1)

of which sigma(l_ij) is the probability. The text's vector is the last token's,
padding or not: texts are padded to the full length, nothing is masked, and
everything sees everything. The picture's is that of a learned query q that
attends to all squares (h of them, heads and projections as everywhere),

  p = A(q, h),  x = p + M(n(p))                                          (2)

Released sizes (config.json of google/siglip-*; the texts' layers are as many
and as wide, of 64 tokens and 32,000 words):

              width layers heads   mlp patch
  base          768     12    12  3072 16 (224, 256, 384, 512 px)
  large        1024     24    16  4096 16 (256, 384 px)
  so400m       1152     27    16  4304 14 (224, 384 px)

Pixels are 2 x - 1 for x in [0, 1], resized to a square with bicubic weights.
"""

from collections.abc import Mapping, Sequence
import functools
import os
from typing import Any, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.fields import Kernel, Remat
from gen_rl.models.files import options, released
from gen_rl.models.parts import attention as attention_lib
from gen_rl.models.parts import vit
from gen_rl.models.parts.layers import Dense
from gen_rl.types import Array, Axes, Params

AXES = (
  (r'(^|/)patch_embedding/kernel$', (None, 'embed')),
  (r'(^|/)in_proj/kernel$', ('embed', 'heads')),
  (r'(^|/)in_proj/bias$', ('heads',)),
  (r'(^|/)position_embedding/embedding$', (None, 'embed')),
  (r'(^|/)text_model/head/kernel$', ('embed', None)),
  (r'(^|/)(probe|logit_scale|logit_bias)$', (None,)),
  *vit.AXES,
)
# torch's own attention has one matrix, outside of a layer.
NAMES = released.Names(
  rename=((r'\.in_proj\.(weight|bias)$', r'.in_proj_\1'),),
  stacked={
    f'{part}_model/encoder/layers': (f'{part}_model.encoder.layers', 0)
    for part in ('vision', 'text')
  },
  ignored=(r'position_ids$',),
)
# One network alone; files of transformers 4 have the prefix, those of 5 do not.
ALONE = NAMES._replace(
  rename=(*NAMES.rename, (r'^(vision|text)_model\.', '')),
  aliases=((r'^(vision|text)_model\.', ''),),
)
# model_type -> networks
KINDS = dict(
  siglip=('vision', 'text'),
  siglip_vision_model=('vision',),
  siglip_text_model=('text',),
)
# keyword: (name in config.json, where that is silent)
_TOWER = dict(
  width=('hidden_size', 768),
  layers=('num_hidden_layers', 12),
  heads=('num_attention_heads', 12),
  mlp=('intermediate_size', 3072),
  act=('hidden_act', 'gelu_pytorch_tanh'),
  eps=('layer_norm_eps', 1e-6),
)
_OTHERS = dict(
  vision=dict(
    image=('image_size', 224),
    patch=('patch_size', 16),
    head=('vision_use_head', True),
  ),
  text=dict(
    vocab=('vocab_size', 32000),
    length=('max_position_embeddings', 64),
    out=('projection_size', None),
  ),
)


class Siglip(NamedTuple):
  """Both networks, or one of them, as pure functions."""

  init: Any  # key -> params
  # (params, pixels [b h w c] in [-1, 1]) -> vit.Features, pooled by (2); None
  # without the network of pictures
  image: Any
  # (params, tokens [b l]) -> [b d] float32; None without that of texts
  text: Any
  length: int  # l that texts are padded to
  axes: Axes = AXES


def logits(params: Params, images: Array, texts: Array) -> Array:
  """(1): vectors [... d] and [... d] -> [...], float32; shapes broadcast."""
  images, texts = (
    x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts)
  )
  scale = jnp.exp(params['logit_scale'][0])
  return scale * (images * texts).sum(-1) + params['logit_bias'][0]


class Pool(nn.Module):
  """(2): [b i d] -> [b d]."""

  heads: int
  mlp: int
  act: str
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d = x.shape[-1]
    probe = self.param('probe', nn.initializers.normal(0.02), (1, 1, d))
    query = jnp.broadcast_to(probe, (len(x), 1, d)).astype(self.dtype)
    attention = ProbeAttention(self.heads, self.dtype, name='attention')
    seen = attention(query, x)
    norm = nn.LayerNorm(self.eps, dtype=self.dtype, name='layernorm')
    mlp = vit.Mlp(self.mlp, self.act, self.dtype, name='mlp')
    return (seen + mlp(norm(seen)))[:, 0]


class ProbeAttention(nn.Module):
  """A query and what it looks at, with one matrix for all projections."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, query: Array, x: Array) -> Array:
    d = x.shape[-1]
    project = Dense(3 * d, dtype=self.dtype, name='in_proj')
    # The keys and values of the query, and the queries of x, are not used:
    # for one row among hundreds, and in one product.
    q, k, v = jnp.split(project(jnp.concatenate([query, x], 1)), 3, -1)
    q, k, v = (
      vit.split_heads(a, self.heads) for a in (q[:, :1], k[:, 1:], v[:, 1:])
    )
    seen = attention_lib.sdpa(q, k, v)
    return Dense(d, dtype=self.dtype, name='out_proj')(
      seen.reshape(query.shape)
    )


class Tower(NamedTuple):
  """Sizes of one of the two networks, and how it is computed."""

  width: int
  layers: int
  heads: int
  mlp: int
  act: str = 'gelu_pytorch_tanh'
  eps: float = 1e-6
  scan: bool = False
  remat: str = 'none'
  attention: str = 'auto'
  dtype: Any = jnp.float32

  def encoder(self) -> vit.Encoder:
    settings = dict(
      heads=self.heads, mlp=self.mlp, act=self.act, eps=self.eps,
      attention=self.attention, dtype=self.dtype,
    )  # fmt: skip
    depth = vit.Depth(self.layers, self.scan, self.remat)
    return vit.Encoder(vit.Block, settings, depth, name='encoder')

  def norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(self.eps, dtype=self.dtype, name=name)


class PictureEmbeddings(nn.Module):
  """Squares and where they are: [b h w c] -> [b h' w' d]."""

  tower: Tower
  side: int  # of the table of positions
  patch: int

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    d, dtype = self.tower.width, self.tower.dtype
    squares = vit.Patches(d, self.patch, dtype, name='patch_embedding')(pixels)
    table = nn.Embed(self.side**2, d, name='position_embedding').embedding
    table = vit.resized(
      table.reshape(self.side, self.side, d), squares.shape[1:3]
    )
    return squares + table.astype(dtype)


class TextEmbeddings(nn.Module):
  """Words and where they are: [b l] -> [b l d]."""

  tower: Tower
  vocab: int
  length: int

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    d, l = self.tower.width, tokens.shape[1]
    if l > self.length:
      raise ValueError(
        f'siglip: texts have {l} tokens, and the table of positions has '
        f'{self.length}; set length={self.length}'
      )
    words = nn.Embed(self.vocab, d, name='token_embedding')(tokens)
    places = nn.Embed(self.length, d, name='position_embedding').embedding
    return (words + places[:l]).astype(self.tower.dtype)


class VisionModel(nn.Module):
  """Pictures [b h w c] -> vit.Features."""

  tower: Tower
  side: int
  patch: int
  head: bool

  @nn.compact
  def __call__(self, pixels: Array) -> vit.Features:
    t = self.tower
    x = PictureEmbeddings(t, self.side, self.patch, name='embeddings')(pixels)
    b, h, w, d = x.shape
    x = t.encoder()(x.reshape(b, h * w, d))
    x = t.norm('post_layernorm')(x)
    pooled = None
    if self.head:
      pooled = Pool(t.heads, t.mlp, t.act, t.eps, t.dtype, name='head')(x)
      pooled = pooled.astype(jnp.float32)
    return vit.Features(pooled, x.reshape(b, h, w, d).astype(jnp.float32))


class TextModel(nn.Module):
  """Texts [b l] -> [b d]."""

  tower: Tower
  vocab: int
  length: int
  out: int

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    t = self.tower
    x = TextEmbeddings(t, self.vocab, self.length, name='embeddings')(tokens)
    x = t.norm('final_layer_norm')(t.encoder()(x))
    return Dense(self.out, dtype=t.dtype, name='head')(x[:, -1]).astype(
      jnp.float32
    )


class SiglipModel(nn.Module):
  """The networks by their names in a file, and the numbers of (1)."""

  vision_model: VisionModel | None
  text_model: TextModel | None

  def setup(self):
    if self.vision_model and self.text_model:
      self.logit_scale, self.logit_bias = (
        self.param(name, nn.initializers.zeros, (1,))
        for name in ('logit_scale', 'logit_bias')
      )

  def image(self, pixels: Array) -> vit.Features:
    return self.vision_model(pixels)

  def text(self, tokens: Array) -> Array:
    return self.text_model(tokens)

  def __call__(self, pixels: Array, tokens: Array) -> None:
    """Makes all parameters."""
    if self.vision_model:
      self.vision_model(pixels)
    if self.text_model:
      self.text_model(tokens)


def siglip(
  vision: Mapping[str, Any] | None,
  text: Mapping[str, Any] | None,
  image: int = 224,
  patch: int = 16,
  head: bool = True,
  vocab: int = 32000,
  length: int = 64,
  out: int | None = None,
  scan: bool = False,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Siglip:
  """Both networks, or one of them.

  Args:
    vision: width, layers, heads and mlp of that of pictures, and perhaps act,
      one of vit.ACTIVATIONS, and eps, of layer norms; None: it is left out.
    text: those of that of texts; None: it is left out.
    image: side in pixels that the table of positions is for; others are
      resampled.
    patch: side of a square in pixels.
    head: there is a vector of a whole picture, (2).
    vocab: rows of the table of words.
    length: of the table of positions of texts.
    out: width of the vector of a text; None: that of the network.
    scan: one program for all blocks of a network, parameters stacked.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: how, see `attention.sdpa`; that of the query of (2) is 'auto'.
    dtype: of the arithmetic.

  Raises:
    ValueError: sizes that do not fit each other.
  """
  if vision is None and text is None:
    raise ValueError('siglip: neither vision nor text has sizes')
  if image % patch:
    raise ValueError(f'siglip: image={image} is no multiple of patch={patch}')

  def tower(sizes: Mapping[str, int]) -> Tower:
    if sizes['width'] % sizes['heads']:
      raise ValueError(
        f'siglip: width={sizes["width"]} is not divisible by '
        f'heads={sizes["heads"]}'
      )
    return Tower(
      **sizes, scan=scan, remat=remat, attention=attention,
      dtype=jnp.dtype(dtype),
    )  # fmt: skip

  vision_model = vision and VisionModel(
    tower(vision), image // patch, patch, head
  )
  text_model = text and TextModel(
    tower(text), vocab, length, out or text['width']
  )
  module = SiglipModel(vision_model, text_model)

  def init(key: Array) -> Params:
    pixels = jnp.zeros((1, image, image, 3))
    tokens = jnp.zeros((1, length), jnp.int32)
    return module.init(key, pixels, tokens)['params']

  def run(method: str, params: Params, x: Array) -> Any:
    return module.apply({'params': params}, x, method=method)

  return Siglip(
    init,
    functools.partial(run, 'image') if vision else None,
    functools.partial(run, 'text') if text else None,
    length,
  )


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `siglip` for a config.json.

  Released ones leave out what they have in common with the base model.

  Args:
    config_json: of a SiglipModel, a SiglipVisionModel or a SiglipTextModel.

  Raises:
    ValueError: another model, or anything that is not computed here; all in
      one sentence.
  """
  kind = config_json.get('model_type')
  if kind not in list(KINDS):
    raise ValueError(
      f'config.json has model_type={kind!r}; {", ".join(KINDS)} can be loaded'
    )
  problems, out = [], dict(vision=None, text=None)
  if kind == 'siglip':
    problems += options.unknown(config_json, ('text_config', 'vision_config'))
  for name in KINDS[kind]:
    part = config_json
    if kind == 'siglip':
      part = config_json.get(f'{name}_config') or {}
    options.tower(kind, part, 'image_size', 'patch_size', 'projection_size')
    numbers = {
      ours: part.get(theirs, default)
      for ours, (theirs, default) in {**_TOWER, **_OTHERS[name]}.items()
    }
    if part.get('num_channels', 3) != 3:
      problems.append(f'pictures of {part["num_channels"]} channels')
    known = *options.TOWERS[name], 'projection_size', 'vision_use_head'
    problems += options.unknown(part, known)
    if numbers['act'] not in list(vit.ACTIVATIONS):
      problems.append(f'{name} hidden_act={numbers["act"]!r}')
    out[name] = {ours: numbers.pop(ours) for ours in _TOWER}
    out |= numbers
  if problems:
    raise ValueError(
      'config.json asks for what siglip does not compute: '
      f'{"; ".join(problems)}'
    )
  return out


def load(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  parts: Sequence[str] = (),
  **overrides: Any,
) -> tuple[Siglip, Params]:
  """A released model.

  Args:
    folder: or an id, see `released.locate`.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    parts: 'vision' or 'text' to leave the other network out; (): all there is.
    **overrides: keywords of `siglip`, such as scan, remat, attention, dtype.

  Returns:
    (net, its parameters).

  Raises:
    WeightsError: see `released.load`.
    ValueError: see `config`; a part that the model does not have.
  """
  folder = released.locate(folder)
  config_json = released.config(folder, tuple(KINDS))
  kind = config_json['model_type']
  own = KINDS[kind]
  if unknown := sorted(set(parts) - set(own)):
    raise ValueError(
      f'{folder} is a {kind} and has {" and ".join(own)}, not '
      f'{", ".join(unknown)}'
    )
  said = config(config_json)
  left_out = set(own) - set(parts or own)
  said |= dict.fromkeys(left_out)
  net = siglip(**said | overrides)
  names = NAMES if kind == 'siglip' else ALONE
  if left_out:
    ignored = tuple(rf'^{part}_model\.' for part in left_out)
    names = names._replace(ignored=(*names.ignored, *ignored, '^logit_'))
  like = jax.eval_shape(net.init, jax.random.key(0))
  return net, released.load(folder, like, names, param_dtype)
