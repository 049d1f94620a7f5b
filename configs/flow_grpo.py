"""Flow-GRPO on ShapesWorld (arXiv 2505.05470)."""

import ml_collections

from configs import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Variants, joined by commas: tiny."""
  c = base.get_config()
  c.name = 'flow_grpo' + (f':{arg}' if arg else '')
  c.init = 'asset:shapes_base'
  c.rewards.geneval = dict(name='shapes_geneval', strict_weight=0.5, weight=1.0)
  c.objective.pg = dict(name='clipped_pg', clip=1e-2, weight=1.0)
  if arg == 'tiny':
    base.make_tiny(c)
  return c
