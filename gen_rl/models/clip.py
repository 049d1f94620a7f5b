"""CLIP (arXiv 2103.00020): pictures and texts as vectors of one space.

Two transformers (`vit.Block`), transformers' names. A text sees itself from
left to right; its vector is the one at its end token, normalised and projected.
A picture's is that of a learned token before its squares. They belong together
by

  l = e^s <x, y>,  |x| = |y| = 1                                         (1)

Text encoders of image generators are the same network: Stable Diffusion 1.5
takes the last states, Stable Diffusion 3 those of the block before, and both 3
and FLUX the vector of the whole.

Old configs say that the end token is 2, which it is not: with them the end is
where the id is largest.

              width layers heads act        projection
  L/14 text     768     12    12 quick_gelu        768
  L/14 pictures 1024    24    16 quick_gelu        768
  H/14 text    1024     24    16 gelu             1024
  H/14 pictures 1280    32    16 gelu             1024
  bigG text    1280     32    20 gelu             1280
"""

from collections.abc import Mapping
import functools
import os
from typing import Any, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.fields import Kernel, Remat
from gen_rl.models.files import options, released
from gen_rl.models.parts import vit
from gen_rl.models.parts.layers import Dense
from gen_rl.types import Array, Axes, Params

AXES = (
  (r'(^|/)patch_embedding/kernel$', (None, 'embed')),
  (r'(^|/)position_embedding/embedding$', (None, 'embed')),
  (r'(^|/)(text|visual)_projection/kernel$', ('embed', None)),
  (r'(^|/)class_embedding$', (None,)),
  (r'(^|/)logit_scale$', ()),
  *vit.AXES,
)
NAMES = released.Names(
  stacked={'vision_model/encoder/layers': ('vision_model.encoder.layers', 0)},
  ignored=(r'position_ids$',),
)
# Files of one network have its name before all others, or have not.
ALONE = {
  'text': NAMES._replace(
    aliases=((r'^(?!text_model\.|text_projection\.)', 'text_model.'),)
  ),
  'vision': NAMES._replace(
    aliases=((r'^(?!vision_model\.|visual_projection\.)', 'vision_model.'),)
  ),
}
# architectures in config.json -> (networks, are they projected)
KINDS = dict(
  CLIPModel=('text', 'vision'),
  CLIPTextModel=('text',),
  CLIPTextModelWithProjection=('text',),
  CLIPVisionModelWithProjection=('vision',),
)


class Text(NamedTuple):
  """What is said of a text."""

  last: Array  # [b l d] states, normalised
  before: Array  # [b l d] of the block before the last one, not normalised
  pooled: Array  # [b d] `last` at the end token
  projected: Array | None  # [b p]; None: there is no projection


class Clip(NamedTuple):
  """Both networks, or one of them, as pure functions."""

  init: Any  # key -> params
  # (params, pixels [b h w 3] normalised) -> [b p] float32, not of length 1;
  # None without the network of pictures
  image: Any
  # (params, tokens [b l]) -> Text, float32; None without that of texts
  text: Any
  side: int  # of pictures, pixels
  length: int  # of texts, tokens
  vocab: int  # v, ids of tokens
  end: int  # id of the end token; 2: the largest id of a text
  axes: Axes = AXES


def similarity(images: Array, texts: Array) -> Array:
  """<x, y> of (1): [... d] and [... d] -> [...]; shapes broadcast."""
  images, texts = (
    x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts)
  )
  return (images * texts).sum(-1)


class TextEmbeddings(nn.Module):
  """Words and where they are: [b l] -> [b l d]."""

  vocab: int
  length: int
  width: int

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    l = tokens.shape[1]
    if l > self.length:
      raise ValueError(
        f'clip: texts have {l} tokens and the table of positions has '
        f'{self.length}; cut them'
      )
    words = nn.Embed(self.vocab, self.width, name='token_embedding')(tokens)
    table = nn.Embed(self.length, self.width, name='position_embedding')
    return words + table.embedding[:l]


class TextBlocks(nn.Module):
  """[b l d] -> (states, those before the last block)."""

  layers: int
  settings: Mapping[str, Any]

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    l = x.shape[1]
    mask = jnp.tril(jnp.ones((1, 1, l, l), bool))
    before = x
    for i in range(self.layers):
      before = x
      x = vit.Block(**self.settings, name=f'layers_{i}')(x, mask)
    return x, before


class TextModel(nn.Module):
  """Tokens [b l] -> (last, before, pooled)."""

  vocab: int
  length: int
  end: int
  width: int
  layers: int
  settings: Mapping[str, Any]

  @nn.compact
  def __call__(self, tokens: Array) -> tuple[Array, Array, Array]:
    dtype = self.settings['dtype']
    x = TextEmbeddings(self.vocab, self.length, self.width, name='embeddings')(
      tokens
    ).astype(dtype)
    x, before = TextBlocks(self.layers, self.settings, name='encoder')(x)
    norm = nn.LayerNorm(
      self.settings['eps'], dtype=dtype, name='final_layer_norm'
    )
    x = norm(x)
    where = tokens if self.end == 2 else tokens == self.end
    pooled = x[jnp.arange(len(x)), jnp.argmax(where, -1)]
    return x, before, pooled


class PictureEmbeddings(nn.Module):
  """The learned token and squares: [b h w 3] -> [b 1+n d]."""

  side: int
  patch: int
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    d, n = self.width, (self.side // self.patch) ** 2
    first = self.param('class_embedding', nn.initializers.normal(0.02), (d,))
    squares = vit.Patches(
      d, self.patch, self.dtype, bias=False, name='patch_embedding'
    )(pixels)
    squares = squares.reshape(len(pixels), -1, d)
    if squares.shape[1] != n:
      raise ValueError(
        f'clip: pictures of {pixels.shape[1]}x{pixels.shape[2]} pixels, where '
        f'{self.side}x{self.side} are wanted; resize them'
      )
    first = jnp.broadcast_to(first.astype(self.dtype), (len(pixels), 1, d))
    table = nn.Embed(n + 1, d, name='position_embedding').embedding
    return jnp.concatenate([first, squares], 1) + table.astype(self.dtype)


class VisionModel(nn.Module):
  """Pictures [b h w 3] -> [b d]."""

  side: int
  patch: int
  width: int
  depth: vit.Depth
  settings: Mapping[str, Any]

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    dtype = self.settings['dtype']
    norm = functools.partial(nn.LayerNorm, self.settings['eps'], dtype=dtype)
    x = PictureEmbeddings(
      self.side, self.patch, self.width, dtype, name='embeddings'
    )(pixels)
    x = norm(name='pre_layrnorm')(x)  # spelled so in every file
    x = vit.Encoder(vit.Block, self.settings, self.depth, name='encoder')(x)
    return norm(name='post_layernorm')(x[:, 0])


class ClipModel(nn.Module):
  """The networks by their names in a file."""

  text_model: TextModel | None
  vision_model: VisionModel | None
  projection: int | None
  dtype: Any

  def setup(self):
    if self.projection:
      dense = functools.partial(
        Dense, self.projection, use_bias=False, dtype=self.dtype
      )
      self.text_projection = dense() if self.text_model else None
      self.visual_projection = dense() if self.vision_model else None
    if self.text_model and self.vision_model:
      self.logit_scale = self.param('logit_scale', nn.initializers.zeros, ())

  def text(self, tokens: Array) -> Text:
    out = self.text_model(tokens)
    projected = self.text_projection(out[2]) if self.projection else None
    out = (x.astype(jnp.float32) for x in out)
    return Text(
      *out, None if projected is None else projected.astype(jnp.float32)
    )

  def image(self, pixels: Array) -> Array:
    x = self.vision_model(pixels)
    return self.visual_projection(x).astype(jnp.float32)

  def __call__(self, tokens: Array, pixels: Array) -> None:
    """Makes all parameters."""
    if self.text_model:
      self.text(tokens)
    if self.vision_model:
      self.image(pixels)


def clip(
  text: Mapping[str, Any] | None,
  vision: Mapping[str, Any] | None,
  projection: int | None = 768,
  image: int = 224,
  patch: int = 14,
  vocab: int = 49408,
  length: int = 77,
  end: int = 2,
  scan: bool = False,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Clip:
  """Both networks, or one of them.

  Args:
    text: width, layers, heads, mlp, act and eps of that of texts (see
      `vit.Block`); None: it is left out.
    vision: those of that of pictures; None: it is left out.
    projection: width of the common space; None: texts are not projected.
    image: side of pictures, pixels.
    patch: side of a square, pixels.
    vocab: rows of the table of words.
    length: rows of the table of positions of texts.
    end: id of the end token; 2 stands for the largest id of a text.
    scan: one program for all blocks of pictures, parameters stacked.
    remat: what the backward pass computes anew of them, see
      `layers.rematerialized`.
    attention: of pictures, see `attention.sdpa`.
    dtype: of the arithmetic.

  Raises:
    ValueError: sizes that do not fit each other.
  """
  if text is None and vision is None:
    raise ValueError('clip: neither text nor vision has sizes')
  if vision is not None and projection is None:
    raise ValueError('clip: pictures are projected; set projection')
  if image % patch:
    raise ValueError(f'clip: image={image} is no multiple of patch={patch}')

  def settings(sizes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    if sizes['width'] % sizes['heads']:
      raise ValueError(
        f'clip: width={sizes["width"]} is not divisible by '
        f'heads={sizes["heads"]}'
      )
    kept = ('heads', 'mlp', 'act', 'eps')
    return {n: sizes[n] for n in kept} | dict(dtype=jnp.dtype(dtype)) | more

  text_model = text and TextModel(
    vocab, length, end, text['width'], text['layers'], settings(text)
  )
  vision_model = vision and VisionModel(
    image, patch, vision['width'], vit.Depth(vision['layers'], scan, remat),
    settings(vision, attention=attention),
  )  # fmt: skip
  module = ClipModel(text_model, vision_model, projection, jnp.dtype(dtype))

  def init(key: Array) -> Params:
    tokens = jnp.zeros((1, length), jnp.int32)
    pixels = jnp.zeros((1, image, image, 3))
    return module.init(key, tokens, pixels)['params']

  def run(method: str, params: Params, x: Array) -> Any:
    return module.apply({'params': params}, x, method=method)

  return Clip(
    init,
    functools.partial(run, 'image') if vision else None,
    functools.partial(run, 'text') if text else None,
    image,
    length,
    vocab,
    end,
  )


# keyword: (name in config.json, where that is silent)
_TOWER = dict(
  width=('hidden_size', dict(text=512, vision=768)),
  layers=('num_hidden_layers', dict(text=12, vision=12)),
  heads=('num_attention_heads', dict(text=8, vision=12)),
  mlp=('intermediate_size', dict(text=2048, vision=3072)),
  act=('hidden_act', dict(text='quick_gelu', vision='quick_gelu')),
  eps=('layer_norm_eps', dict(text=1e-5, vision=1e-5)),
)


# Options of a whole CLIP beside those of all models.
_WHOLE = (
  'logit_scale_init_value', 'projection_dim', 'text_config', 'text_config_dict',
  'vision_config', 'vision_config_dict',
)  # fmt: skip


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `clip` for a config.json of one of KINDS.

  Raises:
    ValueError: another model, or anything that is not computed; all in one
      sentence.
  """
  if config_json.get('architectures') is not None:
    options.typed('model', config_json, names=('architectures',))
  found = [k for k in config_json.get('architectures') or () if k in KINDS]
  if not found:
    raise ValueError(
      f'config.json has architectures={config_json.get("architectures")}; '
      f'{", ".join(KINDS)} can be loaded'
    )
  kind = found[0]
  parts, problems = {}, []
  if kind == 'CLIPModel':
    problems += options.unknown(config_json, _WHOLE)
  for name in KINDS[kind]:
    part = config_json
    if kind == 'CLIPModel':
      # Old files say it twice, and transformers believes the second.
      part = config_json.get(f'{name}_config_dict')
      if part is None:
        part = config_json.get(f'{name}_config') or {}
    parts[name] = part
  out: dict[str, Any] = dict(text=None, vision=None)
  for name, part in parts.items():
    options.tower(f'{kind} ({name})', part, 'projection_dim')
    out[name] = {
      ours: part.get(theirs, default[name])
      for ours, (theirs, default) in _TOWER.items()
    }
    if out[name]['act'] not in list(vit.ACTIVATIONS):
      problems.append(f'{name} hidden_act={out[name]["act"]!r}')
    if part.get('num_channels', 3) != 3:
      problems.append(f'pictures of {part["num_channels"]} channels')
    problems += options.unknown(part, (*options.TOWERS[name], 'projection_dim'))
    # transformers 5 may have lists of these.
    numbers = dict(text=('eos_token_id',), vision=('image_size', 'patch_size'))
    for option in numbers[name]:
      if not isinstance(part.get(option, 0), int):
        problems.append(f'{name} {option}={part[option]!r}, no number')
  if problems:
    raise ValueError(
      f'config.json asks for what clip does not compute: {"; ".join(problems)}'
    )
  if text := parts.get('text'):
    out |= dict(
      vocab=text.get('vocab_size', 49408),
      length=text.get('max_position_embeddings', 77),
      end=text.get('eos_token_id', 49407),
    )
  if vision := parts.get('vision'):
    out |= dict(
      image=vision.get('image_size', 224), patch=vision.get('patch_size', 32)
    )
  plain = kind == 'CLIPTextModel'
  out['projection'] = None if plain else config_json.get('projection_dim', 512)
  return out


def unread(
  folder: str | os.PathLike[str],
  kinds: tuple[str, ...] = tuple(KINDS),
  **overrides: Any,
) -> tuple[Clip, Params, released.Names]:
  """(networks, shapes and names of parameters) of a config; see `load`."""
  net = clip(**config(released.config(folder, kinds)) | overrides)
  names = NAMES
  if net.text is None or net.image is None:
    names = ALONE['vision' if net.text is None else 'text']
  if not overrides.get('scan', False):
    names = names._replace(stacked={})
  return net, jax.eval_shape(net.init, jax.random.key(0)), names


def load(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  kinds: tuple[str, ...] = tuple(KINDS),
  **overrides: Any,
) -> tuple[Clip, Params]:
  """A released CLIP.

  Args:
    folder: with config.json and weights, see `released.locate`.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    kinds: of KINDS, that will do.
    **overrides: keywords of `clip` over those of the config.

  Returns:
    (the networks, their parameters).

  Raises:
    WeightsError: see `released.load`.
    ValueError: see `config` and `clip`.
  """
  net, like, names = unread(folder, kinds, **overrides)
  return net, released.load(folder, like, names, param_dtype)
