"""Objectives: losses over replayed decisions, as `types.Objective`.

A config names one of the functions below; its signature is the schema.
"""

from gen_rl.objectives.matching import flow_matching, rwr
from gen_rl.objectives.policy_gradient import clipped_pg, reinforce
from gen_rl.objectives.regularize import entropy, kl, velocity_kl

__all__ = [
  'clipped_pg',
  'entropy',
  'flow_matching',
  'kl',
  'reinforce',
  'rwr',
  'velocity_kl',
]

BUILDS = ('Objective',)
