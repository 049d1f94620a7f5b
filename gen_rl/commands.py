"""Command lines that a run tells its user."""

from collections.abc import Sequence
import pathlib
import shlex
import sys

import ml_collections


def resume(name: str, workdir: str, flags: Sequence[str]) -> str:
  """The command line that continues a run.

  Args:
    name: of the config.
    workdir: of the run.
    flags: those the run was started with; without a --config among them (a
      notebook) the config of that name is assumed.
  """
  names = [flag.lstrip('-').partition('=')[0] for flag in flags]
  if 'config' not in names:
    file, colon, variant = name.partition(':')
    flags, names = [f'--config=configs/{file}.py{colon}{variant}'], []
  if 'workdir' not in names:
    flags = [*flags, f'--workdir={workdir}']
  return f'{_python()} -m gen_rl.main {shlex.join(flags)}'


def _python() -> str:
  """This interpreter, as a person in this folder would call it."""
  path = pathlib.Path(sys.executable)
  if path.is_relative_to(pathlib.Path.cwd()):
    return str(path.relative_to(pathlib.Path.cwd()))
  return 'python'


def rerun(
  config: ml_collections.ConfigDict, workdir: str, flags: Sequence[str]
) -> dict[str, str]:
  """{what it does: command line} for the report; arguments as above."""
  go_on = resume(config.name, workdir, flags)
  elsewhere = [*flags, '--workdir=runs/again']  # of two, the last one counts
  return {
    'Reproduce (an empty workdir)': resume(
      config.name, 'runs/again', elsewhere
    ),
    'Resume': go_on,
    'Train on': f'{go_on} --config.steps={2 * config.steps}',
    'Evaluate the last checkpoint': f'{go_on} --mode=eval',
  }
