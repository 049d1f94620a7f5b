"""What `torch_step` computes for a task of `accelerator`."""

from typing import Any

from experiments.benchmarks import jax_step, torch_step
from gen_rl import build, models
from gen_rl.data import feeds
from gen_rl.diffusion import schedules


def of(task: str, tiny: bool) -> torch_step.Task:
  """The config of ours, in PyTorch's words."""
  c = jax_step.config(task, tiny, {})

  def said_by(spec: Any, *names: str) -> list[Any]:
    return [build.argument(models, spec, name) for name in names]

  said = feeds.embed(c).shapes
  (h, w, channels), heads, size, text, pooled = said_by(
    c.model.net, 'image', 'heads', 'head_dim', 'text', 'pooled'
  )
  levels, blocks, groups, latent, scale, shift = said_by(
    c.model.vae, 'channels', 'blocks', 'groups', 'latent', 'scale', 'shift'
  )
  shared = dict(
    num_attention_heads=heads, attention_head_dim=size,
    joint_attention_dim=text, pooled_projection_dim=pooled,
  )  # fmt: skip
  net, guidance = c.model.net.name, c.policy.guidance_scale
  if net == 'flux':
    double, single, turns, guidance = said_by(
      c.model.net, 'double', 'single', 'turns', 'guidance'
    )
    transformer = shared | dict(
      in_channels=4 * channels, num_layers=double, num_single_layers=single,
      axes_dims_rope=tuple(turns), guidance_embeds=True,
    )  # fmt: skip
  else:
    layers, dual, grid = said_by(c.model.net, 'layers', 'dual', 'grid')
    transformer = shared | dict(
      sample_size=h, patch_size=2, in_channels=channels, out_channels=channels,
      num_layers=layers, caption_projection_dim=heads * size,
      pos_embed_max_size=grid, qk_norm='rms_norm',
      dual_attention_layers=tuple(range(dual)),
    )  # fmt: skip
  p = c.policy
  grid = build.build(schedules, p.grid, steps=p.steps) if p.grid.name else (
    schedules.linear(p.steps, p.shift)
  )  # fmt: skip
  trained = dict(
    transition=p.transition.name, noise=p.noise, window=p.window or p.steps - 1,
    high=p.window_high or p.steps - 1,
  )  # fmt: skip
  if 'nft' in c.objective:
    nft, copy = c.objective.nft, c.copies.slow
    trained = dict(
      transition='ode', draws=nft.draws, beta=nft.beta, follow=copy.rate,
    )  # fmt: skip
  else:
    trained['clip'] = c.objective.pg.clip
  return torch_step.Task(
    net='flux' if net == 'flux' else 'sd3',
    transformer=transformer,
    vae=dict(
      down_block_types=['DownEncoderBlock2D'] * len(levels),
      up_block_types=['UpDecoderBlock2D'] * len(levels),
      block_out_channels=list(levels), layers_per_block=blocks,
      latent_channels=latent, norm_num_groups=groups, scaling_factor=scale,
      shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    ),
    latent=(channels, h, w),
    text=said['text'].shape,
    pooled=pooled,
    rows=c.data.group_size,
    grid=tuple(float(t) for t in grid),
    rank=c.lora.rank,
    alpha=c.lora.alpha,
    lr=c.optimizer.lr,
    guidance=guidance,
    kl=c.objective.kl.weight,
    **trained,
  )  # fmt: skip
