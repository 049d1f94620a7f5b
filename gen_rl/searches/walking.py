"""Walks through noise towards what the rewards like: see `gen_rl.search`."""

from typing import Annotated

from gen_rl import search
from gen_rl.fields import Count, Index, Must, Several
from gen_rl.search import Found, Search, Space
from gen_rl.types import Rows

Cosine = Annotated[float, Must('above -1 and below 1', lambda c: -1 < c < 1)]


def zero_order(
  n: Several = 4, rounds: Count = 3, cosine: Cosine = 0.95, patience: Index = 1
) -> Search:
  """Best of n, then rounds of n neighbours of the best (arXiv 2501.09732).

  Takes n (rounds + 1) candidates, the best of all of which is found.

  Args:
    n: candidates of a round.
    rounds: after the first n.
    cosine: of the angle between a noise and its neighbours.
    patience: rounds without a better neighbour before it draws n fresh ones; 0
      always does.
  """

  def find(space: Space, rows: Rows) -> Found:
    found, _ = search.zero_order_search(
      space.segments, space.params, space.verify(),
      search.candidates(rows, n), n, rounds, cosine=cosine, patience=patience,
      chunk=space.chunk,
    )  # fmt: skip
    return found

  return Search(find, width=n)
