"""Using what training left: evaluate it once more, draw a prompt, export it.

All take the newest whole checkpoint of a workdir, and only read it, so they
work beside a run that is still writing. Where there is none they take the
parameters a run of the config would start from, and say so.

`evaluate` is the evaluation of training: same prompts, same noise, same
numbers. `sample` draws from noise that follows from `config.seed` alone: the
same seed gives the same pictures whatever the prompt.
"""

import os
import pathlib
import sys
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen_rl import (
  assemble,
  build,
  checkpoint,
  evals,
  export,
  initial,
  run_folder,
)
from gen_rl import evaluate as evaluate_lib
from gen_rl import media as media_lib
from gen_rl import rollout as rollout_lib
from gen_rl.build import ConfigError
from gen_rl.data import feeds
from gen_rl.rewards import combine
from gen_rl.types import Array, Params, Policy, Rows
from gen_rl.utils import files, image, tree
from gen_rl.worlds import world as world_lib

# What decides which picture a prompt gives; an evaluation or a sample that
# changes it from what was trained is allowed, and worth a warning.
_MODEL_FIELDS = ('model', 'policy', 'tokenizer', 'data.length')


class Loaded(NamedTuple):
  """Parameters, and where they are from."""

  params: Params  # of the whole policy, float32
  step: int | None  # updates done; None: not from a checkpoint
  source: str  # for a person, "EMA parameters of step 300 in runs/x"


class Pictures(NamedTuple):
  """Samples of one prompt."""

  media: np.ndarray  # [n h w c] in [0, 1]
  correct: np.ndarray | None  # [n] bool by the oracle, where it applies
  path: pathlib.Path  # of the PNG


def load_params(
  config: ml_collections.ConfigDict,
  workdir: str,
  policy: Policy,
  step: int | None = None,
) -> Loaded:
  """A checkpoint's parameters, averaged if `config.ema`.

  Args:
    config: of the run; `ema` = 0 asks for the parameters as they are.
    workdir: of the run; need not exist.
    policy: whose parameters they are.
    step: of the checkpoint; by default that of the newest whole one.

  Raises:
    CheckpointError: no checkpoint, or not the one asked for, can be read, or it
      does not fit the config.
    WeightsError: there is no checkpoint, and `config.init` cannot be read.
  """
  folder = _checkpoints(workdir)
  if step is None and not checkpoint.steps(folder):
    params = initial.params(config, policy)
    origin = config.init or config.released
    origin = origin or f'drawn from seed {config.seed}'
    return Loaded(
      params,
      None,
      f'initial parameters ({origin}): there is no checkpoint in {folder}',
    )
  shapes_of = initial.shapes(config, policy)
  copy, rest = 'refs/ema' if config.ema else 'params', 'frozen/policy'
  fields = dict(zip((copy, rest), tree.split(shapes_of, config.trainable),
                    strict=True))  # fmt: skip
  fields = {name: part for name, part in fields.items() if part}
  restored = checkpoint.restore_params(folder, fields, fields, step, [rest])
  changes = [
    line
    for line in build.diff(restored.config, config.to_dict())
    if line.startswith(
      tuple(f'{f}{end}' for f in _MODEL_FIELDS for end in '.:')
    )
  ]
  if changes:
    logging.warning(
      'This is not the model of checkpoint %d: %s.',
      restored.step,
      '; '.join(changes),
    )
  params = restored.state[copy]
  if rest in fields:
    frozen = restored.state.get(rest)  # earlier releases stored it
    if frozen is None:
      frozen = _frozen(config, policy, restored)
    params = tree.merge(params, frozen)
  kind = 'EMA parameters' if config.ema else 'parameters'
  return Loaded(
    params, restored.step, f'{kind} of step {restored.step} in {folder}'
  )


def _checkpoints(workdir: str) -> str:
  folder = os.path.join(workdir, 'checkpoints')
  return folder if '://' in folder else os.path.abspath(folder)


def _learners(
  rewards: combine.Weighted, workdir: str, step: int | None
) -> dict[str, Params]:
  """{label: (parameters, the learner's)} of the rewards that are trained.

  Raises:
    ConfigError: there are some, and no checkpoint that holds them.
  """
  learners = combine.learners(rewards)
  if not learners:
    return {}
  if step is None:
    raise ConfigError(
      f'a search chooses by the reward {", ".join(learners)}, which is '
      'trained with the policy, and there is no checkpoint that holds it; '
      'train first, '
      f'or leave it out (--config.rewards.{next(iter(learners))}.weight=0)'
    )
  fields = {
    f'aux/{label}/params': jax.eval_shape(learner.init, jax.random.key(0))
    for label, learner in learners.items()
  }
  found = checkpoint.restore_params(
    _checkpoints(workdir), fields, fields, step
  ).state
  return {
    label: (rewards[label][0].params, found[f'aux/{label}/params'])
    for label in learners
  }


def _frozen(
  config: ml_collections.ConfigDict,
  policy: Policy,
  restored: checkpoint.Restored,
) -> Params:
  """What the run did not train, made as the run made it."""
  config = config.copy_and_resolve_references()
  # Of the run: here it chooses the noise of samples.
  config.seed = restored.config.get('seed', config.seed)
  _, frozen = tree.split(initial.params(config, policy), config.trainable)
  if tree.checksum(frozen) != restored.extra['frozen']:
    origin = config.init or config.released or f'seed {config.seed}'
    raise checkpoint.CheckpointError(
      f'the parameters that step {restored.step} did not train are not those '
      f'that {origin} gives now; the run began from others'
    )
  return frozen


def export_params(
  config: ml_collections.ConfigDict, workdir: str, step: int | None = None
) -> pathlib.Path:
  """Writes a checkpoint's parameters as a run with `config.export` does.

  Needs the network and what training began with, no prompts and no rewards.

  Args:
    config: of the run; `export` says where to, `ema` = 0 asks for the
      parameters as they are.
    workdir: of the run.
    step: see `load_params`.

  Returns:
    The file or folder.

  Raises:
    ConfigError: `export` is empty.
    CheckpointError, WeightsError: see `load_params`; or there is no checkpoint.
  """
  if not config.export:
    raise ConfigError('--mode=export needs a name: --config.export=NAME')
  built = assemble.setup(config, use='sample')
  loaded = load_params(config, workdir, built.policy, step)
  if loaded.step is None:
    raise checkpoint.CheckpointError(
      f'there is nothing to export: there is no checkpoint in {workdir}'
    )
  print(f'Exporting {loaded.source}', flush=True)
  ended = run_folder.finished(workdir, loaded.step)
  heldout = ended['trained'] if ended and config.ema else None
  path = export.write(
    config, workdir, built.policy, loaded.params, loaded.step, heldout
  )
  print(f'Exported: {path}')
  return path


def evaluate(
  config: ml_collections.ConfigDict, workdir: str, step: int | None = None
) -> evaluate_lib.Evaluation:
  """Evaluates as training does; prints a table, writes `workdir`/eval.json.

  eval.json holds

    config_name, eval_seed, prompts, samples (per prompt), denoising_steps
    step      updates done; null: initial parameters
    source    which parameters, in words
    gold, strict, strict_per_task, parts, proxy, diversity, best, worst,
    evaluated, invalid:
              see `results`; null where nobody measured
    evals     {label: the same} of config.evals, if there are some

  Args:
    config: of the run.
    workdir: of the run.
    step: see `load_params`.

  Raises:
    ConfigError, CheckpointError, WeightsError: one sentence each.
    OSError: the workdir cannot be written.
  """
  os.makedirs(workdir, exist_ok=True)
  built = assemble.setup(config)
  runs = {
    label: assemble.make_evaluator(c, built)[0]
    for label, c in evals.configs(config).items()
  }
  feeds.release(built)
  loaded = load_params(config, workdir, built.policy, step)
  print(f'Evaluating {loaded.source}', flush=True)
  found = {label: run(loaded.params) for label, run in runs.items()}
  result = found.pop(evals.MAIN)
  record = dict(
    **circumstances(config, loaded, result),
    **result.summary(),
    **(dict(evals={k: x.summary() for k, x in found.items()}) if found else {}),
  )
  print(table(result), flush=True)
  for label, other in found.items():
    print(f'{label}\n{table(other)}', flush=True)
  path = pathlib.Path(workdir) / 'eval.json'
  files.write_json(path, record)
  print(f'Written: {path}')
  return result


def circumstances(
  config: ml_collections.ConfigDict,
  loaded: Loaded,
  result: evaluate_lib.Evaluation,
) -> dict[str, Any]:
  """Of an evaluation outside of a run, as eval.json begins."""
  return dict(
    config_name=config.name,
    eval_seed=config.eval.seed,
    prompts=len(result.texts),
    samples=config.eval.samples,
    denoising_steps=config.eval.steps,
    step=loaded.step,
    source=loaded.source,
  )


def table(result: evaluate_lib.Evaluation) -> str:
  """The numbers of one policy as plain text, one a line."""
  rows = list(result.strict_per_task.items())
  if result.judged:
    rows.append(('all tasks (gold)', result.strict))
  if result.proxy is not None:
    rows.append(('proxy (trained on)', result.proxy))
  rows.append(('diversity', result.diversity))
  lost = [(f'not scored ({k})', n) for k, n in result.invalid.items() if n]
  width = max(len(name) for name, _ in rows + lost)
  lines = [f'{name:<{width}}  {value:6.3f}' for name, value in rows]
  lines += [f'{name:<{width}}  {n:6d}' for name, n in lost]
  rule = '-' * (width + 8)
  tasks = len(result.strict_per_task)
  return '\n'.join([rule, *lines[:tasks], *([rule] if tasks else []),
                    *lines[tasks:], rule])  # fmt: skip


_MOST = 1024  # pictures of one PNG
_AT_A_TIME = 256  # candidates of a search


def sample(
  config: ml_collections.ConfigDict,
  workdir: str,
  prompt: str,
  num: int = 8,
  out: str | os.PathLike[str] | None = None,
  best_of: int = 1,
  step: int | None = None,
) -> Pictures:
  """Draws `num` pictures of a prompt into one PNG.

  Where the prompt is a sentence of a world and the pictures are of its size,
  its oracle judges them: green borders are correct, red ones are not.
  With `best_of`, or a search in the config, the config's rewards choose what it
  judges (where the oracle is one of them, its verdict says nothing new).

  Args:
    config: of the run; `seed` chooses the noise.
    workdir: of the run.
    prompt: a sentence.
    num: n, pictures.
    out: the PNG; default `workdir`/sample.png.
    best_of: candidates of each picture, in place of `config.search`; 1: as that
      says.
    step: see `load_params`.

  Raises:
    ConfigError: an empty prompt, no pictures asked for, no reward to choose by.
    ValueError: the prompt has more tokens than the model takes.
    CheckpointError, WeightsError: see `load_params`.
    OSError: the PNG cannot be written.
  """
  prompt = ' '.join((prompt or '').split())
  if not prompt:
    raise ConfigError('sampling needs a prompt: --prompt="two red circles"')
  if not 1 <= num <= _MOST:
    raise ConfigError(
      f'--num is how many pictures to draw side by side, 1 to {_MOST}, not '
      f'{num}'
    )
  if best_of < 1:
    raise ConfigError(
      f'--best_of is how many candidates to draw, not {best_of}'
    )
  spec = config.search
  if best_of > 1:
    if spec.name:
      raise ConfigError(
        f'--best_of={best_of} and config.search.name={spec.name!r} both say '
        'how to search; leave one of the two out'
      )
    spec = dict(name='best_of_n', n=best_of)
  built = assemble.setup(config, use='search' if spec['name'] else 'sample')
  if built.sampler is None:
    raise ConfigError(f'the policy {config.policy.name!r} draws no pictures')
  _, find = assemble.searcher(
    config, built, built.segments, spec, built.rewards, _AT_A_TIME
  )
  prompt = _readable(built, prompt)
  world, said = world_lib.understood([prompt]) or (None, [])
  asked = said[0].facts if said else {}
  batch = feeds.alone(config, built, prompt, asked, find is not None)
  loaded = load_params(config, workdir, built.policy, step)
  print(f'Sampling from {loaded.source}', flush=True)

  rows = rollout_lib.make_rows(
    batch, num, jax.random.key(config.seed), jnp.zeros((), jnp.int32)
  )

  @jax.jit
  def draw(
    params: Params, reward_params: Params, rows: Rows
  ) -> tuple[Array, Array | None, Array | None]:
    score = None
    if find:
      found = find(params, rows, reward_params)
      latents, score = found.sample, found.score
    else:
      latents = built.sampler(params, rows)
    media = media_lib.image(built.policy.decode(params, latents))
    if world is None or media.shape[1:] != world.shape:
      return media, None, score
    _, strict = world.judge(media, world.facts_of(rows.info))
    return media, strict & evaluate_lib.finite(media), score

  reward_params = ()
  if find:
    device, _ = combine.split(built.rewards)
    trained = _learners(device, workdir, loaded.step)
    reward_params = combine.params(device) | trained
  media, correct, score = jax.device_get(
    draw(loaded.params, reward_params, rows)
  )
  if score is not None and not np.isfinite(score).all():
    print(
      'gen_rl: the rewards of the config cannot judge some of these pictures; '
      'of such candidates the first one is shown',
      file=sys.stderr,
    )
  path = pathlib.Path(out or os.path.join(workdir, 'sample.png'))
  if media.ndim == 2:
    picture = image.scatter(media)
  else:
    picture = image.grid(media, captions=[prompt] * num, correct=correct)
  image.save_png(path, picture)
  if correct is not None:
    print(f'{correct.sum()} of {num} are what the prompt asks for.')
  print(f'Pictures: {path}')
  return Pictures(media, correct, path)


def _readable(built: assemble.Setup, prompt: str) -> str:
  """The prompt as the model reads it; says which words it does not know."""
  if built.embed is not None:
    return prompt
  if built.tokenizer.unknown(['.']):  # a sentence may end, a caption does not
    prompt = prompt.rstrip(' .')
  if unknown := built.tokenizer.unknown([prompt]):
    words = ', '.join(map(repr, unknown))
    print(
      f'gen_rl: the model does not know the words {words} and reads each of '
      'them as one and the same unknown word',
      file=sys.stderr,
    )
  return prompt
