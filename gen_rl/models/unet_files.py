"""Files of `unet`: configs, names, and back to diffusers."""

from collections.abc import Mapping, Sequence
from typing import Any

from gen_rl.models.files import options, released

NAMES = released.Names()
KINDS = ('UNet2DConditionModel',)


def sizes(
  image: Sequence[int], channels: Sequence[int], **others: Any
) -> dict[str, Any]:
  """Keywords of `unet` that a checkpoint fixes, in one spelling."""
  each = {
    name: (x,) * len(channels) if isinstance(x, int) else tuple(x)
    for name, x in others.items()
    if name in ('transformers', 'heads', 'depth')
  }
  return others | each | dict(channels=tuple(channels), latent=image[-1])


_COMPUTED = dict(
  layers_per_block=tuple(range(1, 9)), center_input_sample=(False,),
  flip_sin_to_cos=(True,), freq_shift=(0,), only_cross_attention=(False,),
  mid_block_type=('UNetMidBlock2DCrossAttn',), downsample_padding=(1,),
  mid_block_only_cross_attention=(None, False), mid_block_scale_factor=(1,),
  dropout=(0,), act_fn=('silu', 'swish'), dual_cross_attention=(False,),
  resnet_time_scale_shift=('default',), resnet_skip_time_act=(False,),
  resnet_out_scale_factor=(1,), time_embedding_type=('positional',),
  conv_in_kernel=(3,), conv_out_kernel=(3,), attention_type=('default',),
  class_embeddings_concat=(False,), num_attention_heads=(None,),
)  # fmt: skip
_FREE = (
  'sample_size', 'in_channels', 'block_out_channels', 'norm_num_groups',
  'norm_eps', 'transformer_layers_per_block',
  'attention_head_dim', 'use_linear_projection', 'time_cond_proj_dim',
  'upcast_attention',  # the softmax is float32 anyway
  'addition_embed_type_num_heads',  # of an embedding that is refused
)  # fmt: skip


def config(config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Keywords of `unet` for the config.json of a UNet2DConditionModel.

  The process is not said there, but in the scheduler's (`process`).

  Raises:
    ValueError: options that are missing or not computed, all in one sentence.
  """
  # None is a size that the file leaves open.
  there = {k: v for k, v in config_json.items() if v is not None}
  options.typed(
    KINDS[0], there,
    whole=('in_channels', 'norm_num_groups'),
    wholes=('block_out_channels',),
    each=('sample_size', 'attention_head_dim', 'transformer_layers_per_block'),
    names=('down_block_types', 'up_block_types'),
    fraction=('norm_eps',),
  )  # fmt: skip
  get = there.get
  levels = len(get('block_out_channels') or ())
  down = tuple(get('down_block_types') or ())
  mirrored = tuple(x.replace('Down', 'Up') for x in reversed(down))
  channels = get('in_channels', 4)
  text = get('cross_attention_dim')
  if isinstance(text, list) and len(set(text)) == 1:
    text = text[0]
  one = isinstance(text, int)
  known = {'CrossAttnDownBlock2D', 'DownBlock2D'}
  options.check(
    'UNet2DConditionModel',
    {**config_json, 'cross_attention_dim': text},
    dict(
      _COMPUTED,
      cross_attention_dim=(text if one else 'one number',),
      out_channels=(channels,),
      down_block_types=(down if set(down) <= known else known,),
      up_block_types=(mirrored,),
    ),
    _FREE,
    required=(
      'block_out_channels', 'down_block_types', 'up_block_types',
      'cross_attention_dim',
    ),
  )  # fmt: skip
  side = get('sample_size') or 64
  size = (side, side) if isinstance(side, int) else tuple(side)

  def each(x: Any) -> Any:
    return tuple(x) if isinstance(x, list) else x

  return dict(
    image=(*size, channels),
    channels=tuple(config_json['block_out_channels']),
    blocks=get('layers_per_block', 2),
    transformers=tuple(x.startswith('Cross') for x in down)[:levels],
    # The number of heads, whatever the name says: diffusers keeps an old error
    # for the sake of configs.
    heads=each(get('attention_head_dim', 8)),
    depth=each(get('transformer_layers_per_block', 1)),
    text=text,
    linear=get('use_linear_projection', False),
    groups=get('norm_num_groups', 32),
    eps=get('norm_eps', 1e-5),
    guidance_width=get('time_cond_proj_dim'),
  )


def config_json(
  said: Mapping[str, Any], image: Sequence[int]
) -> dict[str, Any]:
  """The config of a network for `sizes` of `unet`: `config` undone."""
  height, width, _ = image
  down = [
    'CrossAttnDownBlock2D' if on else 'DownBlock2D'
    for on in said['transformers']
  ]
  return dict(
    _class_name=KINDS[0],
    sample_size=height if height == width else [height, width],
    in_channels=said['latent'],
    out_channels=said['latent'],
    block_out_channels=list(said['channels']),
    layers_per_block=said['blocks'],
    down_block_types=down,
    up_block_types=[x.replace('Down', 'Up') for x in reversed(down)],
    attention_head_dim=list(said['heads']),
    transformer_layers_per_block=list(said['depth']),
    cross_attention_dim=said['text'],
    use_linear_projection=said['linear'],
    norm_num_groups=said['groups'],
    norm_eps=said['eps'],
    time_cond_proj_dim=said['guidance_width'],
  )


def process(scheduler: Mapping[str, Any]) -> dict[str, Any]:
  """What a network's process is, for a released scheduler_config.json.

  Returns:
    Keywords of `ddpm.flow_times` and `ddpm.velocity`: betas, beta_start,
    beta_end, train_steps, prediction, boundary.

  Raises:
    ValueError: options that are not computed, in one sentence.
  """
  computed = dict(
    trained_betas=(None,),
    clip_sample=(False,),
    thresholding=(False,),
    rescale_betas_zero_snr=(False,),
    beta_schedule=('scaled_linear', 'linear', 'squaredcos_cap_v2'),
    prediction_type=('epsilon', 'v_prediction'),
  )
  needed = 'beta_start', 'beta_end', 'beta_schedule'
  there = {k: v for k, v in scheduler.items() if v is not None}
  options.typed(
    'scheduler', there, fraction=needed[:2], whole=('num_train_timesteps',),
    name=('beta_schedule', 'prediction_type'),
  )  # fmt: skip
  # The others say how to sample, some of them what another sampler had to know.
  said = {k: v for k, v in scheduler.items() if k in computed or k in needed}
  options.check('scheduler', said, computed, needed, needed)
  consistent = scheduler.get('_class_name') == 'LCMScheduler'
  return dict(
    betas=scheduler['beta_schedule'],
    beta_start=scheduler['beta_start'],
    beta_end=scheduler['beta_end'],
    train_steps=there.get('num_train_timesteps', 1000),
    prediction=scheduler.get('prediction_type', 'epsilon'),
    boundary=scheduler.get('timestep_scaling', 10.0) if consistent else None,
  )
