"""From a config to what it names: policy, rewards, step, evaluation, state."""

from collections.abc import Collection, Mapping
import re
from typing import Any, Literal, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import optax

from gen_rl import (
  advantages,
  aggregate,
  build,
  chunks,
  fits,
  models,
  objectives,
  optim,
  policies,
  rewards,
  schema,
  sharding,
  train_state,
  train_step,
)
from gen_rl import evaluate as evaluate_lib
from gen_rl import rollout as rollout_lib
from gen_rl.data import (
  embeddings,
  feeds,
  pictures,
  pipeline,
  prompts,
  tokenizers,
)
from gen_rl.models import layers, lora, weights
from gen_rl.policies import ode
from gen_rl.rewards import combine
from gen_rl.types import Advantage, Params, Policy
from gen_rl.utils import rng, tree


class Setup(NamedTuple):
  """What a config builds; shared by train, eval and sample."""

  source: prompts.Prompts | None  # None: none are needed
  tokenizer: tokenizers.Tokenizer
  policy: Policy
  all_decisions: Policy  # the same with every noisy step one: KL sums them all
  sampler: Any  # (params, rows) -> latents, deterministic; None: predicts none
  rewards: combine.Weighted | None
  monitors: combine.Weighted  # rewards that are not trained on
  segments: Any  # the sampler in parts, for `search`; None: it cannot stop
  view: Any  # what the policy is shown, see rollout.make_rows; None: prompts
  reader: pipeline.Reader | None  # what judges read prompts with
  embed: embeddings.Embed | None  # prompts as the network is given them


# What is not built to search, and to sample.
_UNUSED = dict(
  search=('data.prompts', 'eval.prompts', 'monitors'),
  sample=('data.prompts', 'eval', 'monitors', 'rewards'),
)


def setup(
  config: ml_collections.ConfigDict,
  own_rewards: combine.Weighted | None = None,
  use: Literal['run', 'search', 'sample'] = 'run',
) -> Setup:
  """Builds the functions a config names.

  Args:
    config: see configs/base.py.
    own_rewards: {label: (Reward, weight)} on top of the config's.
    use: what for. A search needs no prompts and monitors, and a sample of the
      policy neither these nor rewards: their files may be missing, and their
      fields are None or empty.

  Raises:
    ConfigError: all that is wrong with its fields; else the first thing that
      cannot be built.
  """
  running, judged = use == 'run', use != 'sample'
  schema.check(config, () if running else _UNUSED[use])
  source = build.build(prompts, config.data.prompts) if running else None
  tokenizer = build.build(tokenizers, config.tokenizer)
  # The released networks' configs may say which id is padding to them.
  padding = {} if 'pad' in config.model else dict(pad=tokenizer.pad_id)
  net = build.build(
    models,
    config.model,
    vocab=tokenizer.size,
    length=config.data.length,
    **padding,
  )
  net = layers.traced_once(net)
  end = dict(end=tokenizer.end_id, pad=tokenizer.pad_id)
  policy = build.build(policies, config.policy, net=net, **end)
  all_decisions = build.build(
    policies, _all_decisions(config.policy), net=net, **end
  )
  view = None
  if config.data.view.name:
    view = build.build(
      pictures, config.data.view, group_size=config.data.group_size
    )
  sampler, segments = _sampler(config, policy, net)
  reader = feeds.reader(config) if judged else None
  bound = end | dict(reader=reader and reader.tokenizer)
  built = build.build_all(rewards, config.rewards, **bound) if judged else {}
  weighted = {
    label: (reward, build.weight(config.rewards[label]))
    for label, reward in built.items()
  }
  weighted |= own_rewards or {}
  errors = fits.drawn_judges(config) if judged else []
  errors += fits.policy(config, policy)
  errors += fits.answers(config, source)
  if running and config.rollout.name == 'policy' and not weighted:
    errors.append(
      'nothing would be trained: the policy samples, and config.rewards has no '
      'reward with a weight'
    )
  if errors:
    raise build.Mistakes(errors)
  monitors = {}
  if running:
    monitors = build.build_all(rewards, config.monitors, **bound)
  return Setup(
    source,
    tokenizer,
    policy,
    all_decisions,
    sampler,
    weighted or None,
    {label: (monitor, 1.0) for label, monitor in monitors.items()},
    segments,
    view,
    reader,
    feeds.embed(config),
  )


def _sampler(
  config: ml_collections.ConfigDict, policy: Policy, net: Any
) -> tuple[Any, Any]:
  """The sampler of evaluations, and its segments if it can stop; else None."""
  if config.eval.sampler == 'policy':
    step = lambda: jnp.zeros((), jnp.int32)
    drawn = lambda params, rows: policy.rollout(params, rows, step()).sample
    return drawn, None
  if config.eval.sampler == 'greedy':
    return policy.ops.get('greedy'), None
  if 'velocity' not in policy.ops:
    return None, None
  sampling = (
    net,
    config.eval.steps,
    config.policy.get('shift', 1.0),
    config.policy.get('guidance_scale', 1.0),
  )
  grid = dict(grid=config.policy.get('grid'))
  sampler = ode.sampler(*sampling, config.eval.solver, **grid)
  if config.eval.solver != 'euler':
    return sampler, None
  return sampler, ode.segments(*sampling, **grid)


# Settings of policies by which decisions are left out of training.
_LEAVE_OUT = dict(
  window=0, window_low=0, window_high=0, window_start=None, tail=1.0,
  solver='euler', deterministic=False, drop_truncated=False,
  greedy_first=False,
)  # fmt: skip


def _all_decisions(spec: build.Spec) -> dict[str, Any]:
  """The spec of a policy, and of those within it, that leaves out none."""
  policy_names = build.names(policies)

  def changed(key: str, value: Any) -> Any:
    name = value.get('name', '') if isinstance(value, Mapping) else ''
    if name.rpartition('.')[2] in policy_names:
      return _all_decisions(value)
    return _LEAVE_OUT.get(key, value)

  return {key: changed(key, value) for key, value in build.plain(spec).items()}


def initial_params(config: ml_collections.ConfigDict, policy: Policy) -> Params:
  """Parameters a run starts from: `config.init` or `config.released`, or drawn.

  With the adapters that `config.lora` asks for, new ones or those of a file.
  """
  key = jax.random.key(config.seed)
  if config.released and not config.init:
    # Full precision where all of them are trained.
    frozen = config.lora.pattern and config.trainable == lora.TRAINABLE
    params = policy.load(
      config.released, config.frozen_dtype if frozen else 'float32'
    )
  elif config.init:
    shapes = jax.eval_shape(policy.init, key)
    params, _ = weights.load(weights.find(config.init), shapes, cast=True)
    params = jax.tree.map(jnp.asarray, params)
  else:
    params = jax.jit(policy.init)(key)
  params = with_adapters(config, params)
  if config.lora.start:
    params = policy.adapt(config.lora.start, params)
  return params


def with_adapters(config: ml_collections.ConfigDict, params: Params) -> Params:
  """Adds the adapters `config.lora` asks for, which change nothing yet.

  What is not trained then is of type `frozen_dtype`.
  """
  if config.lora.pattern:
    key = rng.stream_keys(jax.random.key(config.seed), 'lora')
    drawn = {k: v for k, v in config.lora.items() if k != 'start'}
    params = lora.add(params, **drawn, key=key)
  trained, rest = tree.split(params, config.trainable)
  return tree.merge(
    trained,
    jax.tree.map(lambda x: x.astype(config.frozen_dtype, copy=False), rest),
  )


def param_shapes(config: ml_collections.ConfigDict, policy: Policy) -> Params:
  """ShapeDtypeStructs of `initial_params`, without a file or memory."""

  def init():
    return with_adapters(config, policy.init(jax.random.key(0)))

  return jax.eval_shape(init)


def encoder(
  config: ml_collections.ConfigDict,
  tokenizer: tokenizers.Tokenizer,
  changes: Mapping | None = None,
):
  """What turns rows into (data, cond); None where the policy samples."""
  if config.rollout.name == 'policy':
    return None
  return build.build(
    pictures,
    {**config.rollout, **(changes or {})},
    group_size=config.data.group_size,
    end=tokenizer.end_id,
    pad=tokenizer.pad_id,
  )


def comparable_rewards(
  config: ml_collections.ConfigDict, built: Setup, columns: Collection[str]
) -> combine.Weighted | None:
  """Rewards that mean the same for any samples, or None.

  Not those of data, which judge what was given, nor those that are trained,
  whose scale moves; nor those in Python where the prompts lack columns of those
  that are trained on, which they may read.

  Args:
    config: see configs/base.py.
    built: of the config.
    columns: of the evaluation prompts.
  """
  if config.rollout.name != 'policy' or not built.rewards:
    return None
  kept = {k: v for k, v in built.rewards.items() if v[0].critic is None}
  missing = sorted(set(built.source.extra) - set(columns))
  _, on_host = combine.split(kept)
  if missing and on_host:
    logging.warning(
      '%s may read the columns %s of data.prompts, which eval.prompts do not '
      'have: evaluations give no proxy.',
      ', '.join(on_host),
      ', '.join(missing),
    )
    return None
  return kept if any(weight for _, weight in kept.values()) else None


def make_evaluator(
  config: ml_collections.ConfigDict,
  built: Setup,
  layout: sharding.Layout | None = None,
):
  """(params -> Evaluation, the batch of evaluation prompts)."""
  batch, texts, tasks, asked = feeds.evaluation_and_asked(config, built)
  reader = built.reader and built.reader.tokenizer
  bound = dict(end=built.tokenizer.end_id, reader=reader)
  gold = build.build_all(rewards, config.eval.gold, **bound)
  run = build.build(
    evaluate_lib,
    config.eval.name,
    policy=built.policy,
    sampler=built.sampler,
    encode=encoder(config, built.tokenizer, config.eval.rollout),
    batch=batch,
    texts=texts,
    tasks=tasks,
    asked=asked,
    gold={label: (reward, 1.0) for label, reward in gold.items()},
    proxy=comparable_rewards(config, built, asked['columns']),
    monitors=built.monitors,
    host_rewards=config.host_rewards.to_dict(),
    view=built.view,
    speak=built.tokenizer.decode,
    samples=config.eval.samples,
    seed=config.eval.seed,
    layout=layout,
    chunk=_rows(config) // config.rollout_chunks,
  )
  return run, batch


def make_kl_from_base(
  config: ml_collections.ConfigDict,
  built: Setup,
  batch: pipeline.Batch,
  layout: sharding.Layout | None = None,
) -> chunks.Evaluator | None:
  """(params, base) -> nats a sample on `batch`; None where nothing is sampled.

  As many rows at a time as a step samples or learns from, whichever are fewer.
  """
  if config.rollout.name != 'policy':
    return None
  parts = max(config.rollout_chunks, config.updates * config.microbatches)
  return evaluate_lib.kl_from_base(
    built.all_decisions,
    batch,
    config.eval.samples,
    config.eval.seed,
    built.view,
    layout,
    chunk=_rows(config) // parts,
  )


def _rows(config: ml_collections.ConfigDict) -> int:
  """Samples of a step."""
  return config.data.prompts_per_step * config.data.group_size


def make_layout(
  config: ml_collections.ConfigDict, built: Setup, devices: Any = None
) -> sharding.Layout:
  """Where arrays live, of `config.mesh`; on all devices by default."""
  sizes = {k: v for k, v in config.mesh.items() if k != 'rules'}
  mesh = sharding.make_mesh(**sizes, devices=devices)
  rules = {**sharding.RULES, **config.mesh.rules}
  return sharding.Layout(mesh, built.policy.axes, rules, config.offload)


def make_step(
  config: ml_collections.ConfigDict, built: Setup, layout: sharding.Layout
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
    advantage = build.build(
      advantages,
      config.advantage,
      group_size=group_size,
      reward_weights=combine.weights(built.rewards),
    )
  behaviour = config.behaviour
  one_update = config.updates * config.epochs == 1 and behaviour == 'params'
  built_objectives = build.build_all(
    objectives, config.objective, on_policy=one_update, group_size=group_size
  )
  # An objective that takes the size of a group compares its rows.
  whole_groups = any(
    build.takes(objectives, spec, 'group_size')
    for spec in config.objective.values()
    if build.weight(spec)
  )
  encode = encoder(config, built.tokenizer)
  rollout = encode and rollout_lib.data_rollout(
    encode, built.policy.ops.get('compress')
  )
  unit = group_size if whole_groups else 1
  if errors := fits.rows(config, layout.row_shards, unit):
    raise build.Mistakes(errors)
  step = train_step.make(
    built.policy,
    {
      label: (objective, build.weight(config.objective[label]))
      for label, objective in built_objectives.items()
    },
    tx,
    rollout=rollout,
    rewards=built.rewards,
    monitors=built.monitors,
    advantage=advantage,
    group_size=group_size,
    rollout_chunks=config.rollout_chunks,
    microbatches=config.microbatches,
    updates=config.updates,
    epochs=config.epochs,
    ema_decay=optim.average_decay(
      config.ema, config.ema_every, config.ema_warmup
    ),
    copies=build.build_all(optim, config.copies),
    behaviour=behaviour,
    whole_groups=whole_groups,
    view=built.view,
    aggregate=build.find(aggregate, config.aggregate),
    critic_tx=build.build(optim, config.critic.optimizer),
    reals=build.build(
      pictures, config.critic.reals, group_size=config.data.group_size
    ),
    layout=layout,
  )
  return step, tx, advantage


def parameter_copies(config: ml_collections.ConfigDict) -> list[str]:
  """Names of the copies of the parameters that objectives and EMA need."""
  names = {*schema.copies_named(config).values()}
  names |= {*config.copies, config.behaviour}
  names -= {'ema', 'old', 'params'}
  return sorted(names) + (['ema'] if config.ema else [])


def still_copies(config: ml_collections.ConfigDict) -> list[str]:
  """Those of `parameter_copies` that stay what training began with."""
  moved = {'ema', *config.copies}
  return [name for name in parameter_copies(config) if name not in moved]


# No loss reaches autoencoders, see `models.latent` and `policies.coded`.
_FIXED = r'^(second/)?(vae|codec)/'


def initial_state(
  config: ml_collections.ConfigDict,
  built: Setup,
  params: Params,
  tx: optax.GradientTransformation,
  advantage: Advantage | None,
) -> train_state.TrainState:
  """The state before the first step; what to train and to copy is config's.

  Raises:
    ConfigError: `trainable` takes parameters that no loss reaches.
  """
  trained = tree.named(tree.split(params, config.trainable)[0])
  if fixed := [name for name in trained if re.search(_FIXED, name)]:
    raise build.ConfigError(
      f'trainable={config.trainable!r} takes {len(fixed)} parameters of the '
      f'autoencoder ({fixed[0]}, ...), which no loss reaches: weight decay '
      'alone would move them; set trainable="^net/" or less'
    )
  device_rewards, _ = combine.split(built.rewards or {})
  return train_state.create(
    params,
    tx,
    advantage,
    trainable=config.trainable,
    refs=parameter_copies(config),
    reward_params=combine.params(
      {
        **device_rewards,
        **combine.split(built.monitors)[0],
      }
    ),
    critics=combine.critics(device_rewards),
    critic_tx=build.build(optim, config.critic.optimizer),
    key=rng.stream_keys(jax.random.key(config.seed), 'critics'),
  )
