import json
import socket
import subprocess

import numpy as np

from gen_rl.utils import system


def test_peak_memory_grows_with_memory():
  before = system.peak_rss_bytes()
  assert 20e6 < before < 1e12
  block = np.ones(int(before) // 8 + 10_000_000)
  assert system.peak_rss_bytes() >= block.nbytes


def test_environment_is_json_and_names_no_host():
  env = system.environment()
  assert {'python', 'jax', 'device', 'cpus', 'git_commit'} <= set(env)
  assert socket.gethostname() not in json.dumps(env).replace('"', ' ').split()


def test_commit_is_of_the_package_not_of_what_surrounds_it(
  tmp_path, monkeypatch
):
  git = lambda *a: subprocess.run(  # noqa: E731
    ['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b', *a],
    check=True, capture_output=True, text=True,
  ).stdout.strip()  # fmt: skip
  git('init')
  package = tmp_path / 'env' / 'utils' / 'system.py'
  package.parent.mkdir(parents=True)
  package.write_text('1')
  other = tmp_path / 'results' / 'results.csv'
  other.parent.mkdir()
  other.write_text('2')
  git('add', 'results')
  git('commit', '-m', 'x')
  monkeypatch.setattr(system, '__file__', str(package))
  assert system.git_commit() is None  # untracked: a mere surrounding
  git('add', '.')
  git('commit', '-m', 'y')
  other.write_text('results are no code')
  assert system.git_commit() == git('rev-parse', 'HEAD')
  package.write_text('3')
  assert system.git_commit() == git('rev-parse', 'HEAD') + '-dirty'
