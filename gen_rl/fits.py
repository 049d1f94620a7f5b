"""What of a config does not go together: sentences, none where all fits.

`schema` knows fields alone; these rules need what was built of them.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import ml_collections

from gen_rl import build, minibatch, sharding
from gen_rl.data import prompts
from gen_rl.data.pictures.given import Shared
from gen_rl.types import Advantage, Policy, Reward


def sampler(config: ml_collections.ConfigDict, built: Policy) -> list[str]:
  """What an evaluation asks of a policy that it has not."""
  needs = dict(ode='velocity', policy=None, greedy='greedy')
  offers = [k for k, op in needs.items() if op is None or op in built.ops]
  if config.eval.policy and config.eval.sampler != 'policy':
    return [
      'config.eval.policy changes the policy that samples in evaluations, and '
      f'config.eval.sampler is {config.eval.sampler!r}; set it to "policy"'
    ]
  if config.eval.name != 'sampled' or config.eval.sampler in offers:
    return []
  return [
    f'config.eval.sampler is {config.eval.sampler!r}; the policy '
    f'{config.policy.name} offers {", ".join(offers)}'
  ]


def policy(config: ml_collections.ConfigDict, built: Policy) -> list[str]:
  """What is asked of a policy or its network that they have not."""
  errors = []
  if config.released and built.load is None:
    errors.append(
      f'config.released={config.released!r} is the folder of a released model, '
      f'and the network {config.model.name} is none; set config.init to a '
      'safetensors file of its own'
    )
  if config.lora.start and (built.adapt is None or not config.lora.pattern):
    reason = f'the network {config.model.name} is none of those that have files'
    if built.adapt:
      reason = "lora.pattern is '', and no module has an adapter to start from"
    errors.append(f'config.lora.start={config.lora.start!r}: {reason}')
  return errors


def branches(config: ml_collections.ConfigDict, view: Any) -> list[str]:
  """Groups whose rows cannot share their first decisions.

  Args:
    config: see configs/base.py.
    view: what the policy is shown, see `rollout.make_rows`.
  """
  spec = build.plain(config.policy)
  inner = [
    f'config.policy.{key}.branch: what this policy is given differs from row '
    'to row, so that a group shares no decision of it; only a policy that '
    'denoises by itself has branches'
    for key, part in spec.items()
    if isinstance(part, Mapping) and (part.get('branch') or {}).get('name')
  ]
  branch = spec.get('branch') or {}
  if not branch.get('name'):
    return inner
  if view is not None and not isinstance(view, Shared):
    return [
      'config.policy.branch: the rows of a group share their first decisions, '
      f'and data.view {config.data.view.name} shows each another picture'
    ]
  if config.explore.size and config.explore.policy.get('deterministic'):
    return [
      'config.explore.policy.deterministic: the rows of a group start from one '
      'noise by policy.branch, so that all candidates would be alike; draw '
      'them with noise, or leave one of the two out'
    ]
  ways, size = branch.get('ways') or (), config.explore.size
  count = size or config.data.group_size
  if not ways or math.prod(ways) == count:
    return []
  return [
    f'config.policy.branch: ways={tuple(ways)} are {math.prod(ways)} rows, and '
    f'{"explore.size" if size else "data.group_size"} is {count}'
  ]


def advantage(
  config: ml_collections.ConfigDict, built: Advantage | None
) -> list[str]:
  """What rewards and objectives do not go together with."""
  if built is None:
    return []
  return (_mixed(config) if built.mixes else []) + [
    f'config.objective.{label}: rwr counts every row, an average one as well, '
    f'and the advantage {config.advantage.name} leaves rows out; take awm, or '
    'another advantage'
    for label, spec in config.objective.items()
    if built.selects and spec.name == 'rwr' and build.weight(spec)
  ]


def _mixed(config: ml_collections.ConfigDict) -> list[str]:
  """Ways to mix rewards beside that of an advantage that does so itself."""
  moving = [
    k
    for k, spec in config.rewards.items()
    if 'schedule' in spec and build.weight(spec)
  ]
  settings = [f'config.rewards.{label}.schedule' for label in moving]
  if config.mix.name != 'weighted_sum':
    settings.insert(0, f'config.mix.name={config.mix.name!r}')
  name = config.advantage.name
  return [
    f'{setting} says how rewards become one score, and the advantage {name} '
    'has one of each; leave one of the two out'
    for setting in settings
  ]


def answers(
  config: ml_collections.ConfigDict, source: prompts.Prompts | None
) -> list[str]:
  """Answers of the prompts that the policy could not say."""
  said = config.policy.get('length')
  asked = bool(source and source.answers) and said is not None
  if not asked or said > config.data.answer_length:
    return []
  return [
    f'an answer of data.answer_length={config.data.answer_length} tokens and '
    f'its end do not fit policy.length={said}; make it at least '
    f'{config.data.answer_length + 1}'
  ]


def tasks(
  part: str,
  built: Mapping[str, Reward],
  known: Sequence[str],
  of: str = 'data.prompts',
) -> list[str]:
  """Rewards for tasks that no prompt is of.

  Args:
    part: of the config, whose rewards these are.
    built: {label: reward}.
    known: the prompts' tasks.
    of: where the prompts are.
  """
  names = sorted(set(known))
  have = f'those of {of} are {", ".join(names)}' if names else f'{of} has none'
  return [
    f'config.{part}.{label}.tasks names {task!r}, which is no task'
    f'{build.did_you_mean(task, names)}; {have}'
    for label, reward in built.items()
    for task in reward.tasks
    if task not in names
  ]


def unrewarded(
  config: ml_collections.ConfigDict,
  built: Mapping[str, Reward],
  known: Sequence[str],
) -> list[str]:
  """Tasks whose prompts are drawn, and that no reward is for."""
  weights = config.data.weights
  drawn = {task for task in known if weights.get(task, 0 if weights else 1)}
  left = drawn.difference(*(reward.tasks for reward in built.values()))
  if not built or not left or not all(r.tasks for r in built.values()):
    return []
  return [
    f'no reward is for the tasks {", ".join(sorted(left))} of data.prompts; '
    'name them in the tasks of one, or draw none of them (data.weights)'
  ]


def drawn_judges(config: ml_collections.ConfigDict) -> list[str]:
  """Rewards without weights where the policy has some."""
  parts = dict(rewards=config.rewards, monitors=config.monitors)
  parts['eval.gold'] = config.eval.gold
  for label, changes in config.evals.items():
    parts[f'evals.{label}.gold'] = changes.get('gold', {})
  drawn = [
    f'config.{part}.{label}.folder'
    for part, specs in parts.items()
    for label, spec in specs.items()
    if spec.get('folder') == 'drawn'
  ]
  if not config.released or not drawn:
    return []
  return [
    f'the network is a released one, and {", ".join(drawn)} is "drawn": such a '
    'score means nothing; give the folder of its weights'
  ]


def rows(
  config: ml_collections.ConfigDict, shards: int, unit: int = 1
) -> list[str]:
  """Why rows, `unit` of which stay together, cannot be cut over `shards`."""
  count = config.data.prompts_per_step * config.data.group_size
  updates, microbatches, chunks = (
    config[k] for k in ('updates', 'microbatches', 'rollout_chunks')
  )
  if min(count, updates, microbatches, chunks) < 1:
    return []  # `schema` says so
  if errors := _members(config):
    return errors
  members = config.update_members or config.data.group_size
  taken = config.update_rows or config.data.prompts_per_step * members
  if taken > count or taken % unit:
    return [
      f'update_rows={taken} of {count} rows (prompts_per_step * group_size) '
      + (
        f'are to be whole groups of {unit}' if taken % unit else 'are too many'
      )
    ]
  found = (
    minibatch.geometry_error(taken, updates, microbatches, unit),
    sharding.rows_error(taken, shards, updates * microbatches),
    sharding.rows_error(count, shards, chunks, 'rollout_chunks'),
    _pool(config, shards * chunks),
  )
  return [error for error in found if error]


def _members(config: ml_collections.ConfigDict) -> list[str]:
  """Why an update cannot take so many rows of each group."""
  members, size = config.update_members, config.data.group_size
  if members > size:
    return [
      f'update_members={members} rows are to be taken of groups of '
      f'data.group_size={size}'
    ]
  if members and config.update_rows:
    return [
      f'update_rows={config.update_rows} and update_members={members} both say '
      'which rows an update takes; leave one of the two at 0'
    ]
  return []


def _pool(config: ml_collections.ConfigDict, parts: int) -> str | None:
  """Why the pool of cheap exploration cannot be cut, or None."""
  prompts, size = config.data.prompts_per_step, config.explore.size
  if prompts * size % parts == 0:
    return None
  fit = parts // math.gcd(prompts, parts)
  return (
    f'explore.size={size} candidates of {prompts} prompts do not divide over '
    f'{parts} parts (devices x rollout_chunks); a multiple of {fit} would'
  )
