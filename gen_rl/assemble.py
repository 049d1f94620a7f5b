"""From a config to what it names: policy, rewards, step, evaluation, state."""

from collections.abc import Mapping
import fnmatch
import inspect
import re
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
from gen_rl.diffusion import schedules, transitions
from gen_rl.models import weights
from gen_rl.policies import denoising
from gen_rl.rewards import combine
from gen_rl.types import Advantage, Params, Policy

# Where the function is found that a part of a config names.
SPECS = {
  'tokenizer': tokenizers,
  'data.prompts': prompts,
  'eval.prompts': prompts,
  'model': models,
  'policy': policies,
  'policy.transition': transitions,
  'policy.window_start': schedules,
  'rollout': pictures,
  'rewards.*': rewards,
  'eval.gold.*': rewards,
  'advantage': advantages,
  'objective.*': objectives,
  'optimizer': optim,
}


def keywords(path: str, name: str | None) -> list[str]:
  """What the function `name` takes, at `path` of a config ('data.prompts').

  Empty where that is no part that names a function, or there is no such one.
  """
  for pattern, module in SPECS.items():
    if fnmatch.fnmatchcase(path, pattern) and name in build.names(module):
      return list(inspect.signature(build.find(module, name)).parameters)
  return []


class Setup(NamedTuple):
  """What a config builds; shared by train, eval and sample."""

  source: prompts.Prompts
  tokenizer: tokenizers.Tokenizer
  policy: Policy
  all_decisions: Policy  # the same with every noisy step one: KL sums them all
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
  every = dict(window=0, window_low=0, window_high=0, window_start=None)
  every = {k: v for k, v in every.items() if k in config.policy}
  all_decisions = build.build(policies, {**config.policy, **every}, net=net)
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
  check(config, bool(weighted))
  return Setup(
    source, tokenizer, policy, all_decisions, sampler, weighted or None
  )


def check(config: ml_collections.ConfigDict, rewarded: bool) -> None:
  """Raises ConfigError on fields no run can have, before anything is built.

  Args:
    config: see configs/base.py.
    rewarded: some reward has a weight.
  """
  positive = (
    'steps', 'updates', 'epochs', 'microbatches', 'eval.every', 'log.every',
    'checkpoint.every', 'data.prompts_per_step', 'data.group_size',
    'eval.num_prompts', 'eval.samples',
  )  # fmt: skip
  flat = build.flatten(config)
  for field in positive:
    if flat[field] < 1:
      raise build.ConfigError(
        f'config.{field} is {flat[field]}; it must be at least 1 (an interval '
        'longer than the run switches off what it times)'
      )
  if not any(build.weight(spec) for spec in config.objective.values()):
    raise build.ConfigError(
      'nothing would be trained: config.objective has no term with a weight'
    )
  if config.rollout.name == 'policy' and not rewarded:
    raise build.ConfigError(
      'nothing would be trained: the policy samples, and config.rewards has no '
      'reward with a weight'
    )
  try:
    re.compile(config.trainable)
  except re.error as error:
    raise build.ConfigError(
      f'config.trainable={config.trainable!r} is no regular expression: {error}'
    ) from None


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
    truncate=config.data.truncate,
  )


def evaluation_prompts(config: ml_collections.ConfigDict) -> prompts.Prompts:
  """`eval.prompts`, on top of `data.prompts` where both are of one source."""
  spec = config.eval.prompts.to_dict()
  if spec.get('name', config.data.prompts.name) == config.data.prompts.name:
    spec = config.data.prompts.to_dict() | spec
  return build.build(prompts, spec)


def make_evaluator(config: ml_collections.ConfigDict, built: Setup):
  """(params -> Evaluation, the batch of evaluation prompts)."""
  source = evaluation_prompts(config)
  batches = pipeline.prompt_batches(
    source,
    config.eval.num_prompts,
    seed=0,
    tokenizer=built.tokenizer,
    length=config.data.length,
    balance=bool(source.tasks),
    truncate=config.data.truncate,
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
    proxy=built.rewards,
    host_rewards=config.host_rewards.to_dict(),
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
