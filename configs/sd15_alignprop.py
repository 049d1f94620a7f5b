r"""AlignProp of Stable Diffusion 1.5 at 512 x 512 (arXiv 2310.03739).

  python -m gen_rl.main --config=configs/sd15_alignprop.py \
    --config.released=/models/stable-diffusion-v1-5 \
    --config.rewards.hps.folder=/models/HPS_v2_compressed.pt \
    --config.eval.gold.pickscore.folder=/models/PickScore_v1

`released` is what configs/sd15_ddpo.py says. The gradient of HPS goes through
the autoencoder and the last of fifty ancestral steps of DDIM, near call 42 on
for every picture, to adapters of rank 4.

Hyperparameters are those of AlignProp's code (config/alignprop_config.py,
hps.sh, aesthetic.sh, *_k1.sh): 128 pictures of as many prompts an update, 25
updates at a rate of 1e-3, guidance 5, the loss times 0.01, and for the
aesthetic score its distance from 10 and 20 updates. What differs, and why:
  prompts  of ShapesWorld; there those of HPS, or animals
  cut      of every picture within the last 25 calls, for time; there of a
           batch, within 49, and drawn again where it is beyond the last
  steps    the last takes no noise here
  dtype    bfloat16; there float16
  clip     gradients pass where pixels are clipped; there they end
  eval     every 5 updates, by another score too; there there is none
Nothing was measured with released weights: this project has only had drawn
ones.

Variants, joined by commas:
  aesthetic  reward: LAION's aesthetic score; it needs two files,
             --config.rewards.aesthetic.folder and .head, and is judged by HPS
  k1         the last call alone (DRaFT-1, arXiv 2309.17400)
  tiny       two quick steps of all of it with tiny drawn weights, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, sd15_ddpo

VARIANTS = ('aesthetic', 'k1', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = sd15_ddpo.get_config('tiny' if 'tiny' in variants else '')
  c.name = 'sd15_alignprop' + (f':{arg}' if arg else '')
  c.steps = 25
  c.data.update(prompts_per_step=128, group_size=1)
  c.data.reader = config_dict.create(
    tokenizer=dict(name='clip', folder=c.get_ref('released')), length=77,
    texts=dict(clip='{prompt}', hps='{cleaned}'), truncate=True,
  )  # fmt: skip
  # Nobody asks for it; this one allows groups of one.
  c.advantage = config_dict.create(
    name='history', num_prompts=1, buffer=1, min_count=1
  )
  c.objective = config_dict.ConfigDict()
  # Rounded to the nearest call, and there down.
  c.objective.reward = config_dict.create(
    name='reward_backprop', cut='gaussian', mean=41.5, std=5.0, most=25,
    weight=0.01,
  )  # fmt: skip
  c.optimizer.lr = 1e-3
  c.updates = 1
  c.microbatches = 64
  c.rollout_chunks = 32
  c.eval.every = c.checkpoint.every = 5
  c.rewards = config_dict.ConfigDict()
  if 'aesthetic' in variants:
    c.steps = 20
    c.rewards.aesthetic = config_dict.create(
      name='aesthetic', folder='drawn', weight=1.0
    )
    c.objective.reward.update(loss='l1_target', target=10.0)
    c.eval.gold = config_dict.create(hps=dict(name='hps', folder='drawn'))
  else:
    c.rewards.hps = config_dict.create(name='hps', folder='drawn', weight=1.0)
    c.eval.gold = config_dict.create(
      pickscore=dict(name='pickscore', folder='drawn')
    )
  if 'k1' in variants:
    c.objective.reward.update(cut='fixed', last=1, most=0)
  if 'tiny' in variants:
    c.objective.reward.mean = 0.5
    c.update(microbatches=1, rollout_chunks=1)
    base.make_tiny(c)
  return c
