"""What a run tells its user to type."""

import sys

from gen_rl import commands


def test_resuming_repeats_every_flag(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'executable', '/usr/bin/python3')
  flags = ['--config=flow_grpo:tiny', '--config.steps=9', '--workdir=a b']
  assert commands.resume('flow_grpo:tiny', 'a b', flags) == (
    'python -m gen_rl.main --config=flow_grpo:tiny --config.steps=9'
    " '--workdir=a b'"
  )
  assert commands.resume('flow_grpo', 'x', ['--config', 'my.py']) == (
    'python -m gen_rl.main --config my.py --workdir=x'
  )
  # as the first command of the README calls it
  monkeypatch.setattr(sys, 'executable', str(tmp_path / '.venv/bin/python'))
  again = commands.resume('flow_grpo', 'x', [])
  assert again.startswith('.venv/bin/python -m gen_rl.main ')
  monkeypatch.setattr(sys, 'executable', '/usr/bin/python3')
  # started from a notebook
  assert commands.resume('flow_grpo:tiny', 'x', ['-f', 'k.json']) == (
    'python -m gen_rl.main --config=configs/flow_grpo.py:tiny --workdir=x'
  )
