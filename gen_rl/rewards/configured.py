"""The rewards that a config names."""

from collections.abc import Collection, Mapping
from typing import Any

from absl import logging
import ml_collections

from gen_rl import build, rewards
from gen_rl.rewards import combine


def build_all(specs: Mapping[str, build.Spec], **bound: Any) -> dict[str, Any]:
  """{label: Reward}, each for the tasks that its spec names.

  Args:
    specs: {label: spec}.
    **bound: see `build.build`.
  """
  built = build.build_all(rewards, specs, **bound)
  tasks = {label: tuple(specs[label].get('tasks', ())) for label in built}
  return {
    label: reward._replace(tasks=tasks[label] or reward.tasks)
    for label, reward in built.items()
  }


def comparable(
  config: ml_collections.ConfigDict, built: Any, columns: Collection[str]
) -> combine.Weighted | None:
  """Rewards that mean the same for any samples, or None.

  Not those of data, which judge what was given, nor those that are trained,
  whose scale moves; nor those for tasks where the prompts have none; nor those
  in Python where the prompts lack columns of those that are trained on, which
  they may read.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`.
    columns: of the evaluation prompts.
  """
  if config.rollout.name != 'policy' or not built.rewards:
    return None
  kept = {k: v for k, v in built.rewards.items() if v[0].learner is None}
  mixed = config.mix.name != 'weighted_sum'
  if mixed and combine.weights(kept) != combine.weights(built.rewards):
    return None  # another quantity without those that are trained
  if 'task' not in columns and any(r.tasks for r, _ in kept.values()):
    logging.warning(
      'Rewards are for some tasks, and eval.prompts have none: evaluations '
      'give no proxy.'
    )
    return None
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
