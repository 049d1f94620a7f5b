"""Scoring: on the device inside jit, or on the host in threads.

A reward that fails is not a reward of 0. On the host an exception, a call that
takes too long, and a score that is NaN or infinite all make their rows invalid;
they are counted in the metrics, and the first one of a kind is logged with its
reason. An answer that is no answer (`outcomes`) ends the run.
"""

from collections.abc import Callable, Mapping, Sequence
import queue
import threading
import time

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.rewards import combine, outcomes
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
    RewardError: a reward answers with something else than scores of b rows.
    ValueError: a reward does not run on the device.
  """
  _check_place(rewards, 'device')
  if params is None:
    params = combine.params(rewards)
  return {
    label: combine.answer(
      label, reward, params[label], inputs, combine.row_key(key, label)
    )
    for label, (reward, weight) in rewards.items()
    if weight
  }


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
    finished = inputs.replace(media=decode(latent), said=latent)
    outs = evaluate(rewards, finished, key, params)
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
  groups: tuple[int, int] | None = None,
) -> tuple[dict[str, RewardOut], dict[str, np.float32]]:
  """Scores of the host rewards, in threads, however badly they behave.

  A thread that exceeds its time is abandoned, not killed: it may go on in the
  background (it never keeps the process from exiting). Its worker's place is
  given to the next call.

  Args:
    rewards: {label: (Reward, weight)}, all with where='host'.
    inputs: of b rows, numpy or jax arrays, see `inputs.on_host`.
    key: one key, or per-row keys [b]; folded with each label.
    timeout: seconds a call may take.
    workers: calls running at a time.
    groups_per_call: rows of how many groups to score in a call; 0: all, as
      rewards get that are called on a batch. A failed call invalidates all of
      its rows, so fewer rows lose less.
    groups: (number of the first, how many there are in the step), where these
      are a part of a step's groups: calls draw what they would as a whole.

  Returns:
    ({label: RewardOut} of numpy arrays, metrics): reward/invalid is the number
    of rows that some reward could not score, reward/<label>/invalid of those
    one reward could not.

  Raises:
    RewardError: a reward answers with something else than scores of b rows.
    ValueError: a reward does not run on the host.
  """
  _check_place(rewards, 'host')
  used = {label: r for label, (r, weight) in rewards.items() if weight != 0}
  info, columns = dict(inputs.info), dict(inputs.columns)
  inputs = inputs.replace(info=info, columns=columns)
  inputs = jax.tree.map(np.asarray, inputs)
  b = combine.rows_of(inputs)
  calls, names, cuts = [], [], {}
  for label, reward in used.items():
    folded = combine.row_key(key, label)
    size = 0 if reward.called_on == 'batch' else groups_per_call
    step = size * inputs.group_size or b
    chunks = [slice(i, min(i + step, b)) for i in range(0, b, step)]
    first, calls_of_step = 0, len(chunks)
    if groups and size:
      first, calls_of_step = groups[0] // size, -(-groups[1] // size)
    cuts[label] = [rows.stop - rows.start for rows in chunks]
    for i, rows in enumerate(chunks):
      # Copies: what a reward writes into them is seen by nobody else.
      part = jax.tree.map(lambda x, rows=rows: x[rows].copy(), inputs)
      if folded.ndim:
        part_key = folded[rows]
      else:
        alone = calls_of_step == 1
        part_key = folded if alone else jax.random.fold_in(folded, first + i)
      calls.append(_call(label, reward, part, part_key))
      names.append(label)

  answers = _run(calls, timeout, workers)
  outs, metrics = {}, {}
  invalid = np.zeros(b, bool)
  for label, reward in used.items():
    mine = [a for a, n in zip(answers, names, strict=True) if n == label]
    for answer in mine:
      if isinstance(answer, outcomes.RewardError):
        raise answer
      if isinstance(answer, BaseException):
        _log_once(label, answer)
    # The same parts at every step, also where every call of a step failed.
    parts = _parts_of.setdefault(reward.score, set())
    parts.update(*(a.parts for a in mine if isinstance(a, RewardOut)))
    outs[label] = _concatenate(label, mine, cuts[label], sorted(parts))
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


def _call(label, reward, inputs, key) -> Callable[[], RewardOut]:
  """A call that returns numpy arrays of its rows, or raises."""

  def call() -> RewardOut:
    out = combine.answer(label, reward, reward.params, inputs, key)
    out = jax.tree.map(np.asarray, out)
    bad = ~(abs(out.score) <= outcomes.LARGEST)
    if bad.any():
      said = f'{bad.sum()} of {len(bad)} scores are not finite'
      _log_once(label, ValueError(said))
    return out

  return call


def _run(
  calls: Sequence[Callable], timeout: float, workers: int
) -> list[RewardOut | BaseException]:
  """Every call's answer, or the exception that stands for it.

  Daemon threads and not concurrent.futures: an executor waits for a hanging
  call when the process exits.
  """
  done = queue.SimpleQueue()

  def work(i: int) -> None:
    try:
      done.put((i, calls[i]()))
    except BaseException as error:  # whatever a reward raises is its failure
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
  label: str,
  answers: Sequence[RewardOut | BaseException],
  rows: Sequence[int],
  parts: Sequence[str],
) -> RewardOut:
  """Joins calls by row; failed ones get NaN scores and valid=False.

  Raises:
    RewardError: rewards of steps have several shapes.
  """
  good = [a for a in answers if isinstance(a, RewardOut)]
  shapes = {a.steps.shape[1:] for a in good if a.steps is not None}
  if len(shapes) > 1:
    raise outcomes.RewardError(
      f'the reward {label!r} answered with rewards of steps of several shapes, '
      f'{" and ".join(map(str, map(list, sorted(shapes))))}'
    )

  def missing(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)

  whole = []
  for answer, n in zip(answers, rows, strict=True):
    if not isinstance(answer, RewardOut):
      answer = RewardOut(missing(n), {}, np.zeros(n, bool))
    for shape in shapes:
      if answer.steps is None:
        answer = answer.replace(steps=missing(n, *shape))
    if answer.applies is None and any(a.applies is not None for a in good):
      answer = answer.replace(applies=np.ones(n, bool))
    whole.append(
      answer.replace(parts={k: answer.parts.get(k, missing(n)) for k in parts})
    )
  return jax.tree.map(lambda *x: np.concatenate(x), *whole)


def joined(parts: Sequence[Mapping[str, RewardOut]]) -> dict[str, RewardOut]:
  """Answers of the parts of a step, {label: RewardOut} each, as one."""
  if len(parts) == 1:
    return dict(parts[0])
  out = {}
  for label in parts[0]:
    answers = [part[label] for part in parts]
    names = sorted({name for a in answers for name in a.parts})
    rows = [len(a.valid) for a in answers]
    out[label] = _concatenate(label, answers, rows, names)
  return out


_parts_of: dict[Callable, set[str]] = {}  # {score: names seen}, per process
# {(label, kind of failure): what was said of the first}, per process
_failures: dict[tuple[str, str], str] = {}


def failure(label: str) -> str:
  """Why a reward failed in this process, the last kind of failure; or ''."""
  said = [text for (name, _), text in _failures.items() if name == label]
  return said[-1] if said else ''


def heard(label: str, reason: str) -> None:
  """Keeps why a reward failed in another process."""
  if reason and not failure(label):
    _failures[label, 'elsewhere'] = reason


def _log_once(label: str, error: BaseException) -> None:
  kind = type(error).__name__
  if (label, kind) in _failures:
    return
  try:
    text = str(error)
  except Exception:  # an error may fail to say what it is
    text = ''
  text = ' '.join(text.split())
  text = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
  text = f'{kind}: {text[:300]}' if text else kind
  _failures[label, kind] = text
  logging.warning(
    'reward %s failed: %s. Its rows are left out (valid=False) and counted in '
    'reward/invalid; logged once.',
    label,
    text,
  )
