"""From a config to what it names: policy, rewards, step, evaluation, state."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from gen_rl import (
  advantages,
  build,
  models,
  objectives,
  optim,
  policies,
  rewards,
  sharding,
  train_state,
  train_step,
)
from gen_rl import evaluate as evaluate_lib
from gen_rl import rollout as rollout_lib
from gen_rl.data import pictures, pipeline, prompts, tokenizers
from gen_rl.models import weights
from gen_rl.policies import denoising
from gen_rl.rewards import combine
from gen_rl.types import Advantage, Params, Policy


class Setup(NamedTuple):
  """What a config builds; shared by train, eval and sample."""

  source: prompts.Prompts
  tokenizer: tokenizers.Tokenizer
  policy: Policy
  sampler: Any  # (params, rows) -> latents, deterministic; None: predicts none
  rewards: combine.Weighted | None


def setup(
  config: ml_collections.ConfigDict, own_rewards: combine.Weighted | None = None
) -> Setup:
  """Builds the functions a config names.

  Args:
    config: see configs/base.py.
    own_rewards: {label: (Reward, weight)} on top of the config's.

  Raises:
    ConfigError: an unknown name or key, listing the valid ones.
  """
  source = build.build(prompts, config.data.prompts)
  tokenizer = build.build(tokenizers, config.tokenizer)
  net = build.build(
    models, config.model, vocab=tokenizer.size, length=config.data.length
  )
  policy = build.build(policies, config.policy, net=net)
  sampler = policy.velocity and denoising.ode_sampler(
    net,
    config.eval.steps,
    config.policy.get('shift', 1.0),
    config.policy.get('guidance_scale', 1.0),
  )
  built = build.build_all(rewards, config.rewards)
  weighted = {
    label: (reward, build.weight(config.rewards[label]))
    for label, reward in built.items()
  }
  weighted |= own_rewards or {}
  return Setup(source, tokenizer, policy, sampler, weighted or None)


def initial_params(config: ml_collections.ConfigDict, policy: Policy) -> Params:
  """Parameters a run starts from: `config.init`, or drawn from the seed."""
  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  if config.init:
    params, _ = weights.load(weights.find(config.init), shapes, cast=True)
    return jax.tree.map(jnp.asarray, params)
  return jax.jit(policy.init)(jax.random.key(config.seed))


def encoder(config: ml_collections.ConfigDict, changes: Mapping | None = None):
  """What turns rows into (data, cond); None where the policy samples."""
  if config.rollout.name == 'policy':
    return None
  return build.build(pictures, {**config.rollout, **(changes or {})})


def make_batches(
  config: ml_collections.ConfigDict, built: Setup
) -> pipeline.PromptBatches:
  """The batches of prompts a run trains on, from the first one."""
  return pipeline.prompt_batches(
    built.source,
    config.data.prompts_per_step,
    config.seed,
    built.tokenizer,
    config.data.length,
    weights=config.data.weights.to_dict(),
    balance=config.data.balance and bool(built.source.tasks),
    group_size=config.data.group_size,
  )


def make_evaluator(config: ml_collections.ConfigDict, built: Setup):
  """(params -> Evaluation, the batch of evaluation prompts)."""
  source = build.build(prompts, {**config.data.prompts, **config.eval.prompts})
  batches = pipeline.prompt_batches(
    source,
    config.eval.num_prompts,
    seed=0,
    tokenizer=built.tokenizer,
    length=config.data.length,
    balance=bool(source.tasks),
  )
  batch, texts = next(batches)
  batch = {k: v for k, v in batch.items() if k != 'media'}
  tasks = []
  if source.tasks:
    task_of = dict(zip(source.texts, source.tasks, strict=True))
    tasks = [task_of[text] for text in texts]
  # A source with few prompts repeats some: each place is its own prompt here.
  batch['prompt_id'] = np.arange(len(texts), dtype=np.int32)
  gold = build.build_all(rewards, config.eval.gold)
  run = build.build(
    evaluate_lib,
    config.eval.name,
    policy=built.policy,
    sampler=built.sampler,
    encode=encoder(config, config.eval.rollout),
    batch=batch,
    texts=texts,
    tasks=tasks,
    gold={label: (reward, 1.0) for label, reward in gold.items()},
    proxy=combine.split(built.rewards)[0] if built.rewards else None,
    samples=config.eval.samples,
    seed=config.eval.seed,
  )
  return run, batch


def make_step(
  config: ml_collections.ConfigDict, built: Setup, mesh: jax.sharding.Mesh
):
  """(Step, optimizer, advantage) of a config."""
  group_size = config.data.group_size
  tx = build.build(
    optim,
    config.optimizer,
    steps=config.steps * config.updates * config.epochs,
  )
  advantage = None
  if built.rewards:
    advantage = build.build(advantages, config.advantage, group_size=group_size)
  one_update = config.updates * config.epochs == 1
  built_objectives = build.build_all(
    objectives, config.objective, on_policy=one_update
  )
  encode = encoder(config)
  rollout = rollout_lib.data_rollout(encode) if encode else None
  rows = config.data.prompts_per_step * group_size
  if error := train_step.geometry_error(
    rows, config.updates, config.microbatches
  ) or sharding.rows_error(rows, mesh):
    raise build.ConfigError(error)
  step = train_step.make(
    built.policy,
    {
      label: (objective, build.weight(config.objective[label]))
      for label, objective in built_objectives.items()
    },
    tx,
    rollout=rollout,
    rewards=built.rewards,
    advantage=advantage,
    group_size=group_size,
    microbatches=config.microbatches,
    updates=config.updates,
    epochs=config.epochs,
    ema_decay=config.ema,
    mesh=mesh if mesh.size > 1 else None,
  )
  return step, tx, advantage


def parameter_copies(config: ml_collections.ConfigDict) -> list[str]:
  """Names of the copies of the parameters that objectives and EMA need.

  An objective that compares with a copy takes its name as `ref`.
  """
  names = {
    build.argument(objectives, spec, 'ref')
    for spec in config.objective.values()
    if build.weight(spec)
  }
  return sorted(names - {None, 'ema', 'old'}) + (['ema'] if config.ema else [])


def initial_state(
  config: ml_collections.ConfigDict,
  built: Setup,
  params: Params,
  tx: optax.GradientTransformation,
  advantage: Advantage | None,
) -> train_state.TrainState:
  """The state before the first step; what to train and to copy is config's."""
  device_rewards, _ = combine.split(built.rewards or {})
  return train_state.create(
    params,
    tx,
    advantage,
    trainable=config.trainable,
    refs=parameter_copies(config),
    reward_params=combine.params(device_rewards),
  )
