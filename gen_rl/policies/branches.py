"""Noise that the rows of a group share, up to where they part.

Without a branch all noise is a row's own. With branches after a_1 < ... < a_m
of the decisions of a window, the G rows of a group are a tree: one initial
noise and one noise for decisions before a_1; from a_l on there are g_1 ... g_l
nodes of g_{l+1} ... g_m neighbours (by their place in the group) which share
theirs; behind a_m it is a row's own, G = g_1 ... g_m. One branch after a
decisions is the comparison of B2-DiffuRL (arXiv 2503.11240): what the rows have
in common cancels, and is not to be credited.

Noise before a window is none, so that decisions are counted from its start on.
Keys of level l < m are, in the notation of `utils.rng`,

  fold_in(fold_in(fold_in(stream(group, 'branch'), l), node), step)      (1)

with node = member // (g_{l+1} ... g_m), 0 on level 0; those of level m are as
ever. Nobody else draws from them, and the rest of a batch has no part in them.

Decisions before a_1 are the same for all rows of a group. Where advantages are
centred in the group they add up to 0, and so does A grad log p of such a
decision over the rows; of advantages that are not, such as `history`, it would
get the group's mean, which B2-DiffuRL leaves out as well. They are masked: no
loss, KL or mean over decisions counts them. A decision that the rows of a node
share is counted once a row: it gets the mean advantage of its node.

Rows that are the same until they part are computed once. With a_0 < 0 the first
step of all, the state before decision j is one for a group where j <= a_1, for
a node of level l where a_l < j <= a_{l+1}: a network is called for

  P g_1 ... g_l rows of the b = P G, l = number of points below j         (2)

and what it says is repeated. Of points that differ from group to group the
first one counts. Groups that are cut, over devices or chunks, are as many as
there are parts; where the members of a group are chosen from more (`explore`),
rows are the same up to a_1 only. What is spared is `Trajectory.spared`.

Evaluations that sample by the policy (eval.sampler) draw such groups, too,
whose rows are less diverse.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int32, Key

from gen_rl.build import ConfigError
from gen_rl.diffusion import noise
from gen_rl.fields import Count, Index, Several
from gen_rl.models.parts import layers
from gen_rl.types import Array, Rows
from gen_rl.utils import rng

__all__ = ['backward_branch', 'fixed_branches', 'random_branch']


class Branches(NamedTuple):
  """Where the rows of a group part, and into how many."""

  # (keys [b] shared by the rows of a group, number of the update) -> decisions
  # before each point [m b], or [m 1] where it is the same for all rows
  after: Callable[[Array, Array], Array]
  ways: tuple[int, ...] = ()  # g_1, ..., g_m; () for one point: all rows part
  points: tuple[int, ...] = ()  # a_1, ..., a_m of all groups; (): they move


class Shared(NamedTuple):
  """Of a rollout: who shares what."""

  after: Array  # [m b] or [m 1]
  keys: tuple[Array, ...]  # m + 1 times [b], of every level

  def step_keys(self, decision: Array, i: Array) -> Array:
    """Keys [b] of step `i`, which is that decision of the window."""
    keys, *later = self.keys
    for after, behind in zip(self.after, later, strict=True):
      keys = jnp.where(decision >= after, behind, keys)
    return rng.step_keys(keys, i)

  def apart(self, decision: Array) -> Array:
    """[b] or [1]: there is more than one such decision in a group."""
    return decision >= self.after[0]


def share(branches: Branches, rows: Rows, step: Array) -> Shared:
  """Of the rows of update number `step`."""
  places = rng.stream_keys(rows.group_keys, 'branch place')
  base = rng.stream_keys(rows.group_keys, 'branch')
  fold_in = jax.vmap(jax.random.fold_in)
  keys = []
  for level in range(len(branches.ways) or 1):
    node = jnp.zeros_like(rows.group)
    if level:
      node = rows.member // math.prod(branches.ways[level:])
    keys.append(fold_in(rng.step_keys(base, level), node))
  return Shared(branches.after(places, step), (*keys, rows.keys))


class Level(NamedTuple):
  """Decisions whose state is the same for neighbours."""

  size: int  # how many neighbours
  last: int | Array | None  # decision; None: there is none


def levels(branches: Branches, rows: Rows, shared: Shared) -> list[Level]:
  """(2), by falling sizes; the last level has no neighbours."""
  b = rows.group.shape[0]
  whole = math.gcd(rows.alike, b // math.gcd(layers.shards('batch'), b))
  ways, m = branches.ways, len(shared.after)
  if not (rows.in_order and math.prod(ways) == rows.alike):  # nodes are unknown
    ways = ()
  found = []
  for level in range(m + 1):
    size = math.gcd(math.prod(ways[level:]), whole) if ways else 1
    size = size if level else whole
    last = None
    if level < m:
      moves = not branches.points
      last = shared.after[level].min() if moves else branches.points[level]
    if found and found[-1].size == size:
      found.pop()
    found.append(Level(size, last))
  return found


def fixed_branches(
  decisions: int,
  after: tuple[Index, ...] = (1,),
  ways: tuple[Several, ...] = (),
) -> Branches:
  """The same points always.

  Tested, not measured.

  Args:
    decisions: of the window.
    after: decisions before each point, a_1 < ... < a_m.
    ways: g_1, ..., g_m, whose product is the size of a group; () for one point,
      where all rows part.

  Raises:
    ConfigError: points that a window does not hold, or ways that are not those
      of the points.
  """
  said = f'policy.branch: after={tuple(after)}'
  if not after or sorted({*after}) != [*after]:
    raise ConfigError(f'{said} has to name one point, or several that increase')
  if after[-1] >= decisions:
    raise ConfigError(
      f'{said} leaves no decision of rows by themselves; the window has '
      f'{decisions}, so that the last point is at most {decisions - 1}'
    )
  if len(ways) != len(after) and not (ways == () and len(after) == 1):
    raise ConfigError(
      f'{said} are {len(after)} points, and ways={tuple(ways)} are '
      f'{len(ways)}; give one number of ways a point'
    )
  points = tuple((a,) for a in after)
  return Branches(
    lambda keys, step: jnp.asarray(points), tuple(ways), tuple(after)
  )


def random_branch(decisions: int, low: Index = 0, high: Index = 0) -> Branches:
  """One point, drawn for each prompt: U{low, ..., high - 1}.

  Tested, not measured.

  Args:
    decisions: of the window.
    low: fewest decisions before it.
    high: one more than there may be at most; 0: that many are in a window.

  Raises:
    ConfigError: a window does not hold all of these points.
  """
  high = high or decisions
  if not low < high <= decisions:
    raise ConfigError(
      f'policy.branch: low={low} and high={high} have to be in order and at '
      f'most {decisions}, the decisions of a window, for rows to have some of '
      'their own'
    )

  def after(keys: Key[Array, ' b'], step: Array) -> Int32[Array, '1 b']:
    draw = jax.vmap(lambda key: jax.random.randint(key, (), low, high))
    return draw(keys)[None]

  return Branches(after)


def backward_branch(
  decisions: int, initial: Count = 1, stages: Count = 100, every: Count = 1
) -> Branches:
  """One point that moves from the last decisions back to the first.

  With it the trained decisions are the last ones, more of them as training goes
  on, after a noisy way that a group shares: B2-DiffuRL, whose choice of 20
  steps is initial=14 and 100 stages. Its length is that of
  `diffusion.noise.backward_interval`, of the decisions of a window.

  Args:
    decisions: of the window.
    initial: decisions behind the point in the first stage.
    stages: see there.
    every: updates of a stage.

  Raises:
    ConfigError: there are fewer decisions than `initial`.
  """
  noise.check_interval(decisions, initial)

  def after(keys: Array, step: Array) -> Int32[Array, '1 1']:
    n = noise.interval(decisions, step, initial, stages, every)
    return jnp.reshape(decisions - n, (1, 1))

  return Branches(after)
