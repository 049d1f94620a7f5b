"""A cluster that is not there: stand-ins for its commands and variables.

Stand-ins are scripts in a folder that comes first in PATH. `python` writes down
the arguments and variables it got; tests add others.
"""

import ast
import os
import pathlib
import re
import runpy
import subprocess

import pytest

from gen_rl import arguments, main, sharding
from gen_rl.utils import hosts

ROOT = pathlib.Path(__file__).parents[2]
VARIABLES = (
  'SLURM', 'OMPI', 'TPU', 'MEGASCALE', 'JOB_', 'JAX_C', 'JAX_L', 'SKYPILOT',
)  # fmt: skip
PYTHON = r"""
[[ $1 == -m ]] || { echo "python $*" >&2; exit 97; }
record=$(mktemp "$RECORDS/XXXXXX")
printf '%s\n' "$@" >"$record"
env -0 >"$record.env"
exit ${PYTHON_ENDS_WITH:-0}
"""


@pytest.fixture
def cluster(tmp_path):
  """Stand-ins in a folder of their own; see `Cluster`."""
  return Cluster(tmp_path)


class Cluster:
  folder = ROOT / 'experiments' / 'launch'

  def __init__(self, folder):
    self.log = folder / 'log'  # what stand-ins write there with $LOG
    self.bin, self.records = folder / 'bin', folder / 'records'
    self.home = folder / 'home'
    for made in (self.bin, self.records, self.home):
      made.mkdir()
    self.add('python', PYTHON)

  def add(self, name, body='echo "$(basename "$0") $*" >>$LOG'):
    """A stand-in; without a body it writes its command line to the log."""
    file = self.bin / name
    file.write_text(f'#!/usr/bin/env bash\n{body}\n')
    file.chmod(0o755)

  def logged(self):
    return self.log.read_text().splitlines() if self.log.exists() else []

  def env(self, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(VARIABLES)}
    return kept | dict(
      PATH=f'{self.bin}:{os.environ["PATH"]}', RECORDS=str(self.records),
      LOG=str(self.log), HOME=str(self.home), PYTHONPATH=str(ROOT),
    ) | variables  # fmt: skip

  def run(self, script, *args, code=0, **variables):
    """Runs a starter, or a command of one, that has to end with the code."""
    command = ['bash', str(self.folder / script), *map(str, args)]
    if script.startswith(('-c', 'bash')):
      command = [*script.split(), *map(str, args)]
    done = subprocess.run(
      command, cwd=ROOT, env=self.env(**variables), text=True,
      capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done

  def started(self):
    """[(arguments, variables)] of what ran as `python -m gen_rl.main`."""
    found = []
    for file in self.records.glob('??????'):
      module, name, *argv = file.read_text().splitlines()
      assert (module, name) == ('-m', 'gen_rl.main')
      pairs = (file.parent / f'{file.name}.env').read_text().split('\0')
      found.append((argv, dict(p.split('=', 1) for p in pairs if p)))
    return sorted(found, key=lambda f: (f[0], f[1].get('SLURM_PROCID')))

  def example(self, file):
    """The flags of the first command in a file's comments."""
    (_, argv), *_ = self.commands((self.folder / file).read_text())
    return argv

  @staticmethod
  def commands(text):
    """(script, flags) of the command lines in comments and code blocks."""
    text = re.sub(r'^# ?', '', text, flags=re.M).replace('\\\n', ' ')
    for line in text.splitlines():
      if '--config=' in line and 'exec' in line:  # in the quotes of xpk
        script, rest = 'xpk', line.split('train.sh', 1)[1]
      elif found := re.match(r' *(?:bash|sbatch) \S*/(\S+) (.*)', line):
        script, rest = found.groups()
      else:
        continue
      if '--config=' in rest:
        yield script, re.findall(r'--[^\s"]+', rest)

  @staticmethod
  def flag(argv, name):
    (value,) = [a.split('=', 1)[1] for a in argv if a.startswith(f'--{name}=')]
    return value

  def check(self, argv, devices):
    """Every flag and field exists, the config builds, and its mesh fits."""
    arguments.resolve(['main', *argv])
    for name in (a.removeprefix('--').partition('=')[0] for a in argv):
      assert name.split('.')[0] in main.flags.FLAGS, name
    file = arguments.find_config(self.flag(argv, 'config'))
    path, _, variant = file.partition(':')
    c = runpy.run_path(path)['get_config'](variant)
    overrides = arguments.overrides_of(argv).items()
    c.update_from_flattened_dict({k: ast.literal_eval(v) for k, v in overrides})
    assert c.mesh.data == -1 and devices % (c.mesh.fsdp * c.mesh.tensor) == 0
    assert not sharding.rows_error(
      c.data.prompts_per_step * c.data.group_size,
      devices // c.mesh.tensor,
      c.updates * c.microbatches,
    )

  def check_processes(self, coordinator, count, devices):
    """What started: each has its number, and all the rest is the same."""
    started = [argv for argv, _ in self.started()]
    assert sorted(self.flag(argv, 'process') for argv in started) == [
      str(i) for i in range(count)
    ]
    rest = [[a for a in x if not a.startswith('--process=')] for x in started]
    assert rest.count(rest[0]) == count
    assert self.flag(rest[0], 'coordinator') == coordinator
    assert self.flag(rest[0], 'processes') == str(count)
    self.check(started[0], devices)

  @staticmethod
  def kind(env):
    """What hosts.cluster() says where these variables are set."""
    with pytest.MonkeyPatch.context() as patch:
      for name in list(os.environ):
        if name.startswith(VARIABLES):
          patch.delenv(name)
      for name, value in env.items():
        if name.startswith(VARIABLES):
          patch.setenv(name, value)
      return hosts.cluster()
