"""A linear flow, whose samples are a multiple of their noise."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import rollout, search, testing
from gen_rl.models.parts.layers import Net
from gen_rl.policies import ode
from gen_rl.types import RewardOut

SLOPE, STEPS, SIZE = 0.5, 5, 6


@pytest.fixture
def linear():
  """Of velocity SLOPE x: what a search needs, and what it would have drawn.

  `space(score)` judges by score(latents [b 6]) -> [b], and notes how many
  candidates it was shown side by side in `seen`; more rewards, {label: (score,
  weight)}, are parts alone.
  """
  net = Net(
    lambda key: (), lambda params, x, t, cond: SLOPE * x, (SIZE,), lambda c: c
  )
  segments, seen = ode.segments(net, STEPS), []

  def space(score, chunk=0, more=()):
    more = dict(more)

    def judge(latents, rows, group_size):
      seen.append(group_size)
      value = score(latents)
      parts = {k: each(latents) for k, (each, _) in more.items()}
      return RewardOut(value, dict(one=value, **parts), jnp.isfinite(value))

    weights = dict(one=1.0) | {k: weight for k, (_, weight) in more.items()}
    return search.Space(segments, (), judge, weights, chunk)

  rows = rollout.make_rows(
    testing.batch(range(3)), 1, jax.random.key(0), jnp.int32(0)
  )
  gain = (1 - SLOPE / STEPS) ** STEPS

  def samples(n):
    """[3 n 6], of the n candidates of each row."""
    noise = segments.noise(search.candidates(rows, n))
    return gain * np.asarray(noise).reshape(3, n, SIZE)

  return types.SimpleNamespace(
    space=space, rows=rows, samples=samples, seen=seen, steps=STEPS, gain=gain
  )
