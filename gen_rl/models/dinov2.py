"""DINOv2: what a picture looks like, as a vector and one per square.

A vision transformer (arXiv 2304.07193) over [class | registers | squares], with
positions of the class and of the squares, and blocks whose residuals have
learned scales,

  x <- x + l1 A(n(x)),  x <- x + l2 M(n(x))                              (1)

where M is a perceptron, or in the giant model SwiGLU's

  M(x) = W3 (silu(W1 x) * W2 x)                                          (2)

with [W1; W2] one matrix in the file, of hidden width (2/3 mlp + 7) // 8 * 8.
After a last layer norm the class token is the vector of the picture.
Registers (arXiv 2309.16588) take part and say nothing.

Released sizes (config.json of facebook/dinov2-*; 14 px squares, positions of
518 px pictures, which are resampled to others by `vit.resized`; models with
registers antialias that, those without do not):

         width layers heads MLP
  small    384     12     6 4x
  base     768     12    12 4x
  large   1024     24    16 4x
  giant   1536     40    24 (2) of 4096

Pixels are normalised with `MEAN` and `STD`; released processors resize the
short side to 256 and cut 224 x 224 out of the middle.
"""

from collections.abc import Mapping
import functools
import os
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from gen_rl.fields import Kernel, Remat
from gen_rl.models.files import options, released
from gen_rl.models.parts import vit
from gen_rl.models.parts.layers import Dense, constrain
from gen_rl.models.parts.vit import Features, ImageEncoder
from gen_rl.types import Array, Params

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AXES = (
  (r'(^|/)weights_in/kernel$', ('embed', 'mlp')),
  (r'(^|/)weights_in/bias$', ('mlp',)),
  (r'(^|/)weights_out/kernel$', ('mlp', 'embed')),
  (r'(^|/)projection/kernel$', (None, 'embed')),
  (r'(^|/)(cls_token|mask_token|register_tokens)$', (None,)),
  (r'(^|/)position_embeddings$', (None, 'embed')),
  (r'(^|/)lambda1$', (None,)),
  *vit.AXES,
)
NAMES = released.Names(
  rename=(
    (r'\.attention\.q_proj\.', '.attention.attention.query.'),
    (r'\.attention\.k_proj\.', '.attention.attention.key.'),
    (r'\.attention\.v_proj\.', '.attention.attention.value.'),
    (r'\.attention\.out_proj\.', '.attention.output.dense.'),
  ),
  stacked={'encoder/layer': ('encoder.layer', 0)},
)
KINDS = 'dinov2', 'dinov2_with_registers'


class LayerScale(nn.Module):
  """A learned factor per number: [b i d] -> [b i d]."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('lambda1', nn.initializers.ones, x.shape[-1:])
    return x * scale.astype(x.dtype)


class SwiGLU(nn.Module):
  """(2): [b i d] -> [b i d]."""

  hidden: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = Dense(2 * self.hidden, dtype=self.dtype, name='weights_in')(x)
    gate, up = jnp.split(h, 2, -1)
    h = constrain(nn.silu(gate) * up, 'batch', None, 'mlp')
    return Dense(x.shape[-1], dtype=self.dtype, name='weights_out')(h)


class Block(nn.Module):
  """(1): [b i d] -> [b i d]."""

  heads: int
  mlp: int  # of the perceptron; (2) has two thirds of it
  swiglu: bool
  bias: bool
  act: str
  eps: float
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = functools.partial(nn.LayerNorm, self.eps, dtype=self.dtype)
    attention = vit.Attention(
      self.heads, self.bias, self.attention, self.dtype, name='attention'
    )
    seen = attention(norm(name='norm1')(x))
    x += LayerScale(name='layer_scale1')(seen)
    if self.swiglu:
      hidden = (self.mlp * 2 // 3 + 7) // 8 * 8
      mlp = SwiGLU(hidden, self.dtype, name='mlp')
    else:
      mlp = vit.Mlp(self.mlp, self.act, self.dtype, name='mlp')
    x += LayerScale(name='layer_scale2')(mlp(norm(name='norm2')(x)))
    return constrain(x, 'batch', None, None)


class Projection(nn.Module):
  """Squares as vectors, one level deeper in the file."""

  width: int
  patch: int
  dtype: Any

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    return vit.Patches(self.width, self.patch, self.dtype, name='projection')(
      pixels
    )


class Embeddings(nn.Module):
  """Pictures [b h w c] -> ([b i d], (rows, columns) of squares)."""

  width: int
  patch: int
  side: int  # of the table of positions
  registers: int
  mask_token: bool
  dtype: Any

  @nn.compact
  def __call__(self, pixels: Array) -> tuple[Array, tuple[int, int]]:
    d, side = self.width, self.side
    squares = Projection(d, self.patch, self.dtype, name='patch_embeddings')(
      pixels
    )
    normal = nn.initializers.normal(0.02)
    first = self.param('cls_token', normal, (1, 1, d))
    places = self.param('position_embeddings', normal, (1, 1 + side**2, d))
    if self.mask_token:  # of pretraining; held so that files keep it
      self.param('mask_token', nn.initializers.zeros, (1, d))
    grid = squares.shape[1:3]
    table = places[0, 1:].reshape(side, side, d)
    table = vit.resized(table, grid, antialias=self.registers > 0)
    squares = (squares + table.astype(self.dtype)).reshape(len(squares), -1, d)
    parts = [first + places[:, :1]]
    if self.registers:
      shape = (1, self.registers, d)
      parts.append(self.param('register_tokens', normal, shape))
    parts = [
      jnp.broadcast_to(x.astype(self.dtype), (len(squares), *x.shape[1:]))
      for x in parts
    ]
    return jnp.concatenate([*parts, squares], 1), grid


class Dinov2(nn.Module):
  """Pictures [b h w c] -> Features."""

  width: int
  patch: int
  side: int
  registers: int
  mask_token: bool
  depth: vit.Depth
  block: Mapping[str, Any]

  @nn.compact
  def __call__(self, pixels: Array) -> Features:
    dtype = self.block['dtype']
    embeddings = Embeddings(
      self.width, self.patch, self.side, self.registers, self.mask_token,
      dtype, name='embeddings',
    )  # fmt: skip
    x, (h, w) = embeddings(pixels)
    x = vit.Encoder(Block, self.block, self.depth, 'layer', name='encoder')(x)
    eps = self.block['eps']
    x = nn.LayerNorm(eps, dtype=dtype, name='layernorm')(x).astype(jnp.float32)
    squares = x[:, 1 + self.registers :].reshape(len(x), h, w, -1)
    return Features(x[:, 0], squares)


def dinov2(
  width: int = 768,
  layers: int = 12,
  heads: int = 12,
  mlp: int = 3072,
  swiglu: bool = False,
  bias: bool = True,
  act: str = 'gelu',
  eps: float = 1e-6,
  image: int = 518,
  patch: int = 14,
  registers: int = 0,
  mask_token: bool = True,
  scan: bool = False,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> ImageEncoder:
  """The network; pixels are RGB, normalised with MEAN and STD.

  Args:
    width: d.
    layers: number of blocks.
    heads: of attention.
    mlp: hidden width of a perceptron, 4 d; (2) has about two thirds of it.
    swiglu: M is (2).
    bias: of queries, keys and values.
    act: of the perceptron, one of vit.ACTIVATIONS.
    eps: of layer norms.
    image: side in pixels that the table of positions is for; others, of whole
      squares, are resampled.
    patch: side of a square in pixels.
    registers: how many there are.
    mask_token: the file has that of pretraining, which changes nothing.
    scan: one program for all blocks, parameters stacked [layers ...].
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: how, see `attention.sdpa`.
    dtype: of the arithmetic.

  Raises:
    ValueError: sizes that do not fit each other; when called, pictures that
      are not whole squares.
  """
  if width % heads or image % patch:
    raise ValueError(
      f'dinov2: width={width} has to be a multiple of heads={heads}, and '
      f'image={image} of patch={patch}'
    )
  block = dict(
    heads=heads, mlp=mlp, swiglu=swiglu, bias=bias, act=act, eps=eps,
    attention=attention, dtype=jnp.dtype(dtype),
  )  # fmt: skip
  module = Dinov2(
    width, patch, image // patch, registers, mask_token,
    vit.Depth(layers, scan, remat), block,
  )  # fmt: skip

  def init(key: Array) -> Params:
    return module.init(key, jnp.zeros((1, image, image, 3)))['params']

  def apply(params: Params, pixels: Array) -> Features:
    return module.apply({'params': params}, pixels)

  return ImageEncoder(init, apply, AXES)


# Options of DINOv2 beside those of all models.
_OPTIONS = (
  'apply_layernorm', 'drop_path_rate', 'head_dim', 'hidden_act', 'hidden_size',
  'image_size', 'layer_norm_eps', 'layerscale_value', 'mlp_ratio',
  'num_attention_heads', 'num_channels', 'num_hidden_layers',
  'num_register_tokens', 'out_features', 'out_indices', 'patch_size',
  'qkv_bias', 'reshape_hidden_states', 'stage_names', 'use_mask_token',
  'use_swiglu_ffn',
)  # fmt: skip


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `dinov2` for a config.json of KINDS.

  Raises:
    ValueError: another model, numbers that are missing, or anything that is
      not computed here; all in one sentence.
  """
  c = config_json
  kind = c.get('model_type')
  if kind not in list(KINDS):
    raise ValueError(
      f'config.json has model_type={kind!r}; {", ".join(KINDS)} can be loaded'
    )
  sizes = dict(
    width='hidden_size', layers='num_hidden_layers',
    heads='num_attention_heads', image='image_size', patch='patch_size',
  )  # fmt: skip
  sizes = {ours: c.get(theirs) for ours, theirs in sizes.items()}
  problems = [
    f'{ours}={found!r}, where a whole number is wanted'
    for ours, found in sizes.items()
    if isinstance(found, bool) or not isinstance(found, int) or found < 1
  ]
  act = c.get('hidden_act', 'gelu')
  if act not in list(vit.ACTIVATIONS):
    problems.append(f'hidden_act={act!r}')
  if c.get('num_channels', 3) != 3:
    problems.append(f'pictures of {c["num_channels"]} channels')
  problems += options.unknown(c, _OPTIONS)
  options.typed(kind, c, whole=('num_register_tokens',))
  registers = 0
  if kind == 'dinov2_with_registers':
    registers = c.get('num_register_tokens', 4)
    if not registers:
      problems.append('no registers in a model with registers')
  if not problems:
    head_dim = sizes['width'] // sizes['heads']
    if c.get('head_dim', head_dim) != head_dim:
      problems.append(f'head_dim={c["head_dim"]}, where it is {head_dim}')
  if problems:
    raise ValueError(
      'config.json asks for what dinov2 does not compute: '
      f'{"; ".join(problems)}'
    )
  return sizes | dict(
    mlp=int(sizes['width'] * c.get('mlp_ratio', 4)),
    swiglu=bool(c.get('use_swiglu_ffn')),
    bias=c.get('qkv_bias', True),
    act=act,
    eps=c.get('layer_norm_eps', 1e-6),
    registers=registers,
    mask_token=c.get('use_mask_token', True),
  )


def load(
  folder: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  **overrides: Any,
) -> tuple[ImageEncoder, Params]:
  """A released model.

  Args:
    folder: or an id, see `released.locate`.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    **overrides: keywords of `dinov2`, such as scan, remat, attention, dtype.

  Returns:
    (net, its parameters).

  Raises:
    WeightsError: see `released.load`.
    ValueError: see `config`.
  """
  folder = released.locate(folder)
  said = config(released.config(folder, KINDS))
  net = dinov2(**said | overrides)
  like = jax.eval_shape(net.init, jax.random.key(0))
  return net, released.load(folder, like, NAMES, param_dtype)
