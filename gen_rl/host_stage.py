"""A training step whose rewards are partly in Python.

Samples are drawn in parts, whole prompts each, as many as `rollout_chunks`
says. While a part is judged in threads of the host the devices draw the next
one, so a step takes about as long as the slower of the two, not as their sum. A
sample depends on its prompt, its place in the group and the step alone, and a
call of a reward on its number in the step: a step in parts is the step as a
whole, to rounding. Of several processes each judges rows of its own (`spread`).
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import contextlib
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from gen_rl import chunks, train_step
from gen_rl.rewards import combine, spread
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.train_state import TrainState
from gen_rl.types import Array, RewardOut


class Host(NamedTuple):
  """What judges on the host."""

  rewards: combine.Weighted  # with monitors
  # (prompt ids [P], group size) -> what they read of the prompts, see
  # `Prompts.asked`
  asked: Callable[..., Mapping[str, Any]]
  settings: Mapping[str, Any]  # `config.host_rewards`


def parts(
  wanted: int,
  prompts: int,
  group_size: int,
  shards: int,
  host: Host,
  device: combine.Weighted,
) -> int:
  """How many parts a step is drawn in: `wanted`, or 1 where that cannot be.

  Args:
    wanted: `rollout_chunks`.
    prompts: P of a step.
    group_size: G.
    shards: devices the rows of a part are split over evenly.
    host: its rewards.
    device: rewards and monitors that are scored as the samples are drawn.
  """
  groups = host.settings.get('groups_per_call', 0)
  both = {**host.rewards, **device}
  each, rest = divmod(prompts, wanted)
  cuts = rest == 0 and each * group_size % shards == 0
  calls = groups > 0 and each % groups == 0
  return wanted if cuts and calls and combine.widest(both) != 'batch' else 1


def of_config(
  config: ml_collections.ConfigDict, built: Any, shards: int
) -> tuple[Host, int]:
  """(what judges on the host, parts that a step is drawn in) of a run.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`.
    shards: see `parts`.
  """
  device, on_host = combine.split({**(built.rewards or {}), **built.monitors})
  settings = config.host_rewards.to_dict()
  host = Host(on_host, built.source.asked, settings)
  count = parts(
    config.rollout_chunks,
    config.data.prompts_per_step,
    config.data.group_size,
    shards,
    host,
    device,
  )
  return host, count


def scored_step(
  step: train_step.Step,
  host: Host,
  state: TrainState,
  batch: Mapping[str, Any],
  key: Array,
  count: int = 1,
  waiting: Callable[[], Any] = contextlib.nullcontext,
  place: Callable[[Any], Any] = lambda prompts: prompts,
) -> tuple[TrainState, dict[str, Any]]:
  """A training step in `count` parts.

  Args:
    step: of `train_step.make`.
    host: what judges on the host.
    state: before it; donated.
    batch: of the pipeline.
    key: the run's.
    count: see `parts`.
    waiting: a context for the time the devices wait for the host.
    place: puts prompts on the devices, see `sharding.Layout.place`.

  Returns:
    The state and the metrics, on the devices.
  """
  prompts = len(batch['prompt_id'])
  each = prompts // count
  draw = step.sample if count == 1 else step.sample_part
  drawn, judged = [], []
  with futures.ThreadPoolExecutor(1) as judge:
    for i in range(count):
      at = np.arange(i * each, (i + 1) * each)
      part = chunks.take(batch, at) if count > 1 else batch
      drawn.append(draw(state, place(part), key))
      if not i:  # waits for the step before, with something to do behind it
        call_key = jax.random.fold_in(key, int(state.step))
      # The one before, while the devices are busy with this one.
      if i:
        judged.append(_judge(host, judge, batch, drawn, i - 1, each, call_key))
    last = count - 1
    judged.append(_judge(host, judge, batch, drawn, last, each, call_key))
    with waiting():
      answers = spread.gathered([one.result for one in judged])
  traj, inputs, outs = drawn[0] if count == 1 else step.join(drawn)
  return step.learn(state, traj, inputs, {**outs, **answers}, key)


def _judge(
  host: Host,
  judge: futures.Executor,
  batch: Mapping[str, Any],
  drawn: list,
  i: int,
  each: int,
  key: Array,
) -> futures.Future[dict[str, RewardOut]]:
  """Waits for part i and hands it to the host; all processes have to ask."""
  traj, inputs, _ = drawn[i]
  ids = batch['prompt_id'][i * each : (i + 1) * each]
  answers = spread.asker(
    host.rewards,
    inputs_lib.joined(inputs, traj),
    key,
    host.asked(ids, inputs.group_size),
    i * each,
    len(batch['prompt_id']),
    **host.settings,
  )
  return judge.submit(answers)
