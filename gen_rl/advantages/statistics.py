"""Statistics of groups of scores, for the advantages of this package."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32

from gen_rl.types import Array, Metrics, PyTree, RewardOut

# What `update` returns: (adv, weight, state, metrics).
Update = tuple[Float32[Array, 'b 1'], Float32[Array, ' b'], PyTree, Metrics]


def valid_scores(
  rewards: RewardOut,
) -> tuple[Float32[Array, ' b'], Bool[Array, ' b']]:
  """Scores with 0 where invalid, and which are valid."""
  score = jax.lax.stop_gradient(rewards.score.astype(jnp.float32))
  valid = rewards.valid.astype(bool) & jnp.isfinite(score)
  return jnp.where(valid, score, 0.0), valid


def moments(
  score: Float32[Array, '*p n'], valid: Bool[Array, '*p n'], ddof: int = 0
) -> tuple[
  Float32[Array, '*p 1'],
  Float32[Array, '*p 1'],
  Float32[Array, '*p 1'],
  Bool[Array, '*p 1'],
]:
  """Statistics of the valid entries along the last axis, which is kept.

  Returns count, mean, standard deviation (two-pass; 0 when count <= ddof) and
  whether the entries differ.
  """
  count = valid.sum(-1, keepdims=True).astype(jnp.float32)
  total = jnp.where(valid, score, 0.0).sum(-1, keepdims=True)
  mean = total / jnp.maximum(count, 1.0)
  square = jnp.where(valid, score - mean, 0.0) ** 2
  var = square.sum(-1, keepdims=True) / jnp.maximum(count - ddof, 1.0)
  high = jnp.where(valid, score, -jnp.inf).max(-1, keepdims=True)
  low = jnp.where(valid, score, jnp.inf).min(-1, keepdims=True)
  differ = high > low
  std = jnp.where(differ, jnp.sqrt(var), 0.0)
  return count, mean, std, differ


def finish(
  raw: Float32[Array, ' b'],
  keep: Bool[Array, ' b'],
  valid: Bool[Array, ' b'],
  std: Float32[Array, 'P 1'],
  count: Float32[Array, 'P 1'],
  group_size: int,
  clip: float | None,
  drop_zero: bool,
) -> tuple[Float32[Array, 'b 1'], Float32[Array, ' b'], Metrics]:
  """Clips and weighs raw advantages; `std`, `count` of each group."""
  raw = jnp.where(keep, raw, 0.0)
  adv = raw if clip is None else jnp.clip(raw, -clip, clip)
  signal = keep & (adv != 0)
  weight = (signal if drop_zero else keep).astype(jnp.float32)
  clipped = jnp.zeros_like(keep) if clip is None else jnp.abs(raw) > clip
  some = signal.reshape(-1, group_size).any(-1)
  pairs = count >= 2
  metrics = {
    'advantage/std_mean': jnp.where(pairs, std, 0.0).sum()
    / jnp.maximum(pairs.sum(), 1),
    'advantage/zero_std_fraction': (~some).mean(dtype=jnp.float32),
    'advantage/clip_fraction': clipped.sum() / jnp.maximum(valid.sum(), 1),
    'advantage/invalid': (~valid).mean(dtype=jnp.float32),
  }
  return adv[:, None], weight, metrics
