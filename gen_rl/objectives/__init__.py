"""Objectives: losses over replayed decisions, as `types.Objective`.

A config names one of the functions below; its signature is the schema.
"""

from gen_rl.objectives.consistency import consistency_distillation
from gen_rl.objectives.divergence import divergence_pg
from gen_rl.objectives.implicit import implicit_guidance
from gen_rl.objectives.kl_estimates import sampled_kl
from gen_rl.objectives.matching import awm, flow_matching, nft, nll, rwr
from gen_rl.objectives.pathwise import reward_backprop
from gen_rl.objectives.policy_gradient import clipped_pg, rebel, reinforce
from gen_rl.objectives.preference import dpo, ipo, kto
from gen_rl.objectives.regularize import entropy, kl, velocity_kl
from gen_rl.objectives.token_ratio import cispo, gspo
from gen_rl.objectives.whole_groups import crd, dgpo

__all__ = [
  'awm',
  'cispo',
  'clipped_pg',
  'consistency_distillation',
  'crd',
  'dgpo',
  'divergence_pg',
  'dpo',
  'entropy',
  'flow_matching',
  'gspo',
  'implicit_guidance',
  'ipo',
  'kl',
  'kto',
  'nft',
  'nll',
  'rebel',
  'reinforce',
  'reward_backprop',
  'rwr',
  'sampled_kl',
  'velocity_kl',
]

BUILDS = ('Objective',)
