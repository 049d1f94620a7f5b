r"""ReFL, DRaFT-LV and DRTune of Stable Diffusion 3.5 medium at 512 x 512.

  python -m gen_rl.main --config=configs/sd3_refl.py \
    --config.released=/models/stable-diffusion-3.5-medium \
    --config.rewards.hps.folder=/models/HPS_v2.1_compressed.pt \
    --config.eval.gold.pickscore.folder=/models/PickScore_v1

ReFL (arXiv 2304.05977) scores what the network foresees at one of the last
calls, DRaFT-LV (arXiv 2309.17400) the sample, and it again from new noise;
DRTune (arXiv 2405.00760) trains three calls of a chain that stops early.
`released` is what configs/sd3_flow_grpo.py says.

Hyperparameters are those of all three in FlowBP's code
(configs/final/sd35/*.yaml): the whole network at a rate of 1e-5, 64 prompts an
update, 300 updates, 25 Euler steps with guidance 3.5, of which the conditional
half is differentiated, HPS v2.1 up to 0.55, an average of decay 0.995. ReFL's
own are those of Stable Diffusion 1.4 without guidance. What differs, and why:
  prompts  of ShapesWorld; there a file of captions
  calls    of every picture are drawn; there of a batch
  dtype    parameters in float32; there bfloat16
  clip     gradients pass where pixels are clipped; there they end
  eval     64 pictures, by PickScore; there five scores
Nothing was measured with released weights: this project has only had drawn
ones.

Variants:
  lv      DRaFT-LV with two more draws
  drtune  DRTune: three calls evenly apart, a stop in the last 40 %
  tiny    two quick steps of all of it with tiny drawn weights, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, sd3_flow_grpo

VARIANTS = ('lv', 'drtune', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, (('lv', 'drtune'),))
  c = sd3_flow_grpo.get_config()
  c.name = 'sd3_refl' + (f':{arg}' if arg else '')
  c.lora.pattern = ''
  c.trainable = '^net/'
  c.steps = 300
  c.data.update(prompts_per_step=64, group_size=1)
  c.policy.update(
    steps=25, guidance_scale=3.5, guidance_gradient='conditional',
    deterministic=True, window=10, window_low=14,
    grid=config_dict.create(name=''),
  )  # fmt: skip
  # Nobody asks for it; this one allows groups of one.
  c.advantage = config_dict.create(
    name='history', num_prompts=1, buffer=1, min_count=1
  )
  c.objective = config_dict.ConfigDict()
  c.objective.reward = config_dict.create(
    name='reward_backprop', cut='fixed', last=1, early=11,
    loss='relu_margin', target=0.55, weight=1.0,
  )  # fmt: skip
  if 'lv' in variants:
    c.policy.update(window=1, window_low=23)
    c.objective.reward.update(early=0, draws=2)
  if 'drtune' in variants:
    c.policy.update(window=24, window_low=0)
    c.objective.reward.update(
      cut='spaced', last=3, early=10, detach_inputs=True
    )
  c.optimizer.lr = 1e-5
  c.updates = 1
  c.microbatches = 32
  c.rollout_chunks = 8
  c.mesh.update(data=1, fsdp=-1)
  c.update(ema=0.995, ema_every=1, ema_warmup=False)
  c.eval.update(every=50)
  c.checkpoint.every = 100
  c.rewards = config_dict.ConfigDict()
  c.rewards.hps = config_dict.create(name='hps', folder='drawn', weight=1.0)
  c.eval.gold = config_dict.create(
    pickscore=dict(name='pickscore', folder='drawn')
  )
  if 'tiny' in variants:
    sd3_flow_grpo.shrink(c)
    c.policy.update(window=2, window_low=1)
    c.objective.reward.early = min(c.objective.reward.early, 2)
    c.data.group_size = 1
  return c
