import io
import re

import pytest

from gen_rl.utils import progress


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_stopwatch_takes_medians_and_starts_over():
  clock = Clock()
  watch = progress.Stopwatch(clock)
  for seconds in (30.0, 2.0, 4.0):
    with watch.stage('step'):
      with watch.stage('reward'):
        clock.now += 1.0
      clock.now += seconds - 1.0
  assert watch.summary(96) == {
    'seconds/reward': 1.0,
    'seconds/step': 4.0,
    'speed/samples_per_second': 24.0,
  }
  assert watch.summary(96) == {}


@pytest.mark.parametrize(
  'seconds, text',
  [(0, '0:00'), (59.6, '1:00'), (61, '1:01'), (3725, '1:02:05')],
)
def test_format_seconds(seconds, text):
  assert progress.format_seconds(seconds) == text


def test_plain_lines_are_rare_and_the_last_is_there():
  clock, out = Clock(), io.StringIO()
  bar = progress.Progress(100, every=10, stream=out, clock=clock)
  for step in range(1, 101):
    clock.now += 2.0
    bar.update(step, reward=step / 100, samples_per_step=96)
  bar.close()
  lines = out.getvalue().splitlines()
  assert len(lines) == 1 + 99 // 5 + 1
  assert '\r' not in out.getvalue()
  assert lines[-1].split('   ') == [
    'step 100/100',
    'reward 1.000',
    '48.0 samples/s',
    '2.00 s/step',
    '0:00 left',
  ]
  assert lines[0] == 'step   1/100   reward 0.010'  # it was compiled
  assert '3:08 left' in lines[1]  # 94 steps of 2 s


def test_terminal_line_rewrites_itself():
  clock, out = Clock(), Terminal()
  bar = progress.Progress(3, stream=out, clock=clock)
  for step in (1, 2, 3):
    clock.now += 1.0
    bar.update(step)
  bar.close()
  assert out.getvalue().count('\n') == 1 and out.getvalue().count('\r') == 3
  assert re.search(r'step 3/3', out.getvalue())


def test_evaluation_time_is_left_out():
  clock, out = Clock(), io.StringIO()
  bar = progress.Progress(10, every=0, stream=out, clock=clock)
  clock.now = 1.0
  bar.note('base')
  clock.now = 60.0
  bar.update(1)
  clock.now = 500.0
  bar.note('held-out')
  clock.now = 501.0
  bar.update(2)
  assert out.getvalue().splitlines() == [
    'base', 'step  1/10', 'held-out', 'step  2/10   1.00 s/step   0:08 left',
  ]  # fmt: skip
