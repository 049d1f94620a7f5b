"""Diffusion-DPO on ShapesWorld (arXiv 2311.12908): preferences without a chain.

  python -m gen_rl.main --config=configs/diffusion_dpo.py

The frozen base draws groups, the oracle finds the best and the worst of each,
and the policy learns to denoise the one better than the base does and the
other one worse. Neither samples nor scores change while it learns, as in a
data set; `online` lets the policy itself draw. Settings of world and
evaluation are those of configs/flow_grpo.py.

Variants, joined by commas:
  online    pairs from the policy itself
  rendered  pairs of renders, one right and one nearly: data, no policy and no
            reward model (a file of pairs: --config.data.prompts.name=pairs
            --config.data.prompts.path=pairs.npz --config.rollout.name=given)
  sft       matching loss of the preferred ones of `rendered`
  kto       Diffusion-KTO (arXiv 2404.04465): labels instead of pairs
  sd15      the paper's own: Stable Diffusion 1.5 at 512 x 512, all of its U-Net
  tiny      two quick steps of all of it, for tests

  python -m gen_rl.main --config=configs/diffusion_dpo.py:sd15 \
    --config.released=/models/stable-diffusion-v1-5 \
    --config.rollout.name=given --config.data.prompts.name=pairs \
    --config.data.prompts.path=pairs.npz \
    --config.eval.gold.hps.folder=/models/HPS_v2.1_compressed.pt

Settings of `sd15` are those of the paper's code (launchers/sd15.sh, train.py):
2,000 updates of 2,048 pairs, AdamW at 2048 x 1e-8 after a linear warm-up of
500, beta 5000 on mean errors of the noise (objectives/preference.py says how
that compares with errors of the velocity), levels of the process drawn evenly,
one for a pair, no guidance in the loss. Without `released` all weights are
drawn, and without files pairs are renders. What differs, and why:
  dtype    bfloat16 arithmetic; there float16
  latents  means of the autoencoder's posterior; there samples of it
  prompts  are all kept; there 20 % are emptied
  pairs    are not mirrored; there half of them are
  eval     every 500 updates, by HPS; there by hand afterwards
Nothing was measured with released weights yet.
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo, sd15_ddpo

VARIANTS = ('online', 'rendered', 'sft', 'kto', 'sd15', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(
    arg, VARIANTS,
    (('online', 'rendered', 'sft', 'sd15'), ('sft', 'kto'), ('sd15', 'kto')),
  )  # fmt: skip
  if 'sd15' in variants:
    return _sd15(arg, 'tiny' in variants)
  c = flow_grpo.get_config()
  c.name = 'diffusion_dpo' + (f':{arg}' if arg else '')
  c.policy.update(deterministic=True, window=1)
  c.policy.window_start = dict(name='fixed_window')
  c.behaviour = 'params' if 'online' in variants else 'ref'
  c.advantage = config_dict.create(name='best_worst')
  name = 'kto' if 'kto' in variants else 'dpo'
  c.objective = config_dict.ConfigDict()
  c.objective.preference = config_dict.create(
    name=name, beta=100.0, draws=2, weight=1.0
  )
  if 'rendered' in variants:
    c.behaviour = 'params'
    c.data.update(prompts_per_step=126, group_size=2)
    c.rollout = config_dict.create(name='shapes_preferences')
    c.rewards = config_dict.ConfigDict()
    c.rewards.order = config_dict.create(name='ranked', weight=1.0)
  if 'sft' in variants:
    c.behaviour = 'params'
    c.data.update(prompts_per_step=252, group_size=1)
    c.rollout = config_dict.create(name='shapes_pictures')
    c.rewards = config_dict.ConfigDict()
    c.objective = config_dict.ConfigDict()
    c.objective.fm = config_dict.create(name='flow_matching', weight=1.0)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c


def _sd15(arg: str, tiny: bool) -> ml_collections.ConfigDict:
  """Offline pairs of pictures, and a released network trained on them."""
  c = sd15_ddpo.get_config('tiny' if tiny else '')
  c.name = f'diffusion_dpo:{arg}'
  c.lora.pattern = ''
  c.trainable = '^net/'
  c.rollout = config_dict.create(name='shapes_preferences')
  c.rewards = config_dict.ConfigDict()
  c.rewards.order = config_dict.create(name='ranked', weight=1.0)
  c.advantage = config_dict.create(name='best_worst')
  c.objective = config_dict.ConfigDict()
  c.objective.preference = config_dict.create(
    name='dpo', beta=5000.0, draws=1, error='noise', weight=1.0
  )
  c.policy.update(deterministic=True, window=1, guidance_scale=7.5)
  c.policy.training_times = dict(name='levels')
  c.data.reader = config_dict.create(
    tokenizer=dict(name='clip', folder=c.get_ref('released')), length=77,
    texts=dict(hps='{cleaned}'), truncate=True,
  )  # fmt: skip
  c.eval.gold = config_dict.create(hps=dict(name='hps', folder='drawn'))
  c.data.group_size = 2
  c.updates = 1
  if tiny:
    return c
  c.steps = 2000
  c.data.prompts_per_step = 2048
  c.optimizer.update(lr=2048 * 1e-8, weight_decay=1e-2, warmup=500)
  c.microbatches = c.rollout_chunks = 128
  c.eval.every = c.checkpoint.every = 500
  return c
