"""ImageReward (arXiv 2304.05977): how much people like a picture for a text.

The network of `models.blip`, on pictures as its authors prepare them: the short
side at 224 pixels, the middle of them, CLIP's mean and deviation. The score is
about standard normal over the pictures that people were shown. It has a
gradient in the pixels (ReFL, of the same paper, trains on it).

Prompts are read with the tokenizer it was trained with, 35 tokens and no more:

  data.reader = dict(
    tokenizer=dict(name='pretrained', path='bert-base-uncased'), length=35,
    texts=dict(imagereward='{prompt}'), truncate=True)
"""

from collections.abc import Mapping
from typing import Any, Literal

from gen_rl.build import ConfigError
from gen_rl.data.tokenizers import Tokenizer
from gen_rl.fields import Kernel, Remat
from gen_rl.models import blip
from gen_rl.models.parts import vit
from gen_rl.rewards import pixels
from gen_rl.types import Array, Params, Reward, RewardInputs, RewardOut


def imagereward(
  reader: Tokenizer | None,
  folder: str,
  column: str = 'imagereward',
  rounded: bool = False,
  sizes: Mapping[str, Any] | None = None,
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  scan: bool = True,
  remat: Remat = 'none',
  attention: Kernel = 'auto',
) -> Reward:
  """ImageReward's score. A picture that is not finite is not valid.

  Args:
    reader: bound, the tokenizer of config.data.reader.
    folder: of its weights, see `blip.load`.
    column: of info that holds the tokens of the prompt.
    rounded: pixels to 8 bits before, between rows and columns, and after they
      are resized, as its authors' code does; see `clip_scores`.
    sizes: keywords of `blip.image_reward`, where it is not ImageReward v1.0.
    param_dtype: of the weights.
    dtype: of the arithmetic.
    scan: one program for all blocks: compiles faster.
    remat: what the backward pass computes anew, see `layers.rematerialized`.
    attention: see `attention.sdpa`.

  Raises:
    ConfigError: there is no reader, or it is none of BERT's; when scored,
      samples that are no pictures or a column that is missing.
    WeightsError: see `blip.load`.
  """
  if reader is None or reader.pad_id != blip.PAD:
    found = 'none' if reader is None else f'one that pads with {reader.pad_id}'
    raise ConfigError(
      'ImageReward reads prompts with the tokenizer of bert-base-uncased, and '
      f'there is {found}: set data.reader.tokenizer to dict(name="pretrained", '
      'path="bert-base-uncased"), length to 35 and truncate to True'
    )
  net, loaded = blip.load(
    folder, param_dtype, dtype=dtype, scan=scan, remat=remat,
    attention=attention, **(sizes or {}),
  )  # fmt: skip

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    if column not in inputs.info:
      raise ConfigError(
        f'ImageReward is to read {column!r}, and these prompts have none: set '
        f'data.reader.texts.{column}="{{prompt}}"'
      )
    images, finite = pixels.finite(inputs.image)
    seen = vit.fitted(
      images, net.image, vit.CLIP_MEAN, vit.CLIP_STD, rounded=rounded
    )
    value = net.apply(params, seen, inputs.info[column])
    return RewardOut(value, {}, finite)

  return Reward(
    'imagereward', loaded, score, differentiable=True, axes=net.axes
  )
