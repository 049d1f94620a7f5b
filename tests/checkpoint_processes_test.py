"""Checkpoints beside what happens to a process: full disks, kills, threads."""

import os
import pathlib
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from gen_rl import checkpoint
from gen_rl.utils import tree as tree_lib

ROOT = pathlib.Path(__file__).parents[1]


def test_disk_full_stops_and_keeps_the_last_whole_checkpoint(tmp_path):
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(tmp_path)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('needs the right to mount a tmpfs')
  try:
    directory = tmp_path / 'run'
    manager = checkpoint.open_manager(directory, keep=1)

    def noise(n):
      x = np.random.RandomState(n).randn(60_000 * 4**n)
      return {'x': x.astype(np.float32)}

    checkpoint.save(manager, 0, noise(0))
    checkpoint.save(manager, 1, noise(1))  # 1 MB beside 0.25 MB: fits
    checkpoint.check(manager, wait=True)
    with pytest.raises(checkpoint.CheckpointError) as error:
      checkpoint.save(manager, 2, noise(2))  # 4 MB: fails in its thread
      deadline = time.time() + 20
      while time.time() < deadline:
        checkpoint.check(manager)
        time.sleep(0.01)
    assert 'the disk is full' in str(error.value)
    assert 'checkpoint 1 is whole' in str(error.value)
    manager.close()
    assert os.listdir(directory) == ['1']
    manager = checkpoint.open_manager(directory)
    got = checkpoint.restore_latest(manager, noise(1))
    assert got.step == 1 and tree_lib.equal(got.state, noise(1))
    checkpoint.close(manager)
  finally:
    subprocess.run(['umount', '-l', str(tmp_path)], check=True)


CHILD = """
  import sys
  import numpy as np
  from gen_rl import checkpoint
  manager = checkpoint.open_manager(sys.argv[1], keep=2)
  noise = np.random.RandomState(0).randn(4_000_000).astype('float32')
  for n in range(1, 1000):
    noise[:5] = n
    checkpoint.save(manager, n, {'x': noise}, extra={'n': n})
    print(n, flush=True)
"""


def test_kill_9_during_a_save(tmp_path):
  like = {'x': np.zeros((4_000_000,), np.float32)}
  for trial in range(2):
    directory = tmp_path / str(trial)
    child = subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(CHILD), str(directory)],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      deadline = time.time() + 60
      while time.time() < deadline:
        names = os.listdir(directory) if directory.exists() else []
        if max(checkpoint.steps(directory), default=0) >= 2 and any(
          'tmp' in n for n in names
        ):
          break
        time.sleep(0.002)
      time.sleep(0.02 * trial)
    finally:
      child.kill()  # SIGKILL
      child.wait()
    manager = checkpoint.open_manager(directory)
    whole = max(checkpoint.steps(directory))
    got = checkpoint.restore_latest(manager, like)
    assert got.step == whole == got.extra['n'] >= 2
    want = np.random.RandomState(0).randn(4_000_000).astype('float32')
    want[:5] = whole
    np.testing.assert_array_equal(got.state['x'], want)
    checkpoint.close(manager)


def test_orbax_is_quiet(tmp_path):
  code = f"""
    from absl import logging
    logging.set_verbosity(logging.INFO)
    import jax.numpy as jnp
    from gen_rl import checkpoint
    manager = checkpoint.open_manager({str(tmp_path)!r})
    checkpoint.save(manager, 1, {{'params': {{'x': jnp.zeros(3)}}}})
    checkpoint.check(manager, wait=True)
    checkpoint.restore_latest(manager, {{'params': {{'x': jnp.zeros(3)}}}})
    checkpoint.close(manager)
    checkpoint.restore_params({str(tmp_path)!r})
    # One write of many that fail: nobody asks for its error.
    import asyncio
    from orbax.checkpoint import PyTreeCheckpointHandler
    loop = asyncio.new_event_loop()
    write = loop.create_task(PyTreeCheckpointHandler().async_save(None))
    loop.run_until_complete(asyncio.wait([write]))
    del write
    logging.info('mine')
  """
  run = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  lines = (run.stdout + run.stderr).splitlines()
  assert [x for x in lines if 'mine' not in x] == []


def test_a_save_in_progress_is_not_asked_for_its_error():
  """Its thread would not see the error, and delete the checkpoint before."""

  class Saving:
    def is_saving_in_progress(self):
      return True

    def check_for_errors(self):
      raise AssertionError('asked')

  checkpoint.check(Saving())
