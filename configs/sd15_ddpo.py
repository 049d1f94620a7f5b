r"""DDPO of Stable Diffusion 1.5 at 512 x 512 (arXiv 2305.13301).

  python -m gen_rl.main --config=configs/sd15_ddpo.py \
    --config.released=/models/stable-diffusion-v1-5
  python -m gen_rl.main --config=configs/sd15_ddpo.py:lcm \
    --config.released=/models/LCM_Dreamshaper_v7

`released` is a folder as diffusers keeps it: unet, scheduler, vae,
text_encoder, tokenizer. Without it all weights are drawn: enough to plan a run
(gen_rl.plan) and to time it. The reward is how well pictures can be compressed;
prompts are those of ShapesWorld.

Hyperparameters are those of `compressibility` in ddpo-pytorch (config/base.py,
dgx.py): 256 samples a rollout in four updates, fifty ancestral steps of DDIM
with guidance 5, rewards compared with the prompt's own past ones, adapters of
rank 4, no average. What differs, and why:
  model    Stable Diffusion 1.5; there 1.4
  prompts  of ShapesWorld in groups of four; there 398 animals, one sample each
  steps    the last takes no noise here and is not trained; there all are
  dtype    bfloat16; there float16
  eval     every 10 rollouts, by the reward alone; there there is none
Those of `lcm` are of RLCM's code (conf/task/compression.yaml, main.py and
ppo_training_loop.py): eight calls, adapters of rank 16, a learning rate of 1e-4
for Adam, advantages up to 10, gradients up to 5, one update a rollout. There,
the rate falls by a third in the end and a rollout is four samples a GPU.

Nothing was measured with released weights yet: this project has only seen drawn
ones.

Variants, joined by commas:
  lcm    RLCM (arXiv 2404.03673): a latent consistency model, eight calls, its
         guidance in the network
  tiny   two quick steps of all of it with tiny drawn weights, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base
from gen_rl.models.parts import lora

VARIANTS = ('lcm', 'tiny')
LORA = r'/attn[12]/to_([qkv]|out_0)$'


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = base.get_config()
  c.name = 'sd15_ddpo' + (f':{arg}' if arg else '')
  c.model = config_dict.create(
    name='latent',
    net=dict(
      name='unet', image=(64, 64, 4), guidance_width=None, guidance=8.5,
      boundary=None, remat='full', attention='auto', dtype='bfloat16',
    ),
    vae=dict(name='vae', dtype='bfloat16'),
    decode_rows=4,
    vae_dtype='bfloat16',
  )  # fmt: skip
  c.lora.update(pattern=LORA, rank=4, alpha=4.0, init='gaussian')
  c.trainable = lora.TRAINABLE
  c.frozen_dtype = 'bfloat16'
  c.steps = 100
  c.data.prompts.split = 'train+rl'
  c.data.update(prompts_per_step=64, group_size=4, length=77)
  c.data.embed.encoder = config_dict.create(
    name='sd15_text', folder=c.get_ref('released')
  )
  c.policy.update(
    steps=50, guidance_scale=5.0, noise=1.0, transition=dict(name='ddim'),
    grid=dict(name='ddim'),
  )  # fmt: skip
  c.advantage = config_dict.create(
    name='history', num_prompts=4096, buffer=16, min_count=16, drop_zero=False
  )
  c.objective.pg = config_dict.create(name='clipped_pg', clip=1e-4, weight=1.0)
  c.optimizer.update(
    lr=3e-4, b2=0.999, weight_decay=1e-4, grad_clip=1.0, warmup=0
  )
  c.ema = 0.0
  c.updates = 4
  c.microbatches = 16
  c.rollout_chunks = 16
  c.eval.update(every=10, num_prompts=64, samples=1, steps=50, shown=16)
  c.eval.gold = {}  # nothing here judges photographs of shapes
  c.checkpoint.every = 10
  c.rewards.jpeg = config_dict.create(name='jpeg_compressibility', weight=1.0)
  if 'lcm' in variants:
    c.model.net.update(guidance_width=256, guidance=8.0, boundary=10.0)
    c.data.embed.negative = None
    c.policy.update(
      steps=8, guidance_scale=1.0, transition=dict(name='cps'),
      grid=dict(name='lcm'),
    )  # fmt: skip
    c.eval.update(sampler='policy', steps=8)
    c.lora.update(rank=16, alpha=32.0)
    c.optimizer.update(lr=1e-4, weight_decay=0.0, grad_clip=5.0)
    c.advantage.clip = 10.0
    c.updates = 1
    c.steps = 1000
  if 'tiny' in variants:
    c.model.net.update(
      image=(8, 8, 4), channels=(8, 16), blocks=1, transformers=(True, False),
      heads=2, text=32, groups=4, dtype='float32',
    )  # fmt: skip
    c.model.vae.update(channels=(8, 16), blocks=1, groups=4, dtype='float32')
    c.model.vae_dtype = 'float32'
    c.data.embed.encoder.width = 32
    c.policy.steps = 2
    c.advantage.update(buffer=2, min_count=2)
    # XLA's CPU backend is slow at gradients of convolutions in loops.
    c.update(updates=1, microbatches=1, rollout_chunks=1)
    base.make_tiny(c)
  return c
