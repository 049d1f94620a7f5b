"""ImageReward's network: BLIP reads a text while it looks at a picture.

A vision transformer (`vit`, (1)) turns the picture into vectors z of its class
token and its squares. A BERT (arXiv 1810.04805) without token types, whose
layers also attend to z, reads the text; norms come last here,

  x <- n(x + A(x)),  x <- n(x + A(x, z)),  x <- n(x + M(x))              (1)

(BLIP, arXiv 2201.12086, multimodal mode; every word sees every word that is no
padding). The score (arXiv 2304.05977) is read at the first word, with five
linear layers W1..W5 and nothing between them, and in units of what the authors
saw on their data,

  r = (W5 (W4 .. (W1 x_0)) - MEAN) / STD                                 (2)

ImageReward v1.0: pictures of 224 px and squares of 16, 24 blocks of width 1024
and 16 heads, eps 1e-6; texts of 35 tokens of bert-base-uncased and two more
that are never said (30,524 rows), 12 layers of width 768 and 12 heads, eps
1e-12. The first token stays [CLS]; BLIP's own [ENC] is not put in its place.

Its file, ImageReward.pt, and med_config.json, the text encoder's config, are
read as they are.
"""

from collections.abc import Callable, Mapping
import functools
import os
from typing import Any, Literal, NamedTuple

import einops
from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.fields import Kernel, Remat
from gen_rl.models.files import folders, options, released
from gen_rl.models.parts import attention as attention_lib
from gen_rl.models.parts import vit
from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.types import Array, Axes, Params

MEAN, STD = 0.16717362830052426, 1.0333394966054072
PAD = 0  # id of padding, of bert-base-uncased
HEAD = (1024, 128, 64, 16, 1)
AXES = (
  (r'(^|/)mlp/layers_\d/kernel$', ('embed', None)),
  (r'(^|/)patch_embed/proj/kernel$', (None, 'embed')),
  (r'(^|/)self/(query|key|value)/kernel$', ('embed', 'heads')),
  (r'(^|/)self/(query|key|value)/bias$', ('heads',)),
  (r'attention/output/dense/kernel$', ('heads', 'embed')),
  (r'(^|/)intermediate/dense/kernel$', ('embed', 'mlp')),
  (r'(^|/)intermediate/dense/bias$', ('mlp',)),
  (r'(^|/)output/dense/kernel$', ('mlp', 'embed')),
  (r'(^|/)(cls_token|pos_embed)$', (None,)),
  *vit.AXES,
)
NAMES = released.Names(
  stacked={
    'blip/visual_encoder/blocks': ('blip.visual_encoder.blocks', 0),
    'blip/text_encoder/encoder/layer': ('blip.text_encoder.encoder.layer', 0),
  },
  # Of BLIP's contrastive loss, and places of words, 0 1 2 ...
  ignored=(r'^blip\.(vision|text)_proj\.', r'position_ids$'),
)


class Scorer(NamedTuple):
  """A network that scores pictures for texts, as pure functions."""

  init: Callable[[Array], Params]  # key -> params
  # (params, pixels [b h w c], tokens [b l]) -> [b] float32, (2)
  apply: Callable[[Params, Array, Array], Array]
  image: int  # side of a picture, pixels
  axes: Axes = ()


class VisionAttention(nn.Module):
  """Every place sees every other one: [b i d] -> [b i d]."""

  heads: int
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    d = x.shape[-1]
    qkv = Dense(3 * d, dtype=self.dtype, name='qkv')(x)
    q, k, v = (vit.split_heads(a, self.heads) for a in jnp.split(qkv, 3, -1))
    seen = attention_lib.sdpa(q, k, v, implementation=self.attention)
    return Dense(d, dtype=self.dtype, name='proj')(seen.reshape(x.shape))


class VisionBlock(nn.Module):
  """`vit`, (1), with timm's names."""

  heads: int
  mlp: int
  eps: float
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = functools.partial(nn.LayerNorm, self.eps, dtype=self.dtype)
    see = VisionAttention(self.heads, self.attention, self.dtype, name='attn')
    x += see(norm(name='norm1')(x))
    mlp = vit.Mlp(self.mlp, 'gelu', self.dtype, name='mlp')
    x += mlp(norm(name='norm2')(x))
    return constrain(x, 'batch', None, None)


class PatchEmbed(nn.Module):
  """Squares as vectors, one level deeper in the file."""

  width: int
  patch: int
  dtype: Any

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    return vit.Patches(self.width, self.patch, self.dtype, name='proj')(pixels)


class VisionTransformer(nn.Module):
  """Pictures [b h w c] -> z [b i d], the class token first."""

  width: int
  patch: int
  depth: vit.Depth
  block: Mapping[str, Any]

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    d, dtype = self.width, self.block['dtype']
    x = PatchEmbed(d, self.patch, dtype, name='patch_embed')(pixels)
    x = einops.rearrange(x, 'b h w d -> b (h w) d')
    normal = nn.initializers.normal(0.02)
    first = self.param('cls_token', normal, (1, 1, d))
    places = self.param('pos_embed', normal, (1, 1 + x.shape[1], d))
    first = jnp.broadcast_to(first, (len(x), 1, d)).astype(dtype)
    x = jnp.concatenate([first, x], 1) + places.astype(dtype)
    x = vit.stack(VisionBlock, self.block, self.depth, 'blocks', x)
    return nn.LayerNorm(self.block['eps'], dtype=dtype, name='norm')(x)


class Output(nn.Module):
  """A product, what came before, and a norm: ([b i f], [b i d]) -> [b i d]."""

  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, h: Array, x: Array) -> Array:
    h = Dense(x.shape[-1], dtype=self.dtype, name='dense')(h)
    return nn.LayerNorm(self.eps, dtype=self.dtype, name='LayerNorm')(h + x)


class SelfAttention(nn.Module):
  """What x [b i d] sees of y [b j f]: [b i d]; mask [b j] bool or None."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, y: Array, mask: Array | None) -> Array:
    dense = functools.partial(Dense, x.shape[-1], dtype=self.dtype)
    q = dense(name='query')(x)
    k, v = dense(name='key')(y), dense(name='value')(y)
    q, k, v = (vit.split_heads(a, self.heads) for a in (q, k, v))
    mask = None if mask is None else mask[:, None, None]
    return attention_lib.sdpa(q, k, v, mask).reshape(x.shape)


class TextAttention(nn.Module):
  """The first and the second of (1)."""

  heads: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, y: Array, mask: Array | None = None) -> Array:
    seen = SelfAttention(self.heads, self.dtype, name='self')(x, y, mask)
    return Output(self.eps, self.dtype, name='output')(seen, x)


class Intermediate(nn.Module):
  """The hidden numbers of M."""

  hidden: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = Dense(self.hidden, dtype=self.dtype, name='dense')(x)
    h = vit.ACTIVATIONS['gelu'](h)
    return constrain(h, 'batch', None, 'mlp')


class TextBlock(nn.Module):
  """(1): x [b i d], z [b j f], mask [b i] bool -> x."""

  heads: int
  mlp: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, z: Array, mask: Array) -> Array:
    see = functools.partial(TextAttention, self.heads, self.eps, self.dtype)
    x = see(name='attention')(x, x, mask)
    x = see(name='crossattention')(x, z)
    h = Intermediate(self.mlp, self.dtype, name='intermediate')(x)
    x = Output(self.eps, self.dtype, name='output')(h, x)
    return constrain(x, 'batch', None, None)


class TextEmbeddings(nn.Module):
  """Words and where they are: [b l] -> [b l d]."""

  vocab: int
  positions: int
  width: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    embed = functools.partial(nn.Embed, features=self.width)
    x = embed(self.vocab, name='word_embeddings')(tokens)
    places = embed(self.positions, name='position_embeddings').embedding
    x = x + places[: tokens.shape[1]]
    return nn.LayerNorm(self.eps, dtype=self.dtype, name='LayerNorm')(x)


class TextEncoder(nn.Module):
  """tokens [b l], z [b j f] -> [b l d]."""

  vocab: int
  positions: int
  width: int
  depth: vit.Depth
  block: Mapping[str, Any]

  @nn.compact
  def __call__(self, tokens: Array, z: Array) -> Array:
    if tokens.shape[1] > self.positions:
      raise ValueError(
        f'blip: texts have {tokens.shape[1]} tokens, and the table of '
        f'positions has {self.positions} rows; shorten them'
      )
    x = TextEmbeddings(
      self.vocab, self.positions, self.width, self.block['eps'],
      self.block['dtype'], name='embeddings',
    )(tokens)  # fmt: skip
    encoder = vit.Encoder(
      TextBlock, self.block, self.depth, 'layer', name='encoder'
    )
    return encoder(x, z, tokens != PAD)


class Blip(nn.Module):
  """Pictures [b h w c], tokens [b l] -> x_0 [b d]."""

  visual_encoder: VisionTransformer
  text_encoder: TextEncoder

  def __call__(self, pixels: Array, tokens: Array) -> Array:
    return self.text_encoder(tokens, self.visual_encoder(pixels))[:, 0]


class Head(nn.Module):
  """W1 to W5 of (2): [b d] -> [b]; float32."""

  widths: tuple[int, ...] = HEAD

  @nn.compact
  def __call__(self, x: Array) -> Array:
    # Places of layers among those of dropout.
    for i, width in zip((0, 2, 4, 6, 7), self.widths, strict=True):
      x = Dense(width, name=f'layers_{i}')(x)
    return x[:, 0]


class ImageReward(nn.Module):
  """(2): pictures [b h w c], tokens [b l] -> [b]."""

  blip: Blip
  mlp: Head

  def __call__(self, pixels: Array, tokens: Array) -> Array:
    score = self.mlp(self.blip(pixels, tokens).astype(jnp.float32))
    return (score - MEAN) / STD


def image_reward(
  image: int = 224,
  patch: int = 16,
  width: int = 1024,
  layers: int = 24,
  heads: int = 16,
  vision_eps: float = 1e-6,
  vocab: int = 30524,
  positions: int = 512,
  text_width: int = 768,
  text_layers: int = 12,
  text_heads: int = 12,
  text_mlp: int = 3072,
  eps: float = 1e-12,
  head: tuple[int, ...] = HEAD,
  scan: bool = False,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Scorer:
  """The network; pixels are normalised as CLIP's are.

  Args:
    image: side of pictures in pixels.
    patch: side of a square in pixels.
    width: of the vision transformer; its perceptrons have four times of it.
    layers: its blocks.
    heads: of its attention.
    vision_eps: of its layer norms.
    vocab: rows of the table of words.
    positions: of the table of positions, the longest text.
    text_width: of the text encoder.
    text_layers: its layers.
    text_heads: of its attention.
    text_mlp: hidden width of its perceptrons.
    eps: of its layer norms.
    head: widths of the five layers of (2).
    scan: one program for all blocks of a network, parameters stacked.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: how the picture's squares see each other, see `attention.sdpa`;
      where the text is concerned it is 'auto'.
    dtype: of the arithmetic; that of (2) is float32.

  Raises:
    ValueError: sizes that do not fit each other; when called, pictures of
      another size.
  """
  if image % patch or width % heads or text_width % text_heads:
    raise ValueError(
      f'image_reward: image={image} has to be a multiple of patch={patch}, '
      f'width={width} of heads={heads}, text_width={text_width} of '
      f'text_heads={text_heads}'
    )
  dtype = jnp.dtype(dtype)
  vision = VisionTransformer(
    width, patch, vit.Depth(layers, scan, remat),
    dict(heads=heads, mlp=4 * width, eps=vision_eps, attention=attention,
         dtype=dtype),
  )  # fmt: skip
  text = TextEncoder(
    vocab, positions, text_width, vit.Depth(text_layers, scan, remat),
    dict(heads=text_heads, mlp=text_mlp, eps=eps, dtype=dtype),
  )  # fmt: skip
  module = ImageReward(Blip(vision, text), Head(tuple(head)))

  def init(key: Array) -> Params:
    tokens = jnp.ones((1, 1), jnp.int32)
    return module.init(key, jnp.zeros((1, image, image, 3)), tokens)['params']

  def apply(params: Params, pixels: Array, tokens: Array) -> Array:
    if pixels.shape[1:] != (image, image, 3):
      raise ValueError(
        f'image_reward: pictures are {list(pixels.shape[1:])}, where '
        f'{[image, image, 3]} is wanted; resize them'
      )
    return module.apply({'params': params}, pixels, tokens)

  return Scorer(init, apply, image, AXES)


# Options beside those of all models, and those that `config` reads.
_OPTIONS = ('encoder_width', 'layer_norm_eps')


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `image_reward` for a med_config.json.

  It is of the text encoder; the picture's is BLIP's large one, of which no
  config says anything.

  Raises:
    ValueError: numbers that are missing, or anything that is not computed
      here; all in one sentence.
  """
  c = config_json
  names = dict(
    vocab='vocab_size', positions='max_position_embeddings',
    text_width='hidden_size', text_layers='num_hidden_layers',
    text_heads='num_attention_heads', text_mlp='intermediate_size',
  )  # fmt: skip
  sizes = {ours: c.get(theirs) for ours, theirs in names.items()}
  problems = [
    f'{names[ours]}={found!r}, where a whole number is wanted'
    for ours, found in sizes.items()
    if isinstance(found, bool) or not isinstance(found, int) or found < 1
  ]
  expected = dict(
    model_type='bert', hidden_act='gelu', pad_token_id=PAD,
    position_embedding_type='absolute', add_cross_attention=True,
  )  # fmt: skip
  for name, want in expected.items():
    default = False if name == 'add_cross_attention' else want
    if (found := c.get(name, default)) != want:
      problems.append(f'{name}={found!r}, where it is {want!r}')
  problems += options.unknown(c, (*names.values(), *expected, *_OPTIONS))
  if problems:
    raise ValueError(
      'med_config.json asks for what image_reward does not compute: '
      f'{"; ".join(problems)}'
    )
  return sizes | dict(eps=float(c.get('layer_norm_eps', 1e-12)))


def load(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  **overrides: Any,
) -> tuple[Scorer, Params]:
  """ImageReward from its folder.

  Args:
    folder: with med_config.json or config.json, and ImageReward.pt or
      model.safetensors; or an id, see `released.locate`.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    **overrides: keywords of `image_reward`; sizes of the vision transformer
      where they are not BLIP large's.

  Returns:
    (net, its parameters).

  Raises:
    WeightsError: see `released.load`.
    ValueError: see `config`.
  """
  folder = released.locate(folder)
  own = os.path.join(folder, 'med_config.json')
  said = (
    folders.read_json(own) if os.path.isfile(own) else released.config(folder)
  )
  net = image_reward(**config(said) | overrides)
  like = jax.eval_shape(net.init, jax.random.key(0))
  return net, released.load(folder, like, NAMES, param_dtype)
