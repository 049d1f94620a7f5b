"""Candidates that are compared with each other, in rounds."""

import jax.numpy as jnp

from gen_rl import search, selection
from gen_rl.build import ConfigError
from gen_rl.fields import Several
from gen_rl.search import Found, Search, Space
from gen_rl.types import Array, Rows
from gen_rl.utils import rng


def tournament(n: Several = 8, group: Several = 2) -> Search:
  """A knock-out: n finished candidates in groups, of which one goes on each.

  For rewards that compare the pictures they are shown (`win_rate`, or a judge
  of pairs such as `judged_win_rate`): all n side by side are n (n - 1) / 2
  pairs, and a knock-out of pairs has n - 1. With rewards that score a picture
  by itself it finds what `best_of_n` finds, for more reward calls. A judge
  that draws (a temperature) draws anew in each round.

  Args:
    n: candidates, a power of `group`.
    group: candidates that are shown side by side.

  Raises:
    ConfigError: n is no power of `group`.
  """
  rounds, left = 0, n
  while left % group == 0:
    rounds, left = rounds + 1, left // group
  if left != 1:
    raise ConfigError(
      f'tournament keeps one of every {group}, and n={n} leaves {left} over; '
      f'n has to be {group}, {group**2}, {group**3} and so on'
    )

  def find(space: Space, rows: Rows) -> Found:
    steps, calls = space.segments.steps, space.segments.calls

    def draw(z: Array, rows: Rows) -> Array:
      return space.segments.run(space.params, z, rows.cond, 0, steps)[0]

    tried = search.candidates(rows, n)
    x = search.in_chunks(draw, space.chunk, space.segments.noise(tried), tried)
    index = jnp.tile(jnp.arange(n, dtype=jnp.int32), len(rows.keys))
    score, cost = jnp.zeros(len(index)), selection.Cost(n * steps * calls)
    for number in range(rounds):
      asked = tried.replace(keys=rng.step_keys(tried.keys, number))
      score = search.in_chunks(space.verify(group), space.chunk, x, asked)
      best = selection.prune_step(score.reshape(-1, group), 1)[:, 0]
      at = jnp.arange(len(best)) * group + best
      x, index, score, tried = (
        x[at], index[at], score[at], search.take(tried, at)
      )  # fmt: skip
      cost += selection.Cost(reward_calls=n // group**number)
    return Found(x, score, index, cost)

  return Search(find, width=n, relative=True)
