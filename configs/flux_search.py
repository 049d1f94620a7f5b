r"""Searches at inference of FLUX.1 dev at 512 x 512: more calls, no training.

  python -m gen_rl.main --config=configs/flux_search.py --mode=search \
    --config.released=/models/FLUX.1-dev \
    --config.rewards.hps.folder=/models/HPS_v2.1_compressed.pt \
    --config.eval.gold.pickscore.folder=/models/PickScore_v1 \
    --config.eval.prompts.path=/data/prompts.txt

The setting of TTSnap (arXiv 2511.22242): FLUX.1 dev in 20 steps, cuts after the
steps 2, 6 and 11, which keep 0.4, 0.4 and 0.5 of the candidates, and HPS v2.1
or ImageReward to choose by. Candidates are those of its budget of 2,000 TFLOPs,
where a network call is 9.9 and a reward call, decoding included, 1.2: 10 of
best of n, and 33 to begin with where some are dropped; 38 in the authors'
ledger, which leaves out a candidate's first call (`selection`). Theirs are
dropped by rewards that learned to read unfinished samples, one for each step,
here by the reward as it is; they have 200 prompts, of ImageReward's.

What is searched is the checkpoint of the workdir, else `released`: the model is
that of configs/flux_flow_grpo.py, so that what that trained is searched with
--workdir. Without files all weights are drawn. Nothing was measured with
released weights.

Variants, joined by commas:
  pruned       as above: the default
  best_of_n    10 candidates
  zero_order   2, then 4 rounds of 2 neighbours (arXiv 2501.09732)
  ranks        HPS and PickScore choose by the sum of their ranks; CLIP judges
               (with pruned and best_of_n)
  imagereward  ImageReward chooses: needs rewards.imagereward.folder, and its
               tokenizer, data.reader.tokenizer.path; aesthetics judge
  files        prompts from a file, one a line
  tiny         a quick search of tiny drawn weights, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flux_flow_grpo

SEARCHES = {
  'pruned': dict(n=33, steps=(2, 6, 11), keep=(0.4, 0.4, 0.5)),
  'best_of_n': dict(n=10),
  'zero_order': dict(n=2, rounds=4),
}
VARIANTS = (*SEARCHES, 'ranks', 'imagereward', 'files', 'tiny')
EXCLUSIVE = (
  tuple(SEARCHES), ('ranks', 'imagereward'), ('ranks', 'zero_order'),
)  # fmt: skip


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flux_flow_grpo.get_config(
    ','.join(v for v in variants if v in ('files', 'tiny'))
  )
  c.name = 'flux_search' + (f':{arg}' if arg else '')
  name = next((v for v in variants if v in SEARCHES), 'pruned')
  c.search = config_dict.create(name=name, **SEARCHES[name])
  drawn = lambda reward: config_dict.create(name=reward, folder='drawn')
  c.rewards = dict(hps=dict(**drawn('hps'), weight=1.0))
  c.eval.gold = dict(pickscore=drawn('pickscore'))
  c.data.reader.texts = dict(clip='{prompt}', hps='{cleaned}')
  c.eval.update(steps=20, num_prompts=64, samples=1)
  if 'ranks' in variants:
    c.search.ranks = True
    c.rewards.pickscore = config_dict.create(
      name='pickscore', folder='drawn', weight=1.0
    )
    c.eval.gold = dict(clip=drawn('clip_score'))
  if 'imagereward' in variants:
    c.rewards = dict(
      imagereward=dict(name='imagereward', folder='', weight=1.0)
    )
    c.eval.gold = dict(aesthetic=drawn('aesthetic'))
    c.data.reader = config_dict.create(
      tokenizer=dict(name='pretrained', path='bert-base-uncased'), length=35,
      texts=dict(imagereward='{prompt}'), truncate=True,
    )  # fmt: skip
  if 'tiny' in variants:
    c.eval.update(num_prompts=4, steps=4, shown=4)
    c.search.n = min(c.search.n, 4)
    if name == 'pruned':
      c.search.update(steps=(0, 1, 2), keep=(0.5, 1.0, 0.5))
  return c
