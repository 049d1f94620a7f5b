"""ShapesWorld rewards: what its exact oracle says of a picture.

shapes_geneval  partial credit: the mean of fractions of GenEval's strict
                score (Flow-GRPO, arXiv 2505.05470), or Flow-GRPO's OCR score
                for words, mixed with the strict verdict
shapes_strict   1 if the picture shows exactly what was asked for, else 0
shapes_compressed  a weak model of the first, as learned reward models are:
                all pictures within a narrow range, with a taste and noise
shapes_inked    1 if the picture is outlined in ink on paper, else 0
"""

from typing import Literal

import jax.numpy as jnp

from gen_rl.fields import Fraction, NonNegative, Positive
from gen_rl.rewards import pixels
from gen_rl.rewards.worlds import world_oracle, world_verdict
from gen_rl.types import Reward, RewardInputs, RewardOut
from gen_rl.utils import rng
from gen_rl.worlds import inked


def shapes_geneval(strict_weight: Fraction = 0.5) -> Reward:
  """Score (1 - w) partial + w strict, in [0, 1].

  Args:
    strict_weight: w; 0 is Flow-GRPO's mean of fractions, 1 all or nothing.
  """
  return world_oracle('shapes', strict_weight)._replace(name='shapes_geneval')


def shapes_strict() -> Reward:
  """Score 1 or 0: the gold oracle."""
  return world_verdict('shapes')._replace(name='shapes_strict')


def shapes_compressed(
  scale: Positive = 0.05,
  bias: float = 0.3,
  noise: NonNegative = 0.01,
  strict_weight: Fraction = 0.5,
) -> Reward:
  """Score scale * gold + bias * saturation + noise * e, e standard normal.

  What Pref-GRPO (arXiv 2508.20751) says of pointwise reward models: the
  pictures of a prompt score nearly the same, and a difference may be taste or
  chance. `e` is a row's own and does not change with the picture; where there
  is no other difference, it decides.

  Parts: `gold` in [0, 1], `saturation` (`pixels.chroma`).

  Args:
    scale: of the gold score.
    bias: score of pure colours over greys, whatever they show.
    noise: standard deviation, in units of the score.
    strict_weight: of the gold score, see `shapes_geneval`.
  """
  gold = shapes_geneval(strict_weight)

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    out = gold.score(params, inputs, key)
    saturation = pixels.chroma(pixels.shown(inputs))
    keys = rng.per_row(key, len(saturation))
    value = scale * out.score + bias * saturation
    return out.replace(
      score=value + noise * rng.normal(keys, ()),
      parts=dict(gold=out.score, saturation=saturation),
    )

  return Reward('shapes_compressed', (), score)


def shapes_inked(of: Literal['both', 'paper', 'outline'] = 'both') -> Reward:
  """Score 1 or 0: is a picture in the style of `worlds.inked`?

  Pixels alone decide, whatever it shows: no network reads it.

  Args:
    of: what has to be there: light paper, dark outlines, or both.
  """

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    images = pixels.shown(inputs)
    paper, outline = inked.look(images)
    there = dict(paper=paper, outline=outline, both=paper & outline)[of]
    finite = jnp.isfinite(images).all((1, 2, 3))
    return RewardOut(there.astype(jnp.float32), {}, finite)

  return Reward('shapes_inked', (), score, verdict=True)
