"""Knock-outs whose winners are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, search
from gen_rl.searches import knockout
from gen_rl.selection import Cost
from gen_rl.types import RewardOut
from gen_rl.utils import rng


def found(method, space, rows):
  return jax.jit(lambda rows: method.find(space, rows))(rows)


@pytest.mark.parametrize('n, group, chunk', [(8, 2, 0), (8, 2, 16), (9, 3, 0)])
def test_by_true_scores_the_best_wins(linear, n, group, chunk):
  method = knockout.tournament(n, group)
  space = linear.space(lambda x: x[:, 0], chunk)
  out = found(method, space, linear.rows)
  samples = linear.samples(n)
  best = samples[:, :, 0].argmax(1)
  np.testing.assert_array_equal(out.index, best)
  np.testing.assert_allclose(out.sample, samples[range(3), best], rtol=1e-5)
  assert set(linear.seen) == {group}
  judged = {8: 8 + 4 + 2, 9: 9 + 3}[n]
  assert out.cost == Cost(n * linear.steps, judged)


@pytest.mark.parametrize('place, winner', [(0, 0), (1, 7)])
def test_a_judge_that_prefers_a_place(linear, place, winner):
  """The first of every pair wins, or the second: the first or the last of 8."""
  prefers = lambda x: (jnp.arange(len(x)) % 2 == place).astype(jnp.float32)
  out = found(knockout.tournament(), linear.space(prefers), linear.rows)
  np.testing.assert_array_equal(out.index, winner)


def test_rounds_are_drawn_anew(linear):
  """By one draw for all rounds the largest of them would win."""

  def judge(latents, rows, group_size):
    value = rng.uniform(rows.keys, ())
    return RewardOut(value, {}, jnp.ones(len(value), bool))

  @jax.jit
  def largest(rows):
    keys = rng.step_keys(search.candidates(rows, 8).keys, 0)
    return rng.uniform(keys, ()).reshape(3, 8).argmax(1)

  space = linear.space(None)._replace(judge=judge)
  out = found(knockout.tournament(8), space, linear.rows)
  assert (out.index != largest(linear.rows)).any()


def test_groups_that_leave_some_over():
  with pytest.raises(build.ConfigError, match='n=12 leaves 3 over; .* 2, 4, 8'):
    knockout.tournament(12, 2)
