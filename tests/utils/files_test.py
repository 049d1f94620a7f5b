import json
import math
import os
import subprocess
import sys

import ml_collections
import numpy as np

from gen_rl.utils import files


def test_plain_is_what_json_can_hold():
  value = {
    1: np.float32(0.5),
    'nan': np.float64('nan'),
    'inf': -math.inf,
    'array': np.arange(4).reshape(2, 2),
    'tuple': (True, None, 3),
    'type': files.plain,
  }
  plain = files.plain(value)
  assert plain.pop('type').startswith('<function plain')
  assert plain == {
    '1': 0.5, 'nan': None, 'inf': None, 'array': [[0, 1], [2, 3]],
    'tuple': [True, None, 3],
  }  # fmt: skip
  assert json.loads(json.dumps(plain, allow_nan=False)) == plain
  config = ml_collections.ConfigDict({'betas': (0.9, 0.99)}).to_dict()
  assert files.plain(config) == {'betas': [0.9, 0.99]}


def test_write_text_replaces_the_file_as_a_whole(tmp_path):
  path = tmp_path / 'x.txt'
  for text in ('first', 'zweite – 2'):
    files.write_text(path, text)
    assert path.read_bytes().decode() == text
  assert os.listdir(tmp_path) == ['x.txt']


def test_a_lock_lasts_as_long_as_a_child_has_it(tmp_path):
  path = tmp_path / 'folder' / 'x.lock'
  wait = [sys.executable, '-c', 'input()']
  with files.locked(path) as lock:
    child = subprocess.Popen(
      wait, pass_fds=[lock.fileno()], stdin=subprocess.PIPE
    )
    with files.locked(path, wait=False) as second:
      assert second is None
  with files.locked(path, wait=False) as second:
    assert second is None  # its parent let go, the child did not
  child.communicate(b'\n')
  with files.locked(path, wait=False) as second:
    assert second is not None
