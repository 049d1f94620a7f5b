r"""TPO of Stable Diffusion 1.5 at 512 x 512 (arXiv 2509.25771).

  python -m gen_rl.main --config=configs/sd15_tpo.py:files \
    --config.released=/models/stable-diffusion-v1-5 \
    --config.data.prompts.path=captions/train.jsonl \
    --config.eval.prompts.path=captions/test.jsonl \
    --config.data.embed.cache=captions/features \
    --config.eval.gold.hps.folder=/models/HPS_v2.1_compressed.pt

Of a picture's own caption and a false one, the network learns to denoise the
picture better than the base under the first and worse under the second:
configs/tpo.py at the scale of the paper. A line of the files is a picture of
their folder, its caption, and captions that a language model made false (the
paper's four kinds: other contents, attributes, places or surroundings):

  {"prompt": "a red cup", "image": "1.jpg", "wrong_prompts": ["a blue cup"]}

The pictures of an update, 3 MB each, and the features of its captions are split
over the devices of data and fsdp: 0.46 GiB on each of 16. Without mesh.fsdp the
parameters, their copy and the moments take 13.0 GiB of every device, and the
gradients 3.2 more. With mesh.fsdp=16 a plan for v5e:4x4 still asks for 50 GiB
of 15.75, nearly all of them temporary (1 Dec 2026): no layout for 16 of these
chips is known yet.
Evaluations draw the prompts of their own file, which needs no false ones. What
is longer than 77 tokens ends the run before it begins: cut off, a false caption
may be the true one. Without `files` pictures are renders of ShapesWorld, and
without `released` all weights are drawn: enough to plan a run (gen_rl.plan).

The paper's settings are not known to this project. Those of TDPO are the
published ones of Diffusion-DPO, on whose loss it is built
(configs/diffusion_dpo.py:sd15), of TKTO those of Diffusion-KTO's code
(exps/example.sh, train_kto_sd_v1.5.py): 20,000 updates of 8 rows, AdamW at 1e-7
after a warm-up of 200, beta 1000. What differs from them, and why:
  bound    0.004 on how much worse a false prompt gets (TDPO): 10 in the
           argument of the sigmoid, as in configs/tpo.py; the paper clips, its
           form and number are not known here. None there
  rows     as many true as false (TKTO); there 80 % are liked
  dtype    bfloat16 arithmetic; there float16
  latents  means of the autoencoder's posterior; there samples of it
  prompts  are all kept; there 20 % are emptied
  pairs    are not mirrored: a caption may say where things are
  point    of reference of TKTO: a mean over a picture's two rows; there over
           the batch
  eval     every 500 updates, by HPS; there by hand afterwards
Nothing was measured with released weights yet.

Variants, joined by commas:
  tkto   labels instead of pairs
  files  captioned pictures of your own
  tiny   two quick steps of all of it with tiny drawn weights, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, diffusion_dpo

VARIANTS = ('tkto', 'files', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  tiny = 'tiny' in variants
  c = diffusion_dpo.get_config('sd15,tiny' if tiny else 'sd15')
  c.name = 'sd15_tpo' + (f':{arg}' if arg else '')
  c.data.prompts = config_dict.create(name='shapes_contrasts', split='train+rl')
  c.rollout = config_dict.create(name='prompt_pairs')
  c.objective.preference.loser_cap = 0.004
  if 'tkto' in variants:
    c.objective.preference = config_dict.create(
      name='kto', beta=1000.0, draws=1, error='noise', weight=1.0
    )
  if 'tkto' in variants and not tiny:
    c.steps = 20000
    c.data.prompts_per_step = 4
    c.microbatches = c.rollout_chunks = 1
    c.optimizer.update(lr=1e-7, warmup=200)
  if 'files' in variants:
    c.data.prompts = config_dict.create(
      name='metadata_jsonl', path='', image_field='image',
      image_size=16 if tiny else 512, wrong_field='wrong_prompts',
    )  # fmt: skip
    c.eval.prompts = config_dict.create(
      name='metadata_jsonl', path='', image_field='', wrong_field=''
    )
    c.rollout.name = 'given_prompt_pairs'
  return c
