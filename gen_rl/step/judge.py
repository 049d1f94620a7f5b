"""The second station: scores -> advantages."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gen_rl import rollout as rollout_lib
from gen_rl.build import ConfigError
from gen_rl.rewards import combine
from gen_rl.step import ask, explore
from gen_rl.step.recipe import Recipe
from gen_rl.step.sample import make_rows
from gen_rl.train_state import TrainState
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  PyTree,
  RewardInputs,
  RewardOut,
  Shown,
  Trajectory,
)
from gen_rl.utils import tree


def judge(
  recipe: Recipe,
  state: TrainState,
  traj: Trajectory,
  inputs: RewardInputs,
  outs: Mapping[str, RewardOut],
) -> tuple[TrainState, Experience, Metrics]:
  """Compares scores within groups.

  Args:
    recipe: of the step.
    state: with the state of the advantage.
    traj: of `sample`.
    inputs: what rewards saw, kept for rewards with gradients.
    outs: {label: what it said} of all rewards and monitors; and of the pool.
  """
  b = traj.group.shape[0]
  fine = tree.finite_rows(traj, b)
  drawn = {}
  if jax.tree.leaves(traj.reused):
    drawn['rollout/reused'] = traj.reused.mean()
  if jax.tree.leaves(traj.spared):
    drawn['speed/spared'] = traj.spared.mean()
  inputs = inputs.replace(media=())  # replayed samples are decoded anew
  if recipe.advantage is None:
    out = RewardOut(jnp.zeros(b), {}, fine)
    traj = tree.zero_rows(traj, fine)
    adv, weight = jnp.zeros((b, 1)), fine.astype(jnp.float32)
    return state, Experience(traj, adv, weight, out, inputs), drawn
  watched = {label: outs[label] for label in recipe.monitors}
  scored = {
    label: x.replace(valid=x.valid & fine)
    for label, x in outs.items()
    if label not in (*recipe.monitors, explore.POOL)
  }
  out = combine.merge(
    scored, recipe.reward_weights(state.step), recipe.mix, recipe.group_size
  )
  # 0 * NaN is NaN: a backward pass must not see the row at all.
  traj = tree.zero_rows(traj, out.valid)
  values = _values(recipe, state, traj, out, inputs)
  asked = (traj.mask, values) if recipe.advantage.values else ()
  adv, weight, adv_state, metrics = recipe.advantage.update(
    out, traj.group, state.adv_state, *asked
  )
  watched = combine.watch(watched, adv, out.valid, recipe.group_size)
  metrics = {**combine.summarize(out, scored), **metrics, **watched, **drawn}
  if recipe.pool:
    pool = outs[explore.POOL]
    metrics |= explore.agreement(pool, out, recipe.group_size)
  metrics |= {
    f'reward/{label}/weight': weight
    for label, weight in recipe.reward_weights(state.step).items()
    if label in recipe.reward_ramps
  }
  state = state.replace(adv_state=adv_state)
  exp = Experience(traj, adv, weight, out, inputs, values)
  return state, exp, metrics


def _values(
  recipe: Recipe,
  state: TrainState,
  traj: Trajectory,
  out: RewardOut,
  inputs: RewardInputs,
) -> PyTree:
  """Values [b k] that the advantage asks for; () if it asks for none."""
  if not recipe.advantage.values:
    return ()
  b = traj.group.shape[0]
  blank = jnp.zeros((b, 1)), jnp.zeros(b)
  exp = Experience(traj, *blank, out, inputs)
  old = recipe.behaviour_params(state)

  def values(piece: Experience) -> Array:
    replay = ask.replay(recipe, state, old, piece)
    return replay.ask(recipe.advantage.values, 'value')

  try:
    return ask.in_pieces(recipe, exp, values)
  except ConfigError as error:
    raise ConfigError(f'config.advantage: {error}') from None


def show(
  recipe: Recipe,
  state: TrainState,
  batch: Mapping[str, Any],
  media: PyTree,
  exp: Experience,
  key: Array,
) -> Experience:
  """Adds what is real, for learners that tell it from samples."""
  if not any(taught.learner.shown for taught in recipe.learners.values()):
    return exp
  rows = make_rows(recipe, state, batch, key)
  real = rollout_lib.media_of(recipe.reals(rows)[0], media)
  real, media = jax.lax.stop_gradient((real, media))
  fine = exp.rewards.valid & tree.finite_rows(
    (real, media), rows.group.shape[0]
  )
  fake, real = tree.zero_rows((media, real), fine)
  return exp.replace(shown=Shown(fake, real, fine.astype(jnp.float32)))
