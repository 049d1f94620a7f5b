"""Where numbers go: metrics.jsonl and TensorBoard.

`metrics.jsonl` is the record for programs. One JSON object a line:

  {"step": 12, "time": 1767225600.1, "samples": 1152, "reward/score": 0.71, ...}

  step     updates done when the values held (0: before the first)
  time     Unix seconds at which the line was written
  samples  samples generated so far by this run, over all processes
  others   "group/name" -> number; null stands for NaN and infinities, which
           JSON does not have

A line is one unbuffered write, so a killed process loses at most the line it
was writing; `repair` removes such a half line and, on resume at step n, every
line of a step after n, and values of step n are not written a second time.
Values of the groups in MACHINE_GROUPS and "time" depend on the machine; all
others are bitwise the same when the same seed runs again (`comparable`).

TensorBoard files are written through clu, whose writers import tensorflow:
seconds, hundreds of MB. That happens in a background thread which starts after
the first line of metrics.jsonl is on disk, with accelerators hidden from
tensorflow. If tensorflow cannot be imported or written through, a warning says
so once and the run goes on.

Only process 0 writes.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import importlib
import json
import math
import os
import pathlib
import queue
import shutil
import threading
import time

from absl import logging
import jax
import numpy as np

from gen_rl.utils import image as image_lib

FILE = 'metrics.jsonl'
RESERVED = ('step', 'time', 'samples')
MACHINE_GROUPS = ('seconds', 'speed', 'memory')


def comparable(line: Mapping) -> dict:
  """The part of a line that the same seed reproduces bitwise."""
  return {
    k: v
    for k, v in line.items()
    if k != 'time' and k.split('/')[0] not in MACHINE_GROUPS
  }


def scalar(name: str, value) -> int | float | None:
  """A number as JSON holds it; None where it is not finite.

  Floats of up to 32 bits become the shortest decimal that reads back as the
  same float32 (0.1, not 0.10000000149011612).

  Args:
    name: for the error message.
    value: a Python number or an array of one element.

  Raises:
    ValueError: not one number.
  """
  array = np.asarray(value)
  if array.size != 1 or array.dtype.kind in 'OSUMm':
    raise ValueError(
      f'metric {name!r} must be one number, not {array.dtype}{array.shape}.'
    )
  array = array.reshape(())
  if array.dtype.kind in 'biu':
    return int(array)
  number = float(array)
  if not math.isfinite(number):
    return None
  if array.dtype.itemsize <= 4:
    return float(str(np.float32(number)))
  return number


def read(path) -> list[dict]:
  """The whole lines of a metrics.jsonl, in order; [] without a file.

  A line that is not a JSON object with a "step" (half written by a killed
  process) is left out.
  """
  return [line for _, line in _parse(path) if line is not None]


def repair(path, resume_step: int | None = None) -> list[dict]:
  """Removes half lines and, if asked, lines of steps after `resume_step`.

  The file is replaced whole or not at all, and only if it changes.

  Args:
    path: a metrics.jsonl; may be absent.
    resume_step: the step of the restored checkpoint; None keeps every step.

  Returns:
    The lines kept.
  """
  lines = list(_parse(path))
  keep = [
    (raw, line)
    for raw, line in lines
    if line is not None and (resume_step is None or line['step'] <= resume_step)
  ]
  if len(keep) < len(lines):
    part = f'{os.fspath(path)}.part'
    with open(part, 'wb') as f:
      f.write(b''.join(raw for raw, _ in keep))
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
  return [line for _, line in keep]


def _parse(path) -> Iterator[tuple[bytes, dict | None]]:
  """(bytes with newline, object or None) of every line."""
  try:
    data = pathlib.Path(path).read_bytes()
  except FileNotFoundError:
    return
  for raw in data.splitlines(keepends=True):
    try:
      line = json.loads(raw) if raw.endswith(b'\n') else None
    except ValueError:
      line = None
    good = isinstance(line, dict) and isinstance(line.get('step'), int)
    yield raw, line if good else None


class Writer:
  """metrics.jsonl at once, TensorBoard behind it in a thread.

  with Writer(workdir, resume_step=state_step) as writer:
    writer.write_scalars(step, {'reward/score': 0.5}, samples=96)
    writer.write_images(step, {'eval/grid': uint8})

  Files: <workdir>/metrics.jsonl, <workdir>/tensorboard/, <workdir>/images/.
  """

  def __init__(
    self,
    workdir,
    resume_step: int | None = None,
    tensorboard: bool = True,
    primary: bool | None = None,
    clock: Callable[[], float] = time.time,
  ):
    """Opens the workdir; nothing slow happens here.

    Args:
      workdir: a local folder, made if absent.
      resume_step: step of the restored checkpoint; lines after it go. None
        means a fresh run: an old metrics.jsonl is moved to metrics.old.jsonl,
        old TensorBoard files are removed.
      tensorboard: also write TensorBoard files.
      primary: whether this process writes; by default process 0 does.
      clock: Unix seconds.

    Raises:
      OSError: the folder cannot be written.
    """
    self.workdir = pathlib.Path(workdir)
    self._primary = jax.process_index() == 0 if primary is None else primary
    self._clock = clock
    self._jobs = queue.Queue()
    self._thread = None
    self._tensorboard = tensorboard
    self._resume_step = resume_step
    self._written = set()  # names of step `resume_step` already in the file
    self._file = None
    if not self._primary:
      return
    self.workdir.mkdir(parents=True, exist_ok=True)
    path = self.workdir / FILE
    if resume_step is None:
      if path.exists():
        os.replace(path, self.workdir / 'metrics.old.jsonl')
      shutil.rmtree(self.workdir / 'tensorboard', ignore_errors=True)
    else:
      for line in repair(path, resume_step):
        if line['step'] == resume_step:
          self._written.update(line)
    self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 (see close)

  def write_scalars(
    self, step: int, scalars: Mapping, samples: int | None = None
  ) -> None:
    """One line, on its way to the disk when this returns.

    Args:
      step: updates done.
      scalars: {"group/name": number or array of one element}. Arrays still
        being computed are waited for.
      samples: samples generated so far.

    Raises:
      ValueError: a value is not one number, or a name is reserved.
      OSError: the disk is full or gone, or the file was removed.
    """
    if not self._primary:
      return
    values = {k: scalar(k, v) for k, v in jax.device_get(dict(scalars)).items()}
    if bad := [k for k in values if k in RESERVED]:
      raise ValueError(f'metric names {bad} are reserved.')
    if step == self._resume_step:
      values = {k: v for k, v in values.items() if k not in self._written}
      if not values:
        return
    if not os.path.exists(self._file.name):
      raise FileNotFoundError(
        f'{self._file.name} was removed while the run was writing it; what it '
        'held is lost, and the same command goes on from what checkpoints are '
        'left'
      )
    head = {'step': int(step), 'time': round(self._clock(), 3)}
    if samples is not None:
      head['samples'] = int(samples)
    _write_all(self._file, json.dumps({**head, **values}).encode() + b'\n')
    self._put(
      'write_scalars',
      int(step),
      {k: math.nan if v is None else v for k, v in values.items()},
    )
    self._start()

  def write_images(self, step: int, images: Mapping) -> None:
    """PNGs <workdir>/images/<name>_<step>.png, and TensorBoard.

    Args:
      step: updates done.
      images: {"group/name": [h w c]}, float [0, 1] or uint8.
    """
    if not self._primary:
      return
    images = {k: image_lib.to_uint8(v) for k, v in images.items()}
    for name, pixels in images.items():
      file = f'{name.replace("/", "_")}_{step:06d}.png'
      image_lib.save_png(self.workdir / 'images' / file, pixels)
    self._put('write_images', int(step), images)

  def flush(self) -> None:
    """Waits until TensorBoard has everything; the rest is always on disk."""
    if self._thread is not None:
      self._put('flush')
      self._jobs.join()

  def close(self) -> None:
    """Writes what is queued and closes the files; harmless twice."""
    if self._primary and self._tensorboard and not self._jobs.empty():
      self._start()
    if self._thread is not None:
      self._jobs.put(None)
      self._thread.join()
      self._thread = None
    if self._file is not None:
      self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _put(self, method, *args):
    if self._tensorboard:
      self._jobs.put((method, args))

  def _start(self):
    if self._tensorboard and self._thread is None:
      logdir = self.workdir / 'tensorboard'
      self._thread = threading.Thread(
        target=_serve,
        args=(logdir, self._resume_step, self._jobs),
        name='tensorboard',
        daemon=True,
      )
      self._thread.start()


def _write_all(file, data: bytes):
  done = 0
  while done < len(data):
    done += file.write(data[done:])


def _serve(logdir, resume_step, jobs: queue.Queue):
  """Carries out (method, args) on a clu writer until None comes."""
  writer, failed = None, False
  while True:
    job = jobs.get()
    try:
      if job is not None and not failed:
        if writer is None:
          writer = _open_tensorboard(logdir, resume_step)
        method, args = job
        getattr(writer, method)(*args)
      elif job is None and writer is not None:
        writer.close()
    except Exception as e:  # The record is metrics.jsonl; the run goes on.
      failed = True
      logging.warning(
        'TensorBoard files are no longer written (%s: %s); %s is.',
        type(e).__name__,
        e,
        FILE,
      )
    finally:
      jobs.task_done()
    if job is None:
      return


def _open_tensorboard(logdir, resume_step):
  """A clu SummaryWriter; tensorflow sees no accelerator and stays quiet."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  tf = importlib.import_module('tensorflow')
  for kind in ('GPU', 'TPU'):
    with contextlib.suppress(ValueError, RuntimeError):
      tf.config.set_visible_devices([], kind)
  from clu import metric_writers  # imports tensorflow: not before it is hidden

  if resume_step is not None and logdir.exists():
    _forget_after(logdir, resume_step)
  return metric_writers.SummaryWriter(os.fspath(logdir))


def _forget_after(logdir, step):
  """Tells TensorBoard that events after `step` were undone by a restart."""
  tf = importlib.import_module('tensorflow')
  # Files are read in the order of their names: '-' comes before any host name
  # in the file of the same second that follows.
  path = os.fspath(logdir / f'events.out.tfevents.{int(time.time())}.-restart')
  version = tf.compat.v1.Event(file_version='brain.Event:2')
  start = tf.compat.v1.Event(
    step=step + 1,
    wall_time=time.time(),
    session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
  )
  with tf.io.TFRecordWriter(path) as f:
    # Twice: TensorBoard takes the first start it sees for the run's beginning.
    for event in (version, start, start):
      f.write(event.SerializeToString())
