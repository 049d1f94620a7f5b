"""Time grids, per-step noise levels, training windows and training times.

Grids run from t_0 = 1 (noise) to t_T = 0 (data); those of discrete processes
(`ddim`, `lcm`) are inside of that, see `ddpm`. With a shift s > 0,

  t -> s t / (1 + (s - 1) t)                    arXiv 2403.03206, eq. 23 (1)

spends more of the steps near the noise for s > 1. FLUX takes s = e^mu with mu
linear in the number of image tokens; its e^mu / (e^mu + 1 / t - 1) is (1).

A window of w steps starting at l is a vector of noise levels, a inside and 0
outside (Flow-GRPO-Fast, MixGRPO arXiv 2507.21802): one traced [T] array, so
moving it never recompiles. MixGRPO moves the start from l to l + stride after

  tau(l) = ceil(tau exp(-decay max(l - threshold, 0)))                   (2)

iterations. The last step (t' = 0) is noise-free in every transition, so a
window that should be trained in full ends at `high` <= T - 1.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, Int32, Key
import numpy as np

from gen_rl.diffusion import ddpm
from gen_rl.fields import Count, Fraction, Index, NonNegative, Positive
from gen_rl.types import AnyArray, Array


def shift_time(
  t: Float[AnyArray, '*t'], shift: ArrayLike
) -> Float[AnyArray, '*t']:
  """(1); maps [0, 1] onto itself."""
  return shift * t / (1.0 + (shift - 1.0) * t)


def linear(steps: int, shift: Positive = 1.0) -> Float32[Array, ' {steps}+1']:
  """Grid of times, exactly 1 at the start and 0 at the end."""
  if steps < 1:
    raise ValueError(f'steps={steps}; a grid needs at least 1.')
  if shift <= 0:
    raise ValueError(f'shift={shift}; must be positive.')
  t = 1.0 - np.arange(steps + 1, dtype=np.float64) / steps
  return jnp.asarray(shift_time(t, shift), jnp.float32)


def compressed_tail(
  steps: int, end: int | Int32[Array, ''], ratio: float, shift: Positive = 1.0
) -> tuple[Float32[Array, ' {steps}+1'], int | Int32[Array, '']]:
  """A grid with fewer steps after step `end` (MixGRPO-Flash).

  Of n steps after it ceil(ratio n) stay. The paper's code takes floor(ratio
  (n + 1)) - 1, 7 of 21 at ratio 0.4 where this takes 9, and none where that is
  0: its samples then keep the noise they have there.

  Args:
    steps: T of the whole grid.
    end: steps before this one stay; may be traced.
    ratio: share of the remaining steps that is kept, at least one of them.
    shift: as in `linear`.

  Returns:
    (grid, the number N of steps up to time 0); the grid is 0 from N on. With
    ratio 1, N is static: T.
  """
  if not 0 < ratio <= 1:
    raise ValueError(f'ratio={ratio}; it must be in (0, 1].')
  end = jnp.asarray(end, jnp.int32)
  rest = steps - end
  kept = jnp.ceil(ratio * rest - 1e-6).astype(jnp.int32)
  kept = jnp.where(rest > 0, jnp.maximum(kept, 1), 0)
  i = jnp.arange(steps + 1)
  stretched = end + (i - end) * rest / jnp.maximum(kept, 1)
  place = jnp.where(i <= end, i, jnp.minimum(stretched, steps))
  t = jnp.where(i >= end + kept, 0.0, 1.0 - place / steps)
  return shift_time(t, shift), steps if ratio == 1 else end + kept


def dynamic_shift(
  steps: int,
  tokens: int,
  base_tokens: Count = 256,
  max_tokens: Count = 4096,
  base_shift: float = 0.5,
  max_shift: float = 1.15,
) -> Float32[Array, ' {steps}+1']:
  """FLUX's grid; `tokens` is the number of image tokens.

  mu goes linearly from `base_shift` at `base_tokens` to `max_shift` at
  `max_tokens` (and beyond both).
  """
  shift = flux_shift(tokens, base_tokens, max_tokens, base_shift, max_shift)
  return linear(steps, shift)


def sd3(
  steps: int, shift: Positive = 3.0, train_steps: Count = 1000
) -> Float32[Array, ' {steps}+1']:
  """The grid of Stable Diffusion 3 in diffusers, and so that of Flow-GRPO.

  T times from 1 to (1) of 1 / train_steps, evenly spaced, are shifted by (1)
  once more, and 0 follows: the last step is short, the others are longer than
  those of `linear`.

  Args:
    steps: T, at least 2.
    shift: s of (1).
    train_steps: of the process that the network was trained on.
  """
  if steps < 2:
    raise ValueError(f'sd3: steps={steps}; this grid needs at least 2')
  (last,) = shift_time(np.array([1 / train_steps]), shift)
  t = shift_time(np.linspace(1.0, last, steps), shift)
  return jnp.asarray(np.append(t, 0.0), jnp.float32)


def flux_shift(
  tokens: int,
  base_tokens: Count = 256,
  max_tokens: Count = 4096,
  base_shift: float = 0.5,
  max_shift: float = 1.15,
) -> float:
  """The shift of (1) that is FLUX's for a number of image tokens."""
  slope = (max_shift - base_shift) / (max_tokens - base_tokens)
  return math.exp(base_shift + slope * (tokens - base_tokens))


def ddim(
  steps: int,
  offset: Index = 1,
  spacing: Literal['leading', 'trailing'] = 'leading',
  end: Literal['first', 'data'] = 'first',
  betas: ddpm.Betas = 'scaled_linear',
  beta_start: Fraction = 0.00085,
  beta_end: Fraction = 0.012,
  train_steps: Count = 1000,
) -> Float32[Array, ' {steps}+1']:
  """The grid of DDIM on a discrete process of N levels (arXiv 2010.02502).

  The defaults are those of Stable Diffusion 1.5. It starts below 1, from
  noise of variance one in the units of that process.

  Args:
    steps: T; levels are N // T apart.
    offset: last level of the 'leading' spacing (steps_offset there).
    spacing: 'leading' starts one spacing below the last level, 'trailing' at
      the last one.
    end: the 'first' level, which is a little noisy (set_alpha_to_one=False
      there), or the 'data', time 0.
    betas: as the next ones, see `ddpm.flow_times`.
    beta_start: see betas.
    beta_end: see betas.
    train_steps: N.

  Raises:
    ValueError: levels that there are not.
  """
  apart = train_steps // steps
  if spacing == 'trailing' and train_steps % steps:
    raise ValueError(
      f'ddim: steps={steps} with spacing="trailing" has to divide {train_steps}'
    )
  last = offset if spacing == 'leading' else apart - 1
  at = last + apart * np.arange(steps)[::-1]
  if apart < 1 or offset < 0 or at[0] >= train_steps:
    raise ValueError(
      f'ddim: steps={steps} from level {at[0]} down to {last}; there are '
      f'levels 0..{train_steps - 1}'
    )
  s = ddpm.flow_times(betas, beta_start, beta_end, train_steps)
  final = s[0] if end == 'first' else 0.0
  return jnp.asarray(np.append(s[at], final), jnp.float32)


def lcm(
  steps: int,
  original_steps: Count = 50,
  betas: ddpm.Betas = 'scaled_linear',
  beta_start: Fraction = 0.00085,
  beta_end: Fraction = 0.012,
  train_steps: Count = 1000,
) -> Float32[Array, ' {steps}+1']:
  """The grid of a latent consistency model (arXiv 2310.04378).

  Args:
    steps: T, network calls.
    original_steps: of the DDIM grid that it was distilled on; T of them, evenly
      spaced from the last level on, are taken.
    betas: as the next ones, see `ddpm.flow_times`.
    beta_start: see betas.
    beta_end: see betas.
    train_steps: N.

  Raises:
    ValueError: more steps than there were.
  """
  if not 1 <= steps <= original_steps <= train_steps:
    raise ValueError(
      f'lcm: steps={steps} are 1..original_steps={original_steps}, and those '
      f'at most train_steps={train_steps}'
    )
  apart = train_steps // original_steps
  levels = apart * np.arange(1, original_steps + 1)[::-1] - 1
  place = np.linspace(0, original_steps, steps, endpoint=False)
  at = levels[np.floor(place).astype(int)]
  s = ddpm.flow_times(betas, beta_start, beta_end, train_steps)
  return jnp.asarray(np.append(s[at], 0.0), jnp.float32)


def noise_levels(
  steps: int,
  noise: float | Array,
  window_start: int | Array = 0,
  window: int | Array | None = None,
) -> Float32[Array, '... {steps}']:
  """Noise level of each step: `noise` in the window, 0 outside.

  Args:
    steps: T, static.
    noise: a level, or one per step [T].
    window_start: first noisy step; [...] gives [... T], one window per row.
    window: number of noisy steps; None for all from the start on.
  """
  start = jnp.asarray(window_start, jnp.int32)[..., None]
  width = jnp.asarray(steps if window is None else window, jnp.int32)
  index = jnp.arange(steps)
  inside = (index >= start) & (index < start + width[..., None])
  return jnp.where(inside, jnp.asarray(noise, jnp.float32), 0.0)


def _check_window(low: int, high: int, window: int) -> None:
  if not 0 <= low < high or not 1 <= window <= high - low:
    raise ValueError(
      f'A window of {window} steps does not fit in steps {low}..{high - 1}.'
    )


def fixed_window(start: Index = 0) -> Int32[Array, '']:
  """The same start always."""
  return jnp.asarray(start, jnp.int32)


def random_window(
  key: Key[Array, ''], window: int, high: int, low: int = 0
) -> Int32[Array, '']:
  """Start ~ U{low, ..., high - window} (Flow-GRPO-Fast)."""
  _check_window(low, high, window)
  return jax.random.randint(key, (), low, high - window + 1)


def progressive_window(
  iteration: int | Int32[Array, ''],
  window: int,
  high: int,
  low: int = 0,
  tau: Count = 25,
  stride: Count = 1,
  decay: NonNegative = 0.0,
  threshold: Index = 13,
  roll_back: bool = True,
) -> Int32[Array, '']:
  """Start of MixGRPO's sliding window at a (traced) iteration.

  Args:
    iteration: counted from 0.
    window: steps in the window; the last start is at most high - window.
    high: one past the last step that may be trained, at most T - 1.
    low: first start.
    tau: iterations spent at each start (2).
    stride: steps the window moves by.
    decay: 0 for a constant pace; the paper's other choice is 0.1.
    threshold: start after which the pace quickens.
    roll_back: begin again at `low` after the last start, else stay there.
  """
  _check_window(low, high, window)
  starts = np.arange(low, high - window + 1, stride)
  pace = np.exp(-decay * np.maximum(starts - threshold, 0))
  ends = np.cumsum(np.ceil(tau * pace)).astype(np.int32)
  iteration = jnp.asarray(iteration, jnp.int32)
  if roll_back:
    iteration = iteration % ends[-1]
  place = jnp.searchsorted(jnp.asarray(ends), iteration, side='right')
  place = jnp.minimum(place, len(starts) - 1)
  return jnp.asarray(starts, jnp.int32)[place]


def uniform(
  keys: Key[Array, ' b'], shift: Positive = 1.0
) -> Float32[Array, ' b']:
  """Training times ~ U(0, 1), then (1)."""
  return shift_time(jax.vmap(jax.random.uniform)(keys), shift)


def logit_normal(
  keys: Key[Array, ' b'],
  mean: float = 0.0,
  std: NonNegative = 1.0,
  shift: Positive = 1.0,
) -> Float32[Array, ' b']:
  """Training times sigmoid(N(mean, std^2)), then (1).

  arXiv 2403.03206, section 3.1; (mean, std) = (0, 1) was their best.
  """
  normal = jax.vmap(jax.random.normal)(keys)
  return shift_time(jax.nn.sigmoid(mean + std * normal), shift)


def levels(
  keys: Key[Array, ' b'],
  betas: ddpm.Betas = 'scaled_linear',
  beta_start: Fraction = 0.00085,
  beta_end: Fraction = 0.012,
  train_steps: Count = 1000,
) -> Float32[Array, ' b']:
  """Training times of a discrete process: its levels, equally often.

  Args:
    keys: of the draws.
    betas: as the next ones, see `ddpm.flow_times`.
    beta_start: see betas.
    beta_end: see betas.
    train_steps: N.
  """
  s = ddpm.flow_times(betas, beta_start, beta_end, train_steps)
  draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, train_steps))
  return jnp.asarray(s, jnp.float32)[draw(keys)]
