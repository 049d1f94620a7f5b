import json
import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import metrics


def lines(workdir):
  return [json.loads(x) for x in open(workdir / 'metrics.jsonl')]


def open_writer(workdir, **kw):
  return metrics.Writer(workdir, tensorboard=False, primary=True, **kw)


def test_a_line_has_step_time_samples_and_values(tmp_path):
  with open_writer(tmp_path, clock=lambda: 12.3456) as w:
    w.write_scalars(
      3, {'reward/score': jnp.float32(0.1), 'n': np.int64(7)}, samples=96
    )
  assert lines(tmp_path) == [
    {'step': 3, 'time': 12.346, 'samples': 96, 'reward/score': 0.1, 'n': 7}
  ]


@pytest.mark.parametrize(
  'value, expect',
  [
    (np.float32(0.1), 0.1),
    (jnp.bfloat16(0.5), 0.5),
    (0.1 + 0.2, 0.1 + 0.2),
    (np.nan, None),
    (-np.inf, None),
    (True, 1),
    (jnp.ones((1, 1)), 1.0),
  ],
)
def test_scalar(value, expect):
  got = metrics.scalar('x', value)
  assert got == expect and type(got) is type(expect)


def test_float32_survives_the_file_bitwise():
  x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
  back = [json.loads(json.dumps(metrics.scalar('x', v))) for v in x]
  np.testing.assert_array_equal(np.array(back, np.float32), x)


def test_scalar_names_what_is_no_number():
  with pytest.raises(ValueError, match=r"'reward/all'.*\(3,\)"):
    metrics.scalar('reward/all', np.zeros(3))
  with pytest.raises(ValueError, match="'x'"):
    metrics.scalar('x', 'high')


def test_reserved_names_are_refused(tmp_path):
  with open_writer(tmp_path) as w, pytest.raises(ValueError, match='time'):
    w.write_scalars(1, {'time': 1.0})


def test_resume_leaves_no_duplicate_steps(tmp_path):
  with open_writer(tmp_path) as w:
    for step in range(8):
      w.write_scalars(step, {'a': step})
    w.write_scalars(5, {'eval/a': 5})
  with open_writer(tmp_path, resume_step=5) as w:
    w.write_scalars(5, {'eval/a': 5, 'eval/b': 6})  # eval/a is there already
    w.write_scalars(5, {'a': 5})
    for step in range(6, 9):
      w.write_scalars(step, {'a': step})
  pairs = [
    (x['step'], k) for x in lines(tmp_path) for k in x if k[:2] in ('a', 'ev')
  ]
  assert pairs == [(s, 'a') for s in range(6)] + [
    (5, 'eval/a'), (5, 'eval/b'), (6, 'a'), (7, 'a'), (8, 'a')
  ]  # fmt: skip


@pytest.mark.parametrize('cut', [1, 8, 20])
def test_half_line_of_a_killed_run_is_repaired(tmp_path, cut):
  with open_writer(tmp_path) as w:
    for step in range(4):
      w.write_scalars(step, {'a': step})
  path = tmp_path / 'metrics.jsonl'
  data = path.read_bytes()
  path.write_bytes(data[:-cut])
  assert [x['step'] for x in metrics.read(path)] == [0, 1, 2]
  with open_writer(tmp_path, resume_step=10) as w:
    w.write_scalars(11, {'a': 1})
  assert [x['step'] for x in lines(tmp_path)] == [0, 1, 2, 11]


def test_repair_drops_garbage_and_leaves_a_good_file_alone(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n\x00\x00\xff\n[1]\n{"a": 1}\n{"step": 2}\n')
  assert metrics.repair(path) == [{'step': 1}, {'step': 2}]
  assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
  inode = os.stat(path).st_ino
  metrics.repair(path, 2)
  assert os.stat(path).st_ino == inode
  assert metrics.repair(tmp_path / 'absent') == []
  assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_a_fresh_run_keeps_the_old_file_aside(tmp_path):
  for value in (1, 2):
    with open_writer(tmp_path) as w:
      w.write_scalars(0, {'a': value})
  assert [x['a'] for x in lines(tmp_path)] == [2]
  assert metrics.read(tmp_path / 'metrics.old.jsonl')[0]['a'] == 1


def test_kill_loses_nothing_that_was_logged(tmp_path):
  code = f"""
    import os, signal
    from gen_rl import metrics
    w = metrics.Writer({str(tmp_path)!r}, tensorboard=False, primary=True)
    for step in range(100):
      w.write_scalars(step, {{'a': step}})
    os.kill(os.getpid(), signal.SIGKILL)
  """
  out = subprocess.run([sys.executable, '-c', textwrap.dedent(code)])
  assert out.returncode == -signal.SIGKILL
  assert [x['step'] for x in lines(tmp_path)] == list(range(100))


def test_only_the_primary_process_writes(tmp_path):
  with metrics.Writer(tmp_path / 'x', primary=False) as w:
    w.write_scalars(0, {'a': 1})
    w.write_images(0, {'g': np.zeros((4, 4, 3))})
    w.flush()
  assert not (tmp_path / 'x').exists()


def test_full_disk_is_an_error(tmp_path):
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full')
  with open_writer(tmp_path) as w:
    w._file = open('/dev/full', 'ab', buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match='No space left'):
      w.write_scalars(0, {'a': 1})


def test_a_removed_file_is_an_error(tmp_path):
  with metrics.Writer(tmp_path, tensorboard=False) as writer:
    writer.write_scalars(1, {'a': 1.0})
    (tmp_path / metrics.FILE).unlink()
    with pytest.raises(FileNotFoundError, match='was removed while the run'):
      writer.write_scalars(2, {'a': 1.0})


def test_images_become_png(tmp_path):
  with open_writer(tmp_path) as w:
    w.write_images(20, {'eval/grid': np.zeros((4, 6, 3))})
  assert os.listdir(tmp_path / 'images') == ['eval_grid_000020.png']


def test_comparable_drops_what_the_machine_decides():
  line = {'step': 1, 'time': 2, 'a': 3, 'seconds/step': 4, 'speed/x': 5}
  assert metrics.comparable(line) == {'step': 1, 'a': 3}


def test_tensorflow_waits_for_the_first_line_and_resume_purges(tmp_path):
  """In a process of its own: whether tensorflow is imported is the point."""
  code = f"""
    import sys, time
    import numpy as np
    from gen_rl import metrics
    workdir = {str(tmp_path)!r}
    w = metrics.Writer(workdir)
    w.write_images(0, {{'eval/grid': np.ones((4, 4, 3))}})
    assert 'tensorflow' not in sys.modules
    import tensorflow as tf
    hide, hidden = tf.config.set_visible_devices, []
    tf.config.set_visible_devices = lambda devices, kind: (
      hidden.append((devices, kind)), hide(devices, kind))
    for step in range(8):
      w.write_scalars(step, {{'a/b': step, 'a/nan': np.nan}})
    w.close()
    assert hidden == [([], 'GPU'), ([], 'TPU')]
    time.sleep(1.1)  # event files are told apart by their second
    with metrics.Writer(workdir, resume_step=5) as w:
      for step in (6, 7):
        w.write_scalars(step, {{'a/b': 100 * step}})
      w.flush()
    from tensorboard.backend.event_processing import (
      plugin_event_accumulator as accumulator)
    events = accumulator.EventAccumulator(
      workdir + '/tensorboard', size_guidance={{'tensors': 0}})
    events.Reload()
    values = [(e.step, tf.make_ndarray(e.tensor_proto).item())
              for e in events.Tensors('a/b')]
    assert values == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5),
                      (6, 600), (7, 700)], values
    assert [e.step for e in events.Tensors('eval/grid')] == [0]
  """
  out = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    capture_output=True,
    text=True,
  )
  assert out.returncode == 0, out.stderr


def test_a_broken_tensorboard_does_not_stop_the_run(tmp_path, monkeypatch):
  def broken(*_):
    raise ImportError('no tensorflow here')

  monkeypatch.setattr(metrics, '_open_tensorboard', broken)
  with metrics.Writer(tmp_path, primary=True) as w:
    for step in range(3):
      w.write_scalars(step, {'a': step})
    w.flush()
  assert len(lines(tmp_path)) == 3
