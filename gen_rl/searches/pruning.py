"""Many candidates, of which the best go on: see `gen_rl.search`."""

from collections.abc import Sequence

from gen_rl import search, selection
from gen_rl.build import ConfigError
from gen_rl.fields import Index, Several, Share
from gen_rl.search import Found, Search, Space
from gen_rl.types import Rows


def best_of_n(n: Several = 8, ranks: bool = False) -> Search:
  """Finishes n candidates and takes the one that the rewards like best.

  Args:
    n: candidates; the first is the sample that would be drawn without.
    ranks: see `pruned`.
  """
  return pruned(n, (), (), ranks)


def pruned(
  n: Several = 8,
  steps: Sequence[Index] = (3,),
  keep: Sequence[Share] = (0.5,),
  ranks: bool = False,
) -> Search:
  """Best of n of which bad candidates are dropped before they are finished.

  After each cut those go on whose foreseen sample the rewards like best, as in
  TTSnap (arXiv 2511.22242) with the reward as it is: see `gen_rl.search`.

  Args:
    n: candidates to begin with.
    steps: of the sampler, counted from 0, after which there is a cut.
    keep: share of the candidates that goes on after each, one at least.
    ranks: several rewards choose by the sum of the ranks that each gives the
      candidates of a prompt, whatever their scales and weights are
      (`selection.rank_sum`); of a weight below 0 the least is best. Not
      measured.

  Raises:
    ConfigError: the cuts are not in order, or not as many as shares.
  """
  steps = tuple(steps)
  counts = selection.keep_counts(n, keep)
  if len(steps) != len(keep) or list(steps) != sorted(set(steps)):
    raise ConfigError(
      f'pruned cuts after steps={steps} and keeps {tuple(keep)}: steps have to '
      'rise, each with a share'
    )

  def check(count: int) -> None:
    if steps and steps[-1] >= count - 1:
      raise ConfigError(
        f'pruned cuts after step {steps[-1]}; the last step but one of '
        f'eval.steps={count} is {count - 2}, and then all are finished'
      )

  def find(space: Space, rows: Rows) -> Found:
    cuts = [
      search.Cut(step, count, space.verify(before, ranks))
      for step, before, count in zip(steps, (n, *counts), counts, strict=False)
    ]
    left = counts[-1] if counts else n
    return search.pruned_search(
      space.segments, space.params, cuts, space.verify(left, ranks),
      search.candidates(rows, n), n, space.chunk,
    )  # fmt: skip

  relative = (n, *counts)[-1] > 1
  return Search(find, n, check, relative, ranks=ranks)
