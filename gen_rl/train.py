"""Training, top to bottom: config in, checkpoints, metrics and a report out."""

from collections.abc import Mapping, Sequence
import contextlib
import json
import shlex
import signal
import sys
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from gen_rl import (
  advantages,
  build,
  checkpoint,
  metrics,
  models,
  objectives,
  optim,
  policies,
  report,
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
from gen_rl.rewards import combine, evaluate
from gen_rl.types import Advantage, Params, Policy
from gen_rl.utils import image, progress, system

_PROCESS_START = time.time()


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


def _parameter_copies(config: ml_collections.ConfigDict) -> list[str]:
  """Names of the copies of the parameters that objectives and EMA need."""
  names = {
    spec.ref
    for spec in config.objective.values()
    if 'ref' in spec and build.weight(spec)
  }
  for name in ('kl', 'velocity_kl'):
    if any(
      spec.name == name and build.weight(spec)
      for spec in config.objective.values()
    ):
      names.add('ref')
  return sorted(names - {'ema', 'old'}) + (['ema'] if config.ema else [])


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
    refs=_parameter_copies(config),
    reward_params=combine.params(device_rewards),
  )


def resume_command(name: str, workdir: str, flags: Sequence[str]) -> str:
  """The command line that continues a run.

  Args:
    name: of the config.
    workdir: of the run.
    flags: those the run was started with; without a --config among them (a
      notebook) the config of that name is assumed.
  """
  names = [flag.lstrip('-').partition('=')[0] for flag in flags]
  if 'config' not in names:
    file, colon, variant = name.partition(':')
    flags, names = [f'--config=configs/{file}.py{colon}{variant}'], []
  if 'workdir' not in names:
    flags = [*flags, f'--workdir={workdir}']
  return f'python -m gen_rl.main {shlex.join(flags)}'


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str,
  own_rewards: combine.Weighted | None = None,
) -> dict[str, Any]:
  """Trains from the newest checkpoint of `workdir`, or from the start.

  Args:
    config: see configs/base.py.
    own_rewards: {label: (Reward, weight)} besides those the config names, for
      rewards that live in a notebook.
    workdir: folder for checkpoints, metrics.jsonl, TensorBoard files,
      result.json and report.html.

  Returns:
    What result.json holds.

  Raises:
    ConfigError, CheckpointError: one sentence each.
    FloatingPointError: too many updates in a row were not finite.
    SystemExit: code 0 after SIGTERM, with the state saved.
  """
  clock = progress.Stopwatch()
  mesh = sharding.data_mesh()
  built = setup(config, own_rewards)
  step, tx, advantage = make_step(config, built, mesh)
  batches = pipeline.prompt_batches(
    built.source,
    config.data.prompts_per_step,
    config.seed,
    built.tokenizer,
    config.data.length,
    balance=config.data.balance and bool(built.source.tasks),
    group_size=config.data.group_size,
  )
  manager = checkpoint.open_manager(
    f'{workdir}/checkpoints', config.checkpoint.keep
  )

  # On the host: the state's own copy is donated to the step.
  base = jax.device_get(initial_params(config, built.policy))
  _, host_rewards = combine.split(built.rewards or {})
  state = initial_state(config, built, base, tx, advantage)
  state = sharding.replicate(state, mesh)
  restored = checkpoint.restore_latest(manager, state, config.to_dict())
  elapsed_before, first_metric = 0.0, None
  if restored:
    state = restored.state
    batches.set_state(restored.extra['data'])
    elapsed_before = restored.extra['wall_seconds']
    first_metric = restored.extra['seconds_to_first_metric']
    logging.info('resumed from step %d of %s', restored.step, workdir)
  start = int(state.step)

  evaluate_params, eval_batch = make_evaluator(config, built)
  averaged = 'ema' if config.ema else 'params'
  key = jax.random.key(config.seed)
  rows = config.data.prompts_per_step * config.data.group_size
  writer = metrics.Writer(
    workdir,
    resume_step=start if restored else None,
    tensorboard=config.log.tensorboard,
  )
  stop_asked = []
  old_handler = signal.signal(signal.SIGTERM, lambda *_: stop_asked.append(1))

  def wall() -> float:
    return elapsed_before + time.time() - _PROCESS_START

  def save() -> None:
    extra = dict(
      data=batches.get_state(),
      wall_seconds=wall(),
      seconds_to_first_metric=first_metric,
    )
    checkpoint.save(manager, int(state.step), state, config.to_dict(), extra)

  def run_eval(params: Params) -> evaluate_lib.Evaluation:
    with clock.stage('eval'):
      return evaluate_params(params)

  def write_grid(name: str, result: evaluate_lib.Evaluation) -> None:
    pictures, gold = result.shown(config.eval.shown)
    writer.write_images(
      int(state.step),
      {
        name: image.grid(
          pictures[:, 0],
          captions=result.texts[: config.eval.shown],
          rewards=gold[:, 0],
          correct=gold[:, 0] > 0.5,
        )
      },
    )

  def host_scored_step(state, batch):
    traj, inputs, outs = step.sample(state, batch, key)
    with clock.stage('host rewards'):
      host_outs, host_metrics = evaluate.evaluate_host(
        host_rewards, inputs, jax.random.fold_in(key, state.step)
      )
    state, logged = step.learn(state, traj, {**outs, **host_outs}, key)
    # reward/invalid of `logged` counts rows that any reward could not score.
    return state, {**host_metrics, **logged}

  with contextlib.ExitStack() as stack:
    stack.callback(signal.signal, signal.SIGTERM, old_handler)
    stack.callback(checkpoint.close, manager)
    stack.enter_context(writer)

    base_result = None
    if start == 0:
      base_result = run_eval(base)
      writer.write_scalars(0, base_result.metrics())
      first_metric = wall()
      write_grid('samples', base_result)
    line = progress.Progress(config.steps, start)

    for i in range(start, config.steps):
      batch, texts = next(batches)
      with clock.stage('step'):
        if host_rewards:
          state, logged = host_scored_step(state, batch)
        else:
          state, logged = step.train_step(state, batch, key)
        logged = jax.device_get(logged)
      done = i + 1
      line.update(
        done,
        reward=logged.get('reward/score'),
        samples_per_step=rows,
      )
      if done % config.log.every == 0 or done == config.steps:
        writer.write_scalars(
          done, {**logged, **clock.summary(rows)}, samples=done * rows
        )
      if logged['optim/skipped_in_a_row'] >= config.stop_after_skipped:
        raise FloatingPointError(
          f'the last {int(logged["optim/skipped_in_a_row"])} updates (to step '
          f'{done}) were not finite and were skipped; the newest checkpoint '
          'holds the parameters from before; lower optimizer.lr or look at '
          f'{workdir}/metrics.jsonl'
        )
      if done % config.eval.every == 0 and done < config.steps:
        result = run_eval(train_state.full_params(state, averaged))
        writer.write_scalars(done, result.metrics())
        write_grid('samples', result)
        line.pause()
      if done % config.checkpoint.every == 0 or done == config.steps:
        with clock.stage('checkpoint'):
          save()
      if stop_asked:
        save()
        checkpoint.check(manager, wait=True)
        print(
          f'\nStopped at step {done} after SIGTERM; the state is saved. '
          'Resume with: ' + resume_command(config.name, workdir, sys.argv[1:]),
          flush=True,
        )
        raise SystemExit(0)
    line.close()

    trained = train_state.full_params(state, averaged)
    trained_result = run_eval(trained)
    writer.write_scalars(config.steps, trained_result.metrics())
    write_grid('samples', trained_result)
    if base_result is None:
      base_result = run_eval(base)
    kl = None
    if config.rollout.name == 'policy':
      kl = evaluate_lib.kl_from_base(
        built.policy, eval_batch, config.eval.samples, config.eval.seed
      )(trained, base)
      writer.write_scalars(config.steps, {'kl/base': kl})
    if config.export:
      export(config, workdir, trained, trained_result)

  environment = system.environment()
  result = dict(
    schema_version=report.SCHEMA_VERSION,
    config_name=config.name,
    seed=config.seed,
    steps=int(state.step),
    base=base_result.summary(),
    trained=trained_result.summary(),
    kl=kl,
    wall_seconds=wall(),
    seconds_to_first_metric=first_metric,
    samples_per_second=clock.summary(rows).get('speed/samples_per_second'),
    peak_rss_bytes=system.peak_rss_bytes(),
    updates_skipped=int(state.skipped),
    device=jax.devices()[0].device_kind,
    jax_version=jax.__version__,
    git_commit=system.git_commit(),
  )
  if jax.process_index() == 0:
    report.write_result_json(workdir, result)
    before, gold_before = base_result.shown(config.eval.shown)
    after, gold_after = trained_result.shown(config.eval.shown)
    comparison = report.Comparison(
      prompts=trained_result.texts[: config.eval.shown],
      before=before,
      after=after,
      correct_before=gold_before > 0.5,
      correct_after=gold_after > 0.5,
    )
    path = report.write_report(
      workdir,
      result,
      report.read_history(workdir),
      {'Held-out prompts, before and after': comparison},
      config,
      environment,
    )
    print(report.result_table(result))
    print(f'Report: {path}')
  return result


def export(
  config: ml_collections.ConfigDict,
  workdir: str,
  params: Params,
  result: evaluate_lib.Evaluation,
) -> None:
  """Writes the averaged parameters to `workdir`/<config.export>.safetensors.

  As float16, half the bytes; `initial_params` reads them back as float32.
  """
  facts = dict(
    config=config.name,
    steps=str(config.steps),
    seed=str(config.seed),
    heldout=json.dumps(result.summary()),
  )
  half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
  weights.save(f'{workdir}/{config.export}.safetensors', half, facts)
