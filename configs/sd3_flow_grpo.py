r"""Flow-GRPO of Stable Diffusion 3.5 medium at 512 x 512 (arXiv 2505.05470).

  python -m gen_rl.main --config=configs/sd3_flow_grpo.py:pickscore,files \
    --config.released=/models/stable-diffusion-3.5-medium \
    --config.rewards.pickscore.folder=/models/PickScore_v1 \
    --config.eval.gold.hps.folder=/models/HPS_v2.1_compressed.pt \
    --config.data.prompts.path=/data/pickscore/train.txt \
    --config.eval.prompts.path=/data/pickscore/test.txt

`released` is a folder as diffusers keeps it: transformer, vae, text_encoder,
text_encoder_2, text_encoder_3, tokenizer, tokenizer_2, tokenizer_3. Without it
all weights are drawn: enough to plan a run (gen_rl.plan) and to time it.
Prompts are those of ShapesWorld unless `files` is among the variants. Rewards
that read prompts with CLIP's tokenizer take it from `released`.

Hyperparameters are those of Flow-GRPO's code (config/grpo.py, grpo_guard.py and
scripts/train_sd3*.py, November 2025): groups of 24, 48 of them a rollout in two
updates, nine of ten steps trained and forty evaluated, adapters of rank 32,
guidance 4.5, its KL term, which is divided by the diffusion coefficient and not
by the variance of a step (kl(scale='dt')), its average, which warms up and
changes every eight updates. tests/published_test.py holds their table. What
differs, and why:
  steps           1000; there a person ends the run
  eval            64 prompts; there all of the test file (time)
  dtype           bfloat16, the autoencoder too; there float16 and float32
  kl              of all rows; there of those whose advantage is not 0
  ema             moved once every eight updates; there once for every
                  microbatch of the update that comes then, two on 32 GPUs
  fast            the members of a group start from noises of their own; there
                  nine of them branch off one trajectory of the ODE
  window_start    drawn for all prompts of a rollout; there for every batch
  rewards         see pictures as they are; there rounded to 8 bits (rounded)
  cps, sd3, large, fast with another reward than PickScore or with guard,
  fast_nocfg with OCR: no such config is published

Features of prompts are computed once each, with --config.data.embed.cache=DIR
before the training state is made, and the encoders, 11 GB, are freed; else they
stay beside it. Nothing was measured with released weights: this project has
only had drawn ones. A plan (gen_rl.plan, --topology=v5e:4x4) says
14.7 of 16 GiB for each of 16 chips of v5e, with --config.microbatches=36
--config.rollout_chunks=36, 17,665 T operations a chip and step, and 241 TB
through memory (29 Nov 2026, 13 minutes of CPU time).

Variants, joined by commas:
  pickscore   reward: PickScore, judged by HPS v2.1 (the default)
  ocr         reward: the quoted text as RapidOCR reads it, on the host
              (pip install -e '.[ocr]'); both prompts.path are text files whose
              prompts have a text in double quotes
  geneval     reward: GenEval's checks of what a detector finds (a function of
              yours, --config.rewards.geneval.detector=module:function); both
              prompts.path are files of GenEval's metadata, a JSON object a line
  fast        Flow-GRPO-Fast: trains a window of 2 of the first 7 steps, without
              a KL term
  fast_nocfg  without guidance: a window of 3 of the first 5 steps, sampled by
              cps, without a KL term; PickScore in 64 groups of 18
  cps         coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952) of
              all steps, with the exact KL term, as its code has it
  guard       GRPO-Guard (arXiv 2510.22319): ratio normalisation, smaller clips
              and learning rate, deviation per group, no KL term
  tp          TP-GRPO (arXiv 2602.06422): unfinished samples are finished and
              scored, too, which takes 45 network calls more on a row's 10;
              sampled by cps, its released rule, no KL term, deviation per group
              and decision
  files       prompts from files, one a line
  sd3         Stable Diffusion 3 medium in place of 3.5 medium
  large       Stable Diffusion 3.5 large
  short       100 updates of tiny drawn weights without guidance, rewarded by a
              drawn CLIP: the whole path in minutes on a laptop
  tiny        two quick steps of all of it with tiny drawn weights, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base
from gen_rl.models.parts import lora

VARIANTS = (
  'pickscore', 'ocr', 'geneval', 'fast', 'fast_nocfg', 'cps', 'guard', 'tp',
  'files', 'sd3', 'large', 'short', 'tiny',
)  # fmt: skip
EXCLUSIVE = (
  ('pickscore', 'ocr', 'geneval'), ('fast', 'fast_nocfg', 'tp'),
  ('cps', 'guard', 'tp'), ('fast_nocfg', 'guard'), ('ocr', 'tp'),
  ('geneval', 'tp'), ('sd3', 'large', 'short', 'tiny'),
)  # fmt: skip
# What Flow-GRPO adapts: all products of the joint attention.
LORA = r'/attn/(add_[qkv]_proj|to_add_out|to_[qkv]|to_out_0)$'
KL = dict(pickscore=0.01, ocr=0.04, geneval=0.04)
GUARD_CLIP = dict(pickscore=4e-6, ocr=2e-6, geneval=2e-6)


def model() -> ml_collections.ConfigDict:
  """Stable Diffusion 3.5 medium, for latents of 64 x 64."""
  return config_dict.create(
    name='latent',
    net=dict(
      name='mmdit', image=(64, 64, 16), layers=24, heads=24, dual=13,
      qk_norm=True, grid=384, sample_size=128, scan=True, remat='full',
      attention='auto', dtype='bfloat16',
    ),
    vae=dict(
      name='vae', latent=16, scale=1.5305, shift=0.0609, quant=False,
      post_quant=False, dtype='bfloat16',
    ),
    decode_rows=4,
    vae_dtype='bfloat16',
  )  # fmt: skip


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  reward = next((v for v in EXCLUSIVE[0] if v in variants), 'pickscore')
  c = base.get_config()
  c.name = 'sd3_flow_grpo' + (f':{arg}' if arg else '')
  c.model = model()
  c.lora.update(pattern=LORA, rank=32, alpha=64.0, init='gaussian')
  c.trainable = lora.TRAINABLE
  c.frozen_dtype = 'bfloat16'
  c.steps = 1000
  c.data.prompts.split = 'train+rl'
  c.data.update(prompts_per_step=48, group_size=24, length=77)
  c.data.embed.encoder = config_dict.create(
    name='sd3_text',
    folder=c.get_ref('released'),
    t5_length=128,
    dtype='bfloat16',
    width=4096,
    pooled=2048,
  )
  c.policy.update(
    steps=10, shift=3.0, guidance_scale=4.5, noise=0.7,
    transition=dict(name='flow_sde'), grid=dict(name='sd3', shift=3.0),
  )  # fmt: skip
  c.advantage = dict(name='grpo', std='global')
  c.objective.pg = config_dict.create(name='clipped_pg', clip=1e-4, weight=1.0)
  c.objective.kl = config_dict.create(
    name='kl', ref='ref', scale='dt', weight=KL[reward]
  )
  c.optimizer.update(
    lr=3e-4, b2=0.999, weight_decay=1e-4, grad_clip=1.0, warmup=0
  )
  c.updates = 2
  c.microbatches = 72
  c.rollout_chunks = 24
  c.update(ema=0.9, ema_every=8, ema_warmup=True)
  c.eval.update(every=60, num_prompts=64, samples=1, steps=40, shown=16)
  c.checkpoint.every = 60
  _rewards(c, reward)
  if 'fast' in variants or 'fast_nocfg' in variants:
    window, high = (2, 7) if 'fast' in variants else (3, 5)
    c.policy.update(
      window=window, window_high=high, window_start=dict(name='random_window'),
      noise=0.8,
    )  # fmt: skip
    c.objective.pg.clip = 1e-5
    c.objective.kl.weight = 0.0
  if 'fast_nocfg' in variants and reward == 'pickscore':
    c.data.update(prompts_per_step=64, group_size=18)
  if 'fast_nocfg' in variants or 'short' in variants:
    c.policy.guidance_scale = 1.0
    c.data.embed.negative = None
  if 'cps' in variants or 'fast_nocfg' in variants:
    c.policy.transition.name = 'cps'
    c.policy.update(noise=0.8, unit_log_prob=True)
    c.objective.pg.clip = 1e-5
    c.objective.kl.scale = 'exact'
  if 'tp' in variants:
    c.policy.transition.name = 'cps'
    c.policy.unit_log_prob = True
    c.objective.pg.clip = 1e-5
    c.objective.kl.weight = 0.0
    c.advantage = config_dict.create(name='turning_points', mode='bonus')
  if 'guard' in variants:
    c.advantage.std = 'group'
    c.objective.pg.update(clip=GUARD_CLIP[reward], ratio='guard')
    c.objective.kl.weight = 0.0
    c.optimizer.lr = 1e-4
    c.eval.every = c.checkpoint.every = 30
  if 'files' in variants and reward == 'pickscore':
    c.data.prompts = config_dict.create(name='txt', path='')
    c.eval.prompts = config_dict.create(name='txt', path='')
  if 'sd3' in variants:
    c.model.net.update(dual=0, qk_norm=False, grid=192)
  if 'large' in variants:
    c.model.net.update(layers=38, heads=38, dual=0, grid=192)
  if 'tiny' in variants or 'short' in variants:
    shrink(c)
  if 'short' in variants:
    c.steps = 100
    c.microbatches = c.rollout_chunks = 2
    c.data.update(prompts_per_step=8, group_size=24)
    c.lora.init = 'kaiming'
    c.optimizer.update(lr=3e-3, warmup=1)
    c.update(ema=0.987, ema_every=1, ema_warmup=False)
    c.objective.pg.update(clip=1e-2, ratio='guard')
    c.objective.kl.weight = 0.0
    c.eval.update(every=50, num_prompts=32, samples=4, shown=8)
    c.checkpoint.every = 100
  return c


def _rewards(c: ml_collections.ConfigDict, reward: str) -> None:
  """The reward, its prompts, and who judges it."""
  c.data.reader = config_dict.create(
    tokenizer=dict(name='clip', folder=c.get_ref('released')), length=77,
    texts=dict(clip='{prompt}', hps='{cleaned}'), truncate=True,
  )  # fmt: skip
  if reward == 'pickscore':
    c.rewards.pickscore = config_dict.create(
      name='pickscore', folder='drawn', weight=1.0
    )
  elif reward == 'ocr':
    c.rewards.ocr = config_dict.create(name='read_text', weight=1.0)
    c.data.prompts = config_dict.create(name='quoted', path='')
    c.eval.prompts = config_dict.create(name='quoted', path='')
  else:
    c.rewards.geneval = config_dict.create(
      name='detected_geneval', detector='', weight=1.0
    )
    c.data.prompts = config_dict.create(name='geneval', path='')
    c.eval.prompts = config_dict.create(name='geneval', path='')
  c.eval.gold = config_dict.create(hps=dict(name='hps', folder='drawn'))


def shrink(c: ml_collections.ConfigDict) -> None:
  """Shrinks it; every part stays."""
  c.steps = 2
  c.model.net.update(
    image=(8, 8, 16), layers=3, heads=2, head_dim=8, dual=1, text=32,
    pooled=24, grid=8, sample_size=8, dtype='float32',
  )  # fmt: skip
  c.model.vae.update(channels=(8, 16), blocks=1, groups=4, dtype='float32')
  c.model.vae_dtype = 'float32'
  c.frozen_dtype = 'float32'
  c.data.update(prompts_per_step=4, group_size=4)
  c.data.embed.encoder.update(width=32, pooled=24, t5_length=4, dtype='float32')
  c.policy.steps = 4
  c.policy.window_high = min(c.policy.window_high, 3)
  # XLA's CPU backend is slow at gradients of convolutions in loops.
  c.microbatches = c.rollout_chunks = 1
  c.eval.update(every=1, num_prompts=7, samples=2, steps=4, shown=4)
  c.log.tensorboard = False
  c.checkpoint.every = 1
