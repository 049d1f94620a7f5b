"""The second station: scores -> advantages, and critics that learn."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from gen_rl import critics as critics_lib
from gen_rl import rollout as rollout_lib
from gen_rl.rewards import combine
from gen_rl.step.recipe import Recipe
from gen_rl.step.sample import make_rows
from gen_rl.train_state import TrainState
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  PyTree,
  RewardOut,
  Trajectory,
)
from gen_rl.utils import tree


def judge(
  recipe: Recipe,
  state: TrainState,
  traj: Trajectory,
  info: Mapping[str, Array],
  outs: Mapping[str, RewardOut],
) -> tuple[TrainState, Experience, Metrics]:
  """Compares scores within groups.

  Args:
    recipe: of the step.
    state: with the state of the advantage.
    traj: of `sample`.
    info: of the rows, for rewards with gradients.
    outs: {label: what it said} of all rewards and monitors.
  """
  b = traj.group.shape[0]
  fine = tree.finite_rows(traj, b)
  if recipe.advantage is None:
    out = RewardOut(jnp.zeros(b), {}, fine)
    traj = tree.zero_rows(traj, fine)
    adv, weight = jnp.zeros((b, 1)), fine.astype(jnp.float32)
    return state, Experience(traj, adv, weight, out, info), {}
  watched = {label: outs[label] for label in recipe.monitors}
  scored = {
    label: x.replace(valid=x.valid & fine)
    for label, x in outs.items()
    if label not in recipe.monitors
  }
  out = combine.merge(scored, recipe.reward_weights)
  # 0 * NaN is NaN: a backward pass must not see the row at all.
  traj = tree.zero_rows(traj, out.valid)
  adv, weight, adv_state, metrics = recipe.advantage.update(
    out, traj.group, state.adv_state
  )
  watched = combine.watch(watched, adv, out.valid, recipe.group_size)
  metrics = {**combine.summarize(out, scored), **metrics, **watched}
  state = state.replace(adv_state=adv_state)
  return state, Experience(traj, adv, weight, out, info), metrics


def train_critics(
  recipe: Recipe,
  state: TrainState,
  batch: Mapping[str, Any],
  media: PyTree,
  exp: Experience,
  key: Array,
) -> tuple[TrainState, Metrics]:
  """One step of the rewards that learn to tell samples from real pictures."""
  if not recipe.critics:
    return state, {}
  rows = make_rows(recipe, state, batch, key)
  real = rollout_lib.media_of(recipe.reals(rows)[0], media)
  return critics_lib.step(
    recipe.critics,
    recipe.critic_tx,
    state,
    real,
    media,
    rows.keys,
    exp.rewards.valid,
  )
