"""How fast a run computes: what a step takes, over the seconds it took.

  TFLOP/s = operations of a device and step / seconds                     (1)
  MFU = (1) / what the device can do, by its data sheet                   (2)
  share of a stage = its operations / those of the step                   (3)

Products and convolutions are counted, from the traced program (`utils.flops`).
What remat computes again counts too, so that (2) is what some call HFU then.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from gen_rl.utils import chips, flops

STAGES = ('rollout', 'decode', 'rewards', 'update')  # named scopes of the step


def count(traced: Any) -> flops.Count:
  """Operations of a traced program, by stage."""
  return flops.count(traced.jaxpr, STAGES)


class Pace:
  """Of the step of a run."""

  def __init__(
    self,
    trace: Callable[[], Sequence[Any]],
    devices: int,
    chip: chips.Chip,
    counted: flops.Count | None = None,
  ):
    """Nothing is counted before a number is asked for.

    Args:
      trace: gives the programs of a step, traced; called once.
      devices: how many it runs on.
      chip: one of them.
      counted: operations of a step, where they are known.
    """
    self._trace, self._devices, self._chip = trace, devices, chip
    self._counted = counted

  @functools.cached_property
  def programs(self) -> Sequence[Any]:
    """What a step runs, traced."""
    return self._trace()

  @functools.cached_property
  def _count(self) -> flops.Count:
    if self._counted:
      return self._counted
    counts = [count(program) for program in self.programs]
    return sum(counts[1:], counts[0])

  @property
  def bound(self) -> float | None:
    """Seconds of a step's products on a chip kept busy; None: unknown."""
    if self._chip.flops is None:
      return None
    return self._count.flops / self._devices / self._chip.flops

  def metrics(self, seconds: float | None) -> dict[str, float]:
    """Of a step of so long: "speed/tflops" and, if known, "speed/mfu"."""
    if not seconds:
      return {}
    rate = self._count.flops / self._devices / seconds
    out = {'speed/tflops': rate / 1e12}
    if self.bound is not None:
      out['speed/mfu'] = self.bound / seconds
    return out

  def summary(
    self, seconds: float | None, measured: Mapping[str, float] | None = None
  ) -> dict[str, Any]:
    """For result.json, see `results`.

    Args:
      seconds: median of a step; None where none was taken.
      measured: shares of stages of its time, of a profile.
    """
    found = self.metrics(seconds)
    total = self._count.flops or 1.0
    return dict(
      step_seconds=seconds,
      tflops=found.get('speed/tflops'),
      mfu=found.get('speed/mfu'),
      bound_seconds=self.bound,
      shares={k: self._count.scopes.get(k, 0.0) / total for k in STAGES},
      **(dict(measured_shares=dict(measured)) if measured else {}),
    )
