"""A study: arms x seeds, each run the command line a user would type.

`experiments/<name>/run.py` is a `Study` and a call of `main`:

  STUDY = study.Study(
    file=__file__,
    title='Does a KL term keep a learned reward honest?',
    arms={
      'proxy': study.Arm('configs/flow_grpo.py:proxy', 'no KL term'),
      'kl': study.Arm(
        'configs/flow_grpo.py:proxy', 'one', {'objective.kl.weight': 0.5}
      ),
    },
  )
  if __name__ == '__main__':
    study.main(STUDY)

Every run is a process of its own, so its times are those a user would see; it
runs the code of this checkout, whatever is installed. Its folder is named
after arm, seed and commit. A run that was interrupted resumes, unless the code
was committed anew meanwhile. A finished run is a row of results.csv (rows.py)
and is not run again. Several runners may share the work: each leaves alone
what another one is at.
"""

from collections.abc import Callable, Mapping, Sequence
import datetime
import importlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import IO, Any, NamedTuple

from absl import app, flags, logging

from experiments import rows
import gen_rl
from gen_rl.utils import files, system

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXPORT = 'exported'
# A third of the main job's updates: two minutes or so on two cores.
SHORT = {'steps': 60, 'eval.every': 20, 'checkpoint.every': 60, 'ema': 0.9}


class Arm(NamedTuple):
  """One thing that is compared.

  Stages are arms, too: `after` names the arm whose trained (averaged)
  parameters this one starts from, of the same seed, or of the seed after a
  colon ('distil:0'). Its row then begins where the other one ended, and its
  cost is its own; column `init` names the other run. `uses` names stages whose
  exported file is the value of another field, such as the weights of a reward:
  {'rewards.detector.weights': 'narrow'}; column `uses` names those runs.

  What several studies compare with is run once: the rows of an arm with
  `shared='flow_grpo/short'` are those of that study's arm, which runs first
  where it has none.
  """

  config: str  # a file with variants, 'configs/flow_grpo.py:fast'
  about: str  # one line for the table of the README
  overrides: Mapping[str, Any] = {}  # {'optimizer.lr': 1e-4}
  after: str = ''
  vmap: bool = False  # all seeds in one program, see vmapped.py
  shared: str = ''  # 'study/arm'
  uses: Mapping[str, str] = {}  # {field: stage}, a stage as in `after`

  @property
  def stages(self) -> dict[str, str]:
    """{field: stage whose file it is}."""
    return ({'init': self.after} if self.after else {}) | dict(self.uses)


# The main job, cut short, as several studies' baseline.
FLOW_GRPO = Arm(
  'configs/flow_grpo.py',
  'Flow-GRPO as in the main job: a window, groups of 12',
  SHORT,
  shared='flow_grpo/short',
)


class Claim(NamedTuple):
  """A line of experiments/overview.py; numbers are 'arm.column'.

  It says that `ours` is above `baseline`, or less than `margin` below it where
  it says that it does as well. The rows decide, see verdicts.py.
  """

  text: str
  metric: str
  baseline: str
  ours: str
  margin: float = 0.0


class Study(NamedTuple):
  """What run.py says."""

  file: str  # of run.py; results.csv and results.png stand beside it
  title: str
  arms: Mapping[str, Arm]
  seeds: Sequence[int] = (0, 1, 2)
  # (workdir, arm, seed) -> {column: value}, in a process of its own.
  extra: Callable[[pathlib.Path, str, str], Mapping[str, Any]] | None = None
  columns: Mapping[str, str] = {}  # {extra column: heading in the table}
  by_task: str = ''  # arm whose accuracies by task are a table, too
  tasks: Sequence[str] = ()
  gold: str = 'held-out strict accuracy (gold oracle)'
  proxy: str = 'trained reward'
  claims: Sequence[Claim] = ()
  # {method: what it takes}: files, or functions: 'gen_rl/optim.py:adamw'.
  code: Mapping[str, Sequence[str]] = {}

  @property
  def folder(self) -> pathlib.Path:
    return pathlib.Path(self.file).resolve().parent


def _stages(study: Study) -> set[str]:
  return {stage for arm in study.arms.values() for stage in _before(arm)}


def _before(arm: Arm) -> list[str]:
  return [stage.partition(':')[0] for stage in arm.stages.values()]


def _check_order(arms: Mapping[str, Arm], names: Sequence[str]) -> None:
  """Of the last arm, those that come before it, back to the first one."""
  for stage in _before(arms[names[-1]]):
    if stage not in arms or stage in names:
      raise ValueError(
        f'arm {names[-1]!r} comes after {stage!r}; it may come after '
        f'{", ".join(a for a in arms if a not in names)}'
      )
    _check_order(arms, [*names, stage])


def check(study: Study) -> None:
  """Raises ValueError, in one sentence, on a study that names what is not."""
  arms = study.arms
  stages = _stages(study)
  for name, arm in arms.items():
    _check_order(arms, [name])
    if arm.shared and (arm.stages or arm.vmap or name in stages):
      raise ValueError(
        f'arm {name!r} shares {arm.shared!r}, so it can be no stage, come '
        'after none and have no vmap'
      )
    for field, stage in arm.stages.items() if arm.vmap else ():
      if ':' not in stage:
        raise ValueError(
          f'arm {name!r} trains all seeds at once, with one {field}: say of '
          f'which seed, {stage + ":0"!r}'
        )
  for claim in study.claims:
    for number in (claim.baseline, claim.ours):
      if number.partition('.')[0] not in arms:
        raise ValueError(f'a claim compares {number!r}, of no arm')


def workdir_of(
  study: Study, name: str, seed: str, runs: pathlib.Path, commit: str
) -> pathlib.Path:
  """Another one after each commit, so that no row mixes two."""
  return runs / f'{study.folder.name}-{name}-{seed}-{commit[:10]}'


def arguments(
  study: Study, name: str, seed: str, made: Mapping[str, pathlib.Path]
) -> list[str]:
  """What follows `python -m gen_rl.main`, but for the workdir.

  Args:
    study: see `Study`.
    name: of the arm.
    seed: of the run.
    made: {field: file of a stage}.
  """
  arm = study.arms[name]
  out = [f'--config={arm.config}', f'--config.seed={seed}']
  out += [f'--config.{path}={value}' for path, value in arm.overrides.items()]
  out += [f'--config.{field}={path}' for field, path in made.items()]
  if name in _stages(study):
    out.append(f'--config.export={EXPORT}')
  return out


def load_config(workdir: pathlib.Path):
  """The config of a run, as gen_rl.main had it from its command line."""
  from ml_collections import config_flags

  from gen_rl import arguments

  words = json.loads((workdir / 'command.json').read_text('utf-8'))
  argv = arguments.with_whole_parts(arguments.resolve(['main', *words]))
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', lock_config=False, accept_new_attributes=True,
    flag_values=values, sys_argv=argv,
  )  # fmt: skip
  values(argv)
  arguments.drop_leftovers(values.config, arguments.overrides_of(argv))
  return values.config


class RunFailed(Exception):
  """A child ended badly; what it said is on the terminal."""


def call(command: Sequence[str], lock: IO) -> None:
  """Runs a child on the code of this checkout, whatever is installed."""
  print('+', shlex.join(command), flush=True)
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
  done = subprocess.run(command, cwd=ROOT, env=env, pass_fds=[lock.fileno()])
  if done.returncode == 130:
    raise KeyboardInterrupt
  if done.returncode:
    raise RunFailed(f'ended with code {done.returncode}')


def measure(
  study: Study,
  name: str,
  seeds: Sequence[str],
  runs: pathlib.Path,
  again: bool = False,
) -> None:
  """Runs an arm, on seeds without a row, and appends their rows.

  Args:
    study: see `Study`.
    name: of the arm.
    seeds: one, or those of one program where the arm says `vmap`.
    runs: folder of the runs.
    again: those with a row, too, for what else their runs leave; waits where
      another process is at it, instead of leaving the run to it.
  """
  arm = study.arms[name]
  if arm.shared:
    share(study, name, seeds, runs)
    return
  label = f'{study.folder.name}-{name}-{"all" if arm.vmap else seeds[0]}'
  with files.locked(runs / f'{label}.lock', wait=again) as lock:
    if lock is None:
      print(f'{label} is being run by another process')
      return
    there = {(row['arm'], row['seed']) for row in rows.read(study.folder)}
    seeds = [s for s in seeds if again or (name, s) not in there]
    if not seeds:
      return
    commit, made = system.git_commit() or 'installed', {}
    script = [sys.executable, os.path.abspath(study.file)]
    for field, stage in arm.stages.items():
      stage, _, fixed = stage.partition(':')
      made[field] = exported(study, stage, fixed or seeds[0], runs)
    words = {seed: arguments(study, name, seed, made) for seed in seeds}
    folders = {s: workdir_of(study, name, s, runs, commit) for s in seeds}
    todo = [s for s in seeds if not finished(folders[s], words[s], commit)]
    if arm.vmap and todo:
      paths = [str(folders[seed]) for seed in todo]
      call([*script, '--child=vmap', *paths], lock)
    for seed, workdir in folders.items():
      if seed in todo and not arm.vmap:
        command = [sys.executable, '-m', 'gen_rl.main', *words[seed]]
        call([*command, f'--workdir={workdir}'], lock)
      if not (workdir / 'result.json').exists():
        raise SystemExit(f'{name}, seed {seed} was stopped; run again to go on')
      # The commit whose code ran: there may be a newer one by now.
      more = dict(arm=name, seed=seed, git_commit=commit)
      more['date'] = datetime.date.today().isoformat()
      ran = {field: path.parent.name for field, path in made.items()}
      if 'init' in ran:
        more['init'] = ran.pop('init')
      if ran:
        more['uses'] = ' '.join(ran.values())
      if study.extra:
        call([*script, '--child=extra', name, seed, str(workdir)], lock)
        more |= json.loads((workdir / 'extra.json').read_text('utf-8'))
      rows.append(study.folder, rows.row_of(workdir, **more))


def share(
  study: Study, name: str, seeds: Sequence[str], runs: pathlib.Path
) -> None:
  """Copies another study's rows of seeds without one; runs what is missing."""
  folder, _, theirs = study.arms[name].shared.partition('/')
  other = importlib.import_module(f'experiments.{folder}.run').STUDY
  measure(other, theirs, seeds, runs)
  for row in rows.read(other.folder):
    if row['arm'] == theirs and row['seed'] in seeds:
      rows.append(study.folder, {**row, 'arm': name})


def finished(workdir: pathlib.Path, words: Sequence[str], commit: str) -> bool:
  """Whether this command has run to its end here; prepares the folder if not.

  With uncommitted changes nobody knows, and the run is asked once more.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  said, result = workdir / 'command.json', workdir / 'result.json'
  same = said.exists() and json.loads(said.read_text('utf-8')) == list(words)
  if same and result.exists() and not commit.endswith('-dirty'):
    return True
  result.unlink(missing_ok=True)
  files.write_text(said, json.dumps(list(words)) + '\n')
  return False


def exported(
  study: Study, name: str, seed: str, runs: pathlib.Path
) -> pathlib.Path:
  """The parameters a stage left; runs it where there are none.

  Those of this commit, else of the run that has a row.
  """
  commits = [system.git_commit() or 'installed']
  for row in rows.read(study.folder):
    if (row['arm'], row['seed']) == (name, seed):
      commits.append(row['git_commit'])
  found = [
    workdir_of(study, name, seed, runs, commit) / f'{EXPORT}.safetensors'
    for commit in commits
  ]
  for path in found:
    if path.exists() and (path.parent / 'result.json').exists():
      return path
  (found[0].parent / 'result.json').unlink(missing_ok=True)
  measure(study, name, [seed], runs, again=True)
  return found[0]


def run(
  study: Study, names: Sequence[str], seeds: Sequence[str], runs: pathlib.Path
) -> list[str]:
  """All arms on the first seed, then on the next; sentences on failures."""
  failed = []
  for seed in seeds:
    for name in names:
      together = study.arms[name].vmap
      if together and seed != seeds[0]:
        continue
      try:
        measure(study, name, seeds if together else [seed], runs)
      except RunFailed as error:
        failed.append(f'{name}, seed {seed}: {error}')
        print(failed[-1], file=sys.stderr, flush=True)
  return failed


def child(study: Study, what: str, argv: Sequence[str]) -> None:
  """What is not for the runner's own process, which holds no accelerator."""
  from gen_rl import main as cli

  logging.set_verbosity(logging.WARNING)  # as the command line does
  cli.use_compilation_cache(None)
  if what == 'extra':
    name, seed, workdir = argv
    values = study.extra(pathlib.Path(workdir), name, seed)
    text = json.dumps(files.plain(values)) + '\n'
    files.write_text(pathlib.Path(workdir) / 'extra.json', text)
    return
  from experiments import vmapped

  configs = [load_config(pathlib.Path(workdir)) for workdir in argv]
  vmapped.vmapped_runs(configs, argv, gen_rl.STARTED)


def main(study: Study) -> None:
  """The command line of a study.

  --arms, --seeds   which (default: all)
  --runs            folder of the runs
  --report          only tables and plot, of the rows there are

  Tables are printed and put into the README, see `tables.fill`.
  """
  from experiments import plots, tables

  here = dict(module_name=sys.argv[0])  # so that --help shows them
  seeds = [str(seed) for seed in study.seeds]
  arms = flags.DEFINE_list(
    'arms', list(study.arms), 'Which arms to run.', **here
  )
  which = flags.DEFINE_list('seeds', seeds, 'Which seeds.', **here)
  runs = flags.DEFINE_string(
    'runs', 'runs/experiments', 'Folder of the runs.', **here
  )
  report = flags.DEFINE_bool('report', False, 'Only tables and plot.', **here)
  part = flags.DEFINE_enum('child', None, ['extra', 'vmap'], 'Internal.')

  def do(argv: list[str]) -> None:
    if part.value:
      child(study, part.value, argv[1:])
      return
    for name in arms.value:
      if name not in study.arms:
        raise SystemExit(
          f'there is no arm {name!r}; there are {", ".join(study.arms)}'
        )
    if wrong := [s for s in which.value if not s.isdecimal()]:
      raise SystemExit(f'seeds are numbers, not {", ".join(map(repr, wrong))}')
    folder, failed = (ROOT / runs.value).resolve(), []
    if not report.value:
      failed = run(study, arms.value, which.value, folder)
    found = rows.read(study.folder)
    parts = tables.report(study, found)
    print(study.title, *parts.values(), sep='\n\n')
    tables.fill_file(study.folder / 'README.md', parts)
    plots.plot(study, found, folder)
    if failed:
      raise SystemExit('Not all runs ended well.\n' + '\n'.join(failed))

  check(study)
  app.run(do)
