"""Searches at inference on ShapesWorld: more calls in place of training.

  python -m gen_rl.main --config=configs/search.py --mode=search
  python -m gen_rl.main --config=configs/search.py:pruned --mode=search
  python -m gen_rl.main --config=configs/search.py --mode=sample --prompt="..."

What is searched is the checkpoint of the workdir, else the shipped base;
trained, this is configs/flow_grpo.py:proxy. Searches go by the learned
detector's reward, which has a gradient and can be fooled; the oracle judges
what they find. All spend about as much on a sample as best of 8 does, 67
network calls, where a call of the reward counts 0.37 and one that a gradient
goes back through 2 (in FLOPs; it is computed again on the way). A minute or two
on two cores.

Variants, joined by commas ("pruned,tiny"):
  best_of_n       8 candidates (arXiv 2501.09732): the default
  pruned          12, of which half go on after steps 2 and 5 (arXiv 2511.22242)
  zero_order      2, then 3 rounds of 2 neighbours (arXiv 2501.09732)
  noise_gradient  2 updates of one noise (arXiv 2406.04312), at 4 times the
                  published rate
  tournament      8 in a knock-out of pairs: the judge of a pair sees what the
                  detector says of both, and errs
  placed          harder prompts, of colours and places at once ("a red circle
                  left of a blue square"), of which the base saw none
  few             4 steps a sample in place of 8, and twice the candidates; 5
                  updates of the noise
  tiny            two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

SEARCHES = {
  'best_of_n': dict(n=8),
  'pruned': dict(n=12, steps=(2, 5), keep=(0.5, 0.5)),
  'zero_order': dict(n=2, rounds=3),
  'noise_gradient': dict(n=1, updates=2, rate=20.0),
  'tournament': dict(n=8, group=2),
}
FEW = {
  'best_of_n': dict(n=16),
  'pruned': dict(n=24, steps=(0, 2), keep=(0.5, 0.5)),
  'zero_order': dict(n=2, rounds=7),
  'noise_gradient': dict(n=1, updates=5, rate=20.0),
  'tournament': dict(n=16, group=2),
}
VARIANTS = (*SEARCHES, 'placed', 'few', 'tiny')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, (tuple(SEARCHES),))
  c = flow_grpo.get_config('proxy')
  c.name = 'search' + (f':{arg}' if arg else '')
  name = next((v for v in variants if v in SEARCHES), 'best_of_n')
  settings = FEW if 'few' in variants else SEARCHES
  c.search = config_dict.create(name=name, **settings[name])
  if name == 'tournament':
    c.rewards.detector.weight = 0.0
    c.rewards.wins = config_dict.create(
      name='win_rate', reward=dict(name='shapes_detector'), tie=0.02,
      temperature=0.05, weight=1.0,
    )  # fmt: skip
  if 'placed' in variants:
    c.eval.prompts = config_dict.create(name='shapes_placed', split='heldout')
  if 'tiny' in variants:
    base.make_tiny(c)
  c.eval.steps = 4 if 'few' in variants else 8
  return c
