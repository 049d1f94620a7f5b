"""How long stages take, and one line that says how far a run is."""

from collections.abc import Callable
import contextlib
import math
import shutil
import statistics
import sys
import time


class Stopwatch:
  """Seconds per stage.

  with watch.stage('step'):
    state, metrics = jax.block_until_ready(train_step(state, batch, key))

  jax returns before it has computed: without the block a stage measures only
  how long it took to ask.
  """

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    self._clock = clock
    self._seconds = {}

  @contextlib.contextmanager
  def stage(self, name: str):
    """Adds the seconds of the block to stage `name`; stages may nest."""
    start = self._clock()
    yield
    self.add(name, self._clock() - start)

  def add(self, name: str, seconds: float) -> None:
    """Adds what was measured otherwise."""
    self._seconds.setdefault(name, []).append(seconds)

  def summary(self, samples_per_step: int | None = None) -> dict[str, float]:
    """Medians since the last call, and a clean slate.

    Args:
      samples_per_step: samples one "step" stage makes.

    Returns:
      {"seconds/<stage>": median seconds}, and "speed/samples_per_second" =
      samples_per_step / median seconds of the stage "step".
    """
    out = {
      f'seconds/{k}': statistics.median(v) for k, v in self._seconds.items()
    }
    self._seconds = {}
    if samples_per_step and out.get('seconds/step'):
      out['speed/samples_per_second'] = samples_per_step / out['seconds/step']
    return out


def progress_line(
  step: int,
  total: int,
  seconds_per_step: float | None,
  samples_per_second: float | None = None,
  reward: float | None = None,
) -> str:
  """'step 12/150   reward 0.71   48.0 samples/s   2.00 s/step   4:36 left'."""
  parts = [f'step {step:>{len(str(total))}}/{total}']
  if reward is not None:
    parts.append(f'reward {reward:.3f}')
  if samples_per_second is not None:
    parts.append(f'{samples_per_second:.1f} samples/s')
  if seconds_per_step is not None:
    parts.append(f'{seconds_per_step:.2f} s/step')
    left = format_seconds((total - step) * seconds_per_step)
    parts.append(f'{left} left')
  return '   '.join(parts)


def format_seconds(seconds: float) -> str:
  """59.6 -> '1:00'; 3725 -> '1:02:05'."""
  minutes, s = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{s:02d}' if hours else f'{minutes}:{s:02d}'


class Progress:
  """A live line on a terminal, a plain line now and then elsewhere.

  Elsewhere: at the first update, then every `every` seconds, and at the last.
  The first update's time, mostly compilation, says nothing about the others.
  """

  def __init__(
    self,
    total: int,
    start: int = 0,
    every: float = 10.0,
    stream=None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Args: total updates, updates already done, seconds between lines."""
    self._total, self._every, self._clock = total, every, clock
    self._stream = sys.stderr if stream is None else stream
    self._live = self._stream.isatty()
    self._step, self._then = start, None
    self._seconds = []  # of the latest updates
    self._printed = -math.inf
    self._open_line = False

  def update(
    self,
    step: int,
    reward: float | None = None,
    samples_per_step: int | None = None,
  ) -> None:
    """Call after every update; cheap.

    Args:
      step: updates done.
      reward: mean reward to show.
      samples_per_step: to show samples/s.
    """
    now = self._clock()
    if step > self._step and self._then is not None:
      self._seconds.append((now - self._then) / (step - self._step))
      self._seconds = self._seconds[-20:]
    self._step, self._then = step, now
    soon = now - self._printed < self._every
    if not self._live and step < self._total and soon:
      return
    self._printed = now
    seconds = statistics.median(self._seconds) if self._seconds else None
    rate = samples_per_step / seconds if samples_per_step and seconds else None
    line = progress_line(step, self._total, seconds, rate, reward)
    if self._live:
      width = shutil.get_terminal_size().columns - 1
      self._stream.write('\r\x1b[K' + line[:width])
      self._open_line = True
    else:
      self._stream.write(line + '\n')
    self._stream.flush()

  def note(self, text: str) -> None:
    """A line that stays; the time until now is no update's."""
    self.close()
    self._stream.write(text + '\n')
    self._stream.flush()
    if self._then is not None:
      self._then = self._clock()

  def close(self) -> None:
    """Ends the line, so that what is printed next starts on its own."""
    if self._open_line:
      self._stream.write('\n')
      self._stream.flush()
      self._open_line = False
