"""A profile of some updates: where their time went, by stage of the step.

`--profile=START:STOP` records these updates, both included, for TensorBoard's
profile page (`tensorboard --logdir=<workdir>/tensorboard`). The seconds of an
operation are those in which it runs and none that it calls does; its stage is
the named scope (`pace.STAGES`) of the program it was traced in.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import pathlib
import re
from typing import Any

import jax

from gen_rl.build import ConfigError
from gen_rl.pace import STAGES
from gen_rl.utils import words

_OPERATION = re.compile(r'^ *(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"')


class Profile:
  """Records updates `first` to `last` of a run, once."""

  def __init__(self, span: str, workdir: str, steps: int):
    """Nothing is recorded yet.

    Args:
      span: 'START:STOP', or '': nothing is.
      workdir: of the run; the record goes to its TensorBoard files.
      steps: updates of the run.

    Raises:
      ConfigError: it is neither, or not within the run.
    """
    self.first = self.last = 0
    self.folder = pathlib.Path(workdir) / 'tensorboard'
    self._running = False
    # Of several processes on one file system the first one records.
    self._records = jax.process_index() == 0
    if not span:
      return
    match = re.fullmatch(r'(\d+):(\d+)', span)
    if match:
      self.first, self.last = int(match[1]), int(match[2])
    if not match or not 1 <= self.first <= self.last <= steps:
      raise ConfigError(
        f'--profile={span}: write the first and the last update to record, '
        f'from 1 to {steps}, such as --profile=3:5'
      )

  def missed(self, done: int) -> str:
    """What to say where `done` updates are past its first; '': nothing."""
    if not 0 < self.first <= done:
      return ''
    return (
      f'--profile={self.first}:{self.last} records nothing: the run goes on '
      f'after update {done}'
    )

  def begins(self, done: int) -> bool:
    """Whether update `done` is the first to be recorded."""
    return done == self.first

  def start(self) -> None:
    """Starts the record; no update may be running."""
    if self._records:
      jax.profiler.start_trace(self.folder)
    self._running = True

  def ends(self, done: int) -> bool:
    """Whether a record runs and update `done` is the last of it."""
    return self._running and done == self.last

  def stop(self, programs: Iterable[Any]) -> dict[str, float]:
    """Ends the record; no update may be running.

    Args:
      programs: of a step, traced; they are compiled once more.

    Returns:
      {stage: share of the time in operations}; {} where the record names none
      of the programs' operations.
    """
    self._running = False
    if not self._records:
      return {}
    jax.profiler.stop_trace()
    files = self.folder.glob('plugins/profile/*/*.xplane.pb')
    newest = max(files, key=lambda path: path.stat().st_mtime)
    record = jax.profiler.ProfileData.from_file(str(newest))
    texts = [program.lower().compile().as_text() for program in programs]
    return shares(record, texts)

  def give_up(self) -> None:
    """Ends a record of a run that ends earlier."""
    if self._running and self._records:
      jax.profiler.stop_trace()
    self._running = False

  def says(self, measured: Mapping[str, float]) -> str:
    """A line for the terminal."""
    stages = ', '.join(f'{k} {words.percent(x)}' for k, x in measured.items())
    return (
      f'updates {self.first} to {self.last} are recorded in {self.folder}'
      + (f'; their time: {stages}' if stages else '')
    )


def shares(record: Any, programs: Iterable[str]) -> dict[str, float]:
  """Of a `jax.profiler.ProfileData` and texts of compiled programs."""
  stage_of = {}
  for text in programs:
    module = text.partition('HloModule ')[2].split(',')[0]
    for line in text.splitlines():
      if found := _OPERATION.match(line):
        names = re.split(r'[/()]', found[2])
        stage = next((n for n in names if n in STAGES), '')
        stage_of[module, found[1]] = stage
  seconds = Counter()
  for plane in record.planes:
    for line in plane.lines:
      events = []
      for event in line.events:
        stats = dict(event.stats)
        operation = stats.get('hlo_module'), stats.get('hlo_op')
        if operation in stage_of:
          events.append((event.start_ns, event.end_ns, stage_of[operation]))
      for start, stop, stage in _alone(events):
        seconds[stage] += max(stop - start, 0.0)
  total = sum(seconds.values())
  return {k: seconds[k] / total for k in STAGES} if total else {}


def _alone(
  events: Sequence[tuple[float, float, str]],
) -> Iterable[tuple[float, float, str]]:
  """Spans in which an event runs and none inside of it does."""
  open_events: list[list] = []  # [since when alone, end, stage]
  for start, stop, stage in sorted(events, key=lambda e: (e[0], -e[1])):
    while open_events and open_events[-1][1] <= start:
      since, end, outer = open_events.pop()
      yield since, end, outer
      if open_events:
        open_events[-1][0] = end
    if open_events:
      yield open_events[-1][0], start, open_events[-1][2]
    open_events.append([start, stop, stage])
  while open_events:
    since, end, outer = open_events.pop()
    yield since, end, outer
    if open_events:
      open_events[-1][0] = end
