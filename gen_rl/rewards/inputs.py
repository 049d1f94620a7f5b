"""What rewards see of the rows: made here, for all who score.

Training, reward gradients, evaluation, search and rewards in Python get the
same object, `types.RewardInputs`, with the same fields, whatever the rows are
cut into: every field but `group_size` has rows first.
"""

from collections.abc import Mapping
from typing import Any

from gen_rl.rewards import combine
from gen_rl.types import PyTree, RewardInputs, Rows, Trajectory
from gen_rl.utils import hosts


def of(
  rows: Rows,
  media: PyTree,
  group_size: int,
  said: PyTree = (),
  seen: PyTree | None = None,
) -> RewardInputs:
  """The rows, and what was made of them.

  Args:
    rows: b, prompt-major.
    media: [b ...] decoded samples.
    group_size: neighbours that are of one prompt.
    said: [b ...] the samples.
    seen: {name: [b ...]} what the policy saw; None: what the rows say.
  """
  return RewardInputs(
    media,
    dict(rows.info),
    group_size,
    said=said,
    seen=rows.cond if seen is None else seen,
    ids=rows.group if rows.ids is None else rows.ids,
    member=rows.member,
  )


def apart(inputs: RewardInputs) -> RewardInputs:
  """Without what a trajectory holds; `joined` is the way back."""
  return inputs.replace(said=(), seen=())


def joined(inputs: RewardInputs, traj: Trajectory) -> RewardInputs:
  """With what was said and seen in a trajectory of the same rows."""
  return inputs.replace(said=traj.sample, seen=traj.cond)


def needed(inputs: RewardInputs, rewards: combine.Weighted) -> RewardInputs:
  """Without what none of these rewards needs on the host."""
  named = {n for r, weight in rewards.values() if weight for n in r.needs}
  dropped = {'said', 'seen'} - named
  return inputs.replace(**dict.fromkeys(dropped, ()))


def on_host(
  inputs: RewardInputs, rewards: combine.Weighted, asked: Mapping[str, Any]
) -> RewardInputs:
  """Numpy arrays of what these rewards may look at; all processes have to ask.

  Args:
    inputs: of the device, or numpy arrays.
    rewards: {label: (Reward, weight)} on the host.
    asked: what their prompts are, see `Prompts.asked`.
  """
  return hosts.fetch(needed(inputs, rewards)).replace(**asked)
