"""The first station: rows -> trajectories, pictures and what rewards say.

Where there is a pool it is drawn and scored first, and says which rows to draw.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gen_rl import minibatch
from gen_rl import rollout as rollout_lib
from gen_rl.rewards import combine, evaluate
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.step import explore
from gen_rl.step.recipe import Recipe
from gen_rl.train_state import TrainState
from gen_rl.types import (
  Array,
  Params,
  PyTree,
  RewardInputs,
  RewardOut,
  Rows,
  Trajectory,
)
from gen_rl.utils import rng, tree


def make_rows(
  recipe: Recipe,
  state: TrainState,
  batch: Mapping[str, Any],
  key: Array,
  members: Array | None = None,
) -> Rows:
  """The rows of a step, over all devices; see `rollout.make_rows`."""
  rows = rollout_lib.make_rows(
    batch, recipe.group_size, key, state.step, recipe.view, members
  )
  return recipe.layout.rows(rows)


def sample(
  recipe: Recipe, state: TrainState, batch: Mapping[str, Any], key: Array
) -> tuple[Trajectory, RewardInputs, dict[str, RewardOut]]:
  """Rolls out and scores, what of it is on the device.

  Args:
    recipe: of the step.
    state: whose parameters, or a copy, sample.
    batch: of the pipeline.
    key: the run's.

  Returns:
    Trajectories; what rewards see, without what is in these
    (`rewards.inputs.joined`); {label: what a reward said}, and where there is a
    pool what was said of it, under `explore.POOL`.
  """
  if recipe.pool is None:
    return _sample(recipe, state, batch, key)
  pool, group_size = recipe.pool, recipe.group_size
  whole = dataclasses.replace(
    recipe, group_size=pool.size, view=pool.view, pool=None
  )
  if pool.policy:
    whole = dataclasses.replace(
      whole,
      policy=pool.policy,
      rollout=None,
      advantage=recipe.advantage._replace(stepwise=False),
      monitors={},
    )
  drawn = traj, _, outs = _sample(whole, state, batch, key)
  out = _merged(whole, state, traj, outs)
  members = explore.best_worst(out.score, out.valid, pool.size, group_size)
  said = recipe.layout.rows(explore.seen(out, members))
  if pool.policy:
    drawn = _sample(recipe, state, batch, key, members)
  else:
    groups = pool.size * jnp.arange(len(members))[:, None]
    at = (groups + members).reshape(-1)
    drawn = recipe.layout.rows(jax.tree.map(lambda x: x[at], drawn))
  traj, inputs, outs = drawn
  inputs = inputs.replace(group_size=group_size)
  return traj, inputs, {**outs, explore.POOL: said}


def _merged(
  recipe: Recipe,
  state: TrainState,
  traj: Trajectory,
  outs: Mapping[str, RewardOut],
) -> RewardOut:
  """The one score that is trained on."""
  out = combine.merge(
    {label: outs[label] for label in recipe.device_rewards},
    recipe.reward_weights(state.step),
    recipe.mix,
    recipe.group_size,
  )
  fine = tree.finite_rows(traj.sample, out.valid.shape[0])
  return out.replace(valid=out.valid & fine)


def _sample(
  recipe: Recipe,
  state: TrainState,
  batch: Mapping[str, Any],
  key: Array,
  members: Array | None = None,
) -> tuple[Trajectory, RewardInputs, dict[str, RewardOut]]:
  """The same of these members of the groups alone."""
  rows = make_rows(recipe, state, batch, key, members)
  params = recipe.full(recipe.behaviour_params(state), state)
  traj, media, done = _generate(recipe, params, rows, state.step)
  inputs = inputs_lib.of(rows, media, recipe.group_size)
  if recipe.rewards is None:
    return traj, inputs_lib.apart(inputs), {}
  inputs = inputs_lib.joined(inputs, traj)
  keys = rng.stream_keys(rows.keys, 'reward')
  with jax.named_scope('rewards'):
    outs = evaluate.evaluate(
      recipe.device_rewards | recipe.device_monitors,
      inputs,
      keys,
      recipe.reward_params(state),
    )
  if recipe.stepwise:
    with jax.named_scope('rewards'):
      before = evaluate.before(
        recipe.device_rewards,
        inputs,
        functools.partial(recipe.policy.decode, params),
        done,
        keys,
        recipe.reward_params(state),
      )
    outs = {
      label: out.replace(before=before.get(label))
      for label, out in outs.items()
    }
  return traj, inputs_lib.apart(inputs), outs


def _generate(
  recipe: Recipe, params: Params, rows: Rows, step: Array
) -> tuple[Trajectory, PyTree, Array | None]:
  """(trajectories, media, samples finished from every decision), in chunks."""
  draw = lambda rows: _draw(recipe, params, rows, step)
  if recipe.rollout_chunks == 1:
    return draw(rows)
  shard = recipe.layout.rows
  unit = _unit(recipe, rows)
  pieces = shard(minibatch.cut(rows, recipe.rollout_chunks, unit), 1)
  if unit == 1:
    pieces = pieces.replace(alike=1)
  _, drawn = recipe.fold(lambda _, rows: ((), draw(rows)), (), pieces)
  return shard(minibatch.join(drawn, unit))


def _unit(recipe: Recipe, rows: Rows) -> int:
  """Neighbours that stay together: those that ask the same, where they can."""
  parts = recipe.rollout_chunks * recipe.layout.row_shards
  prompts = len(rows.group) // rows.alike
  return rows.alike if prompts % parts == 0 else 1


def _draw(
  recipe: Recipe, params: Params, rows: Rows, step: Array
) -> tuple[Trajectory, PyTree, Array | None]:
  with jax.named_scope('rollout'):
    traj = jax.lax.stop_gradient(recipe.rollout(params, rows, step))
  if recipe.rewards is None:
    return traj, (), None
  with jax.named_scope('decode'):
    media = recipe.policy.decode(params, traj.sample)
  if not recipe.stepwise:
    return traj, media, None
  with jax.named_scope('rollout'):
    done = recipe.policy.ops['complete'](params, rows, step, traj)  # [b k ...]
  return traj, media, jax.lax.stop_gradient(done)
