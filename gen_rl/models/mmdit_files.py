"""Files of `mmdit`: configs, names, positions, and back to diffusers."""

from collections.abc import Mapping
import contextlib
from typing import Any

import numpy as np

from gen_rl.models import flow_files
from gen_rl.models.files import folders, options, released
from gen_rl.models.files.weights import WeightsError
from gen_rl.models.parts.adaln import positions

_TABLE = 'pos_embed.pos_embed'  # follows from the sizes
KINDS = ('SD3Transformer2DModel',)


def names_of(layers: int, dual: int, scan: bool) -> released.Names:
  """Names of parameters, scanned or not."""
  if not scan:
    return released.Names(ignored=(rf'^{_TABLE}$',))
  stacked = dict(
    dual_blocks=('transformer_blocks', 0),
    blocks=('transformer_blocks', dual),
  )
  rename = ((r'^last_block\.', f'transformer_blocks.{layers - 1}.'),)
  return released.Names(rename, stacked, (rf'^{_TABLE}$',))


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `mmdit`, and channels, for the config of such a transformer.

  Raises:
    ValueError: options that are missing or not computed, all in one sentence.
  """
  get = config_json.get
  whole = (
    'sample_size', 'patch_size', 'in_channels', 'num_layers',
    'attention_head_dim', 'num_attention_heads', 'joint_attention_dim',
    'pooled_projection_dim', 'pos_embed_max_size',
  )  # fmt: skip
  places = ('dual_attention_layers',)
  options.typed(KINDS[0], config_json, whole=whole, places=places)
  inputs = get('in_channels', 16)
  options.check(
    'SD3Transformer2DModel',
    config_json,
    dict(
      out_channels=(16, inputs, None) if inputs == 16 else (inputs, None),
      qk_norm=(None, 'rms_norm'),
      caption_projection_dim=(
        get('num_attention_heads', 18) * get('attention_head_dim', 64),
      ),
    ),
    free=(*whole, *places),
  )  # fmt: skip
  return dict(
    patch=get('patch_size', 2),
    channels=inputs,
    layers=get('num_layers', 18),
    heads=get('num_attention_heads', 18),
    head_dim=get('attention_head_dim', 64),
    dual=tuple(get('dual_attention_layers', ())),
    qk_norm=get('qk_norm') == 'rms_norm',
    text=get('joint_attention_dim', 4096),
    pooled=get('pooled_projection_dim', 2048),
    grid=get('pos_embed_max_size', 96),
    sample_size=get('sample_size', 128),
  )


def check(folder: str, said: Mapping[str, Any]) -> None:
  """A pipeline has to be a flow's, its positions those that are computed.

  Of the middle 64 x 64 (or fewer) of the grid.

  Raises:
    WeightsError: they are not.
  """
  flow_files.is_flow(folder)
  folder = folders.locate(folder, 'transformer')
  grid, d = said['grid'], said['heads'] * said['head_dim']
  side = min(grid, 64)
  with contextlib.ExitStack() as stack:
    files = folders.open_tensors(folder, stack)
    if _TABLE not in files:
      return
    part = files[_TABLE].get_slice(_TABLE)
    shape = list(part.get_shape())
    if shape != [1, grid * grid, d]:
      raise WeightsError(
        f'{folder}: {_TABLE} is {shape} where [1, {grid * grid}, {d}] is wanted'
      )
    first = (grid - side) // 2
    rows = slice(first * grid, (first + side) * grid)
    table = files[_TABLE].get_tensor(_TABLE)[:, rows].astype(np.float32)
  table = table.reshape(side, grid, d)[:, first : first + side]
  base = said['sample_size'] // said['patch']
  want = positions(side, side, d, grid, base).reshape(table.shape)
  far = np.abs(table - want).max()
  if far > 5e-3:  # files may be float16
    raise WeightsError(
      f'{folder}: {_TABLE} differs by {far:.2g} from the sines and cosines of '
      f'grid={grid} and sample_size={said["sample_size"]}, which are computed '
      'here.'
    )


def config_json(said: Mapping[str, Any]) -> dict[str, Any]:
  """The config of a transformer for keywords of `mmdit`: `config` undone."""
  return dict(
    _class_name=KINDS[0],
    patch_size=said['patch'],
    in_channels=said['channels'],
    out_channels=said['channels'],
    num_layers=said['layers'],
    num_attention_heads=said['heads'],
    attention_head_dim=said['head_dim'],
    caption_projection_dim=said['heads'] * said['head_dim'],
    dual_attention_layers=list(said['dual']),
    qk_norm='rms_norm' if said['qk_norm'] else None,
    joint_attention_dim=said['text'],
    pooled_projection_dim=said['pooled'],
    pos_embed_max_size=said['grid'],
    sample_size=said['sample_size'],
  )


def position_table(said: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Positions as a tensor of a file, for keywords of `mmdit`."""
  d = said['heads'] * said['head_dim']
  base = said['sample_size'] // said['patch']
  table = positions(said['grid'], said['grid'], d, said['grid'], base)
  return {_TABLE: table[None]}
