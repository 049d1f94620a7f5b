"""Files of open_clip as parameters of `clip`: HPS v2 and v2.1.

Its modules have other names, and torch's own attention keeps one matrix for
queries, keys and values,

  in_proj_weight = [A_q; A_k; A_v],                                      (1)

and projections there are matrices that a row is multiplied by from the right.
Sizes follow from the tensors: heads have 64 numbers in texts and 80 in pictures
of ViT-H/14, which is what is read here.
"""

from collections.abc import Mapping
import contextlib
import os
import re
from typing import Any, Literal

import jax
import numpy as np

from gen_rl.models import clip
from gen_rl.models.files import folders, released
from gen_rl.models.files.weights import WeightsError
from gen_rl.types import Params

# (their expression, ours), of texts and of pictures
_NAMES = (
  (r'^token_embedding\.', 'text_model.embeddings.token_embedding.'),
  (
    r'^positional_embedding$',
    'text_model.embeddings.position_embedding.weight',
  ),
  (r'^transformer\.resblocks\.', 'text_model.encoder.layers.'),
  (r'^ln_final\.', 'text_model.final_layer_norm.'),
  (r'^text_projection$', 'text_projection.weight'),
  (r'^visual\.class_embedding$', 'vision_model.embeddings.class_embedding'),
  (r'^visual\.conv1\.', 'vision_model.embeddings.patch_embedding.'),
  (
    r'^visual\.positional_embedding$',
    'vision_model.embeddings.position_embedding.weight',
  ),
  (r'^visual\.ln_pre\.', 'vision_model.pre_layrnorm.'),
  (r'^visual\.ln_post\.', 'vision_model.post_layernorm.'),
  (r'^visual\.transformer\.resblocks\.', 'vision_model.encoder.layers.'),
  (r'^visual\.proj$', 'visual_projection.weight'),
  (r'\.ln_1\.', '.layer_norm1.'),
  (r'\.ln_2\.', '.layer_norm2.'),
  (r'\.attn\.out_proj\.', '.self_attn.out_proj.'),
  (r'\.mlp\.c_fc\.', '.mlp.fc1.'),
  (r'\.mlp\.c_proj\.', '.mlp.fc2.'),
)
_PROJECTIONS = 'text_projection.weight', 'visual_projection.weight'


def is_file(path: str) -> bool:
  """Is it a file of torch, or a folder with nothing else?"""
  if os.path.isdir(path):
    return not os.path.exists(os.path.join(path, 'config.json'))
  return path.endswith(('.pt', '.pth', '.bin'))


def tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Of a file, under the names of transformers' CLIPModel.

  Raises:
    WeightsError: see `folders.open_tensors`.
  """
  out = {}
  with contextlib.ExitStack() as stack:
    files = folders.open_tensors(path, stack)
    for theirs, file in files.items():
      name = theirs.removeprefix('state_dict.').removeprefix('module.')
      for expression, replacement in _NAMES:
        name = re.sub(expression, replacement, name)
      x = file.get_tensor(theirs)
      if name in _PROJECTIONS:
        x = x.T
      if match := re.search(r'\.attn\.in_proj_(weight|bias)$', name):
        for letter, part in zip('qkv', np.split(x, 3), strict=True):
          new = f'.self_attn.{letter}_proj.{match[1]}'
          out[name[: match.start()] + new] = part
      elif name != 'attn_mask':
        out[name] = x
  return out


def sizes(
  held: Mapping[str, np.ndarray], text_head: int = 64, vision_head: int = 80
) -> dict[str, Any]:
  """Keywords of `clip.clip` that follow from the shapes of tensors.

  Args:
    held: of `tensors`.
    text_head: numbers of a head in texts.
    vision_head: numbers of a head in pictures.

  Raises:
    WeightsError: there is no CLIP in it.
  """
  embeddings = 'vision_model.embeddings.'
  needed = (
    'text_projection.weight',
    'text_model.embeddings.token_embedding.weight',
    'text_model.embeddings.position_embedding.weight',
    f'{embeddings}patch_embedding.weight',
    f'{embeddings}position_embedding.weight',
  )
  missing = [name for name in needed if name not in held]
  if missing:
    raise WeightsError(
      'This file is no CLIP of open_clip: under the names of transformers it '
      f'lacks {", ".join(missing)}.'
    )

  def tower(part: str, width: int, head: int) -> dict[str, Any]:
    at = f'{part}_model.encoder.layers.'
    layers = {name.split('.')[3] for name in held if name.startswith(at)}
    return dict(
      width=width, layers=len(layers), heads=width // head,
      mlp=held[f'{at}0.mlp.fc1.weight'].shape[0], act='gelu', eps=1e-5,
    )  # fmt: skip

  words = held['text_model.embeddings.token_embedding.weight']
  width, _, patch, _ = held[f'{embeddings}patch_embedding.weight'].shape
  squares = len(held[f'{embeddings}position_embedding.weight']) - 1
  return dict(
    text=tower('text', words.shape[1], text_head),
    vision=tower('vision', width, vision_head),
    projection=held['text_projection.weight'].shape[0],
    image=patch * round(squares**0.5),
    patch=patch,
    vocab=len(words),
    length=len(held['text_model.embeddings.position_embedding.weight']),
    end=2,  # the largest id ends a text
  )


def load(
  path: str | os.PathLike[str],
  param_dtype: Literal['float32', 'bfloat16'] = 'float32',
  text_head: int = 64,
  vision_head: int = 80,
  **overrides: Any,
) -> tuple[clip.Clip, Params]:
  """A CLIP of open_clip.

  Args:
    path: of the file.
    param_dtype: of the parameters; `dtype` in `overrides` is that of the
      arithmetic.
    text_head: see `sizes`.
    vision_head: see `sizes`.
    **overrides: keywords of `clip.clip`.

  Raises:
    WeightsError: all that is missing, unexpected or misshapen.
  """
  held = tensors(path)
  net = clip.clip(**sizes(held, text_head, vision_head) | overrides)
  like = jax.eval_shape(net.init, jax.random.key(0))
  names = clip.NAMES
  if not overrides.get('scan', False):
    names = names._replace(stacked={})
  return net, released.fill(held, os.fspath(path), like, names, param_dtype)
