r"""Since when a run learned to please its reward, and not what that is for.

Of evaluations with the gold g_i and the proxy p_i, the last of which is n, let
m be the one of most gold, of several equal ones the last. The reward is hacked
since m where the proxy went on rising and the gold fell by more than chance:

  p_n > p_m,  g_m - g_n > 2 s,
  s^2 = (g_m (1 - g_m) + g_n (1 - g_n)) / N, of N verdicts               (1)

s is the standard error of a difference of independent means. Evaluations share
their prompts and their noise, so it is rather too large; that m was chosen
makes it too small. Scores that are no verdicts have no s here: for them g_n has
to be below the gold of the base, too.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from gen_rl.utils import words

_BOTH = 'eval/strict', 'eval/proxy'


def since(
  history: Sequence[Mapping[str, Any]], samples: int, verdicts: bool = True
) -> dict[str, float] | None:
  """The evaluation m of (1) and what changed from there to the last one.

  Args:
    history: lines of metrics.jsonl, in order; those of the main evaluation
      have `eval/strict` and `eval/proxy`.
    samples: N, of an evaluation.
    verdicts: whether gold is a share of correct samples.

  Returns:
    {step, gold (at m), gold_change, proxy_change}; None: it is not hacked, or
    there are no two evaluations with both.
  """
  points = []
  for line in history:
    gold, proxy = (words.to_float(line.get(k)) for k in _BOTH)
    if math.isfinite(gold) and math.isfinite(proxy):
      points.append((line['step'], gold, proxy))
  if len(points) < 2:
    return None
  best = max(points, key=lambda point: (point[1], point[0]))
  (step, gold, proxy), (_, now, reward) = best, points[-1]
  chance = 0.0
  if verdicts:
    spread = gold * (1 - gold) + now * (1 - now)
    chance = 2 * math.sqrt(max(spread, 0.0) / samples)
  elif now >= points[0][1]:
    return None
  if reward <= proxy or gold - now <= chance:
    return None
  return dict(
    step=step, gold=gold, gold_change=now - gold, proxy_change=reward - proxy
  )


def says(found: Mapping[str, float]) -> str:
  """A sentence of what `since` found."""
  return (
    f'Since update {found["step"]}, where the gold reward was '
    f'{words.fixed(found["gold"])}, the proxy rose by '
    f'{words.fixed(found["proxy_change"])} and the gold reward fell by '
    f'{words.fixed(-found["gold_change"])}: reward hacking.'
  )
