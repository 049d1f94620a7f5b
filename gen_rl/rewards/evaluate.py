"""Scoring: on the device inside jit, or on the host in threads.

A reward that fails is not a reward of 0. On the host an exception, a call that
takes too long, an answer of the wrong shape, and a score that is NaN or
infinite all make their rows invalid; they are counted in the metrics, and the
first one of a kind is logged with its reason.
"""

from collections.abc import Callable, Mapping, Sequence
import queue
import threading
import time

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.rewards import combine
from gen_rl.types import Array, Params, PyTree, RewardInputs, RewardOut


def evaluate(
  rewards: combine.Weighted,
  inputs: RewardInputs,
  key: Array,
  params: Mapping[str, Params] | None = None,
) -> dict[str, RewardOut]:
  """Scores of the device rewards; pure, meant to be traced by jit.

  Args:
    rewards: {label: (Reward, weight)}, all with where='device'.
    inputs: media and info of b rows.
    key: one key, or per-row keys [b]; folded with each label.
    params: `combine.params(rewards)` as a traced argument, so that weights do
      not become constants of the program; None: those the rewards hold.

  Returns:
    {label: RewardOut}; rows with a score that is not finite are invalid.

  Raises:
    ValueError: a reward does not run on the device.
  """
  _check_place(rewards, 'device')
  if params is None:
    params = combine.params(rewards)
  outs = {}
  for label, (reward, weight) in rewards.items():
    if weight == 0:
      continue
    out = reward.score(params[label], inputs, combine.row_key(key, label))
    outs[label] = out.replace(valid=out.valid & jnp.isfinite(out.score))
  return outs


def before(
  rewards: combine.Weighted,
  inputs: RewardInputs,
  decode: Callable[[Array], PyTree],
  latents: Array,
  key: Array,
  params: Mapping[str, Params],
) -> dict[str, Array]:
  """Scores [b k] of samples finished from every decision, NaN where invalid.

  Args:
    rewards: as of `evaluate`, like the arguments below.
    inputs: of the samples themselves.
    decode: latents [b ...] -> media.
    latents: [b k ...]; those of a decision are scored at a time.
    key: see above.
    params: see above.
  """

  def score(latent: Array) -> dict[str, Array]:
    seen = inputs._replace(media=decode(latent))
    outs = evaluate(rewards, seen, key, params)
    return {
      label: jnp.where(out.valid, out.score, jnp.nan)
      for label, out in outs.items()
    }

  scores = jax.lax.map(score, latents.swapaxes(0, 1))
  return {label: x.T for label, x in scores.items()}


def evaluate_host(
  rewards: combine.Weighted,
  inputs: RewardInputs,
  key: Array,
  timeout: float = 60.0,
  workers: int = 8,
  groups_per_call: int = 0,
) -> tuple[dict[str, RewardOut], dict[str, np.float32]]:
  """Scores of the host rewards, in threads, however badly they behave.

  A thread that exceeds its time is abandoned, not killed: it may go on in the
  background (it never keeps the process from exiting). Its worker's place is
  given to the next call.

  Args:
    rewards: {label: (Reward, weight)}, all with where='host'.
    inputs: media and info of b rows, numpy or jax arrays.
    key: one key, or per-row keys [b]; folded with each label.
    timeout: seconds a call may take.
    workers: calls running at a time.
    groups_per_call: rows of how many groups to score in a call; 0: all. A
      failed call invalidates all of its rows, so fewer rows lose less.

  Returns:
    ({label: RewardOut} of numpy arrays, metrics): reward/invalid is the number
    of rows that some reward could not score, reward/<label>/invalid of those
    one reward could not.

  Raises:
    ValueError: a reward does not run on the host.
  """
  _check_place(rewards, 'host')
  used = {label: r for label, (r, weight) in rewards.items() if weight != 0}
  media, info = jax.tree.map(np.asarray, (inputs.media, dict(inputs.info)))
  group_size = int(inputs.group_size)  # an array if it went through jit
  b = len(jax.tree.leaves(media)[0])
  step = groups_per_call * group_size or b
  chunks = [slice(i, min(i + step, b)) for i in range(0, b, step)]

  calls, names = [], []
  for label, reward in used.items():
    folded = combine.row_key(key, label)
    for i, rows in enumerate(chunks):
      part_media, part_info = jax.tree.map(
        lambda x, rows=rows: x[rows], (media, info)
      )
      part = RewardInputs(part_media, part_info, group_size)
      if folded.ndim:
        part_key = folded[rows]
      else:
        part_key = folded if len(chunks) == 1 else jax.random.fold_in(folded, i)
      calls.append(_call(reward, part, part_key, rows.stop - rows.start))
      names.append(label)

  answers = _run(calls, timeout, workers)
  outs, metrics = {}, {}
  invalid = np.zeros(b, bool)
  for label, reward in used.items():
    mine = [a for a, n in zip(answers, names, strict=True) if n == label]
    for answer in mine:
      if isinstance(answer, Exception):
        _log_once(label, answer)
    # The same parts at every step, also where every call of a step failed.
    parts = _parts_of.setdefault(reward.score, set())
    parts.update(*(a.parts for a in mine if isinstance(a, RewardOut)))
    outs[label] = _concatenate(
      mine, [c.stop - c.start for c in chunks], sorted(parts)
    )
    failed = ~outs[label].valid
    metrics[f'reward/{label}/invalid'] = np.float32(failed.sum())
    invalid |= failed
  metrics['reward/invalid'] = np.float32(invalid.sum())
  return outs, metrics


def _check_place(rewards: combine.Weighted, where: str) -> None:
  for label, (reward, _) in rewards.items():
    if reward.where != where:
      raise ValueError(
        f'reward {label!r} runs on the {reward.where}, not on the {where}; '
        'combine.split tells them apart'
      )


def _call(reward, inputs, key, b: int) -> Callable[[], RewardOut]:
  """A call that returns numpy arrays of b rows, or raises."""

  def call() -> RewardOut:
    out = reward.score(reward.params, inputs, key)
    score = np.asarray(out.score, np.float32)
    valid = np.asarray(out.valid, bool)
    parts = {k: np.asarray(x, np.float32) for k, x in out.parts.items()}
    for x in (score, valid, *parts.values()):
      if x.shape != (b,):
        raise ValueError(f'answered with shape {x.shape} for {b} rows')
    bad = valid & ~np.isfinite(score)
    if bad.any():
      _log_once(
        reward.name, ValueError(f'{bad.sum()} of {b} scores are not finite')
      )
    dense = None if out.dense is None else np.asarray(out.dense, np.float32)
    return RewardOut(score, parts, valid & ~bad, dense)

  return call


def _run(
  calls: Sequence[Callable], timeout: float, workers: int
) -> list[RewardOut | Exception]:
  """Every call's answer, or the exception that stands for it.

  Daemon threads and not concurrent.futures: an executor waits for a hanging
  call when the process exits.
  """
  done = queue.SimpleQueue()

  def work(i: int) -> None:
    try:
      done.put((i, calls[i]()))
    except Exception as error:  # whatever a reward raises is its failure
      done.put((i, error))

  answers, deadlines, waiting = {}, {}, list(range(len(calls)))
  while waiting or deadlines:
    while waiting and len(deadlines) < workers:
      i = waiting.pop(0)
      deadlines[i] = time.monotonic() + timeout
      threading.Thread(target=work, args=(i,), daemon=True).start()
    try:
      wait = min(deadlines.values()) - time.monotonic()
      i, answer = done.get(timeout=max(wait, 0.0))
    except queue.Empty:
      for i in [i for i, at in deadlines.items() if at <= time.monotonic()]:
        answers[i] = TimeoutError(f'no answer within {timeout:g} s')
        del deadlines[i]
    else:
      if deadlines.pop(i, None) is not None:  # else it came too late
        answers[i] = answer
  return [answers[i] for i in range(len(calls))]


def _concatenate(
  answers: Sequence[RewardOut | Exception],
  rows: Sequence[int],
  parts: Sequence[str],
) -> RewardOut:
  """Joins calls by row; failed ones get NaN scores and valid=False."""
  good = [a for a in answers if isinstance(a, RewardOut)]
  dense = next((a.dense for a in good if a.dense is not None), None)

  def missing(n: int) -> np.ndarray:
    return np.full(n, np.nan, np.float32)

  whole = []
  for answer, n in zip(answers, rows, strict=True):
    if not isinstance(answer, RewardOut):
      answer = RewardOut(missing(n), {}, np.zeros(n, bool))
    if dense is not None and answer.dense is None:
      answer = answer.replace(
        dense=np.full((n, *dense.shape[1:]), np.nan, np.float32)
      )
    whole.append(
      answer.replace(parts={k: answer.parts.get(k, missing(n)) for k in parts})
    )
  return jax.tree.map(lambda *x: np.concatenate(x), *whole)


_parts_of: dict[Callable, set[str]] = {}  # {score: names seen}, per process
_logged: set[tuple[str, str]] = set()  # (reward, kind of failure), per process


def _log_once(label: str, error: Exception) -> None:
  kind = label, type(error).__name__
  if kind not in _logged:
    _logged.add(kind)
    logging.warning(
      'reward %s failed: %s: %s. Its rows are left out (valid=False) and '
      'counted in reward/invalid; logged once.',
      label,
      type(error).__name__,
      error,
    )
