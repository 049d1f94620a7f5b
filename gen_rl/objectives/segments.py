"""An objective on one segment of trajectories that have several.

Policies one after the other (`policies.compose`) have actions of unlike kinds,
one array for each segment; the decisions of a segment are neighbours along k.
With m the mask of all decisions, the objective is given m at those of one
segment and 0 elsewhere: its ratios of rows, means and counts are the segment's,
and so are its clip range and its weight.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import build, objectives
from gen_rl.build import ConfigError
from gen_rl.fields import CopyName
from gen_rl.types import (
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
  Trajectory,
)

_PARTS = ('first', 'second')


def segments(traj: Trajectory) -> np.ndarray:
  """Which segment each decision belongs to: [k] int, from 0."""
  lengths = [a.shape[1] for a in jax.tree.leaves(traj.actions)]
  return np.repeat(np.arange(len(lengths)), lengths)


def of_segment(
  objective: Mapping[str, Any],
  part: Literal['first', 'second'],
  on_policy: bool = True,
  ref: CopyName | None = None,
) -> Objective:
  """Another objective, of the decisions of one segment.

  Tested, not measured.

  Args:
    objective: spec of a function of `gen_rl.objectives`; one of decisions.
    part: 'first', the text, or 'second', the picture.
    on_policy: passed on to those that ask.
    ref: name of the frozen copy, passed on; needed where there is one, so that
      the run keeps it.

  Raises:
    ConfigError: another part, an objective that compares rows or lacks its
      ref; when called, a trajectory of one segment.
  """
  if part not in _PARTS:
    raise ConfigError(f"of_segment: part is {part!r}: 'first' or 'second'")
  name = objective['name']
  if build.takes(objectives, objective, 'group_size'):
    raise ConfigError(
      f'of_segment: {name} compares the rows of a group, whose decisions are '
      'those of all segments: use it by itself'
    )
  wanted = build.argument(objectives, objective, 'ref')
  if wanted is not None and ref is None:
    raise ConfigError(
      f'of_segment: {name} compares with the copy {wanted!r}: name it as '
      f'ref={wanted!r} next to part, so that the run keeps one'
    )
  named = {} if ref is None else dict(ref=ref)
  spec = {**objective, **named}
  inner = build.build(objectives, spec, on_policy=on_policy)

  def of_part(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    own = segments(exp.traj)
    if not own.size or own.max() == 0:
      raise ConfigError(
        'of_segment needs trajectories of several segments, such as '
        'policy.name="text_then_image" gives'
      )
    own = jnp.asarray(own == _PARTS.index(part), jnp.float32)
    traj = exp.traj.replace(mask=exp.traj.mask * own)
    return inner(replay, exp.replace(traj=traj), keys)

  return of_part
