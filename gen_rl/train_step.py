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

from gen_rl import aggregate as aggregate_lib
from gen_rl import mixers, ramps, sharding
from gen_rl import rollout as rollout_lib
from gen_rl.rewards import combine
from gen_rl.step import judge as judge_lib
from gen_rl.step import learn as learn_lib
from gen_rl.step import sample as sample_lib
from gen_rl.step.recipe import Recipe, View
from gen_rl.train_state import Taught, TrainState
from gen_rl.types import (
  Advantage,
  Array,
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
  *,
  rollout: Callable[..., Trajectory] | None = None,
  rewards: combine.Weighted | None = None,
  monitors: combine.Weighted | None = None,
  advantage: Advantage | None = None,
  group_size: int = 1,
  rollout_chunks: int = 1,
  microbatches: int = 1,
  updates: int = 1,
  epochs: int = 1,
  ema_decay: float | Callable[[Array], Array] = 0.0,
  copies: Mapping[str, Callable[[Array], Array]] | None = None,
  behaviour: str = 'params',
  whole_groups: bool = False,
  aggregate: aggregate_lib.Aggregator = aggregate_lib.token_mean,
  learners: Mapping[str, Taught] | None = None,
  mix: mixers.Mixer | None = None,
  reward_ramps: Mapping[str, ramps.Ramp] | None = None,
  objective_ramps: Mapping[str, ramps.Ramp] | None = None,
  importance_cap: float = 0.0,
  policy_every: int = 1,
  reals: View | None = None,
  view: View | None = None,
  layout: sharding.Layout | None = None,
) -> Step:
  """Composes the step.

  Args:
    policy: what is trained.
    objectives: {label: (objective, weight)}; empty: it stays as it is, and
      learners learn from what it does.
    tx: the optimizer.
    rollout: (params, rows, step) -> Trajectory; default: the policy's own.
    rewards: {label: (Reward, weight)}; None for data batches, which get
      advantage 0 and weight 1.
    monitors: {label: (Reward, weight)} scored beside the rewards and logged,
      not trained on; the weights say nothing.
    advantage: turns scores into advantages; goes with `rewards`.
    group_size: G, samples per prompt.
    rollout_chunks: parts the rows of a rollout are sampled and decoded in, one
      after the other, to save memory.
    microbatches: gradient accumulation inside one optimizer step.
    updates: optimizer steps (minibatches) per pass over a rollout.
    epochs: passes over a rollout.
    ema_decay: of refs["ema"], per optimizer step, or a function of how many
      there have been, this one included; 0 keeps no average.
    copies: {name: step -> d}: after each step, refs[name] becomes
      d refs[name] + (1 - d) params.
    behaviour: which parameters sample, "params" or a name in `refs`.
    whole_groups: minibatches hold whole groups, for objectives that compare
      their rows.
    aggregate: how values become a loss, a function of `gen_rl.aggregate`.
    learners: {label: what is trained beside the policy}; those of rewards have
      the reward's label.
    mix: how rewards become one score; None: their weighted sum.
    reward_ramps: {label: rollouts done -> factor of its weight}.
    objective_ramps: the same of objectives.
    importance_cap: largest weight of a decision by how much likelier the
      update finds it than the rollout did; 0 weighs all alike.
    policy_every: minibatches from one optimizer step of the policy to the next.
    reals: rows -> (latents, cond), a function of `data.pictures`: what learners
      that need it tell from samples.
    view: what the policy is shown of the rows, see `rollout.make_rows`.
    layout: where rows and parameters live; None: all on one device.

  Returns:
    The Step. `batch` is what the pipeline yields, `key` the run's root key.

  Raises:
    ConfigError: rewards without an advantage, or the other way round; a
      step-wise advantage or a learner without what it needs; monitors without
      rewards, or with a label of theirs.
  """
  recipe = Recipe(
    policy=policy,
    objectives=objectives,
    tx=tx,
    rollout=rollout or rollout_lib.policy_rollout(policy),
    rewards=rewards,
    monitors=dict(monitors or {}),
    advantage=advantage,
    group_size=group_size,
    rollout_chunks=rollout_chunks,
    microbatches=microbatches,
    updates=updates,
    epochs=epochs,
    ema_decay=ema_decay,
    copies=dict(copies or {}),
    behaviour=behaviour,
    whole_groups=whole_groups,
    aggregate=aggregate,
    learners=dict(learners or {}),
    mix=mix,
    reward_ramps=dict(reward_ramps or {}),
    objective_ramps=dict(objective_ramps or {}),
    importance_cap=importance_cap,
    policy_every=policy_every,
    reals=reals,
    view=view,
    layout=layout or sharding.one_device(),
  )

  def sample(state, batch, key):
    return sample_lib.sample(recipe, state, batch, key)

  def collect(state, batch, key):
    traj, inputs, outs = sample(state, batch, key)
    state, exp, metrics = judge_lib.judge(recipe, state, traj, inputs, outs)
    exp = judge_lib.show(recipe, state, batch, inputs.image, exp, key)
    return state, exp, metrics

  def update(state, exp, key):
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
