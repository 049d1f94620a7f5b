r"""Consistency distillation: one network call from any noise to the data.

A net that predicts velocities F is read as

  (1) f(x, t) = x - t F(x, t),   f(x, 0) = x,

and trained to give the same answer along each path of the teacher's ODE. With
neighbours t > s of a grid, x_t = (1 - t) x0 + t x1 and the teacher's Euler step
x_s = x_t + (s - t) v_ref(x_t, t),

  (2) L = h(f(x_t, t) - f_slow(x_s, s)),   h(d) = sqrt(|d|^2 + c^2) - c

(consistency distillation, arXiv:2303.01469, algorithm 2; pseudo-Huber
distance of arXiv:2310.14189 with |d|^2 and c^2 per dimension). The slow copy
carries no gradient. The teacher's own prediction is the answer (1) starts from,
so a policy and its teacher share a net.
"""

import jax
import jax.numpy as jnp

from gen_rl.diffusion import process, schedules
from gen_rl.fields import CopyName, Count, Positive
from gen_rl.types import (
  Experience,
  Metrics,
  Noised,
  Objective,
  Replay,
  RowKeys,
  Term,
)
from gen_rl.utils import rng


def consistency_distillation(
  steps: Count = 16,
  shift: Positive = 2.0,
  huber: Positive = 0.03,
  ref: CopyName = 'ref',
  slow: CopyName = 'ema',
) -> Objective:
  """Equation (2).

  Args:
    steps: N of the grid, `schedules.linear`; more steps, better answers, but
      errors that add up over more of them.
    shift: its time shift.
    huber: c, in units of the latent.
    ref: the teacher.
    slow: the slow copy.

  Returns:
    Objective with value and mask [b 1]; metrics `consistency` (the value) and
    `shift_from_teacher`, the mean squared distance of f from the teacher's.
  """
  grid = schedules.linear(steps, shift)

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    drawn = replay.ask('params', 'noised', keys.own, 1)
    place_keys = rng.stream_keys(keys.own, 'place')
    place = jax.vmap(lambda key: jax.random.randint(key, (), 0, steps))
    n = place(place_keys)[:, None]  # [b 1]
    t, s = grid[n], grid[n + 1]
    x_t = process.corrupt(drawn.x0[:, None], drawn.x1, t)
    at = drawn.replace(x=x_t, t=t)
    teacher = jax.lax.stop_gradient(replay.ask(ref, 'velocity_at', at))
    x_s = x_t + process.expand(s - t, x_t) * teacher
    below = Noised(jax.lax.stop_gradient(x_s), s, drawn.x0, drawn.x1)
    answer = process.x0_from_velocity(
      x_t, replay.ask('params', 'velocity_at', at), t
    )
    wanted = process.x0_from_velocity(
      below.x, replay.ask(slow, 'velocity_at', below), s
    )
    square = process.event_mean(
      jnp.square(answer - jax.lax.stop_gradient(wanted))
    )
    value = jnp.sqrt(square + huber**2) - huber
    first = process.x0_from_velocity(x_t, teacher, t)
    metrics = dict(
      consistency=value,
      shift_from_teacher=process.event_mean(jnp.square(answer - first)),
    )
    metrics = jax.lax.stop_gradient(metrics)
    return Term(value, jnp.ones_like(value), every_row=True), metrics

  return objective
