"""The one step: roll out, score, compare within groups, update.

  collect(state, batch, key)  -> (state, Experience, metrics)
  update(state, experience, key) -> (state, metrics)
  train_step = jit(update o collect), with the state donated

Host rewards cut the same functions in other places: `sample` (rollout and
device rewards, jitted), scoring on the host, `learn` (advantage and update,
jitted). Nothing else differs, and the results agree.

The policy that samples is the one trained, or the copy of its parameters
named `behaviour`, which follows it by the schedule of its copy.

The stations are `step.sample`, `step.judge` and `step.learn`, which has the
loss.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_rl.step import judge as judge_lib
from gen_rl.step import learn as learn_lib
from gen_rl.step import sample as sample_lib
from gen_rl.step.recipe import Recipe
from gen_rl.train_state import TrainState
from gen_rl.types import (
  Experience,
  Metrics,
  Objective,
  Policy,
  RewardInputs,
  RewardOut,
  Trajectory,
)


class Step(NamedTuple):
  """The pieces, unjitted, and the compositions, jitted."""

  collect: Callable[..., tuple[TrainState, Experience, Metrics]]
  update: Callable[..., tuple[TrainState, Metrics]]
  train_step: Callable[..., tuple[TrainState, Metrics]]
  sample: Callable[..., tuple[Trajectory, RewardInputs, dict[str, RewardOut]]]
  # The same for some of the prompts, uncut, and many of it as one.
  sample_part: Callable[..., Any]
  join: Callable[..., Any]
  learn: Callable[..., tuple[TrainState, Metrics]]


def make(
  policy: Policy,
  objectives: Mapping[str, tuple[Objective, float]],
  tx: optax.GradientTransformation,
  **parts: Any,
) -> Step:
  """Composes the step.

  Args:
    policy: what is trained.
    objectives: {label: (objective, weight)}; empty: it stays as it is, and
      learners learn from what it does.
    tx: the optimizer.
    **parts: the others of `Recipe`; None: its default.

  Returns:
    The Step. `batch` is what the pipeline yields, `key` the run's root key.

  Raises:
    ConfigError: parts that do not go together, see `Recipe`.
  """
  parts = {name: part for name, part in parts.items() if part is not None}
  recipe = Recipe(policy, objectives, tx, **parts)

  def sample(state, batch, key):
    return sample_lib.sample(recipe, state, batch, key)

  def collect(state, batch, key):
    traj, inputs, outs = sample(state, batch, key)
    state, exp, metrics = judge_lib.judge(recipe, state, traj, inputs, outs)
    exp = judge_lib.show(recipe, state, batch, inputs.image, exp, key)
    return state, exp, metrics

  def update(state, exp, key):
    with jax.named_scope('update'):
      return learn_lib.update(recipe, state, exp, key)

  def fused(state, batch, key):
    state, exp, collected = collect(state, batch, key)
    state, updated = update(state, exp, key)
    return state, {**collected, **updated}

  def learn(state, traj, inputs, outs, key):
    state, exp, collected = judge_lib.judge(recipe, state, traj, inputs, outs)
    state, updated = update(state, exp, key)
    return state, {**collected, **updated}

  whole = dataclasses.replace(recipe, rollout_chunks=1)

  def sample_part(state, batch, key):
    return sample_lib.sample(whole, state, batch, key)

  def join(parts):
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return recipe.layout.rows(joined)

  return Step(
    collect,
    update,
    jax.jit(fused, donate_argnums=0),
    jax.jit(sample),
    jax.jit(sample_part),
    jax.jit(join),
    jax.jit(learn, donate_argnums=0),
  )
