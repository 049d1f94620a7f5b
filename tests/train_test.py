"""Whole runs, as a person starts them: killed, stopped, resumed.

One uninterrupted run and one that is stopped and killed write the same
metrics and end in the same parameters, to the bit.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

from etils import epath
import jax
from jax._src import compilation_cache
import numpy as np
import pytest

from configs import flow_grpo, toy
from gen_rl import (
  assemble,
  build,
  checkpoint,
  checkpoint_format,
  initial,
  run_folder,
  sharding,
  testing,
  train,
)
from gen_rl.types import Reward, RewardOut
from gen_rl.utils import compiled, origins, programs, tree

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 40
SETTINGS = (
  f'--config.steps={STEPS}',
  '--config.eval.every=100',
  '--config.checkpoint.every=3',
  '--config.policy.window=2',
  '--config.policy.window_start.name=random_window',
  '--config.updates=2',
)


def start(workdir, cache, *args, config='configs/toy.py:tiny'):
  command = [
    sys.executable, '-m', 'gen_rl.main', f'--config={config}',
    f'--workdir={workdir}', f'--compilation_cache={cache}', *args,
  ]  # fmt: skip
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | dict(JAX_PLATFORMS='cpu', GEN_RL_TRACEBACK='1'),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, code=0):
  out, _ = process.communicate(timeout=600)
  assert process.returncode == code, out
  return out


def wait_for(process, condition, what):
  deadline = time.time() + 600
  while not condition():
    if process.poll() is not None or time.time() > deadline:
      process.kill()
      pytest.fail(f'no {what}: {process.communicate()[0]}')
    time.sleep(0.01)


def logged(workdir):
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith('}')]


def last_step(workdir):
  return max((line.get('step', 0) for line in logged(workdir)), default=0)


def test_killed_and_stopped_runs_end_as_an_uninterrupted_one(tmp_path):
  cache, whole, cut = (tmp_path / n for n in ('cache', 'whole', 'cut'))
  finish(start(whole, cache, *SETTINGS))
  # of the step, the evaluation and the KL: taken by the next starts
  kept = cache / 'gen_rl-programs'
  assert len(entries := set(kept.iterdir())) == 3

  process = start(cut, cache, *SETTINGS)
  wait_for(process, lambda: last_step(cut) >= 2, 'step 2')
  process.send_signal(signal.SIGTERM)
  out = finish(process, 0)
  at = int(re.search(r'Stopped at step (\d+) after SIGTERM', out)[1])
  assert 2 <= at < STEPS
  assert checkpoint.steps(cut / 'checkpoints')[-1] == at
  # the command that is printed is this run's, settings and all
  resume = re.search(r'Resume with: (.*)', out)[1]
  for part in (f'--workdir={cut}', 'toy.py:tiny', *SETTINGS):
    assert part in resume

  process = start(cut, cache, *SETTINGS)
  wait_for(process, lambda: last_step(cut) >= at + 1, 'more steps')
  time.sleep(random.uniform(0, 0.2))  # in the middle of whatever it does
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert not (cut / 'result.json').exists()

  finish(start(cut, cache, *SETTINGS))
  assert set(kept.iterdir()) == entries
  fields = ('params', 'opt_state', 'refs/ema')
  a, b = (
    checkpoint.restore_params(w / 'checkpoints', fields) for w in (whole, cut)
  )
  assert a.step == b.step == STEPS
  assert tree.differing(a.state, b.state) == []
  assert a.extra['data'] == b.extra['data']

  # nothing is logged twice or missing, and what is logged is the same
  def lines(workdir):
    return {
      (line['step'], name): value
      for line in logged(workdir)
      for name, value in line.items()
      if name.startswith(('pg/', 'reward/', 'optim/', 'advantage/', 'eval/'))
    }

  assert lines(whole) == lines(cut)
  assert {step for step, _ in lines(whole)} == set(range(STEPS + 1))
  a, b = (json.loads((w / 'result.json').read_text()) for w in (whole, cut))
  for name in ('base', 'trained', 'kl', 'steps', 'updates_skipped'):
    assert a[name] == b[name], name
  assert b['wall_seconds'] > 0 and b['seconds_to_first_metric'] > 0

  page = (cut / 'report.html').read_text()
  assert (
    page.count('data:image/png') >= 2 and 'prompts, before and after' in page
  )
  assert list((cut / 'images').glob('*.png'))

  # the other modes of the command, on what the run left
  finish(start(cut, cache, *SETTINGS, '--mode=eval'))
  again = json.loads((cut / 'eval.json').read_text())
  assert again['step'] == STEPS
  assert {k: again[k] for k in b['trained']} == b['trained']


def test_a_drawing_from_the_command_line(tmp_path):
  mode = '--mode=sample', '--prompt=two red circles'
  config = 'configs/flow_grpo.py:tiny'
  out = finish(start(tmp_path, tmp_path / 'cache', *mode, config=config))
  assert 'of 8 are what the prompt asks for' in out
  assert (tmp_path / 'sample.png').stat().st_size > 0


def test_a_reward_in_python_trains_in_the_same_loop(tmp_path):
  """Also when it fails: its rows are left out, the run goes on."""
  calls = []

  def score(params, inputs, key):
    calls.append(len(inputs.media))
    if len(calls) % 3 == 0:
      raise OSError('no answer')
    value = 1 / (1 + np.square(inputs.media).sum(-1))
    return RewardOut(value, dict(twice=2 * value), np.ones(len(value), bool))

  config = toy_config(**{'steps': 3, 'rewards.distance.weight': 0.0})
  own = dict(bright=(Reward('bright', (), score, where='host'), 1.0))
  result = train.train_and_evaluate(config, str(tmp_path), own)
  assert result['steps'] == 3 and result['updates_skipped'] == 0
  assert 0 < result['base']['proxy'] < 1  # scored on the host as well
  lines = [line for line in logged(tmp_path) if 'reward/score' in line]
  groups = config.data.prompts_per_step
  assert len(lines) == 3 and all('reward/bright/twice' in x for x in lines)
  lost = [line['reward/bright/invalid'] for line in lines]
  assert sum(lost) > 0 and max(lost) < groups * config.data.group_size


def test_a_workdir_of_another_base_is_refused(tmp_path, capsys):
  config = toy_config()
  result = train.train_and_evaluate(config, str(tmp_path))
  # the same once more: nothing is done, nothing is overwritten
  times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.json*')}
  again = train.train_and_evaluate(config, str(tmp_path))
  assert again == json.loads(json.dumps(result))
  assert again['samples_per_second'] > 0
  assert f'--config.steps={2 * config.steps}' in capsys.readouterr().out
  assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.json*')}
  # but what is asked for afterwards is written
  config.export = 'final'
  train.train_and_evaluate(config, str(tmp_path))
  assert (tmp_path / 'final.safetensors').exists()
  assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.json*')}
  # a checkpoint holds what moves, and nothing else
  meta = checkpoint_format.read_meta(
    epath.Path(tmp_path / 'checkpoints'), config.steps
  )
  assert {name.partition('/')[0] for name in meta['types']} == {
    'step', 'params', 'opt_state', 'refs', 'skipped', 'skipped_in_a_row'
  }  # fmt: skip
  assert not any(name.startswith('refs/ref/') for name in meta['types'])
  # killed as it wrote its last files: these are made up for
  (tmp_path / 'report.html').unlink()
  (tmp_path / 'result.json').write_text('{"steps": ')
  ended = train.train_and_evaluate(config, str(tmp_path))
  for name in ('base', 'trained', 'kl', 'steps'):
    assert ended[name] == result[name], name
  assert json.loads((tmp_path / 'result.json').read_text())['steps']
  assert 'Evaluation prompts, before' in (tmp_path / 'report.html').read_text()
  config.steps += 1
  partial = tmp_path / 'checkpoints' / '9.orbax-checkpoint-tmp'
  partial.mkdir()
  with (
    run_folder.owned(tmp_path),
    pytest.raises(build.ConfigError, match='another process .*is training'),
  ):
    train.train_and_evaluate(config, str(tmp_path))
  assert partial.exists()  # being written by the other, for all we know
  built = assemble.setup(config)
  params = jax.tree.map(lambda x: x + 1, initial.params(config, built.policy))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(initial, 'params', lambda *_: params)
    with pytest.raises(checkpoint.CheckpointError, match='other parameters'):
      train.train_and_evaluate(config, str(tmp_path))


def test_a_second_start_traces_no_step(tmp_path, monkeypatch):
  """And ends as a run that keeps no programs does, bit for bit."""
  get = compilation_cache.get_file_cache
  monkeypatch.setattr(compilation_cache, 'get_file_cache', get)
  testing.all_installed(monkeypatch)
  compilation_cache.reset_cache()
  compiled.check_entries()
  traced = []
  listener = lambda event, _, **says: traced.append(says.get('fun_name'))
  jax.monitoring.register_event_duration_secs_listener(listener)

  def ended(name, keeps):
    """(state, metrics, functions that were traced) of a process's run."""
    jax.clear_caches()
    traced.clear()
    config, folder = toy_config(), tmp_path / name
    kept = programs.Programs(
      tmp_path / 'programs', config.to_dict(), origins.Reads(), 2**40
    )
    train.train_and_evaluate(config, str(folder), kept=kept if keeps else None)
    fields = ('params', 'opt_state', 'refs/ema')
    state = checkpoint.restore_params(folder / 'checkpoints', fields).state
    changing = ('time', 'seconds/', 'speed/')
    lines = [
      {k: v for k, v in line.items() if not k.startswith(changing)}
      for line in logged(folder)
    ]
    result = json.loads((folder / 'result.json').read_text())
    lines.append(result['speed']['shares'])
    return state, lines, set(traced)

  try:
    plain, first, second = (
      ended(name, name != 'plain') for name in ('plain', 'first', 'second')
    )
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
    compilation_cache.reset_cache()
  assert tree.differing(plain[0], second[0]) == []
  assert plain[1] == first[1] == second[1]
  assert {'fused', 'run'} <= first[2] and not {'fused', 'run'} & second[2]


def tiny_config(**changes):
  config = flow_grpo.get_config('tiny')
  config.trainable = ''
  config.update_from_flattened_dict(changes)
  return config


def toy_config(**changes):
  """For whole runs in this process: compiled in a third of the time."""
  config = toy.get_config('tiny')
  config.update_from_flattened_dict(changes)
  return config


def test_run_stops_after_updates_that_are_not_finite(tmp_path):
  config = toy_config(**{'steps': 20, 'stop_after_skipped': 3})
  config.optimizer.lr = 1e39  # infinite in float32
  with pytest.raises(FloatingPointError, match=r'last 3 updates \(to step 3\)'):
    train.train_and_evaluate(config, str(tmp_path))
  assert last_step(tmp_path) == 3
  # what was saved on the way is still the base
  saved = checkpoint.restore_params(tmp_path / 'checkpoints').state['params']
  base = initial.params(config, assemble.setup(config).policy)
  assert tree.differing(saved, base) == []


def test_geometry_that_does_not_fit_says_what_would():
  config = tiny_config(microbatches=3)
  built = assemble.setup(config)
  with pytest.raises(build.ConfigError, match='microbatches may be 1, 2, 4, 8'):
    assemble.make_step(config, built, sharding.one_device())


def test_parameter_copies_are_those_that_are_asked_for():
  config = tiny_config(ema=0.0)
  assert initial.copies(config) == ['ref']  # of its KL term
  config.objective.kl.weight = 0.0
  assert initial.copies(config) == []
  config.ema = 0.9
  assert initial.copies(config) == ['ema']
  config.objective.kl = dict(name='velocity_kl', ref='old', weight=1.0)
  assert initial.copies(config) == ['ema']
