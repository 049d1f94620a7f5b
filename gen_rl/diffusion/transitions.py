"""One denoising step as a Gaussian, x' ~ N(mean, std^2), times t -> t'.

Factories return `transition(x, v, t, t_next, noise) -> (mean, std)`. With
x0 = x - t v, x1 = x + (1 - t) v, dt = t' - t < 0 and E = x + v dt, the Euler
step (the same point is (1 - t') x0 + t' x1), every mean is E plus a multiple
of x1:

  ode        mean = E,  std = 0                                          (1)
  flow_sde   g = a sqrt(t / (1 - t)),  mean = E + g^2 / (2 t) x1 dt,
             std = g sqrt(-dt)               Flow-GRPO, arXiv 2505.05470 (2)
  dance_sde  (2) with constant g = a         DanceGRPO, arXiv 2505.07818 (3)
  ddim       std = a t' sqrt(1 - ((1 - t) t' / (t (1 - t')))^2),
             mean = (1 - t') x0 + sqrt(t'^2 - std^2) x1                  (4)
  cps        std = t' sin(a pi / 2), mean as in (4)
                                             Flow-CPS, arXiv 2509.05952  (5)

(4) is eq. 12 and 16 of DDIM (arXiv 2010.02502) for a process with signal
alpha = 1 - t and noise sigma = t. Eq. 16 is eta times the standard deviation
of q(x_t' | x_t, x0), which is sigma' / sigma sqrt(sigma^2 - (alpha / alpha')^2
sigma'^2) for any Gaussian process. a = 0 is the deterministic DDIM, here the
Euler step; a = 1 is ancestral sampling; for small |dt| it is flow_sde with
sqrt(2) a.

Rules all of them keep:
- float32 inside and out, whatever the inputs are;
- x, v are [n ...]; t, t_next, noise are traced [n], scalars, or any prefix of
  x's shape; std has their (broadcast) shape. Nothing recompiles when times or
  noise levels change;
- noise = 0 gives mean = E and std = 0, to the bit;
- the last step, t' = 0, takes no noise: mean = x0, std = 0. The published
  Flow-GRPO and DanceGRPO code adds noise there and then leaves the step out
  of training, DanceGRPO also scores its x0; ddim and cps have std = 0 there by
  themselves. Gaussian.log_prob is 0 at std = 0. Nor does a step with
  t' >= t (padding, or inversion of the ODE) take noise;
- flow_sde's g is infinite at t = 1; as published, t in the denominator alone is
  replaced by the next grid time when t = 1, g = a sqrt(1 / (1 - t')). That time
  is t' itself, so no extra argument is needed, and the first step of a grid
  from 1 has std = a whatever the grid.

(2), (3) and (4) keep the marginals of the ODE as the grid gets finer. (5)
does not: it keeps the coefficients (1 - t') and t' of signal and noise at any
number of steps, which are the right marginals only as far as x0 does not
depend on the noise. `noise` must lie in [0, 1] for ddim and cps.
"""

from collections.abc import Callable
import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float32

from gen_rl.build import ConfigError
from gen_rl.diffusion import process
from gen_rl.fields import NonNegative
from gen_rl.types import Array

# (x [n ...], v [n ...], t [n], t_next [n], noise [n])
#   -> (mean [n ...], std [n])
Transition = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]


# Largest noise level of those that have one.
LIMITS = dict(cps=1.0, ddim=1.0)


def check_noise(name: str, noise: NonNegative) -> None:
  """Refuses a level at which no step of a transition is a choice.

  Args:
    name: of the transition.
    noise: its level in the trained steps.

  Raises:
    ConfigError: the transition takes no noise, or none of that level.
  """
  limit = LIMITS.get(name, math.inf)
  if name == 'ode':
    raise ConfigError(
      'policy.transition is "ode", which takes no noise: there would be no '
      'decision to train; name a stochastic one, or set policy.deterministic '
      'for objectives that need samples only'
    )
  if not 0 < noise <= limit:
    raise ConfigError(
      f'policy.noise is {noise:g}; for the transition {name} it is above 0'
      + (f' and at most {limit:g}' if limit < math.inf else '')
    )


def _sqrt(x: Array) -> Array:
  """Square root with value and gradient 0 at x <= 0."""
  valid = x > 0
  return jnp.where(valid, jnp.sqrt(jnp.where(valid, x, 1.0)), 0.0)


def _transition(
  coefficients: Callable[[Array, Array, Array], tuple[Array, Array]],
) -> Transition:
  """From (t, t_next, noise) -> (multiple of x1, std) to a transition."""

  def transition(
    x: process.Latent,
    v: process.Latent,
    t: ArrayLike,
    t_next: ArrayLike,
    noise: ArrayLike,
  ) -> tuple[process.Float32Latent, Float32[Array, '...']]:
    x, v = jnp.asarray(x, jnp.float32), jnp.asarray(v, jnp.float32)
    t, t_next, noise = jnp.broadcast_arrays(
      *(jnp.asarray(y, jnp.float32) for y in (t, t_next, noise))
    )
    noise = jnp.where((t_next > 0) & (t_next < t), noise, 0.0)
    c, std = coefficients(t, t_next, noise)
    x1 = process.x1_from_velocity(x, v, t)
    euler = x + v * process.expand(t_next - t, x)
    return euler + process.expand(c, x) * x1, std

  return transition


def _sde(g: Array, t: Array, t_next: Array) -> tuple[Array, Array]:
  dt = t_next - t
  return process.divide(0.5 * jnp.square(g) * dt, t), g * _sqrt(-dt)


def ode() -> Transition:
  """(1), the Euler step; `noise` is ignored."""
  return _transition(lambda t, t_next, a: (0.0 * t, 0.0 * t))


def flow_sde() -> Transition:
  """(2); `noise` is a, 0.7 as published."""

  def coefficients(t, t_next, a):
    clean = 1.0 - jnp.where(t < 1, t, t_next)
    g = a * _sqrt(process.divide(t, clean))
    return _sde(g, t, t_next)

  return _transition(coefficients)


def dance_sde() -> Transition:
  """(3); `noise` is the constant g, 0.3 as published (eta)."""
  return _transition(lambda t, t_next, a: _sde(a, t, t_next))


def ddim() -> Transition:
  """(4); `noise` is eta in [0, 1]."""

  def coefficients(t, t_next, a):
    # r = (1 - t) t' / (t (1 - t')), so 1 - r = (t - t') / (t (1 - t')). Both
    # roots of (4) in a form without cancellation:
    # sqrt(t'^2 - std^2) = t' sqrt(1 - a^2 + a^2 r^2).
    scale = t * (1.0 - t_next)
    r = process.divide((1.0 - t) * t_next, scale)
    std = a * t_next * _sqrt(process.divide(t - t_next, scale) * (1.0 + r))
    keep = t_next * _sqrt((1.0 - a) * (1.0 + a) + jnp.square(a * r))
    return -process.divide(jnp.square(std), keep + t_next), std

  return _transition(coefficients)


def cps() -> Transition:
  """(5); `noise` in [0, 1], 0.8 as published. 1 is x' = (1-t') x0 + t' z."""

  def coefficients(t, t_next, a):
    del t
    # sqrt(t'^2 - std^2) - t' = t' (cos(a pi / 2) - 1).
    c = -2.0 * t_next * jnp.square(jnp.sin(a * jnp.pi / 4))
    return c, t_next * jnp.sin(a * jnp.pi / 2)

  return _transition(coefficients)
