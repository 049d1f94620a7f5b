"""Scores of CLIP models: does the picture show what the text says?

With x and y of `models.clip`, |x| = |y| = 1,

  clip_score  w <x, y>, floored at 0 if asked; as published (arXiv
              2104.08718) w = 2.5, the floor, and "A photo depicts" before the
              prompt                                                      (1)
  pickscore   e^s <x, y> / 26 of a ViT-H/14 trained on choices of people
              (arXiv 2305.01569); 26 is Flow-GRPO's unit, about the best
              there is                                                    (2)
  hps         <x, y> of a ViT-H/14 trained on rankings of people (HPS v2 and
              v2.1, arXiv 2306.09341): about 0.2 to 0.35, to be compared among
              pictures of one prompt                                      (3)
  aesthetic   an affine function of x alone, from CLIP ViT-L/14: 1 to 10
              (LAION's predictor)                                         (4)

Pictures are resized by Pillow's bicubic weights with antialiasing, and the
middle is cut out; for (3) the long side is what is resized, and the rest black,
as its authors do. Transformers' processor rounds to 8 bits before, between rows
and columns, and after. With rounded=True so do we: pixels are its pixels, and
gradients pass as if they were not rounded. Without, pixels are a third of a
level away on average, up to seventeen of the 255 at hard edges, where Pillow
clips what overshoots; but a score is a continuous function of the picture,
which does not jump where a sum on other devices has another last bit.

Prompts are read with CLIP's tokenizer, 77 tokens, through

  data.reader = dict(
    tokenizer=dict(name='pretrained', path=...), length=77, truncate=True,
    texts=dict(clip='{prompt}', hps='{cleaned}'))

(3) reads them as open_clip does, `data.tokenizers.cleaned`: it was trained so.
The folder 'drawn' stands for a small network that is drawn: it means nothing,
but runs.
"""

from collections.abc import Callable, Mapping
import contextlib
import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.data.tokenizers import Tokenizer
from gen_rl.fields import Positive
from gen_rl.models import clip, open_clip
from gen_rl.models.files import folders
from gen_rl.models.parts import vit
from gen_rl.rewards import pixels
from gen_rl.types import Array, Params, Reward, RewardInputs, RewardOut

# Of the network that is drawn.
_SIZES = dict(width=32, layers=2, heads=2, mlp=64, act='gelu', eps=1e-5)
_PLACE = dict(hps='cleaned')  # of a prompt in the text that is read
_HEAD = 'layers.0', 'layers.2', 'layers.4', 'layers.6', 'layers.7'


# (pictures, side, mean, std) -> what the network sees
Fit = Callable[..., Array]


class Model(NamedTuple):
  """A CLIP and its weights."""

  net: clip.Clip
  params: Params


@functools.cache
def _drawn(vocab: int, length: int) -> Model:
  """Made once: several rewards of a config ask for the same."""
  net = clip.clip(
    _SIZES, _SIZES, projection=16, image=32, patch=8, vocab=vocab, length=length
  )
  params = jax.jit(net.init)(jax.random.key(0))
  return Model(net, {**params, 'logit_scale': jnp.log(100.0)})


def _load(
  folder: str, reader: Tokenizer | None, what: str, options: Mapping[str, Any]
) -> Model:
  model = _read(folder, reader, what, options)
  if folder != 'drawn':
    _check_reader(model.net, reader, folder, what)
  return model


def _check_reader(
  net: clip.Clip, reader: Tokenizer, folder: str, what: str
) -> None:
  """Tokens of another model would be taken for words, and score something."""
  end = reader.size - 1 if net.end == 2 else net.end
  if reader.size > net.vocab or reader.end_id != end:
    raise ConfigError(
      f'{what}: {folder} has {net.vocab} words and its texts end with {end}, '
      f'and data.reader.tokenizer has {reader.size}, ending with '
      f'{reader.end_id}; it is to be the tokenizer of CLIP'
    )


def _read(
  folder: str, reader: Tokenizer | None, what: str, options: Mapping[str, Any]
) -> Model:
  if reader is None:
    raise ConfigError(
      f'{what} reads prompts with the tokenizer of CLIP, and there is none: '
      'set data.reader.tokenizer to dict(name="pretrained", path=...) and '
      'length to 77'
    )
  if folder == 'drawn':
    return _drawn(reader.size, 77)
  if open_clip.is_file(folder):
    return Model(*open_clip.load(folder, **options))
  return Model(
    *clip.load(folders.locate(folder), kinds=('CLIPModel',), **options)
  )


def _similarity(
  model: Model,
  params: Params,
  inputs: RewardInputs,
  column: str,
  what: str,
  fit: Fit,
) -> tuple[Array, Array]:
  """(<x, y> [b], which pictures are finite [b])."""
  if column not in inputs.info:
    raise ConfigError(
      f'{what} is to read {column!r}, and these prompts have none: set '
      f'data.reader.texts.{column}="{{{_PLACE.get(what, "prompt")}}}"'
    )
  images, finite = pixels.finite(inputs.image)
  x = model.net.image(params, _seen(model, images, fit))
  # A text once for the rows of its group.
  tokens = inputs.info[column][:: inputs.group_size]
  y = model.net.text(params, tokens).projected
  y = jnp.repeat(y, inputs.group_size, 0)
  return clip.similarity(x, y), finite


def _seen(model: Model, images: Array, fit: Fit) -> Array:
  return fit(images, model.net.side, vit.CLIP_MEAN, vit.CLIP_STD)


def _cut(rounded: bool) -> Fit:
  return functools.partial(vit.fitted, floor=True, rounded=rounded)


def _reward(
  name: str,
  model: Model,
  column: str,
  value: Callable[[Params, Array], Array],
  fit: Fit,
) -> Reward:
  """`value` of the parameters and of <x, y>."""

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    cosine, finite = _similarity(model, params, inputs, column, name, fit)
    return RewardOut(value(params, cosine), {}, finite)

  return Reward(
    name, model.params, score, differentiable=True, axes=model.net.axes
  )


def clip_score(
  reader: Tokenizer | None,
  folder: str,
  column: str = 'clip',
  w: Positive = 1.0,
  floor: bool = False,
  rounded: bool = False,
  **options: Any,
) -> Reward:
  """(1). A picture that is not finite is not valid.

  Args:
    reader: bound, the tokenizer of config.data.reader.
    folder: of a CLIPModel, see `clip.load`; 'drawn': a small one is
      drawn.
    column: of info that holds the tokens of the prompt.
    w: factor.
    floor: at 0.
    rounded: pixels to 8 bits where Pillow does it, see above.
    **options: of `clip.load`: param_dtype, dtype, scan, remat, attention.

  Raises:
    ConfigError: there is no reader, or it is none of CLIP's; when scored, no
      such column.
    WeightsError: see `clip.load`.
  """
  model = _load(folder, reader, 'clip_score', options)
  return _reward(
    'clip_score', model, column,
    lambda _, cosine: w * (jnp.maximum(cosine, 0.0) if floor else cosine),
    _cut(rounded),
  )  # fmt: skip


def pickscore(
  reader: Tokenizer | None,
  folder: str,
  column: str = 'clip',
  unit: Positive = 26.0,
  rounded: bool = False,
  **options: Any,
) -> Reward:
  """(2).

  Args:
    reader: see `clip_score`.
    folder: PickScore_v1, a CLIPModel; 'drawn': a small one is
      drawn.
    column: see `clip_score`.
    unit: divisor; 1 is the score as published.
    rounded: see `clip_score`.
    **options: see `clip_score`.

  Raises:
    ConfigError, WeightsError: see `clip_score`.
  """
  model = _load(folder, reader, 'pickscore', options)
  return _reward(
    'pickscore', model, column,
    lambda params, cosine: (
      jnp.exp(params['logit_scale'].astype(jnp.float32)) * cosine / unit
    ),
    _cut(rounded),
  )  # fmt: skip


def hps(
  reader: Tokenizer | None,
  folder: str,
  column: str = 'hps',
  rounded: bool = False,
  **options: Any,
) -> Reward:
  """(3); the file says if it is version 2 or 2.1.

  Args:
    reader: see `clip_score`.
    folder: a CLIPModel, or a file of open_clip: HPS_v2.1_compressed.pt;
      'drawn': a small one is drawn.
    column: see `clip_score`.
    rounded: pixels to 8 bits before they are resized, and not after.
    **options: see `clip_score`.

  Raises:
    ConfigError, WeightsError: see `clip_score`.
  """
  model = _load(folder, reader, 'hps', options)
  fit = functools.partial(vit.framed, rounded=rounded)
  return _reward('hps', model, column, lambda _, cosine: cosine, fit)


def affine_head(path: str | os.PathLike[str], width: int) -> dict[str, Array]:
  """LAION's head, five layers without functions between them, as one.

  Args:
    path: a file of torch or a folder with one.
    width: of its input.

  Returns:
    {'weight': [width], 'bias': []}, float32.

  Raises:
    WeightsError: another file.
  """
  with contextlib.ExitStack() as stack:
    files = folders.open_tensors(path, stack)
    sizes = {name: files[name].get_slice(name).get_shape() for name in files}
    rows = [sizes.get(f'{name}.weight', [0, 0])[0] for name in _HEAD]
    columns = [width, *rows[:-1]]
    wanted = {}
    for name, r, c in zip(_HEAD, [*rows[:-1], 1], columns, strict=True):
      wanted |= {f'{name}.weight': (r, c), f'{name}.bias': (r,)}
    folders.check(path, files, wanted)
    weight, bias = np.eye(width), np.zeros(width)
    for name in _HEAD:
      a, b = (
        np.asarray(files[n].get_tensor(n), np.float64)
        for n in (f'{name}.weight', f'{name}.bias')
      )
      weight, bias = a @ weight, a @ bias + b
  return dict(
    weight=jnp.asarray(weight[0], jnp.float32),
    bias=jnp.asarray(bias[0], jnp.float32),
  )


def aesthetic(
  folder: str, head: str = '', rounded: bool = False, **options: Any
) -> Reward:
  """(4).

  Args:
    folder: of CLIP ViT-L/14, whole or of pictures alone; 'drawn': a small
      network and a head are drawn.
    head: file with LAION's weights, sac+logos+ava1-l14-linearMSE.pth.
    rounded: see `clip_score`.
    **options: see `clip_score`.

  Raises:
    ConfigError: a folder without a head.
    WeightsError: see `clip.load` and `affine_head`.
  """
  if folder != 'drawn' and not head:
    raise ConfigError(
      f'aesthetic: folder={folder!r} and head={head!r}; it needs both'
    )
  if folder != 'drawn':
    kinds = 'CLIPModel', 'CLIPVisionModelWithProjection'
    model = Model(*clip.load(folders.locate(folder), kinds=kinds, **options))
    width = model.params['visual_projection']['kernel'].shape[-1]
    last = affine_head(head, width)
  else:
    model = _drawn(8, 8)
    last = dict(weight=jnp.ones(16) / 4.0, bias=jnp.float32(5.0))
  # The network of texts is not needed.
  kept = {n: x for n, x in model.params.items() if not n.startswith('text')}

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    images, finite = pixels.finite(inputs.image)
    x = model.net.image(params['net'], _seen(model, images, _cut(rounded)))
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    value = x @ params['head']['weight'] + params['head']['bias']
    return RewardOut(value, {}, finite)

  return Reward(
    'aesthetic',
    dict(net=kept, head=last),
    score,
    differentiable=True,
    axes=(('^head/weight$', (None,)), ('^head/bias$', ()), *model.net.axes),
  )
