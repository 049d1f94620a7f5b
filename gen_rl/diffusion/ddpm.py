r"""The discrete process of DDPM networks (arXiv 2006.11239) in flow times.

Such a network knows N levels of noise, i = 0 .. N - 1, and predicts eps from

  x_i = alpha_i x0 + sigma_i eps,
  alpha_i^2 = prod_{j <= i} (1 - beta_j) = 1 - sigma_i^2.                (1)

The flow time with the same ratio of signal to noise is (`process`, (5))

  s_i = sigma_i / (alpha_i + sigma_i),   x_s = x_i / (alpha_i + sigma_i) (2)

and i is linear in s between neighbours, so a flow's sampler may ask at any s:

  x0 = (x_i - sigma_i eps) / alpha_i,   v = eps - x0.                    (3)

The last level of Stable Diffusion still has signal, s = 0.936. Above it the
last level is asked with x_s scaled to variance one, and

  v = (x_s - x0) / s                                                     (4)

with x0 of (3), as released samplers do when they begin with pure noise.

A consistency network (LCM, arXiv 2310.04378) answers, with b = 10 i,

  f = x_i / (1 + 4 b^2) + x0 b / sqrt(b^2 + 1/4),                        (5)

which is taken for x0 in (4): then `process.x0_from_velocity` is f, and
`transitions.cps` at level 1 its multistep sampling.
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from gen_rl.diffusion import process
from gen_rl.types import AnyArray, Array

Betas = Literal['scaled_linear', 'linear', 'squaredcos_cap_v2']
Prediction = Literal['epsilon', 'v_prediction']


def flow_times(
  betas: Betas = 'scaled_linear',
  beta_start: float = 0.00085,
  beta_end: float = 0.012,
  train_steps: int = 1000,
) -> np.ndarray:
  """s_i of (2), float64 [N]; the defaults are those of Stable Diffusion.

  Args:
    betas: 'linear', 'scaled_linear' (their roots are), or 'squaredcos_cap_v2',
      Nichol and Dhariwal's cosine (arXiv 2102.09672), for which the next two
      do not matter.
    beta_start: of the first level.
    beta_end: of the last.
    train_steps: N.

  Raises:
    ValueError: another name.
  """
  if betas == 'linear':
    beta = np.linspace(beta_start, beta_end, train_steps)
  elif betas == 'scaled_linear':
    beta = np.linspace(beta_start**0.5, beta_end**0.5, train_steps) ** 2
  elif betas == 'squaredcos_cap_v2':
    t = np.arange(train_steps + 1) / train_steps
    bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
  else:
    raise ValueError(
      f'betas={betas!r} is none of linear, scaled_linear, squaredcos_cap_v2'
    )
  square = np.cumprod(1 - beta)
  alpha, sigma = np.sqrt(square), np.sqrt(1 - square)
  return sigma / (alpha + sigma)


def level(s: Float[AnyArray, '*s'], times: np.ndarray) -> Float[Array, '*s']:
  """I for flow times, (2): whole numbers exactly at s_i, ends beyond them."""
  table = jnp.asarray(times, jnp.float32)
  return jnp.interp(s, table, jnp.arange(len(times), dtype=jnp.float32))


def velocity(
  predict: Callable[[Array, Array], Array],
  x: process.Latent,
  s: Float[AnyArray, ' b'],
  times: np.ndarray,
  prediction: Prediction = 'epsilon',
  boundary: float | None = None,
) -> process.Float32Latent:
  """A DDPM network's velocity, (3) to (5).

  Args:
    predict: (x_i [b ...], i [b]) -> eps, or u of `process` (6).
    x: x_s.
    s: flow times.
    times: s_i.
    prediction: what `predict` returns.
    boundary: the factor of b in (5), 10 as published; None for networks that
      are not consistent, which is (3) and (4).
  """
  s = jnp.asarray(s, jnp.float32)
  x_vp, _, _ = process.vp_from_flow(x, s)
  i = level(s, times)
  last = jnp.float32(times[-1])
  _, alpha, sigma = process.vp_from_flow(x, jnp.minimum(s, last))
  alpha, sigma = process.expand(alpha, x_vp), process.expand(sigma, x_vp)
  out = predict(x_vp, i).astype(jnp.float32)
  if prediction == 'epsilon':
    x0, noise = (x_vp - sigma * out) / alpha, out
  elif prediction == 'v_prediction':
    x0, noise = alpha * x_vp - sigma * out, sigma * x_vp + alpha * out
  else:
    raise ValueError(
      f'prediction={prediction!r} is none of epsilon, v_prediction'
    )
  if boundary is not None:
    b = process.expand(boundary * i, x_vp)
    x0 = x_vp / (1 + 4 * b**2) + x0 * b / jnp.sqrt(b**2 + 0.25)
    return process.velocity_from_x0(x, x0, s)
  beyond = process.expand(s, x_vp) > last
  return jnp.where(beyond, process.velocity_from_x0(x, x0, s), noise - x0)
