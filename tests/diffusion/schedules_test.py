"""Grids, windows and time distributions against hand-worked tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_rl.diffusion import ddpm, schedules

# False-alarm rate of every statistical test (fixed keys).
LEVEL = 1e-3


def test_linear_grid_by_hand():
  grid = schedules.linear(4)
  assert grid.dtype == jnp.float32
  np.testing.assert_array_equal(grid, [1.0, 0.75, 0.5, 0.25, 0.0])
  # shift 3: 3 t / (1 + 2 t) -> 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5.
  np.testing.assert_allclose(
    schedules.linear(4, shift=3.0), [1.0, 0.9, 0.75, 0.5, 0.0], rtol=1e-6
  )


@pytest.mark.parametrize('shift', [0.5, 1.0, 3.0, 6.93])
def test_grids_start_at_one_end_at_zero_and_decrease(shift):
  grid = np.asarray(schedules.linear(50, shift))
  assert grid.shape == (51,) and grid[0] == 1 and grid[-1] == 0
  assert np.all(np.diff(grid) < 0)


@pytest.mark.parametrize('tokens, mu', [(256, 0.5), (1024, 0.63), (4096, 1.15)])
def test_flux_grid_is_the_published_formula(tokens, mu):
  # mu(1024) = 0.5 + 0.65 * 768 / 3840. FLUX: e^mu / (e^mu + 1 / t - 1) on
  # t = 1 .. 1/T, then 0.
  t = np.linspace(1, 1 / 8, 8)
  want = np.append(math.exp(mu) / (math.exp(mu) + 1 / t - 1), 0)
  np.testing.assert_allclose(
    schedules.dynamic_shift(8, tokens), want, rtol=1e-6
  )


def test_noise_levels_by_hand():
  a = schedules.noise_levels
  np.testing.assert_allclose(a(4, 0.7), [0.7] * 4)
  np.testing.assert_allclose(a(5, 0.7, 1, 2), [0, 0.7, 0.7, 0, 0])
  np.testing.assert_allclose(
    a(4, jnp.array([0.4, 0.3, 0.2, 0.1]), 2, 5), [0, 0, 0.2, 0.1]
  )
  np.testing.assert_allclose(
    a(3, 1.0, jnp.array([0, 2]), 1), [[1, 0, 0], [0, 0, 1]]
  )


def test_moving_the_window_does_not_recompile():
  traces = []

  @jax.jit
  def f(noise, start, window):
    traces.append(1)
    return schedules.noise_levels(6, noise, start, window)

  for start in range(4):
    got = f(0.5, start, 2)
    want = np.zeros(6)
    want[start : start + 2] = 0.5
    np.testing.assert_allclose(got, want)
  assert len(traces) == 1


def test_random_window_is_uniform_over_the_starts_that_fit():
  keys = jax.random.split(jax.random.key(0), 6000)
  starts = jax.vmap(lambda k: schedules.random_window(k, 3, 7, 2))(keys)
  values, counts = np.unique(np.asarray(starts), return_counts=True)
  np.testing.assert_array_equal(values, [2, 3, 4])
  assert scipy.stats.chisquare(counts).pvalue > LEVEL


def test_progressive_window_by_hand():
  # Starts 0 2 4 of a window of 2 in steps 0..6, three iterations each.
  def starts(**kw):
    f = jax.jit(
      lambda i: schedules.progressive_window(i, 2, 7, tau=3, stride=2, **kw)
    )
    return [int(f(i)) for i in range(12)]

  assert starts() == [0, 0, 0, 2, 2, 2, 4, 4, 4, 0, 0, 0]
  assert starts(roll_back=False) == [0, 0, 0, 2, 2, 2, 4, 4, 4, 4, 4, 4]
  # exp(-0.5 max(l - 1, 0)) = 1, e^-0.5, e^-1.5 -> tau = 3, 2, 1.
  assert starts(decay=0.5, threshold=1) == [0, 0, 0, 2, 2, 4] * 2


def test_windows_that_do_not_fit_and_empty_grids_are_refused():
  with pytest.raises(ValueError, match='window of 4 steps'):
    schedules.random_window(jax.random.key(0), 4, 3)
  with pytest.raises(ValueError, match='window of 0 steps'):
    schedules.progressive_window(0, 0, 3)
  with pytest.raises(ValueError, match='steps=0'):
    schedules.linear(0)
  with pytest.raises(ValueError, match='shift=0'):
    schedules.linear(3, 0)


def test_training_times_have_the_stated_distribution():
  keys = jax.random.split(jax.random.key(0), 20000)
  s = np.asarray(schedules.logit_normal(keys, mean=0.3, std=0.8))
  logit = np.log(s / (1 - s))
  cdf = scipy.stats.norm(0.3, 0.8).cdf
  assert scipy.stats.kstest(logit, cdf).pvalue > LEVEL
  s = np.asarray(schedules.uniform(keys))
  assert scipy.stats.kstest(s, 'uniform').pvalue > LEVEL
  # Shifting a logit-normal moves its logit by log shift.
  s = np.asarray(schedules.logit_normal(keys, 0.3, 0.8, shift=2.0))
  np.testing.assert_allclose(
    np.log(s / (1 - s)), logit + math.log(2), atol=1e-4
  )


def test_levels_of_a_discrete_process_are_drawn_equally_often():
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = np.asarray(schedules.levels(keys, train_steps=8))
  table = ddpm.flow_times(train_steps=8).astype(np.float32)
  found, count = np.unique(drawn, return_counts=True)
  np.testing.assert_array_equal(found, table)
  assert np.abs(count - 500).max() < 5 * np.sqrt(500 * 7 / 8)
