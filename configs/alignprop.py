"""AlignProp on ShapesWorld (arXiv 2310.03739): the reward's own gradient.

  python -m gen_rl.main --config=configs/alignprop.py
  python -m gen_rl.main --config=configs/alignprop.py:draft

The learned detector is differentiable, and so is the chain of denoising steps:
its gradient replaces the policy gradient. Which of the last network calls it
goes through is drawn for every sample. The reward is that of
configs/flow_grpo.py:proxy, whose detector can be fooled; the oracle judges.
Released networks are trained so by configs/sd15_alignprop.py.

Variants, joined by commas:
  gaussian  cuts as in AlignProp's released code: near call 42 of 50 there, 6.7
         of 8 here
  draft  only the last call (DRaFT-1, arXiv 2309.17400)
  lv     the last call, and twice again from new noise (DRaFT-LV)
  full   all calls: the whole chain
  margin the last call, and no more where the reward is high enough: ReFL's loss
         at DRaFT-1's step
  refl   ReFL (arXiv 2304.05977): what the net foresees at one of the last two
         calls, up to that margin; there the last 10 of 40. Its second loss, on
         pictures of pretraining, is missing
  drtune three calls evenly apart whose inputs carry no gradient, of chains that
         stop at one of the last three (DRTune, arXiv 2405.00760)
  grpo   the policy gradient in its place, on as many samples
  kl     with a KL term to the base, at the samples noised anew
  jpeg   reward: small JPEG files, a smooth count of their bytes; the monitor
         `size` is how many there are, in kilobytes below 0
  lora   trains adapters of rank 4, at the paper's rate
  tiny   two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo
from gen_rl.models.parts import lora

WAYS = (
  'gaussian', 'draft', 'lv', 'full', 'margin', 'refl', 'drtune', 'grpo',
)  # fmt: skip
VARIANTS = (*WAYS, 'kl', 'jpeg', 'lora', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, (WAYS,))
  c = flow_grpo.get_config('proxy')
  c.name = 'alignprop' + (f':{arg}' if arg else '')
  c.steps = 60
  c.data.update(prompts_per_step=21, group_size=6)
  c.microbatches = 1
  if 'grpo' not in variants:
    c.policy.update(deterministic=True, window=7, window_high=0)
    c.policy.window_start = dict(name='fixed_window')
    c.objective = config_dict.ConfigDict()
    c.objective.reward = config_dict.create(
      name='reward_backprop', cut='uniform', weight=1.0
    )
  if 'full' in variants:
    c.objective.reward.update(cut='fixed', last=8)
  if 'gaussian' in variants:
    c.objective.reward.update(cut='gaussian', mean=6.7, std=0.8)
  if {'draft', 'lv', 'margin', 'refl'} & set(variants):
    c.policy.update(window=1, window_low=6)
    c.objective.reward.update(cut='fixed', last=1)
  if 'lv' in variants:
    c.objective.reward.draws = 2
  if 'margin' in variants or 'refl' in variants:
    c.objective.reward.update(loss='relu_margin', target=0.95)
  if 'refl' in variants:
    c.objective.reward.early = 2
  if 'drtune' in variants:
    c.objective.reward.update(cut='spaced', last=3, early=3, detach_inputs=True)
  if 'kl' in variants:
    c.objective.kl = config_dict.create(name='velocity_kl', draws=1, weight=1.0)
  if 'jpeg' in variants:
    c.rewards.detector.weight = 0.0
    c.rewards.jpeg = config_dict.create(
      name='smooth_compressibility', weight=1.0
    )
    c.monitors.size = config_dict.create(name='jpeg_compressibility')
  if 'lora' in variants:
    c.lora.update(pattern=r'block_|text|pooled', rank=4, alpha=4.0)
    c.trainable = lora.TRAINABLE
    c.optimizer.lr = 1e-3
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
