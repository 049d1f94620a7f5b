"""How scores become one, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import mixers
from gen_rl.build import ConfigError
from gen_rl.rewards import combine
from gen_rl.types import RewardOut

WEIGHTS = dict(a=1.0, b=2.0)


def out(score, valid=(True, True, True), applies=None, **kwargs):
  applies = None if applies is None else jnp.array(applies)
  return RewardOut(
    jnp.float32(score), {}, jnp.array(valid), applies=applies, **kwargs
  )


def merged(mix, a, b):
  merge = jax.jit(lambda a, b: combine.merge(dict(a=a, b=b), WEIGHTS, mix))
  return np.asarray(merge(a, b).score)


def test_a_product():
  """Of 0.5^1 0.4^2, of 1^1 floor^2, and of the one that applies."""
  a = out([0.5, 1.0, 0.25])
  b = out([0.4, 0.0, 0.0], applies=[True, True, False])
  found = merged(mixers.product(floor=0.1), a, b)
  np.testing.assert_allclose(found, [0.5 * 0.16, 0.01, 0.25], rtol=1e-5)
  gone = merged(mixers.product(), out([0.5, 1.0, 1.0], (False, True, True)), b)
  assert gone[0] == 0  # of a row without a score nothing is left


def test_a_gate():
  """2 b counts where a is at least 0.5, or does not apply."""
  a = out([0.4, 0.5, 0.0], applies=[True, True, False])
  b = out([3.0, 3.0, 3.0])
  found = merged(mixers.gated('a', 0.5, closed=-1.0), a, b)
  np.testing.assert_allclose(found, [0.4 - 1, 0.5 + 6, 6], rtol=1e-6)
  with pytest.raises(ConfigError, match="gate is 'c', .* there are a, b"):
    merged(mixers.gated('c'), a, b)


def test_the_default_is_the_weighted_sum():
  a, b = out([1.0, 2.0, 3.0]), out([0.5, 0.0, 1.0])
  np.testing.assert_allclose(merged(None, a, b), [2, 2, 5])
  np.testing.assert_array_equal(
    merged(mixers.weighted_sum(), a, b), merged(None, a, b)
  )


def test_rewards_of_decisions_are_summed():
  a = out([1.0, 2.0, 3.0], steps=jnp.ones((3, 2)))
  with pytest.raises(ConfigError, match='weighted_sum'):
    merged(mixers.product(), a, out([1.0, 1.0, 1.0]))
