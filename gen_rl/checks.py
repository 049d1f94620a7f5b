"""What is wrong with a config, all of it at once, before step 0.

Building stops at the first mistake. `explain` looks for the others that do not
depend on it, so that one start of a job on a cluster finds them all; `step`
traces the whole step, without a device, before anything is drawn or evaluated.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import ml_collections

from gen_rl import (
  advantages,
  aggregate,
  assemble,
  build,
  estimate,
  objectives,
  optim,
  rewards,
  sharding,
  train_state,
)
from gen_rl.data import feeds, tokenizers
from gen_rl.models import weights
from gen_rl.utils import chips


def explain(
  error: build.ConfigError, config: ml_collections.ConfigDict
) -> build.ConfigError:
  """The error, or one that lists all there are.

  Args:
    error: that building the config ended in.
    config: see configs/base.py.
  """
  found = [str(error)]

  def attempt(function: Callable, *args: Any) -> Any:
    try:
      return function(*args)
    except (build.ConfigError, weights.WeightsError, ValueError) as other:
      found.append(str(other))

  found += build.field_errors(config)
  mesh = {k: v for k, v in config.mesh.items() if k != 'rules'}
  mesh = attempt(lambda: sharding.make_mesh(**mesh))
  if mesh is not None:
    found += assemble.row_errors(config, sharding.Layout(mesh).row_shards)
  words = attempt(build.build, tokenizers, config.tokenizer)
  readers = attempt(lambda: [feeds.reader(config)])
  reader = readers and readers[0]
  rewards_of = functools.partial(
    build.build_all,
    rewards,
    end=words and words.end_id,
    reader=reader and reader.tokenizer,
  )

  def reward_of(label: str, spec: build.Spec) -> None:
    # Of one that is to read with it, nothing is known without it.
    if readers or not build.takes(rewards, spec, 'reader'):
      rewards_of({label: spec})

  for part in ('rewards', 'monitors'):
    for label, spec in config[part].items():
      attempt(reward_of, label, spec)
  for label, spec in config.eval.gold.items():
    attempt(reward_of, label, spec)
  group = dict(group_size=config.data.group_size)
  for label, spec in config.objective.items():
    bound = dict(group, on_policy=True)
    attempt(lambda s=spec, b=bound, k=label: build.build_all(
      objectives, {k: s}, **b))  # fmt: skip
  if any(map(build.weight, config.rewards.values())):
    attempt(lambda: build.build(
      advantages, config.advantage, **group, reward_weights={}))  # fmt: skip
  attempt(build.find, aggregate, config.aggregate)
  steps = max(1, config.steps * config.updates * config.epochs)
  attempt(lambda: build.build(optim, config.optimizer, steps=steps))
  # The same mistake may have been met by two ways, with its label or without.
  unique = []
  for text in found:
    if not any(text in other or other in text for other in unique):
      unique.append(text)
  if len(unique) == 1:
    return error
  listed = ''.join(f'\n  {i}. {text}' for i, text in enumerate(unique, 1))
  return build.ConfigError(f'{len(unique)} things are wrong:{listed}')


def step(
  train_step: Any, state: train_state.TrainState, batch: Any, key: jax.Array
) -> None:
  """Traces the step with what it will be called with, which is kept for that.

  Raises:
    ConfigError: shapes of the parts do not go together.
  """
  try:
    train_step.trace(state, batch, key)
  except (TypeError, ValueError) as error:
    if isinstance(error, build.ConfigError):
      raise
    first = str(error).strip().splitlines()[0]
    raise build.ConfigError(
      f'the parts of this config do not go together: {first} '
      '(GEN_RL_TRACEBACK=1 shows where)'
    ) from error


def idle(
  before: Mapping[str, int], logged: Mapping[str, Any]
) -> dict[str, int]:
  """{objective: updates in a row in which no row had a decision of its kind}.

  Args:
    before: the same, before this update.
    logged: metrics of the update.
  """
  name = '/decisions'
  return {
    label.removesuffix(name): (before.get(label.removesuffix(name), 0) + 1)
    * int(not said)
    for label, said in logged.items()
    if label.endswith(name)
  }


def decided(counts: Mapping[str, int], limit: int, done: int) -> None:
  """Ends a run in which an objective has nothing to train.

  Args:
    counts: of `idle`.
    limit: so many updates in a row are too many.
    done: updates of the run so far.

  Raises:
    ConfigError: names the objective.
  """
  for label, n in counts.items():
    if n >= limit:
      raise build.ConfigError(
        f'config.objective.{label} had no decision to train in the last {n} '
        f'updates, to step {done}: the policy made none that counts. Of a '
        'policy that denoises, see policy.deterministic, noise and window; of '
        'one that says tokens, length and drop_truncated'
      )


def memory(
  state: Any, layout: sharding.Layout, chip: chips.Chip | None = None
) -> None:
  """Refuses a train state that the devices cannot hold, before it is made.

  Args:
    state: shapes.
    layout: where it goes.
    chip: default, what there is.

  Raises:
    ConfigError: says how much is needed, of what, and what helps.
  """
  chip = chip or chips.devices('local')[1]
  placed = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    layout.state(state),
  )
  parts = estimate.state_bytes(placed)
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
    '(lora.pattern, trainable), or take more devices: '
    'python -m gen_rl.plan says what fits'
  )
