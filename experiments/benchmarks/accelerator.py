r"""One GPU: images and tokens a second, ours beside PyTorch's.

  python experiments/benchmarks/accelerator.py   # prints, fills README.md
  python experiments/benchmarks/accelerator.py --only=ours --tasks=sd3,flux \
    --set='microbatches=48;model.net.remat="full"'

One call takes nine minutes at most and runs what there is time for, the most
valuable first; the next call goes on. What has ended is a line of a file in
--results, of one task, contestant, commit, device, size and --set: with the
same of all these it does not run again. Each contestant runs in a process of
its own, one after the other, so that none holds memory of another, and for as
long as is left at most. One that fails, or runs out of memory, is a line of the
table that says so; one that runs out of time is tried again when all others
have run. Compiled programs are kept in --results, too, so that one that was
stopped while it compiled does not begin anew.

On a GPU sizes are the real ones: the released configs (`jax_step`), bfloat16,
weights drawn. On a CPU they are the configs' tiny variants in float32, and
compilers do not optimise: a test of this script, in three minutes a call, that
says nothing of speed. Needs torch, diffusers,
transformers and peft (extra "parity") but for --only=ours.

Of each: a first step compiles, a second warms up, the median of those that
follow counts. MFU is of the operations of a step without any computed anew (of
ours; PyTorch's step is the same), over bfloat16 products of the data sheet.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from importlib import metadata

from absl import app, flags

from experiments import tables

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = pathlib.Path(__file__).with_name('README.md')
LABELS = dict(
  sd3='SD3.5-M, Flow-GRPO',
  flux='FLUX.1, Flow-GRPO-Fast',
  sd3_fast='SD3.5-M, Fast',
  sd3_fast_nocfg='SD3.5-M, Fast, no guidance',
  sd3_nft='SD3.5-M, NFT',
  decode='LM of 3B, tokens',
)
CONTESTANTS = 'ours', 'torch tuned', 'torch published'
# Seconds: of a call, that a contestant may take of it, and without which none
# is started.
LIMITS = dict(full=(530.0, 270.0, 45.0), tiny=(170.0, 150.0, 15.0))
# How an arm may end. One that was stopped is tried again.
DONE, FAILED, STOPPED = 'done', 'failed', 'stopped'
MEMORY_WORDS = 'RESOURCE_EXHAUSTED', 'OutOfMemory', 'out of memory'

BUDGET = flags.DEFINE_float(
  'budget', 0.0, 'Seconds that a call may take; 0: 530 if full, 170 if tiny.'
)
STEPS = flags.DEFINE_integer('steps', 5, 'Steps that count, at most.')
FOLDER = flags.DEFINE_string(
  'results', 'runs/accelerator', 'Folder of results and compiled programs.'
)
ONLY = flags.DEFINE_string('only', '', 'Contestants, by commas; "": all.')
TASKS = flags.DEFINE_string('tasks', '', 'Tasks, by commas; "": all.')
FIELDS = flags.DEFINE_string('set', '', 'Fields of ours, "name=value;...".')
SIZE = flags.DEFINE_string('size', '', 'full or tiny; "": by the device.')
RUN = flags.DEFINE_string('run', '', 'Internal: "contestant/size/task".')
SECONDS = flags.DEFINE_float('seconds', 0.0, 'Internal: there are for --run.')

Record = dict[str, Any]


class Arm(NamedTuple):
  """What a process measures."""

  task: str
  contestant: str


class Machine(NamedTuple):
  """Where that is."""

  platform: str  # of jax
  kind: str  # of its device
  system: str
  cores: int
  commit: str


def order(tasks: Sequence[str], contestants: Sequence[str]) -> list[Arm]:
  """Arms, the most valuable first.

  The first task of ours and of the best of PyTorch, then all of ours, then all
  of each of the others.
  """
  arms = [Arm(task, c) for c in contestants for task in tasks]
  return sorted(arms, key=lambda arm: arm not in arms[:: len(tasks)][:2])


def left(arms: Iterable[Arm], records: Iterable[Record], key: Record) -> list:
  """Arms that are to run: those never tried, then those that were stopped.

  Args:
    arms: in the order of their value.
    records: of earlier calls, the oldest first.
    key: what a record has to agree with to count; {'set': ...} of ours alone.
  """
  ends = {}
  for record in ours_of(records, key):
    arm = Arm(record['task'], record['contestant'])
    if ends.get(arm) != DONE:
      ends[arm] = record['end']
  arms = list(arms)
  new = [arm for arm in arms if arm not in ends]
  return new + [arm for arm in arms if ends.get(arm) == STOPPED]


def ours_of(records: Iterable[Record], key: Record) -> list[Record]:
  """Records of this commit, device, size and, of ours, fields."""
  return [
    r for r in records
    if all(
      r[name] == value for name, value in key.items()
      if name != 'set' or r['contestant'] == 'ours'
    )
  ]  # fmt: skip


def limit(seconds: float, cap: float, least: float, again: bool) -> float:
  """Seconds that an arm gets; 0: too few are left to start it.

  Args:
    seconds: that are left.
    cap: for an arm that has others behind it.
    least: without which none is started.
    again: it has been stopped before, so it gets all.
  """
  return 0.0 if seconds < least else seconds if again else min(seconds, cap)


def read(path: pathlib.Path) -> list[Record]:
  """Of a file of lines; one that was cut off is left out."""
  out = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      out.append(json.loads(line))
    except json.JSONDecodeError:
      print(f'{path}: left out a line that is none of ours', flush=True)
  return out


def append(path: pathlib.Path, record: Record) -> None:
  """Adds a line, behind one that may have been cut off."""
  text = path.read_text() if path.exists() else ''
  cut = '\n' if text and not text.endswith('\n') else ''
  with path.open('a') as file:
    file.write(f'{cut}{json.dumps(record)}\n')


def child(name: str, seconds: float, steps: int, fields: str) -> None:
  """Measures one arm; every line it prints holds all that is found so far."""
  contestant, size, task = name.split('/')
  end = time.perf_counter() + seconds

  def emit(known: Mapping[str, Any], **found: Any) -> bool:
    print(json.dumps({**known, **found}), flush=True)
    last = found['each'][-1]['whole']
    enough = not found['warm'] and len(found['each']) >= steps
    return not enough and time.perf_counter() + 1.2 * last < end

  # Not in every process: one that has looked at a GPU holds some of its memory.
  from experiments.benchmarks import contestants  # noqa: PLC0415

  tiny = size == 'tiny'
  if contestant == 'ours':
    contestants.ours(task, tiny, fields, emit)
  else:
    contestants.torchs(task, contestant, tiny, emit)


def measure(
  arm: Arm, size: str, seconds: float, folder: pathlib.Path
) -> Record:
  """Runs an arm in a process: how it ended, and what was found until then."""
  command = [
    sys.executable, __file__, f'--run={arm.contestant}/{size}/{arm.task}',
    f'--steps={STEPS.value}', f'--set={FIELDS.value}',
    f'--seconds={seconds - 5}',
  ]  # fmt: skip
  env = dict(
    JAX_COMPILATION_CACHE_DIR=str(folder / 'xla'),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.5',
    JAX_TRACEBACK_FILTERING='off',  # the last line says what went wrong
    TORCHINDUCTOR_CACHE_DIR=str(folder / 'inductor'),
    XLA_PYTHON_CLIENT_MEM_FRACTION='0.95',
  )
  if size == 'tiny':
    env['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
  env |= os.environ
  if arm.contestant != 'ours':  # configs are read with jax
    env['JAX_PLATFORMS'] = 'cpu'
  with open(folder / 'stdout', 'w+') as out, open(folder / 'stderr', 'w+') as e:
    process = subprocess.Popen(
      command, cwd=ROOT, env=env, stdout=out, stderr=e, start_new_session=True
    )
    try:
      process.wait(seconds)
    except subprocess.TimeoutExpired:
      pass
    finally:
      stopped = process.poll() is None
      if stopped:  # compilers of its own, too
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    out.seek(0)
    e.seek(0)
    return ended(out.read(), e.read(), process.returncode, stopped)


def ended(out: str, error: str, code: int, stopped: bool) -> Record:
  """How a process ended, and the last that it found.

  Args:
    out: what it printed.
    error: what it complained of.
    code: that it ended with.
    stopped: it ran out of time.
  """
  lines = [line for line in out.splitlines() if line.startswith('{')]
  found = json.loads(lines[-1]) if lines else {}
  if found:  # what was counted before it ended otherwise counts
    return dict(end=DONE, found=found)
  if stopped:
    return dict(end=STOPPED, says='no time')
  if any(word in error for word in MEMORY_WORDS):
    return dict(end=FAILED, says='out of memory')
  last = (error.strip().splitlines() or [f'exit code {code}'])[-1]
  return dict(end=FAILED, says=f'failed: {last[:200]}')


HEADS = (
  '', 'a second', 'ours is', 'a step, s', 'bound, s', 'TFLOP/s', 'MFU',
  'peak, GiB', 'plan, GiB', 'steps', 'how',
)  # fmt: skip


def row(record: Record, ours: Record | None, flops: float | None) -> tuple:
  """A line of the table.

  Args:
    record: of the arm.
    ours: of the same task; None: not measured.
    flops: of the chip, per second; None: unknown.
  """
  name = f'{LABELS[record["task"]]}: {record["contestant"]}'
  if record['end'] != DONE:
    return name, record['says'], *('–',) * (len(HEADS) - 2)
  found = record['found']
  seconds = median(found)
  times = '–'
  if ours and record is not ours:
    times = f'{seconds / median(ours["found"]):.2f} x as fast'
  operations = ours and ours['found']['operations']
  rate = operations / seconds if operations else None
  gib = [
    f'{found[k] / 2**30:.2f}' if found.get(k) else '–'
    for k in ('peak', 'planned')
  ]
  return (
    name, f'{found["makes"] / seconds:,.4g} {found["unit"]}', times,
    f'{seconds:.3f}',
    f'{found["bound"]:.3f}' if found.get('bound') else '–',
    f'{rate / 1e12:,.2f}' if rate else '–',
    f'{rate / flops:.0%}' if rate and flops else '–', *gib,
    'warm-up' if found['warm'] else str(len(found['each'])),
    found.get('geometry', '–'),
  )  # fmt: skip


def median(found: Record) -> float:
  """Seconds of a step."""
  return statistics.median(e['whole'] for e in found['each'])


def table(
  records: Sequence[Record], machine: Machine, size: str, flops: float | None
) -> str:
  """Of all arms that have run, with what they ran on."""
  last = {Arm(r['task'], r['contestant']): r for r in records
          if r['end'] != DONE}  # fmt: skip
  last |= {
    Arm(r['task'], r['contestant']): r for r in records if r['end'] == DONE
  }
  lines = []
  for task in LABELS:
    own = last.get(Arm(task, 'ours'))
    if size == 'tiny' or (own and own['end'] != DONE):
      own = None  # nothing to compare with
    for contestant in CONTESTANTS:
      if found := last.get(Arm(task, contestant)):
        lines.append(row(found, own, flops))
  versions = ', '.join(
    f'{name} {metadata.version(name)}' for name in installed()
  )
  whole = len(LABELS) * len(CONTESTANTS)
  return (
    f'{time.strftime("%Y-%m-%d")}, {machine.system}, {machine.cores} cores, '
    f'{machine.kind}, size {size}, commit {machine.commit[:12]}, {versions}; '
    f'{len(lines)} of {whole} arms.\n\n{tables.markdown(HEADS, lines)}'
  )


def installed() -> list[str]:
  """Of the libraries that are compared, those there are."""
  names = 'jax', 'flax', 'torch', 'diffusers', 'transformers', 'peft'
  there = {d.metadata['Name'].lower() for d in metadata.distributions()}
  return [name for name in names if name in there]


def this_machine() -> Machine:
  """Asked in another process: one that looked at a GPU holds some of it."""
  code = (
    'import jax, json; from gen_rl.utils import system; '
    'e = system.environment(); d = jax.local_devices()[0]; print(json.dumps('
    '[d.platform, d.device_kind, e["platform"], e["cpus"], e["git_commit"]]))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True,
    text=True,
  )  # fmt: skip
  *found, commit = json.loads(out.stdout.splitlines()[-1])
  return Machine(*found, commit or 'unknown')


def chosen(text: str, known: Sequence[str]) -> list[str]:
  """Names of a flag, in the order of those that are known.

  Raises:
    ValueError: one is not known.
  """
  names = text.split(',') if text else known
  for name in names:
    if name not in known:
      raise ValueError(f'{name!r} is none of {", ".join(known)}')
  return [name for name in known if name in names]


def main(_) -> None:
  if RUN.value:
    child(RUN.value, SECONDS.value, STEPS.value, FIELDS.value)
    return
  start = time.monotonic()
  from gen_rl.utils import chips  # noqa: PLC0415 - after the flags

  tasks = chosen(TASKS.value, tuple(LABELS))
  names = chosen(ONLY.value, CONTESTANTS)
  machine = this_machine()
  size = SIZE.value or ('tiny' if machine.platform == 'cpu' else 'full')
  folder = (ROOT / FOLDER.value).resolve()
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'results.jsonl'
  key = dict(
    commit=machine.commit, device=machine.kind, size=size, set=FIELDS.value
  )
  flops = chips.of_kind(machine.kind).flops
  budget, cap, least = LIMITS[size]
  budget = BUDGET.value or budget
  arms = left(order(tasks, names), read(path), key)
  tried = {Arm(r['task'], r['contestant']) for r in ours_of(read(path), key)}
  for i, arm in enumerate(arms):
    rest = budget - (time.monotonic() - start)
    seconds = limit(rest, cap, least, arm in tried)
    if not seconds:
      print(f'{len(arms) - i} arms are left for the next call', flush=True)
      break
    record = dict(key, **arm._asdict(), date=time.strftime('%Y-%m-%d'))
    record |= measure(arm, size, seconds, folder)
    append(path, record)
    print(*row(record, None, flops)[:4], sep=' | ', flush=True)
  part = table(ours_of(read(path), key), machine, size, flops)
  print(part)
  which = 'cpu' if machine.platform == 'cpu' else 'gpu'
  tables.fill_file(README, {f'accelerator_{which}': part})


if __name__ == '__main__':
  app.run(main)
