"""What a reward answers: is it an answer, and was any row ever scored?

An answer of another form than `RewardOut` of [b] arrays is an error of whoever
wrote the reward, and ends the run at once. Rows that could not be scored are
not: they are left out and counted (`count`), until no row was scored for some
updates in a row (`silent`), for then the run learns nothing from that reward.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.types import AnyArray, Metrics, RewardOut

LARGEST = 1e15  # scores above cannot be squared and added up in float32


class RewardError(ValueError):
  """A reward that cannot be learned from, said in one sentence."""


def checked(label: str, out: Any, rows: int) -> RewardOut:
  """An answer whose arrays are what they should be, or none.

  Args:
    label: of the reward.
    out: what it answered, jax or numpy arrays or lists of numbers.
    rows: b.

  Returns:
    The same: score float32, valid bool, False where the score is not finite,
    beyond LARGEST or masked. Rows it does not apply to have the score 0 and are
    valid.

  Raises:
    RewardError: naming the reward, what it answered and what it should have.
  """
  if not isinstance(out, RewardOut):
    raise RewardError(
      f'the reward {label!r} answered with {_kind(out)}, not with '
      'RewardOut(score, parts, valid)'
    )
  if not isinstance(out.parts, Mapping) or not all(
    isinstance(name, str) for name in out.parts
  ):
    raise RewardError(
      f'the reward {label!r} answered with parts that are {_kind(out.parts)}, '
      'not {name: an array [b]}'
    )
  score = _numbers(label, 'a score', out.score, rows)
  masked = np.ma.getmaskarray(score) if np.ma.isMaskedArray(score) else None
  valid = _flags(label, 'valid', out.valid, rows) & _finite(score)
  if masked is not None:
    valid = valid & ~masked
  parts = {
    name: _float32(_numbers(label, f'the part {name!r}', x, rows))
    for name, x in out.parts.items()
  }
  steps, before = out.steps, out.before
  if steps is not None:
    steps = _float32(_numbers(label, 'steps', steps, rows, 2))
  if before is not None:
    before = _float32(_numbers(label, 'before', before, rows, 2))
  score, applies = _float32(score), out.applies
  if applies is not None:
    applies = _flags(label, 'applies', applies, rows)
    where = np.where if isinstance(score, np.ndarray) else jnp.where
    score, valid = where(applies, score, 0), valid | ~applies
  return RewardOut(score, parts, valid, steps, before, applies)


def _kind(x: Any) -> str:
  shape = getattr(x, 'shape', None)
  name = type(x).__name__
  if shape is None:
    return name
  return f'{getattr(x, "dtype", name)} of shape {list(shape)}'


def _array(label: str, what: str, x: Any, rows: int, axes: int) -> AnyArray:
  """x, as jax's or numpy's, if it has rows."""
  if not isinstance(x, jax.Array):
    try:
      x = np.ma.asanyarray(x) if np.ma.isMaskedArray(x) else np.asarray(x)
    except Exception as error:  # of whatever library the object is
      raise RewardError(
        f'the reward {label!r} answered with {what} that is {_kind(x)} and no '
        'array'
      ) from error
  if x.ndim != axes or x.shape[0] != rows:
    wanted = f'[{rows}]' if axes == 1 else f'[{rows}, ...] of {axes} axes'
    raise RewardError(
      f'the reward {label!r} answered with {what} of shape {list(x.shape)}; it '
      f'is {wanted} for {rows} rows'
    )
  return x


def _numbers(
  label: str, what: str, x: Any, rows: int, axes: int = 1
) -> AnyArray:
  x = _array(label, what, x, rows, axes)
  if x.dtype.kind not in 'biuf' and not jnp.issubdtype(x.dtype, jnp.floating):
    raise RewardError(
      f'the reward {label!r} answered with {what} of type {x.dtype}; it is a '
      'number of every row'
    )
  return x


def _flags(label: str, what: str, x: Any, rows: int) -> AnyArray:
  """Bool [b]; takes zeros and ones."""
  x = _array(label, what, x, rows, 1)
  known = x.dtype.kind in 'biu'
  if isinstance(x, np.ndarray) and x.dtype.kind in 'iuf':
    known = bool(np.isin(np.asarray(x), (0, 1)).all())
  if not known:
    raise RewardError(
      f'the reward {label!r} answered with {what} of type {x.dtype}; it is '
      'True or False of every row'
    )
  if np.ma.isMaskedArray(x):
    return (
      np.asarray(x.filled(0) if x.dtype.kind != 'b' else x.filled(False)) > 0
    )
  return x.astype(bool)


def _float32(x: AnyArray) -> AnyArray:
  if isinstance(x, jax.Array):
    return x.astype(jnp.float32)
  with np.errstate(over='ignore'):  # what is too large is not finite
    if np.ma.isMaskedArray(x):
      return x.astype(np.float32).filled(np.nan)
    return x.astype(np.float32)


def _finite(x: AnyArray) -> AnyArray:
  return abs(_float32(x)) <= LARGEST  # NaN is not


def scored(out: RewardOut) -> AnyArray:
  """Bool [b]: the rows a reward applies to and could score."""
  return out.valid if out.applies is None else out.valid & out.applies


def count(outs: Mapping[str, RewardOut], valid: AnyArray) -> Metrics:
  """How many rows were scored, and how many could not be.

  Args:
    outs: {label: `checked` answer}.
    valid: [b], the rows that all rewards could score which apply to them.

  Returns:
    reward/scored, reward/invalid, and reward/<label>/scored and /invalid. A row
    that a reward does not apply to is neither.
  """
  rows = {'reward': (valid, ~valid)} | {
    f'reward/{label}': (scored(out), ~out.valid) for label, out in outs.items()
  }
  return {
    f'{name}/{kind}': x.sum().astype(jnp.float32)
    for name, pair in rows.items()
    for kind, x in zip(('scored', 'invalid'), pair, strict=True)
  }


def silent(
  before: Mapping[str, int], logged: Mapping[str, Any], labels: Collection[str]
) -> dict[str, int]:
  """{label: updates in a row without a row that the reward scored}.

  The label '' is of all rewards together. An update with no row that a reward
  applies to is passed over.

  Args:
    before: the same, before this update.
    logged: metrics of the update, see `count`.
    labels: of the rewards; none in training on data.
  """
  after = {}
  for label in (*labels, '') if labels else ():
    name = f'reward/{label}' if label else 'reward'
    none = not logged[f'{name}/scored']
    tried = none and bool(logged[f'{name}/invalid'])
    after[label] = (before.get(label, 0) + tried) * none
  return after


def check_heard(
  counts: Mapping[str, int], limit: int, done: int, reasons: Mapping[str, str]
) -> None:
  """Ends a run that some reward says nothing to.

  Args:
    counts: of `silent`.
    limit: so many updates in a row are too many.
    done: updates of the run so far.
    reasons: {label: why it failed}, of those where that is known.

  Raises:
    RewardError: names the reward.
  """
  for label, n in counts.items():
    if n < limit:
      continue
    of = f'by the reward {label!r}' if label else 'by all rewards it is for'
    why = f' ({reasons[label]})' if reasons.get(label) else ''
    raise RewardError(
      f'no row of the last {n} updates, to step {done}, could be scored {of}'
      f'{why}: nothing was learned from them; mend the reward, and the same '
      'command goes on from the newest checkpoint'
    )
