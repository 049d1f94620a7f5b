"""What is wrong with a config, all of it at once, before step 0.

Building stops at the first mistake. `explain` adds to it all that `schema` says
of the fields, and what building the other parts ends in, so that one start of a
job on a cluster finds everything; `step` traces the whole step, without a
device, before anything is drawn or evaluated.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
from typing import Any

import jax
import ml_collections

from gen_rl import (
  aggregate,
  build,
  estimate,
  fits,
  pace,
  schema,
  sharding,
  specs,
  train_state,
  train_step,
)
from gen_rl.data import feeds, tokenizers
from gen_rl.models.files import weights
from gen_rl.utils import chips, programs


def explain(
  error: build.ConfigError, config: ml_collections.ConfigDict
) -> build.ConfigError:
  """The error, or one that lists all there are.

  Args:
    error: that building the config ended in.
    config: see configs/base.py.
  """
  found = list(getattr(error, 'found', [str(error)]))
  mistakes = schema.mistakes(config)
  found += [mistake.says for mistake in mistakes]
  wrong = {mistake.path for mistake in mistakes}
  tops = {path.partition('.')[0] for path in wrong}

  def attempt(function: Callable, *args: Any, **kwargs: Any) -> Any:
    try:
      return function(*args, **kwargs)
    except (build.ConfigError, weights.WeightsError, ValueError) as other:
      found.extend(getattr(other, 'found', [str(other)]))

  # What builders are given, as far as it is known.
  known: dict[str, Any] = dict(on_policy=True)
  if 'rewards' not in tops:
    weighed = {k: build.weight(spec) for k, spec in config.rewards.items()}
    known['reward_weights'] = {k: w for k, w in weighed.items() if w}
  cuts = {'data', 'updates', 'microbatches', 'rollout_chunks'}
  if 'mesh' not in tops:
    sizes = {k: v for k, v in config.mesh.items() if k != 'rules'}
    mesh = attempt(sharding.make_mesh, **sizes)
    if mesh is not None and not cuts & tops:
      found += fits.rows(config, sharding.Layout(mesh).row_shards)
  if not {'steps', 'updates', 'epochs'} & tops:
    known['steps'] = config.steps * config.updates * config.epochs
  if 'tokenizer' not in tops:
    words = attempt(build.build, tokenizers, config.tokenizer)
    if words:
      known |= dict(end=words.end_id, pad=words.pad_id, vocab=words.size)
  if 'data' not in tops:
    known |= dict(
      group_size=config.data.group_size,
      length=config.data.length,
      truncate=config.data.truncate,
    )
    for reader in attempt(lambda: [feeds.reader(config)]) or ():
      known['reader'] = reader and reader.tokenizer
  for part in schema.parts(config):
    if not any(path.startswith(part.path) for path in wrong):
      takes = build.keywords(build.find(part.module, part.spec['name']))
      given = specs.BOUND.get(part.module, ())
      if all(k in known for k in takes if k in given):
        attempt(_build, part, known)
  if 'aggregate' not in tops:
    attempt(build.find, aggregate, config.aggregate)
  # The same mistake may have been met by two ways, with its place or without.
  unique = []
  for text in found:
    if not any(text in other or other in text for other in unique):
      unique.append(text)
  return error if len(unique) == 1 else build.Mistakes(unique)


def _build(part: schema.Part, known: Mapping[str, Any]) -> None:
  """Raises ConfigError or ValueError with the place of the part in front."""
  try:
    build.build(part.module, part.spec, **known)
  except (build.ConfigError, ValueError) as error:
    raise build.ConfigError(f'config.{part.path}: {error}') from None


def step(
  train_step: Any, state: train_state.TrainState, batch: Any, key: jax.Array
) -> Any:
  """Traces the step with what it will be called with, which is kept for that.

  Returns:
    What was traced.

  Raises:
    ConfigError: shapes of the parts do not go together.
  """
  with together():
    return train_step.trace(state, batch, key)


def paced(
  built: Any,
  parts: train_step.Step,
  args: tuple[Any, ...],
  layout: sharding.Layout,
  on_host: bool,
) -> pace.Pace:
  """Traces the step of a run, unless a run before did; returns how fast it is.

  Args:
    built: an `assemble.Setup`.
    parts: the training step.
    args: the state, a batch and the key it is called with.
    layout: where arrays live; its scope is entered.
    on_host: whether there are rewards on the host; a step is traced later then.

  Raises:
    ConfigError: shapes of the parts do not go together.
  """
  kept = programs.entry(parts.train_step, *args)
  if on_host or kept:
    shapes = jax.eval_shape(lambda *x: x, *args)
    trace = lambda: estimate.traced_step(built, parts, *shapes)
  else:
    traced = step(parts.train_step, *args)
    trace = lambda: [traced]
  chip = chips.of_kind(jax.devices()[0].device_kind)
  return pace.Pace(trace, layout.mesh.size, chip, kept and kept['about'])


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Turns what tracing the parts ends in into a ConfigError."""
  try:
    yield
  except (TypeError, ValueError) as error:
    if isinstance(error, build.ConfigError):
      raise
    first = str(error).strip().splitlines()[0]
    raise build.ConfigError(
      f'the parts of this config do not go together: {first} '
      '(GEN_RL_TRACEBACK=1 shows where)'
    ) from error


def memory(
  state: Any,
  layout: sharding.Layout,
  chip: chips.Chip | None = None,
  beside: Mapping[str, float] | None = None,
) -> None:
  """Refuses a train state that the devices cannot hold, before it is made.

  Args:
    state: shapes.
    layout: where it goes.
    chip: default, what there is.
    beside: {part: bytes on a device} that stay beside it, see
      `estimate.encoder_bytes`.

  Raises:
    ConfigError: says how much is needed, of what, and what helps.
  """
  chip = chip or chips.devices('local')[1]
  placed = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    layout.state(state),
  )
  parts = estimate.state_bytes(placed) | (beside or {})
  needed = sum(parts.values())
  if chip.hbm is None or needed <= chip.hbm:
    return
  listed = ', '.join(
    f'{name} {size / chips.GIB:.1f}' for name, size in parts.items() if size
  )
  raise build.ConfigError(
    f'the train state alone takes {needed / chips.GIB:.1f} GiB of each device '
    f'({listed}), and there are {chip.hbm / chips.GIB:.1f}; split it with '
    'mesh.fsdp, keep parts on the host (offload), train less of it '
    '(lora.pattern, trainable), '
    + ('encode its prompts before (data.embed.cache), ' if beside else '')
    + 'or take more devices: python -m gen_rl.plan says what fits'
  )
