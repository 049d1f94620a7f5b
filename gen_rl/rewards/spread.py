"""Rewards in Python on several hosts: each judges its own rows, all know all.

Rows are cut into calls of whole groups (`host_rewards.groups_per_call`), and
the calls, in order, into one stretch for every process. Where everything is one
call, or a reward compares a whole batch, process 0 makes it. Answers are sent
as numbers and names; a mistake of one process is raised on all of them.
"""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any, Literal

import jax
import numpy as np

from gen_rl.rewards import combine, evaluate, outcomes
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.types import Array, RewardInputs, RewardOut
from gen_rl.utils import hosts

Answers = Callable[[], dict[str, RewardOut]]


def stretch(
  rewards: combine.Weighted, groups: int, groups_per_call: int = 0
) -> tuple[int, int]:
  """(first, one past the last) of the groups that this process judges.

  Args:
    rewards: {label: (Reward, weight)} on the host.
    groups: how many there are.
    groups_per_call: see `evaluate.evaluate_host`.
  """
  whole = combine.widest(rewards) == 'batch' or not groups_per_call
  size = groups if whole else groups_per_call
  first, last = hosts.stretch(-(-groups // size) if groups else 0)
  return min(first * size, groups), min(last * size, groups)


def asker(
  rewards: combine.Weighted,
  inputs: RewardInputs,
  key: Array,
  asked: Mapping[str, Any],
  first: int = 0,
  of: int | None = None,
  pixels: Literal['float32', 'uint8'] = 'float32',
  **settings: Any,
) -> Answers:
  """Fetches this process's rows; all have to ask.

  Args:
    rewards: {label: (Reward, weight)} on the host.
    inputs: of b rows, of the device or numpy arrays.
    key: see `evaluate.evaluate_host`.
    asked: what rewards read of these rows' prompts, see `Prompts.asked`.
    first: number of the first group, where these are a part of a step's.
    of: groups of the step; None: these are all.
    pixels: see `inputs.on_host`.
    **settings: keywords of `evaluate.evaluate_host`.

  Returns:
    A function that says what they are answered; any thread may call it.
  """
  size = inputs.group_size
  groups = combine.rows_of(inputs) // size
  each = settings.get('groups_per_call', 0)
  begin, end = stretch(rewards, groups, each)
  rows = slice(begin * size, end * size)
  seen = inputs_lib.on_host(inputs, rewards, asked, rows, pixels)
  place = first + begin, groups if of is None else of

  def answers() -> dict[str, RewardOut]:
    if begin == end:
      none = RewardOut(np.zeros(0, np.float32), {}, np.zeros(0, bool))
      return dict.fromkeys(combine.weights(rewards), none)
    outs, _ = evaluate.evaluate_host(
      rewards, seen, key, groups=place, **settings
    )
    return outs

  return answers


def gathered(parts: Sequence[Answers]) -> dict[str, RewardOut]:
  """What all rows are answered, on every process; all have to ask.

  Args:
    parts: of a step, from `asker` or what waits for it.

  Raises:
    RewardError: see `evaluate.evaluate_host`.
  """
  found = []
  for answers in parts:
    own, error = {}, None
    try:
      own = answers()
    except ValueError as raised:
      if jax.process_count() == 1:
        raise
      error = str(raised)
    found.append(_gathered(own, error))
  return evaluate.joined(found)


def _gathered(
  answers: Mapping[str, RewardOut], error: str | None
) -> dict[str, RewardOut]:
  """The answers of all processes, rows in order."""
  if jax.process_count() == 1:
    return dict(answers)
  heads, columns = {}, []
  for label, out in answers.items():
    names = sorted(out.parts)
    columns += [out.score, out.valid, *(out.parts[name] for name in names)]
    columns += [] if out.applies is None else [out.applies]
    steps = 0 if out.steps is None else out.steps.shape[1]
    columns += list(out.steps.T) if steps else []
    heads[label] = names, out.applies is not None, steps
  reasons = {label: evaluate.failure(label) for label in answers}
  numbers = np.float32(columns) if columns else np.zeros((0, 0), np.float32)
  head = dict(error=error, heads=heads, reasons=reasons)
  said = hosts.everybody(json.dumps(head), numbers)
  parts = []
  for text, numbers in said:
    told = json.loads(text)
    if told['error'] is not None:
      raise outcomes.RewardError(told['error'])
    for label, reason in told['reasons'].items():
      evaluate.heard(label, reason)
    parts.append(_read(told['heads'], iter(numbers)))
  return evaluate.joined(parts)


def _read(heads: Mapping[str, Any], columns: Any) -> dict[str, RewardOut]:
  """One process's answers, from what `_gathered` sends."""
  found = {}
  for label, (names, some_apply, steps) in heads.items():
    score, valid = next(columns), next(columns) > 0
    parts = {name: next(columns) for name in names}
    applies = next(columns) > 0 if some_apply else None
    rows = [next(columns) for _ in range(steps)]
    found[label] = RewardOut(
      score, parts, valid, steps=np.stack(rows, 1) if rows else None,
      applies=applies,
    )  # fmt: skip
  return found
