"""What rewards see of the rows: made here, for all who score.

Training, reward gradients, evaluation, search and rewards in Python get the
same object, `types.RewardInputs`, with the same fields, whatever the rows are
cut into: every field but `group_size` has rows first.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

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
  inputs: RewardInputs,
  rewards: combine.Weighted,
  asked: Mapping[str, Any],
  rows: slice | None = None,
  pixels: Literal['float32', 'uint8'] = 'float32',
) -> RewardInputs:
  """Numpy arrays of what these rewards may look at; all processes have to ask.

  Args:
    inputs: of the device, or numpy arrays.
    rewards: {label: (Reward, weight)} on the host.
    asked: what their prompts are, of all rows, see `Prompts.asked`.
    rows: that this process wants, from a start to a stop; None: all.
    pixels: what pictures are sent as; they come as float32 either way, NaN
      where a picture is not finite.
  """
  inputs = needed(inputs, rewards)
  rows = rows or slice(0, combine.rows_of(inputs))
  if pixels == 'uint8':
    inputs = inputs.replace(media=jax.tree.map(_small, inputs.media))
  found = hosts.fetch_rows(inputs, rows)
  media = jax.tree.map(_whole, found.media, is_leaf=_is_small)
  asked = jax.tree.map(lambda x: x[rows], dict(asked))
  return found.replace(media=media, **asked)


def _small(x: Any) -> Any:
  """Pictures [b ...] in [0, 1] as (bytes, are they finite [b])."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  xp = np if isinstance(x, np.ndarray) else jnp
  fine = xp.isfinite(x).reshape(len(x), -1).all(1)
  scaled = xp.round(255 * xp.clip(xp.nan_to_num(x), 0, 1))
  return scaled.astype(np.uint8), fine


def _is_small(x: Any) -> bool:
  return isinstance(x, tuple)


def _whole(x: Any) -> Any:
  """The other way round than `_small`."""
  if not _is_small(x):
    return x
  pixels, fine = x
  out = pixels.astype(np.float32) / np.float32(255)
  out[~fine] = np.nan
  return out
