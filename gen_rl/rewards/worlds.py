"""Rewards of a world: what its exact oracle says of a picture.

world_oracle   partial credit, mixed with the strict verdict
world_verdict  1 if the picture shows exactly what was asked for, else 0
"""

import jax.numpy as jnp

from gen_rl import build, worlds
from gen_rl.build import ConfigError
from gen_rl.fields import Fraction, Spec
from gen_rl.types import Reward, RewardInputs, RewardOut


def world_oracle(world: Spec, strict_weight: Fraction = 0.5) -> Reward:
  """Score (1 - w) partial + w strict, in [0, 1].

  Args:
    world: whose oracle, a function of gen_rl.worlds.
    strict_weight: w; 0 is partial credit alone, 1 all or nothing.

  Raises:
    ConfigError: when called, the prompts are no sentences of the world, or the
      pictures are not of its size.
  """
  of = build.build(worlds, world)

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    if inputs.image.shape[1:] != of.shape:
      raise ConfigError(
        f'the oracle of {of.name} reads pictures of {list(of.shape)}, and '
        f'these are {list(inputs.image.shape[1:])}; name another judge, or '
        'none (eval.gold={})'
      )
    partial, strict = of.judge(inputs.image, of.facts_of(inputs.info))
    strict = strict.astype(jnp.float32)
    inner = tuple(range(1, inputs.image.ndim))
    return RewardOut(
      score=(1 - strict_weight) * partial + strict_weight * strict,
      parts=dict(partial=partial, strict=strict),
      valid=jnp.isfinite(inputs.image).all(inner),
    )

  return Reward(f'{of.name}_oracle', (), score, verdict=strict_weight == 1)


def world_verdict(world: Spec) -> Reward:
  """Score 1 or 0: the gold oracle."""
  both = world_oracle(world, strict_weight=1.0)

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    out = both.score(params, inputs, key)
    return out.replace(parts=dict(partial=out.parts['partial']))

  return both._replace(score=score)
