"""What the machine and the checkout are: memory, commit, versions."""

import importlib
import os
import platform
import resource
import subprocess
import sys

import jax


def peak_rss_bytes() -> int:
  """The most memory this process has held at once, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def git_commit() -> str | None:
  """Commit of the checkout the package runs from.

  "-dirty" with changes to the package or to any Python file; a new line in a
  table of results changes no result. None for an installed package, or without
  git. A repository that merely surrounds the package (a virtual environment
  inside one) does not count.
  """
  folder = os.path.dirname(os.path.abspath(__file__))
  name = os.path.basename(__file__)

  def git(*args):
    return subprocess.run(
      ('git', '-C', folder, *args),
      check=True,
      capture_output=True,
      text=True,
      timeout=10,
    ).stdout.strip()

  try:
    git('ls-files', '--error-unmatch', name)
    code = os.path.dirname(folder), ':(top)*.py'
    dirty = git('status', '--porcelain', '--untracked-files=no', '--', *code)
    return git('rev-parse', 'HEAD') + ('-dirty' if dirty else '')
  except (OSError, subprocess.SubprocessError):
    return None


def environment() -> dict:
  """What a result depends on besides config and seed; no host or user name.

  Returns:
    {python, platform, jax, jaxlib, device, devices, processes, cpus,
    git_commit}; `device` is jax's device kind, `cpus` those this process may
    use.
  """
  affinity = getattr(os, 'sched_getaffinity', None)
  return dict(
    python=platform.python_version(),
    platform=f'{platform.system()} {platform.machine()}',
    jax=jax.__version__,
    jaxlib=importlib.import_module('jaxlib').__version__,
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
    processes=jax.process_count(),
    cpus=len(affinity(0)) if affinity else os.cpu_count(),
    git_commit=git_commit(),
  )
