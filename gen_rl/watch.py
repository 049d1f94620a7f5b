"""Whether a run still learns, by what its updates log.

A run that learns nothing ends with the reason: no reward scores a row, no
decision counts for an objective, no step of a learner or of the policy is
finite, for some updates in a row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gen_rl import build
from gen_rl.rewards import outcomes


class Watch:
  """Counts, over updates, of what should not go on for long.

  Attributes:
    silence: updates in a row in which a reward scored no row, for checkpoints.
  """

  def __init__(self, labels: Mapping[str, Any], limit: int):
    """Of these rewards; `limit` updates in a row are too many."""
    self.silence: dict[str, int] = {}
    self._labels, self._limit = labels, limit
    self._idle: dict[str, int] = {}
    self._unlearned: dict[str, int] = {}

  def see(self, logged: Mapping[str, Any]) -> int:
    """Takes in what an update logged; says how long the longest count is."""
    self.silence = outcomes.silent(self.silence, logged, self._labels)
    self._idle = idle(self._idle, logged)
    self._unlearned = unlearned(self._unlearned, logged)
    counts = self.silence, self._idle, self._unlearned
    return max([0, *(n for found in counts for n in found.values())])

  def limit(self, last: bool, done: int) -> int:
    """How long is too long; a run in which nothing ever counted fails, too."""
    return min(self._limit, done) if last else self._limit

  def check(self, limit: int, done: int, reasons: Mapping[str, str]) -> None:
    """Ends a run in which something went on for too long.

    Args:
      limit: so many updates in a row are too many.
      done: updates of the run so far.
      reasons: {reward: why it failed last, or ''}.

    Raises:
      RewardError, ConfigError, FloatingPointError: naming it.
    """
    outcomes.check_heard(self.silence, limit, done, reasons)
    decided(self._idle, limit, done)
    learned(self._unlearned, limit, done)


def idle(
  before: Mapping[str, int], logged: Mapping[str, Any]
) -> dict[str, int]:
  """{objective: updates in a row in which no row had a decision of its kind}.

  Args:
    before: the same, before this update.
    logged: metrics of the update.
  """
  found = {}
  for name, said in logged.items():
    label, _, what = name.rpartition('/')
    if what == 'decisions':
      count = before.get(label, 0)
      left_out = np.isnan(said)  # by policy_every
      found[label] = count if left_out else (count + 1) * int(not said)
  return found


def unlearned(
  before: Mapping[str, int], logged: Mapping[str, Any]
) -> dict[str, int]:
  """{learner: updates in a row in which none of its steps was finite}.

  Args:
    before: the same, before this update.
    logged: metrics of the update.
  """
  found = {}
  for name, share in logged.items():
    kind, _, rest = name.partition('/')
    label, _, what = rest.rpartition('/')
    if kind == 'learner' and label and what == 'skipped':
      count = before.get(label, 0)
      found[label] = count if np.isnan(share) else (count + 1) * int(share == 1)
  return found


def learned(counts: Mapping[str, int], limit: int, done: int) -> None:
  """Ends a run in which a learner cannot learn.

  Args:
    counts: of `unlearned`.
    limit: so many updates in a row are too many.
    done: updates of the run so far.

  Raises:
    FloatingPointError: names the learner.
  """
  for label, n in counts.items():
    if n >= limit:
      raise FloatingPointError(
        f'no step of the learner {label!r} was finite in the last {n} updates, '
        f'to step {done}; see learner/{label}/loss in metrics.jsonl, and try a '
        'lower rate of its optimizer'
      )


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
