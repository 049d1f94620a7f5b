"""ShapesWorld rewards: what its exact oracle says of a picture.

  shapes_geneval  partial credit: the mean of fractions of GenEval's strict
                  score (Flow-GRPO, arXiv 2505.05470), or Flow-GRPO's OCR score
                  for words, mixed with the strict verdict
  shapes_strict   1 if the picture shows exactly what was asked for, else 0
  shapes_compressed  a weak model of the first, as learned reward models are:
                  all pictures within a narrow range, with a taste and noise

The strict verdict wants every clause met, no object nobody asked for, and at
most `JUNK_PIXELS` of coloured area that belongs to nothing.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped

from gen_rl.build import ConfigError
from gen_rl.fields import Fraction, NonNegative, Positive
from gen_rl.rewards import pixels
from gen_rl.scoring import geneval, spelling
from gen_rl.types import Array, Reward, RewardInputs, RewardOut
from gen_rl.utils import rng
from gen_rl.worlds import shapes, shapes_oracle

_NEEDED = ('include_class', 'word', 'word_color')


def judge(
  images: Float[Array, 'b 24 24 3'], info: dict[str, Shaped[Array, 'b ...']]
) -> tuple[Float[Array, ' b'], Bool[Array, ' b']]:
  """Partial credit in [0, 1] and strict verdict.

  Args:
    images: in [0, 1].
    info: `grammar.spec_arrays`.
  """
  found = shapes_oracle.look(images)
  detections = geneval.Detections(
    box=found.box,
    label=found.shape,
    color=found.color,
    valid=found.valid,
    score=found.score,
  )
  clauses = geneval.Clauses(
    include_class=info['include_class'],
    include_count=info['include_count'],
    include_color=info['include_color'],
    relation=info['relation'],
  )
  partial, _ = geneval.strict_score(detections, clauses, quirks=False)
  strict = geneval.exact(detections, clauses) & (
    found.object_junk < shapes_oracle.JUNK_PIXELS
  )

  is_text = info['word'] >= 0
  b, n = found.letters.shape
  target = jnp.asarray(shapes.word_letters())[jnp.maximum(info['word'], 0)]
  # Unread letters get an id no letter has.
  read = jnp.where(found.letters < 0, len(shapes.LETTERS), found.letters)
  length = jnp.full(b, n)
  letters = spelling.ocr_score(read, target, length, length)
  asked = info['word_color']
  right_color = (asked < 0) | (found.letter_color == asked)
  text_partial = jnp.where(
    asked < 0, letters, letters * (1.0 + right_color) / 2.0
  )
  text_strict = (
    (found.letters == target).all(-1)
    & right_color
    & (found.text_junk < shapes_oracle.JUNK_PIXELS)
  )
  partial = jnp.where(is_text, text_partial, partial)
  strict = jnp.where(is_text, text_strict, strict)
  return jnp.clip(partial, 0.0, 1.0), strict


def _checked(inputs: RewardInputs) -> RewardInputs:
  missing = [name for name in _NEEDED if name not in inputs.info]
  if missing:
    raise ConfigError(
      'the ShapesWorld oracle needs to know what a prompt asks for, and these '
      f'prompts do not say ({", ".join(missing)} missing); use '
      'data.prompts.name="shapes", a file whose every line is a sentence of '
      'ShapesWorld, or another reward'
    )
  return inputs


def shapes_geneval(strict_weight: Fraction = 0.5) -> Reward:
  """Score (1 - w) partial + w strict, in [0, 1].

  Args:
    strict_weight: w; 0 is Flow-GRPO's mean of fractions, 1 all or nothing.
  """

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    partial, strict = judge(_checked(inputs).media, dict(inputs.info))
    strict = strict.astype(jnp.float32)
    return RewardOut(
      score=(1 - strict_weight) * partial + strict_weight * strict,
      parts=dict(partial=partial, strict=strict),
      valid=jnp.isfinite(inputs.media).all((1, 2, 3)),
    )

  return Reward('shapes_geneval', (), score, verdict=strict_weight == 1)


def shapes_strict() -> Reward:
  """Score 1 or 0: the gold oracle."""
  both = shapes_geneval(strict_weight=1.0)

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    out = both.score(params, inputs, key)
    return out.replace(parts=dict(partial=out.parts['partial']))

  return Reward('shapes_strict', (), score, verdict=True)


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
    saturation = pixels.chroma(inputs.media)
    keys = rng.per_row(key, len(saturation))
    value = scale * out.score + bias * saturation
    return out.replace(
      score=value + noise * rng.normal(keys, ()),
      parts=dict(gold=out.score, saturation=saturation),
    )

  return Reward('shapes_compressed', (), score)
