r"""Which prompts are trained on at step n: a pure function of (seed, n).

Prompts are drawn by index, so any step can be computed without the ones
before it, and resuming needs the step number only.

Step n draws P prompts. Task t with N_t prompts and weight w_t (sum_t w_t = 1;
without weights there is a single task) gets c_t of them by systematic
sampling with a golden-ratio offset u_n,

  c_t(n) = ceil(P W_t - u_n) - ceil(P W_{t-1} - u_n),  W_t = w_1 + .. + w_t (1)
  u_n = frac(u_0 + n (sqrt(5) - 1) / 2)                                     (2)

so that sum_t c_t = P, c_t is P w_t rounded down or up, and the average over
steps is P w_t with an error that shrinks like log(n) / n. A task too small
for its share gives it to the others (min(P w_t, N_t), the rest rescaled).
The prompts of task t at step n are the first c_t of chunk n of

  shuffle(prompts of t) -> chunks of ceil(P w_t), remainder dropped -> repeat

with a new permutation each epoch (so what one epoch leaves out is random). A
chunk lies within one epoch, hence the prompts of a step are distinct whenever
the source has P of them, and within an epoch no prompt comes twice.

Permutations sort the raw bits of Philox (Salmon et al. 2011), whose streams
NumPy keeps between versions. `grain.MapDataset.shuffle` would do the same
with a block cipher of at least 16 bits walked until it falls inside the data:
milliseconds per index where a task has a handful of prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from gen_rl.data import prompts

_GOLDEN = int((math.sqrt(5) - 1) / 2 * 2**32)  # u_n in units of 2**-32


def task_weights(
  source: prompts.Prompts, weights: Mapping[str, float] | None, balance: bool
) -> dict[str, float] | None:
  """Checked weights by task, or None for plain uniform prompts.

  Args:
    source: see `prompts`.
    weights: relative frequency by task label; tasks left out are not drawn.
    balance: all tasks equally often (when `weights` is not given), but for
      sources that have a mixture of their own (`Prompts.weights`, `as_listed`).

  Raises:
    ValueError: unknown tasks, or weights that cannot be.
  """
  weights = weights or dict(source.weights)
  if not weights and (not balance or source.as_listed):
    return None
  tasks = list(dict.fromkeys(source.tasks))
  if not tasks:
    raise ValueError(
      f'prompt source {source.name} has no task labels to balance or weight'
    )
  if not weights:
    return dict.fromkeys(tasks, 1.0)
  unknown = sorted(set(weights) - set(tasks))
  if unknown:
    raise ValueError(
      f'weights name the task {", ".join(unknown)}; prompt source'
      f' {source.name} has {", ".join(tasks)}. Set weights of these only, or '
      'weights={} for all equally often'
    )
  out = {task: float(weights.get(task, 0.0)) for task in tasks}
  if not all(0 <= w < math.inf for w in out.values()) or not any(out.values()):
    raise ValueError(
      f'task weights must be non-negative and not all zero, got {out}'
    )
  return out


class Task(NamedTuple):
  """What a task has, and its share of a step."""

  members: np.ndarray  # indices into the source
  end: Fraction  # P W_t
  chunk: int  # ceil(P w_t)
  stream: int  # number of its random stream


def _bits(count: int, seed: int, stream: int, block: int) -> np.ndarray:
  """uint64 [count], independent for every (seed, stream, block)."""
  key = np.array([seed, stream], np.uint64)
  counter = np.array([0, 0, 0, block], np.uint64)
  return np.random.Philox(key=key, counter=counter).random_raw(count)


@functools.lru_cache(maxsize=16)
def _permutation(size: int, seed: int, stream: int, epoch: int) -> np.ndarray:
  return np.argsort(_bits(size, seed, stream, epoch), kind='stable')


def _shares(
  weights: Sequence[Fraction], sizes: Sequence[int], total: int
) -> list[Fraction]:
  """P w_t, capped at the size of the task; the excess goes to the others."""
  shares = [Fraction(0)] * len(weights)
  open_tasks = [i for i, w in enumerate(weights) if w]
  if sum(sizes[i] for i in open_tasks) < total:  # repeats cannot be avoided
    return [total * w / sum(weights) for w in weights]
  left = Fraction(total)
  while open_tasks:
    scale = left / sum(weights[i] for i in open_tasks)
    full = [i for i in open_tasks if weights[i] * scale >= sizes[i]]
    for i in full or open_tasks:
      shares[i] = Fraction(sizes[i]) if full else weights[i] * scale
    left -= sum(shares[i] for i in full)
    open_tasks = [i for i in open_tasks if i not in full] if full else []
  return shares


def plan(
  source: prompts.Prompts,
  prompts_per_step: int,
  weights: Mapping[str, float] | None,
) -> list[Task]:
  """The tasks of a source, for `indices`.

  Args:
    source: see `prompts`.
    prompts_per_step: P.
    weights: of `task_weights`.
  """
  if weights is None:
    groups, raw = [np.arange(len(source))], [Fraction(1)]
  else:
    labels = np.asarray(source.tasks)
    names = [t for t, w in weights.items() if w > 0]
    groups = [np.flatnonzero(labels == t) for t in names]
    raw = [Fraction(weights[t]) for t in names]
  shares = _shares(raw, [len(g) for g in groups], prompts_per_step)
  ends = itertools.accumulate(shares)
  return [
    Task(group, end, math.ceil(share), stream + 1)
    for stream, (group, end, share) in enumerate(
      zip(groups, ends, shares, strict=True)
    )
  ]


def _draw(task: Task, count: int, seed: int, step: int) -> np.ndarray:
  """The first `count` prompts of chunk `step` of a task."""
  size = len(task.members)
  if size >= task.chunk:
    epoch, i = divmod(step, size // task.chunk)
    where = i * task.chunk + np.arange(count) + epoch * size
  else:  # more than the task has: repeats, spread as evenly as can be
    where = step * task.chunk + np.arange(count)
  order = [
    _permutation(size, seed, task.stream, int(w) // size)[w % size]
    for w in where
  ]
  return task.members[np.array(order, np.int64)]


def indices(plan: list[Task], seed: int, step: int) -> np.ndarray:
  """Indices into the source of the prompts of a step: int64 [P]."""
  start = int(_bits(1, seed, 0, 0)[0] >> np.uint64(32))
  u = Fraction((start + step * _GOLDEN) % 2**32, 2**32)
  ends = [math.ceil(task.end - u) for task in plan]  # eq. (1)
  counts = np.diff([0, *ends])
  drawn = np.concatenate(
    [_draw(t, int(n), seed, step) for t, n in zip(plan, counts, strict=True)]
  )
  # Mixed, so that neither a shard nor the head of a batch is a single task.
  return drawn[np.argsort(_bits(len(drawn), seed, 0, step + 1), kind='stable')]


def alternatives(
  counts: Sequence[int], ids: np.ndarray, seed: int, step: int
) -> np.ndarray:
  """Which of its texts each prompt of a step takes: int64 [P].

  Uniform, and independent for every (seed, step, prompt): it does not matter
  what else a step draws, or in which order.

  Args:
    counts: [P] texts each has, 1 or more.
    ids: [P] of the prompts.
    seed: of the stream.
    step: its number, from 0.
  """
  key = np.array([seed, 0], np.uint64)
  drawn = [
    # Streams of `_bits` have a 0 in place of the 1.
    np.random.Philox(
      key=key, counter=np.array([0, id_, 1, step], np.uint64)
    ).random_raw()
    % count
    for id_, count in zip(ids.tolist(), counts, strict=True)
  ]
  return np.array(drawn, np.int64)


def every(
  source: prompts.Prompts,
  prompts_per_step: int,
  seed: int,
  steps: range,
  weights: Mapping[str, float] | None = None,
  balance: bool = False,
) -> Iterator[int]:
  """What some steps draw, each index into the source once, as they come.

  Args:
    source: see `prompts`.
    prompts_per_step: P.
    seed: of the stream.
    steps: their numbers, from 0.
    weights: see `task_weights`.
    balance: see `task_weights`.
  """
  tasks = plan(source, prompts_per_step, task_weights(source, weights, balance))
  left = sum(len(task.members) for task in tasks if task.chunk)
  seen = set()
  for step in steps:
    if len(seen) == left:
      return
    for index in indices(tasks, seed, step).tolist():
      if index not in seen:
        seen.add(index)
        yield index
