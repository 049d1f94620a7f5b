"""Many candidates, of which the best goes on: see `gen_rl.search`."""

from gen_rl import search
from gen_rl.fields import Several
from gen_rl.search import Found, Search, Space
from gen_rl.types import Rows


def best_of_n(n: Several = 8) -> Search:
  """Finishes n candidates and takes the one that the rewards like best.

  Args:
    n: candidates; the first is the sample that would be drawn without.
  """

  def find(space: Space, rows: Rows) -> Found:
    tried = search.candidates(rows, n)
    return search.best_of_n(
      space.segments, space.params, space.verify(n), tried, n, space.chunk
    )

  return Search(find, width=n, relative=True)
