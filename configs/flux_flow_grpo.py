r"""Flow-GRPO-Fast of FLUX.1 dev at 512 x 512 (arXiv 2505.05470).

  python -m gen_rl.main --config=configs/flux_flow_grpo.py:files \
    --config.released=/models/FLUX.1-dev \
    --config.rewards.pickscore.folder=/models/PickScore_v1 \
    --config.eval.gold.hps.folder=/models/HPS_v2.1_compressed.pt \
    --config.data.prompts.path=/data/pickscore/train.txt \
    --config.eval.prompts.path=/data/pickscore/test.txt

`released` is a folder as diffusers keeps it: transformer, vae, text_encoder,
text_encoder_2, tokenizer, tokenizer_2. Without it all weights are drawn: enough
to plan a run (gen_rl.plan) and to time it. Prompts are those of ShapesWorld
unless `files` is among the variants.

Hyperparameters are those of pickscore_flux_fast in Flow-GRPO's code
(config/grpo.py and scripts/train_flux_fast.py, November 2025): groups of 24, 48
of them a rollout in two updates, six steps of which the first three are trained
and sampled by cps (Flow-CPS, arXiv 2509.05952), deviation per group, 28 steps
evaluated, adapters of rank 64, no KL term. The network applies a guidance of
3.5 itself. What differs, and why, is what configs/sd3_flow_grpo.py says of
steps, eval, the autoencoder's dtype, ema and rewards; and
  schnell  is ours: no such config is published
Nothing was measured with released weights: this project has only had drawn
ones.

Variants, joined by commas:
  all      trains all steps but the last, sampled by flow_sde (pickscore_flux)
  schnell  the network without guidance, four steps
  files    prompts from files, one a line
  tiny     two quick steps of all of it with tiny drawn weights, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, sd3_flow_grpo
from gen_rl.diffusion import schedules

VARIANTS = ('all', 'schnell', 'files', 'tiny')
LORA = (
  r'/(attn/(add_[qkv]_proj|to_add_out|to_[qkv]|to_out_0)'
  r'|ff(_context)?/net_(0/proj|2))$'
)
TOKENS = 32 * 32  # of a picture of 512 pixels


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, (('all', 'schnell'),))
  c = sd3_flow_grpo.get_config('files' if 'files' in variants else '')
  c.name = 'flux_flow_grpo' + (f':{arg}' if arg else '')
  c.model.net = config_dict.create(
    name='flux', image=(64, 64, 16), double=19, single=38, heads=24,
    head_dim=128, turns=(16, 56, 56), guidance=3.5, scan=True, remat='full',
    attention='auto', dtype='bfloat16',
  )  # fmt: skip
  c.model.vae.update(scale=0.3611, shift=0.1159)
  c.lora.update(pattern=LORA, rank=64, alpha=128.0)
  c.data.embed.update(negative=None)
  c.data.embed.encoder = config_dict.create(
    name='flux_text', folder=c.get_ref('released'), t5_length=128,
    dtype='bfloat16', width=4096, pooled=768,
  )  # fmt: skip
  c.policy.update(
    steps=6, shift=schedules.flux_shift(TOKENS), guidance_scale=1.0, noise=0.8,
    transition=dict(name='cps'), unit_log_prob=True, window=3, window_high=3,
  )  # fmt: skip
  c.policy.grid = config_dict.create(name='')
  # Rows of advantage 0 stay: they lower the mean over the others.
  c.advantage = dict(name='grpo', std='group', drop_zero=False)
  c.objective.pg.clip = 1e-5
  c.objective.kl.weight = 0.0
  c.microbatches = 144
  c.rollout_chunks = 48
  c.mesh.update(data=1, fsdp=-1)
  c.eval.update(every=30, steps=28)
  c.checkpoint.every = 30
  if 'all' in variants:
    c.policy.update(
      noise=0.9, transition=dict(name='flow_sde'), unit_log_prob=False,
      window=0, window_high=0,
    )  # fmt: skip
    c.advantage.std = 'global'
    c.objective.pg.clip = 1e-4
  if 'schnell' in variants:
    c.model.net.guidance = None
    c.data.embed.encoder.t5_length = 256
    c.policy.update(steps=4, shift=1.0, window=2, window_high=2)
    c.eval.steps = 4
  if 'tiny' in variants:
    sd3_flow_grpo.shrink(c)
    c.model.net = config_dict.create(
      name='flux', image=(8, 8, 16), double=2, single=2, heads=2, head_dim=8,
      turns=(2, 2, 4), text=32, pooled=24, guidance=c.model.net.guidance,
      scan=True, dtype='float32',
    )  # fmt: skip
  return c
