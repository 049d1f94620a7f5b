"""DPO of an autoregressive image model, to compare with its GRPO.

  python -m gen_rl.main --config=configs/ar_dpo.py

Base, world and oracle are those of configs/ar_grpo.py. The frozen base draws
groups of pictures, the oracle finds the best and the worst of each, and the
policy learns to say the codes of the one rather than those of the other: DPO
(arXiv 2305.18290) on sums over the codes, as in the comparison of DPO and GRPO
of arXiv 2505.17017, whose pairs are drawn once and here anew for every update.
Its beta is 0.1. Of learning rates, 60 updates each: 1e-4 ends at 0.415 in
domain, 5e-4 at 0.440 with one seed and at 0.221, below the base's 0.375, with
another, and 2e-3 at 0.317 after 40; it is 2e-4. An update takes the two rows of
a pair: those between the best and the worst are not in the loss.

Variants, joined by commas:
  online  pairs from the policy itself
  iter    in rounds of 60 updates: pairs come from the policy at the beginning
          of the round, which it is compared with, too
  ipo     IPO (arXiv 2310.12036) in place of DPO
  kto     KTO (arXiv 2402.01306)
  proxy, ood  as of configs/ar_grpo.py
  tiny    two quick steps of all of it, for tests

experiments/ar_dpo compares it with GRPO.
"""

import ml_collections
from ml_collections import config_dict

from configs import ar_grpo, base

OF_GRPO = ('proxy', 'ood', 'tiny')
VARIANTS = ('online', 'iter', 'ipo', 'kto', *OF_GRPO)
EXCLUSIVE = (('online', 'iter'), ('ipo', 'kto'))


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = ar_grpo.get_config(','.join(v for v in variants if v in OF_GRPO))
  c.name = 'ar_dpo' + (f':{arg}' if arg else '')
  c.behaviour = 'params' if 'online' in variants else 'ref'
  c.advantage = config_dict.create(name='best_worst')
  names = [name for name in ('ipo', 'kto') if name in variants]
  c.objective = config_dict.ConfigDict()
  c.objective.preference = config_dict.create(
    name=names[0] if names else 'dpo', beta=0.1, error='nll', weight=1.0
  )
  c.update_members = 2
  c.microbatches = min(c.microbatches, 3)  # of 28 rows
  c.optimizer.lr = 2e-4
  if 'iter' in variants:
    c.copies.ref = config_dict.create(name='rounds', every=60)
  return c
