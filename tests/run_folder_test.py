"""Who may write into the folder of a run, and when the run has ended."""

import os
import socket

import pytest

from gen_rl import build, results, run_folder, testing


def _tree(path):
  return {
    str(p.relative_to(path)): p.read_bytes() if p.is_file() else None
    for p in path.rglob('*')
  }


def test_one_run_at_a_time(tmp_path):
  folder = tmp_path / 'not' / 'yet'
  with run_folder.owned(folder):
    (folder / 'checkpoints' / '3.orbax-checkpoint-tmp').mkdir(parents=True)
    before = _tree(folder)
    with (
      pytest.raises(
        build.ConfigError,
        match=f'pid {os.getpid()} on {socket.gethostname()}.*left alone',
      ),
      run_folder.owned(folder),
    ):
      raise AssertionError('two at once')
    assert _tree(folder) == before
  (folder / 'metrics.jsonl').write_text('')  # killed before a checkpoint
  with run_folder.owned(folder):
    pass
  (folder / '.lock').write_text('')  # as an earlier release left it
  with run_folder.owned(folder):
    pass


@pytest.mark.parametrize('name', run_folder.WRITTEN)
@pytest.mark.parametrize('lock', [None, 'of somebody else'])
def test_files_of_others_are_not_replaced(name, lock, tmp_path):
  (tmp_path / 'notes.txt').write_text('do not mind')
  (tmp_path / name).write_text('mine')
  if lock:
    (tmp_path / '.lock').write_text(lock)
  before = _tree(tmp_path)
  with (
    pytest.raises(build.ConfigError, match=f'holds {name}.* no checkpoint'),
    run_folder.owned(tmp_path),
  ):
    raise AssertionError('not refused')
  assert _tree(tmp_path) == before
  (tmp_path / 'checkpoints' / '7').mkdir(parents=True)
  with run_folder.owned(tmp_path):  # a run of ours; its checkpoint will tell
    assert (tmp_path / name).read_text() == 'mine'


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(build.ConfigError, match='file/run cannot be written: Not a'),
    run_folder.owned(tmp_path / 'file' / 'run'),
  ):
    pass


def test_a_folder_whose_name_is_no_text(tmp_path):
  with (
    pytest.raises(build.ConfigError, match='not UTF-8'),
    run_folder.owned(os.fsdecode(os.fsencode(tmp_path) + b'/a\xff')),
  ):
    pass
  assert not list(tmp_path.iterdir())


def test_finished_is_a_report_and_a_whole_result(tmp_path):
  result = testing.result()
  steps = result['steps']
  path = results.write_json(tmp_path, result)
  assert run_folder.finished(tmp_path, steps) is None  # no report yet
  (tmp_path / 'report.html').write_text('')
  assert run_folder.finished(tmp_path, steps)['steps'] == steps
  assert run_folder.finished(tmp_path, steps + 1) is None
  whole = path.read_text()
  for damaged in (whole[: len(whole) // 2], '{}', '[]', '{"base": 3}', '\0'):
    path.write_text(damaged)
    assert run_folder.finished(tmp_path, steps) is None
