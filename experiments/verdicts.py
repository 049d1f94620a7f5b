"""What results say of a claim, by one rule for all studies.

With means m and variances s^2 (of n - 1) over n seeds,

  (1) d = m_ours - m_baseline,   e = sqrt(s_ours^2 / n_ours + s_base^2 / n_base)

a claim that ours is better (margin 0), or at most `margin` worse, holds where
d + margin > 2 e and does not where d + margin < -2 e. In between there are too
few seeds. Seeds of a study share the prompts and the noise of evaluations, so
that (1) is about training anew, not about other prompts.
"""

from collections.abc import Sequence
import math
import statistics

HOLDS, FAILS, FEW, NONE = VERDICTS = (
  'holds', 'does not hold here', 'too few seeds', 'not measured',
)  # fmt: skip


def difference(
  baseline: Sequence[float], ours: Sequence[float]
) -> tuple[float, float]:
  """(d, 2 e) of (1); NaN of no seeds, inf for e of a single one."""
  if not (baseline and ours):
    return math.nan, math.nan
  d = statistics.mean(ours) - statistics.mean(baseline)
  if min(len(baseline), len(ours)) < 2:
    return d, math.inf
  squares = sum(statistics.variance(x) / len(x) for x in (baseline, ours))
  return d, 2.0 * math.sqrt(squares)


def verdict(d: float, error: float, margin: float = 0.0) -> str:
  """One of VERDICTS.

  Args:
    d: see `difference`.
    error: two standard errors of it.
    margin: by how much ours may be worse.
  """
  if math.isnan(d):
    return NONE
  if d + margin > error:
    return HOLDS
  return FAILS if d + margin < -error else FEW
