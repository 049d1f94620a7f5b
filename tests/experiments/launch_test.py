"""Starters for clusters: their texts, one process, SLURM and SkyPilot.

What schedulers set is as their documents say.
"""

import json
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import pytest
import setuptools
import yaml

from gen_rl import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'experiments' / 'launch'
SHELL = sorted([*FOLDER.glob('*.sh'), *FOLDER.glob('*.sbatch')])
# Devices of the commands in headers and the README.
DEVICES = {'tpu_pod.sh': 16, 'slurm.sbatch': 16, 'xpk': 16, 'train.sh': 1}
SRUN = r"""
while [[ $1 == -* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$((i % SLURM_NTASKS_PER_NODE)) "$@" &
done
code=0
for job in $(jobs -p); do
  wait "$job"; ended=$?; ((ended > code)) && code=$ended
done
exit $code
"""


@pytest.mark.parametrize('path', SHELL, ids=lambda p: p.name)
def test_shell_files_parse(path):
  assert path.read_text().startswith('#!/usr/bin/env bash\n')
  subprocess.run(['bash', '-n', path], check=True)


def test_commands_in_the_texts(cluster):
  found = [
    (script, argv)
    for path in [*SHELL, FOLDER / 'README.md']
    for script, argv in cluster.commands(path.read_text())
  ]
  assert {script for script, _ in found} == set(DEVICES)
  for script, argv in found:
    cluster.check(argv, DEVICES[script])


def test_flags_in_the_table_of_meshes(cluster):
  text = (FOLDER / 'README.md').read_text()
  rows = re.findall(
    r'^\| ([\d, ]+) \| (.*): (\d+) rows \| (.*) \|$', text, re.M
  )
  assert len(rows) == 3
  for counts, named, rows_a_step, each in rows:
    argv = ['--config=configs/flow_grpo.py', *re.findall(r'--[\w.=]+', named)]
    parts = 1 if 'microbatches' in named else 3
    for n, here in zip(counts.split(', '), each.split(', '), strict=True):
      cluster.check(argv, int(n))
      assert int(here) == int(rows_a_step) // int(n) // parts


def test_the_readme_names_every_file():
  text = (FOLDER / 'README.md').read_text()
  for path in FOLDER.iterdir():
    assert path.name == 'README.md' or path.name in text, path.name


def test_extras_that_are_installed_exist(monkeypatch):
  monkeypatch.chdir(ROOT)
  with mock.patch.object(setuptools, 'setup') as setup:
    runpy.run_path('setup.py')
  text = ''.join(p.read_text() for p in FOLDER.iterdir())
  named = re.findall(r'install\.sh (\w+)$|EXTRA=(\w+)', text, re.M)
  named = {a or b for a, b in named}
  assert named == {'gpu', 'tpu'} <= set(setup.call_args[1]['extras_require'])


@pytest.mark.parametrize(
  'ends, steps, newest, code',
  [
    (0, 180, '180', 0),
    (0, 180, '225', 75),  # an older result.json; stopped further on
    (0, None, '45', 75),  # stopped before the first one
    (0, 180, '45 90 180.broken', 75),
    (2, 180, '180', 2),
    (3, None, '45', 3),
  ],
)
def test_codes_of_train(ends, steps, newest, code, cluster, tmp_path):
  workdir = tmp_path / 'run'
  for name in newest.split():
    (workdir / 'checkpoints' / name).mkdir(parents=True)
  if steps:
    result = dict(schema_version=1, steps=steps, base=dict(steps=0))
    (workdir / 'result.json').write_text(json.dumps(result, indent=2))
  argv = [f'--workdir={workdir}', '--config=configs/toy.py']
  cluster.run('train.sh', *argv, code=code, PYTHON_ENDS_WITH=str(ends))
  assert [a for a, _ in cluster.started()] == [argv]


@pytest.mark.parametrize('workdir', ['runs/a', 'gs://bucket/runs/a', ''])
def test_train_wants_a_shared_folder(workdir, cluster):
  done = cluster.run('train.sh', f'--workdir={workdir}', code=2)
  assert 'absolute path' in done.stderr and not cluster.started()


def stop_once(ready, train):
  deadline = time.monotonic() + 240
  while not ready():
    assert time.monotonic() < deadline and train.poll() is None
    time.sleep(0.02)
  train.send_signal(signal.SIGTERM)


def test_sigterm_may_end_the_process(cluster, tmp_path):
  """Before it is ready to save."""
  cluster.add('python', 'echo >$RECORDS/ready; exec sleep 60')
  train = subprocess.Popen(
    ['bash', FOLDER / 'train.sh', f'--workdir={tmp_path}'], env=cluster.env()
  )
  stop_once((cluster.records / 'ready').exists, train)
  assert train.wait(20) == 128 + signal.SIGTERM


def test_a_real_run_is_stopped_and_goes_on_alone(cluster, tmp_path):
  """SIGTERM to one of two processes ends both; one goes on with the rest."""
  cluster.add('python', f'exec {sys.executable} "$@"')
  workdir = tmp_path / 'run'
  argv = [
    '--config=configs/toy.py:tiny', f'--workdir={workdir}',
    '--config.eval.every=10000',
  ]  # fmt: skip
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  two = [
    subprocess.Popen(
      ['bash', FOLDER / 'train.sh', *argv, '--config.steps=10000',
       f'--coordinator={address}', '--processes=2', f'--process={i}'],
      cwd=ROOT, env=cluster.env(), stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    for i in range(2)
  ]  # fmt: skip
  saved = lambda: max(checkpoint.steps(workdir / 'checkpoints'), default=0)
  stop_once(lambda: saved() > 2, two[1])
  assert [train.wait(240) for train in two] == [75, 75]
  steps = saved() + 1
  cluster.run('train.sh', *argv, f'--config.steps={steps}')
  assert json.loads((workdir / 'result.json').read_text())['steps'] == steps


def directives():
  """{option: value} of slurm.sbatch; sbatch reads up to the first command."""
  lines = (FOLDER / 'slurm.sbatch').read_text().splitlines()
  last = max(i for i, line in enumerate(lines) if line.startswith('#SBATCH'))
  assert all(line.startswith('#') for line in lines[:last])
  found = [line.split()[1] for line in lines if line.startswith('#SBATCH')]
  assert all(re.fullmatch(r'--[a-z-]+(=\S+)?', option) for option in found)
  return dict(o.removeprefix('--').partition('=')[::2] for o in found)


def slurm(job='1000', **variables):
  """What sbatch and srun set."""
  options = directives()
  nodes, tasks = int(options['nodes']), int(options['ntasks-per-node'])
  return dict(
    SLURM_JOB_ID=job, SLURM_NTASKS=str(nodes * tasks),
    SLURM_NTASKS_PER_NODE=str(tasks), SLURM_STEP_NODELIST='node[001-002]',
    SLURM_GPUS_ON_NODE=options['gpus-per-node'],
    SLURM_CPUS_PER_TASK=options['cpus-per-task'],
  ) | variables  # fmt: skip


def test_slurm_starts_one_process_a_node(cluster, tmp_path):
  options = directives()
  assert {'requeue', 'open-mode', 'time', 'output'} <= set(options)
  assert options['signal'].startswith('TERM@')  # to the steps, not the shell
  devices = int(options['nodes']) * int(options['gpus-per-node'])
  assert devices == DEVICES['slurm.sbatch']
  cluster.add('srun', SRUN)
  cluster.add('scontrol')
  argv = [
    a.replace('$SCRATCH', str(tmp_path))
    for a in cluster.example('slurm.sbatch')
  ]
  cluster.run('slurm.sbatch', *argv, **slurm())
  assert cluster.logged() == ['scontrol requeue 1000']  # it is not complete
  started = cluster.started()
  assert [env['SLURM_PROCID'] for _, env in started] == ['0', '1']
  for found, env in started:
    assert found == argv
    assert env['JAX_LOCAL_DEVICE_IDS'] == '0,1,2,3,4,5,6,7'
    assert env['JAX_PARTITION_INDEX'] == '0'
    assert env['SRUN_CPUS_PER_TASK'] == options['cpus-per-task']
    assert cluster.kind(env) == 'SLURM'


@pytest.mark.parametrize(
  'ends, before, ended, requeued',
  [
    (75, '3', False, True),  # stopped and saved
    (3, '3', False, True),  # lost another process
    (2, '3', False, False),  # wrong config
    (75, '50', False, False),  # often enough
    (75, '3', True, False),  # scancel: not ours to start again
  ],
)
def test_slurm_requeues(ends, before, ended, requeued, cluster):
  kill = 'kill -TERM $PPID; ' if ended else ''
  cluster.add('srun', f'{kill}exit {ends}')
  cluster.add('scontrol')
  cluster.add('sleep', 'echo sleep >>$LOG; kill -KILL $PPID')
  code = 0 if requeued else -signal.SIGKILL if ended else ends
  cluster.run('slurm.sbatch', code=code, **slurm(SLURM_RESTART_COUNT=before))
  expected = ['scontrol requeue 1000'] if requeued else []
  assert cluster.logged() == (['sleep'] if ended else expected)


def test_slurm_processes_find_each_other(cluster, tmp_path):
  """By jax itself, through the variables alone, on the CPU of this machine."""
  with socket.socket() as probe:
    for job in range(4096):  # jax takes the port from it
      try:
        probe.bind(('127.0.0.1', 65535 - 4095 + job))
        break
      except OSError:
        continue
  (tmp_path / 'join.py').write_text(
    'import json, os, sys, jax\n'
    'from gen_rl.utils import hosts\n'
    'count = hosts.start()\n'
    'seen = jax.config.read("jax_cuda_visible_devices")\n'
    'facts = jax.process_index(), count, jax.device_count(), seen\n'
    f'path = "{tmp_path}/joined" + os.environ["SLURM_PROCID"]\n'
    'open(path, "w").write(json.dumps(facts))\n'
  )
  cluster.add('python', f'exec {sys.executable} {tmp_path}/join.py')
  cluster.add('srun', SRUN)
  cluster.add('scontrol')
  variables = slurm(str(job), SLURM_STEP_NODELIST='localhost')
  cluster.run('slurm.sbatch', f'--workdir={tmp_path}', **variables)
  for i in range(2):
    facts = json.loads((tmp_path / f'joined{i}').read_text())
    assert facts == [i, 2, 2, '0,1,2,3,4,5,6,7']


def test_skypilot(cluster):
  task = yaml.safe_load((FOLDER / 'skypilot.yaml').read_text())
  gpus = int(task['resources']['accelerators'].split(':')[1])
  count = task['num_nodes']
  recovery = task['resources']['job_recovery']
  assert task['resources']['use_spot'] and count > 1
  assert {3, 75} <= set(recovery['recover_on_exit_codes'])
  assert 2 not in recovery['recover_on_exit_codes']
  addresses = [f'10.0.0.{i + 7}' for i in range(count)]
  for rank in range(count):
    cluster.run(
      'bash -c', task['run'], code=75, SKYPILOT_NODE_RANK=str(rank),
      SKYPILOT_NODE_IPS='\n'.join(addresses), SKYPILOT_NUM_NODES=str(count),
      SKYPILOT_NUM_GPUS_PER_NODE=str(gpus),
    )  # fmt: skip
  cluster.check_processes('10.0.0.7:8476', count, count * gpus)
  for _, env in cluster.started():
    assert env['JAX_PARTITION_INDEX'] == '0'
    assert cluster.kind(env) is None  # hence the flags
  assert 'bash experiments/launch/mount.sh "$SHARE"' in task['setup']
  assert 'SHARE' in task['envs']
  subprocess.run(['bash', '-n', '-c', task['setup']], check=True)
