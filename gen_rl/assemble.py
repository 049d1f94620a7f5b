"""From what a config names to step, evaluations, state and layout."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from gen_rl import (
  advantages,
  aggregate,
  build,
  chunks,
  fits,
  initial,
  measures,
  objectives,
  optim,
  ramps,
  search,
  searches,
  setups,
  sharding,
  train_step,
)
from gen_rl import evaluate as evaluate_lib
from gen_rl import rollout as rollout_lib
from gen_rl.data import (
  feeds,
  pictures,
  pipeline,
)
from gen_rl.rewards import combine, configured
from gen_rl.setups import Setup, encoder, mix, sampler_of, view_of
from gen_rl.types import Params, Rows

# What a run is made of, and starts from, is built here, too.
setup = setups.setup
initial_params, param_shapes = initial.params, initial.shapes
initial_state = initial.state


def make_evaluator(
  config: ml_collections.ConfigDict,
  built: Setup,
  layout: sharding.Layout | None = None,
  keep: Callable[[Any], Any] | None = None,
):
  """(params -> Evaluation, the batch of evaluation prompts).

  Args:
    config: see configs/base.py.
    built: of it.
    layout: where arrays live.
    keep: what keeps the program, see `utils.programs`.
  """
  batch, texts, tasks, asked = feeds.evaluation_and_asked(config, built)
  reader = built.reader and built.reader.tokenizer
  bound = dict(end=built.tokenizer.end_id, reader=reader)
  gold = configured.build_all(config.eval.gold, **bound)
  known = (*tasks, *built.source.tasks)
  proxy = configured.comparable(config, built, asked['columns'])
  if errors := fits.tasks('eval.gold', gold, known, 'eval.prompts'):
    raise build.Mistakes(errors)
  width, found = _searcher(config, built, proxy)
  run = build.build(
    evaluate_lib,
    config.eval.name,
    policy=built.policy,
    sampler=sampler_of(config, built.policy, built.net, counted=True)[0],
    search=found,
    encode=encoder(config, built.tokenizer, config.eval.rollout),
    batch=batch,
    texts=texts,
    tasks=tasks,
    asked=asked,
    gold={label: (reward, 1.0) for label, reward in gold.items()},
    proxy=proxy,
    monitors=built.monitors,
    host_rewards=config.host_rewards.to_dict(),
    view=view_of(config, config.eval.view),
    speak=built.tokenizer.decode,
    mix=mix(config),
    samples=config.eval.samples,
    seed=config.eval.seed,
    layout=layout,
    chunk=max(_at_a_time(config) // width, 1),
    sets=build.build_all(measures, config.eval.sets),
    keep=keep,
  )
  return run, batch


def _searcher(
  config: ml_collections.ConfigDict,
  built: Setup,
  rewards: combine.Weighted | None,
) -> tuple[int, Any]:
  """`searcher` of an evaluation, which has no parameters of trained rewards."""
  _, segments = sampler_of(config, built.policy, built.net)
  used = combine.weights(built.rewards or {})
  lost = set(used) - set(combine.weights(rewards or {}))
  if config.eval.search.name and lost:
    raise build.ConfigError(
      'a search chooses by the rewards of the config, and '
      f'{", ".join(sorted(lost))} means nothing in an evaluation: it is '
      'trained with the policy, or the prompts there lack what it reads'
    )
  return searcher(
    config, built, segments, config.eval.search, rewards, _at_a_time(config)
  )


def searcher(
  config: ml_collections.ConfigDict,
  built: Setup,
  segments: Any,
  spec: build.Spec,
  rewards: combine.Weighted | None,
  rows: int,
) -> tuple[int, Any]:
  """What a part such as `config.search` finds, and how much at a time.

  Args:
    config: see configs/base.py.
    built: of it.
    segments: the sampler in parts; None: it cannot stop.
    spec: of a function of `searches`; a name of '' is none.
    rewards: {label: (Reward, weight)} to search by.
    rows: candidates computed at a time.

  Returns:
    (candidates of a row that are computed at a time, (params, rows, {label: the
    rewards' parameters}) -> search.Found, or None: nothing is searched).

  Raises:
    ConfigError: all that keeps it from searching.
  """
  if not spec['name']:
    return 1, None
  method = build.build(searches, spec)
  errors = _against_search(config, method, segments, rewards or {})
  if segments is not None:
    method.check(segments.steps)
  if errors:
    name = spec['name']
    raise build.Mistakes([f'the search {name} {error}' for error in errors])
  device, _ = combine.split(rewards)
  reward = combine.combine(device, mix(config))
  chunk = max(rows // method.width, 1) * method.width

  def find(params: Params, rows: Rows, reward_params: Params) -> search.Found:
    judge = search.judge(built.policy, params, reward, reward_params)
    weights = {} if mix(config) else combine.weights(device)
    space = search.Space(segments, params, judge, weights, chunk)
    return method.find(space, rows)

  return method.width, find


def _against_search(
  config: ml_collections.ConfigDict,
  method: search.Search,
  segments: Any,
  rewards: combine.Weighted,
) -> list[str]:
  """Why these cannot search; what follows the name of a search."""
  errors = []
  if segments is None:
    errors.append(
      'takes Euler steps of the ODE, of a policy that denoises; this config '
      f'has policy.name={config.policy.name!r}, eval.sampler='
      f'{config.eval.sampler!r}, eval.solver={config.eval.solver!r}'
    )
  device, host = combine.split(rewards)
  if host:
    errors.append(
      'chooses by rewards on the device, and '
      f'{", ".join(host)} runs on the host'
    )
  elif not device:
    errors.append('chooses by the rewards of the config, and it has none')
  flat = [k for k, (r, _) in device.items() if not r.differentiable]
  if method.gradients and flat:
    errors.append(
      f'climbs the gradient of the rewards, and {", ".join(flat)} has none'
    )
  if method.ranks and mix(config):
    errors.append(
      'sums ranks of the rewards, and config.mix mixes their scores; leave one '
      'of the two out'
    )
  elif method.ranks and len(combine.weights(device)) == 1:
    errors.append(
      f'sums ranks of several rewards, and there is {", ".join(device)} alone; '
      'leave ranks out, or add one'
    )
  compare = {k: r.called_on for k, (r, _) in device.items()}
  if mixed := mix(config):
    compare['config.mix'] = mixed.called_on
  wide = [k for k, called_on in compare.items() if called_on == 'batch']
  near = [k for k, called_on in compare.items() if called_on == 'groups']
  if wide:
    errors.append(
      'scores the candidates of one sample, and '
      f'{", ".join(wide)} compares the rows of a whole batch'
    )
  if near and not method.relative:
    errors.append(
      'compares scores of different calls, and those of '
      f'{", ".join(near)} mean something beside each other alone; best_of_n '
      'and tournament may choose by it, and pruned where two go on to the end'
    )
  return errors


def _at_a_time(config: ml_collections.ConfigDict) -> int:
  """Samples that an evaluation draws at a time."""
  return config.eval.chunk or _rows(config) // config.rollout_chunks


def make_kl_from_base(
  config: ml_collections.ConfigDict,
  built: Setup,
  batch: pipeline.Batch,
  layout: sharding.Layout | None = None,
  keep: Callable[[Any], Any] | None = None,
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
    view_of(config, config.eval.view),
    layout,
    chunk=config.eval.chunk or _rows(config) // parts,
    keep=keep,
  )


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
  config: ml_collections.ConfigDict,
  built: Setup,
  layout: sharding.Layout,
):
  """(Step, optimizer, advantage) of a config."""
  group_size = config.data.group_size
  tx = build.build(
    optim,
    config.optimizer,
    steps=initial.minibatches(config, config.policy_every),
    seed=config.seed,
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
    objectives,
    config.objective,
    on_policy=one_update,
    group_size=config.update_members or group_size,
    reward_weights=combine.weights(built.rewards or {}),
  )
  # An objective that takes the size of a group compares its rows.
  whole_groups = any(
    build.takes(objectives, spec, 'group_size')
    for spec in config.objective.values()
    if build.weight(spec)
  ) or any(learner.compares for learner in built.learners.values())
  encode = encoder(config, built.tokenizer)
  rollout = encode and rollout_lib.data_rollout(
    encode, built.policy.ops.get('compress')
  )
  unit = (config.update_members or group_size) if whole_groups else 1
  errors = fits.rows(config, layout.row_shards, unit)
  if errors := errors + fits.advantage(config, advantage):
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
    pool=setups.pool(config, built),
    aggregate=build.find(aggregate, config.aggregate),
    learners=initial.taught(config, built),
    mix=mix(config),
    reward_ramps=_ramps(config.rewards),
    objective_ramps=_ramps(config.objective),
    update_rows=config.update_rows,
    update_members=config.update_members,
    importance_cap=config.importance_cap,
    policy_every=config.policy_every,
    reals=build.build(
      pictures, config.critic.reals, group_size=config.data.group_size
    ),
    layout=layout,
  )
  return step, tx, advantage
