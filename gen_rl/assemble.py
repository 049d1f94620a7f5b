"""From a config to what it names: policy, rewards, step, evaluation, state."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import ml_collections

from gen_rl import (
  advantages,
  aggregate,
  build,
  chunks,
  evals,
  fits,
  initial,
  learners,
  measures,
  mixers,
  models,
  objectives,
  optim,
  policies,
  ramps,
  schema,
  search,
  sharding,
  specs,
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
from gen_rl.models.parts import layers
from gen_rl.policies import ode
from gen_rl.rewards import combine, configured
from gen_rl.types import Learner, Policy

# What a run starts from is built here, too.
initial_params, param_shapes = initial.params, initial.shapes
initial_state = initial.state


class Setup(NamedTuple):
  """What a config builds; shared by train, eval and sample."""

  net: Any  # of the policy
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
  learners: dict[str, Learner]  # that are no rewards


# What is not built to search, and to sample.
_UNUSED = dict(
  search=('data.prompts', 'eval.prompts', 'evals', 'monitors'),
  sample=('data.prompts', 'eval', 'evals', 'monitors', 'rewards'),
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
  built = configured.build_all(config.rewards, **bound) if judged else {}
  weighted = {
    label: (reward, build.weight(config.rewards[label]))
    for label, reward in built.items()
  }
  weighted |= own_rewards or {}
  errors = fits.drawn_judges(config) if judged else []
  for c in evals.configs(config).values() if running else [config]:
    errors += fits.sampler(c, policy)
  errors += fits.policy(config, policy)
  errors += fits.mixed(config)
  errors += fits.answers(config, source)
  monitors = configured.build_all(config.monitors, **bound) if running else {}
  if running:
    used = {label: reward for label, (reward, _) in weighted.items()}
    errors += fits.tasks('rewards', used, source.tasks)
    errors += fits.unrewarded(config, used, source.tasks)
    errors += fits.tasks('monitors', monitors, source.tasks)
  if running and config.rollout.name == 'policy' and not weighted:
    errors.append(
      'nothing would be trained: the policy samples, and config.rewards has no '
      'reward with a weight'
    )
  if errors:
    raise build.Mistakes(errors)
  trained = {}
  if running:
    trained = build.build_all(
      learners,
      {k: _own(spec) for k, spec in config.learners.items()},
      vocab=tokenizer.size,
      length=config.data.length,
      **bound,
    )
  return Setup(
    net,
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
    trained,
  )


def _own(spec: build.Spec) -> dict[str, Any]:
  """A learner's own keywords."""
  return {k: v for k, v in spec.items() if k not in specs.LEARNER_KEYS}


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
    config.policy.get('guidance_scale', 1.0)
    if config.eval.guidance_scale is None
    else config.eval.guidance_scale,
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


def make_evaluator(
  config: ml_collections.ConfigDict,
  built: Setup,
  layout: sharding.Layout | None = None,
):
  """(params -> Evaluation, the batch of evaluation prompts)."""
  batch, texts, tasks, asked = feeds.evaluation_and_asked(config, built)
  reader = built.reader and built.reader.tokenizer
  bound = dict(end=built.tokenizer.end_id, reader=reader)
  gold = configured.build_all(config.eval.gold, **bound)
  known = (*tasks, *built.source.tasks)
  proxy = configured.comparable(config, built, asked['columns'])
  if errors := fits.tasks('eval.gold', gold, known, 'eval.prompts'):
    raise build.Mistakes(errors)
  run = build.build(
    evaluate_lib,
    config.eval.name,
    policy=built.policy,
    sampler=_sampler(config, built.policy, built.net)[0],
    search=_search(config, built, proxy),
    encode=encoder(config, built.tokenizer, config.eval.rollout),
    batch=batch,
    texts=texts,
    tasks=tasks,
    asked=asked,
    gold={label: (reward, 1.0) for label, reward in gold.items()},
    proxy=proxy,
    monitors=built.monitors,
    host_rewards=config.host_rewards.to_dict(),
    view=built.view,
    speak=built.tokenizer.decode,
    mix=mix(config),
    samples=config.eval.samples,
    seed=config.eval.seed,
    layout=layout,
    chunk=max(_at_a_time(config) // config.eval.best_of, 1),
    sets=build.build_all(measures, config.eval.sets),
  )
  return run, batch


def _search(
  config: ml_collections.ConfigDict,
  built: Setup,
  rewards: combine.Weighted | None,
) -> Any:
  """(params, rows, judges' parameters) -> latents; None: nothing is searched.

  Raises:
    ConfigError: there is no search by these rewards.
  """
  if config.eval.best_of == 1:
    return None
  _, segments = _sampler(config, built.policy, built.net)
  device, on_host = combine.split(rewards or {})
  dropped = combine.weights(built.rewards or {}) != combine.weights(
    rewards or {}
  )
  said = f'eval.best_of={config.eval.best_of} searches '
  if segments is None:
    raise build.ConfigError(
      f"{said}by Euler steps: with eval.sampler='ode' and solver='euler', of a "
      'policy that denoises'
    )
  if on_host or not device or dropped or combine.widest(device) == 'batch':
    raise build.ConfigError(
      f'{said}by the rewards of the config, which have to be on the device, '
      'not trained with the policy, and to compare no whole batch'
    )
  judge = combine.combine(device, mix(config))
  n = config.eval.best_of
  chunk = max(_at_a_time(config) // n, 1) * n
  return search.sampler(built.policy, segments, judge, n, chunk)


def _at_a_time(config: ml_collections.ConfigDict) -> int:
  """Samples that an evaluation draws at a time."""
  return config.eval.chunk or _rows(config) // config.rollout_chunks


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
    chunk=config.eval.chunk or _rows(config) // parts,
  )


def mix(config: ml_collections.ConfigDict) -> mixers.Mixer | None:
  """How rewards become one score; None: their weighted sum."""
  if config.mix.name == 'weighted_sum':
    return None
  return build.build(mixers, config.mix)


def _ramps(specs: Mapping[str, build.Spec]) -> dict[str, ramps.Ramp]:
  """{label: factor of its weight} of those whose weight moves."""
  return {
    label: build.build(ramps, spec['schedule'])
    for label, spec in specs.items()
    if 'schedule' in spec and build.weight(spec)
  }


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
  judges = combine.axes({**(built.rewards or {}), **built.monitors})
  trained = combine.learners(built.rewards or {}) | built.learners
  axes = {label: learner.axes for label, learner in trained.items()}
  return sharding.Layout(
    mesh, built.policy.axes, rules, config.offload, judges, axes
  )


def make_step(
  config: ml_collections.ConfigDict, built: Setup, layout: sharding.Layout
):
  """(Step, optimizer, advantage) of a config."""
  group_size = config.data.group_size
  tx = build.build(
    optim,
    config.optimizer,
    steps=initial.minibatches(config, config.policy_every),
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
    learners=initial.taught(config, built),
    mix=mix(config),
    reward_ramps=_ramps(config.rewards),
    objective_ramps=_ramps(config.objective),
    importance_cap=config.importance_cap,
    policy_every=config.policy_every,
    reals=build.build(
      pictures, config.critic.reals, group_size=config.data.group_size
    ),
    layout=layout,
  )
  return step, tx, advantage
