"""Optimizers: optax chains whose states are float32 if nothing else is asked.

AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) on gradients
clipped to a global norm, with t = 0, 1, ... the number of the update:

  (1) lr(t) = lr * min(1, (t + 1) / warmup) * (e + (1 - e) decay(p)),
      p = clip((t - warmup) / (steps - warmup), 0, 1)
  (2) decay(p) = 1 | 1 - p | (1 + cos(pi p)) / 2
  (3) theta <- theta - lr(t) (m_hat / (sqrt(v_hat) + eps) + weight_decay theta
                              + anchor (theta - theta_0))

theta_0 is where the run began, e is `decay_to`, 0 by default. The first update
of a warm-up moves (1 / warmup of lr), unlike a ramp from 0.
Gradients that are not finite are dealt with by the caller.

With a temperature T noise is added to every update (3),

  (4) theta <- theta + sqrt(2 lr(t) T) z,  z ~ N(0, 1)

stochastic gradient Langevin dynamics (Welling & Teh 2011): parameters wander
about their best ones instead of settling there. Without a gradient the anchor
and small lr make them N(theta_0, T / anchor), the prior of Reward-Instruct
(arXiv:2503.13070), whose posterior given rewards it is to draw from. Adam's
denominator is not in (4), so what the loss weighs there goes with it.

Muon (Jordan et al. 2024) takes matrices along the orthogonal factor of their
momentum, found by Newton-Schulz iterations; all else is left to Adam with
Nesterov momentum.
It is optax's (`optax.contrib.muon`), with the schedule of (1).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from gen_rl.build import ConfigError
from gen_rl.fields import Count, Decay, Fraction, Index, NonNegative
from gen_rl.types import Array, PyTree
from gen_rl.utils import rng, tree

__all__ = ('adamw', 'constant_decay', 'muon', 'ramp_decay', 'rounds')


def adamw(
  lr: NonNegative = 1e-4,
  b1: Decay = 0.9,
  b2: Decay = 0.999,
  eps: NonNegative = 1e-8,
  weight_decay: NonNegative = 0.0,
  anchor: NonNegative = 0.0,
  temperature: NonNegative = 0.0,
  grad_clip: NonNegative | None = 1.0,
  warmup: Index = 0,
  decay: Literal['constant', 'cosine', 'linear'] = 'constant',
  decay_to: Fraction = 0.0,
  steps: int | None = None,
  moment_dtype: Literal['float32', 'bfloat16'] = 'float32',
  seed: int = 0,
) -> optax.GradientTransformation:
  """AdamW with clipping and a schedule, eqs. (1) to (3).

  Args:
    lr: peak learning rate.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added outside the square root.
    weight_decay: decoupled, on every parameter, times lr(t).
    anchor: the same towards theta_0, which is kept beside the moments (R0,
      arXiv:2503.13070, has such a term in its loss); not measured yet.
    temperature: T of the noise (4), on trained parameters; not measured yet.
    grad_clip: largest global norm of a gradient; None or 0 for no clipping.
    warmup: updates of linear warm-up.
    decay: 'constant', 'cosine' or 'linear', to `decay_to` at `steps`.
    decay_to: share of the learning rate that is left then.
    steps: updates in all; needed unless decay is 'constant'.
    moment_dtype: the first moment is kept in, bfloat16 to save memory. The
      second stays float32: (1 - b2) v is below the precision of bfloat16.
    seed: of the run, for the noise.

  Returns:
    An optax transformation; its update needs `params` and returns float32.
  """
  rate = schedule(lr, warmup, decay, steps, decay_to)
  return in_float32(
    optax.chain(
      _clip(grad_clip),
      optax.scale_by_adam(
        b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(moment_dtype)
      ),
      optax.add_decayed_weights(weight_decay),
      *([_anchored(anchor)] if anchor else []),
      optax.scale_by_learning_rate(rate),
      *([langevin(temperature, rate, seed)] if temperature else []),
    )
  )


def muon(
  lr: NonNegative = 2e-2,
  adam_lr: NonNegative = 4e-3,
  momentum: Decay = 0.95,
  b1: Decay = 0.9,
  b2: Decay = 0.99,
  ns_steps: Count = 5,
  weight_decay: NonNegative = 0.0,
  grad_clip: NonNegative | None = 1.0,
  warmup: Index = 0,
  decay: Literal['constant', 'cosine', 'linear'] = 'constant',
  decay_to: Fraction = 0.0,
  steps: int | None = None,
) -> optax.GradientTransformation:
  """Muon on matrices, NAdam on the rest; clipping and schedule as `adamw`.

  Args:
    lr: peak learning rate of matrices (parameters with two axes): about the
      spectral norm of an update.
    adam_lr: peak learning rate of all other parameters.
    momentum: decay of the momentum of matrices.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    ns_steps: Newton-Schulz iterations; each costs a few products of the size
      of the matrix, whatever the batch.
    weight_decay: decoupled, on matrices, times lr(t).
    grad_clip: largest global norm of a gradient; None or 0 for no clipping.
    warmup: updates of linear warm-up.
    decay: 'constant', 'cosine' or 'linear', to `decay_to` at `steps`.
    decay_to: share of the learning rate that is left then.
    steps: updates in all; needed unless decay is 'constant'.

  Returns:
    An optax transformation; its update needs `params` and returns float32.
  """
  return in_float32(
    optax.chain(
      _clip(grad_clip),
      optax.contrib.muon(
        schedule(lr, warmup, decay, steps, decay_to),
        ns_steps=ns_steps,
        beta=momentum,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=schedule(adam_lr, warmup, decay, steps, decay_to),
      ),
    )
  )


def _anchored(strength: float) -> optax.GradientTransformation:
  """Adds strength (theta - theta_0), of the parameters it was made with."""

  def update(grads, start, params=None):
    pulled = jax.tree.map(
      lambda g, x, y: g + strength * (x - y), grads, params, start
    )
    return pulled, start

  # Of its own: the state and the parameters are donated together.
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.copy, params), update
  )


class Wandering(NamedTuple):
  """What `langevin` knows; a program does not depend on the seed."""

  count: Array  # [] int32, updates done
  seed: Array  # [] int32, of the run


def langevin(
  temperature: float, rate: optax.Schedule, seed: int = 0
) -> optax.GradientTransformation:
  """Adds the noise (4) to updates.

  What a parameter draws depends on the seed, on the updates done and on its own
  name: not on what else is trained, nor on devices.

  Args:
    temperature: T.
    rate: lr, a function of the number of the update.
    seed: of the run.
  """

  def init(params):
    del params
    return Wandering(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.int32))

  def update(updates, state, params=None):
    del params
    key = rng.stream_keys(rng.training_key(state.seed), 'langevin')
    key = jax.random.fold_in(key, state.count)
    std = jnp.sqrt(2.0 * temperature * rate(state.count))

    def moved(path, x):
      own = rng.stream_keys(key, tree.path_name(path))
      return x + std * jax.random.normal(own, x.shape)

    updates = jax.tree_util.tree_map_with_path(moved, updates)
    return updates, state._replace(count=state.count + 1)

  return optax.GradientTransformation(init, update)


def _clip(norm: float | None) -> optax.GradientTransformation:
  return optax.clip_by_global_norm(norm) if norm else optax.identity()


def schedule(
  lr: float,
  warmup: int = 0,
  decay: Literal['constant', 'cosine', 'linear'] = 'constant',
  steps: int | None = None,
  decay_to: float = 0.0,
) -> optax.Schedule:
  """Learning rate of update t (int, may be traced) as float32, eqs. (1), (2).

  Raises ConfigError for an unknown decay, or a decay without an end.
  """
  shapes = {
    'constant': jnp.ones_like,
    'linear': lambda p: 1 - p,
    'cosine': lambda p: (1 + jnp.cos(jnp.pi * p)) / 2,
  }
  if decay not in shapes:
    raise ConfigError(f'decay is {decay!r}; valid: {", ".join(shapes)}.')
  if decay != 'constant' and (steps is None or steps <= warmup):
    raise ConfigError(
      f'decay={decay!r} begins after the warm-up, and warmup={warmup} is not '
      f'below steps={steps}; set optimizer.warmup lower, or '
      "optimizer.decay='constant'"
    )

  def at(t):
    t = jnp.asarray(t, jnp.float32)
    ramp = jnp.minimum(1.0, (t + 1) / warmup) if warmup else 1.0
    span = (steps - warmup) if steps else 1
    left = shapes[decay](jnp.clip((t - warmup) / span, 0, 1))
    return lr * ramp * (decay_to + (1 - decay_to) * left)

  return at


def constant_decay(decay: Fraction = 0.99) -> optax.Schedule:
  """Schedule of d of a copy, c <- d c + (1 - d) params: always `decay`.

  0 copies the parameters, 1 never moves.
  """
  return lambda step: jnp.full((), decay, jnp.float32)


def average_decay(
  decay: float, every: int = 1, warmup: bool = False
) -> float | optax.Schedule:
  """Decay of an average of the parameters, once n optimizer steps are done.

  With `warmup`, min(decay, (1 + n) / (10 + n)): the first steps do not weigh
  as much as all that follow. With `every`, the average changes where
  `every` divides n + 1 and rests in between (Flow-GRPO's code: 0.9, 8, with
  the warm-up; 0.47 at n = 7, 0.9 from n = 87 on).

  Returns:
    d of average <- d average + (1 - d) params, a number where it is constant,
    else a function of n = 1, 2, ... (int, may be traced) that gives float32.
  """
  if every < 1:
    raise ConfigError(
      f'ema_every is {every}; the average changes every so many optimizer '
      'steps, at least 1'
    )
  if not decay or (every == 1 and not warmup):
    return decay

  def at(n):
    n = jnp.asarray(n, jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n)) if warmup else decay
    return jnp.where((n + 1) % every == 0, d, 1.0)

  return at


def ramp_decay(
  rate: NonNegative = 1e-3, limit: Fraction = 0.5, start: Index = 0
) -> optax.Schedule:
  """Schedule of d of a copy that lags more and more (arXiv 2509.16117).

  d = clip(rate (step - start), 0, limit): DiffusionNFT's behaviour policy at
  rate 0.001, limit 0.5, or rate 0.0075, limit 0.999, start 75.
  """
  return lambda step: jnp.clip(
    rate * (jnp.asarray(step, jnp.float32) - start), 0.0, limit
  )


def rounds(every: Count = 100) -> optax.Schedule:
  """Schedule of d of a copy that is taken anew at the end of each round.

  As the reference, and as the behaviour policy, of iterative preference
  optimisation: pairs of a round are drawn by the policy it began with, and
  compared with that.

  Args:
    every: updates of a round.
  """
  return lambda step: jnp.where(
    (jnp.asarray(step) + 1) % every == 0, 0.0, 1.0
  ).astype(jnp.float32)


def in_float32(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Runs `tx` on float32 copies of parameters and gradients."""

  def cast(arrays: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), arrays)

  def update(grads, state, params=None):
    params = None if params is None else cast(params)
    return tx.update(cast(grads), state, params)

  return optax.GradientTransformation(lambda p: tx.init(cast(p)), update)
