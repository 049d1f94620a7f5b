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


def test_what_can_be_read(tmp_path):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  assert not files.trouble(tmp_path / 'file')
  for path, said in {
    'none': files.ABSENT, '.': 'it is a folder', 'loop': 'too many levels',
    '/dev/null': 'a device', 'a\0b': 'null', 'x' * 300: 'name too long',
  }.items():  # fmt: skip
    assert said in files.trouble(os.path.join(tmp_path, path)), path


def test_names_that_leave_their_folder(tmp_path):
  hub = tmp_path / 'models--a--b'
  folder = hub / 'snapshots' / '0123' / 'unet'
  folder.mkdir(parents=True)
  (hub / 'blobs').mkdir()
  for path in (hub / 'blobs' / 'ff', tmp_path / 'secret', folder / 'own'):
    path.write_text('x')
  (folder / 'model').symlink_to('../../../blobs/ff')
  (folder / 'link').symlink_to(tmp_path / 'secret')
  (tmp_path / 'short').symlink_to(folder)
  for name in ('own', 'none', 'model'):
    assert not files.outside(folder, name), name
    assert not files.outside(tmp_path / 'short', name), name
  for name in ('link', '../x', '/etc/passwd', '.', 'a/../../b', 'a\0b'):
    assert files.outside(folder, name), name
