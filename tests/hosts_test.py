"""Real processes over loopback: two of four devices against one of eight."""

import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gen_rl import build, checkpoint
from gen_rl.utils import hosts, tree

ROOT = pathlib.Path(__file__).parents[1]
STEPS, EVERY = 40, 5
CONFIG = (
  '--config=configs/toy.py:tiny', f'--config.steps={STEPS}',
  f'--config.checkpoint.every={EVERY}', f'--config.eval.every={STEPS // 2}',
)  # fmt: skip


def _start(workdir, devices, *flags, log=None):
  """A run of the command line on virtual devices."""
  count = f' --xla_force_host_platform_device_count={devices}'
  env = os.environ | dict(
    XLA_FLAGS=os.environ['XLA_FLAGS'] + count, JAX_PLATFORMS='cpu'
  )
  command = [sys.executable, '-m', 'gen_rl.main', *CONFIG, *flags]
  return subprocess.Popen(
    [*command, f'--workdir={workdir}'], cwd=ROOT, env=env,
    stdout=subprocess.DEVNULL, stderr=log or subprocess.DEVNULL,
  )  # fmt: skip


def _start_two(workdir, *logs):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  return [
    _start(
      workdir, 4, f'--coordinator={address}', '--processes=2',
      f'--process={i}', log=log,
    )
    for i, log in enumerate(logs or (None, None))
  ]  # fmt: skip


def _metrics(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  timed = 'time', 'seconds/', 'speed/'
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith(timed)}
    for line in lines
  ]


def _params(workdir):
  restored = checkpoint.restore_params(str(workdir / 'checkpoints'))
  assert restored.step == STEPS
  return tree.named(restored.state['params'])


def test_two_processes_equal_one_and_survive_a_kill(tmp_path):
  one, two, log = tmp_path / 'one', tmp_path / 'two', tmp_path / 'log'
  assert _start(one, 8).wait(240) == 0

  with log.open('w') as file:
    first, second = _start_two(two, file, None)
    deadline = time.monotonic() + 240
    while not (two / 'checkpoints' / str(EVERY)).exists():
      assert time.monotonic() < deadline and first.poll() is None
      time.sleep(0.02)
    second.kill()
    assert first.wait(2 * hosts.HEARTBEAT) != 0  # it does not wait for ever
  # Another one, or task, is gone; or gloo, which has no way to say so, ends the
  # process when what it receives does not go on as it began.
  said = log.read_text()
  assert 'another' in said or 'gloo::' in said
  there = checkpoint.steps(two / 'checkpoints')
  assert EVERY <= max(there) < STEPS

  assert [p.wait(240) for p in _start_two(two)] == [0, 0]
  assert (two / 'report.html').exists()
  expected, found = _metrics(one), _metrics(two)
  assert len(found) == len(expected) > STEPS
  for line, other in zip(expected, found, strict=True):
    assert line.keys() == other.keys()
    for name, value in line.items():
      assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
  for name, value in _params(one).items():
    np.testing.assert_allclose(_params(two)[name], value, rtol=1e-5, atol=1e-5)


def _without_cluster(monkeypatch):
  for name in list(os.environ):
    if name.startswith(('SLURM', 'OMPI', 'TPU', 'MEGASCALE', 'JOB_', 'JAX_C')):
      monkeypatch.delenv(name)


@pytest.mark.parametrize(
  'variables, kind',
  [
    ({}, None),
    (dict(SLURM_STEP_NODELIST='a[1-2]', SLURM_NTASKS='2'), 'SLURM'),
    (dict(SLURM_STEP_NODELIST='a', SLURM_NTASKS='1'), None),
    # the shell of `salloc -n 4`
    (
      dict(SLURM_STEP_NODELIST='a', SLURM_NTASKS='4', SLURM_STEP_NUM_TASKS='1'),
      None,
    ),
    (
      dict(SLURM_STEP_NODELIST='a', SLURM_NTASKS='1', SLURM_STEP_NUM_TASKS='4'),
      'SLURM',
    ),
    (dict(TPU_WORKER_HOSTNAMES='a,b'), 'TPU pod'),
    (dict(TPU_WORKER_HOSTNAMES='localhost'), None),
    (dict(JOB_COMPLETION_INDEX='0', JOB_COMPLETIONS='4'), 'Kubernetes'),
  ],
)
def test_clusters(variables, kind, monkeypatch):
  _without_cluster(monkeypatch)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert hosts.cluster() == kind
  if kind is None:
    assert hosts.start() == 1


class _Metadata(http.server.BaseHTTPRequestHandler):
  """What the metadata server of a machine answers; None: it has no such."""

  workers = None

  def do_GET(self):  # noqa: N802
    asked = self.path.endswith('/attributes/worker-network-endpoints')
    found = asked and self.headers['Metadata-Flavor'] == 'Google'
    body = (self.workers or '').encode()
    self.send_response(200 if found and body else 404)
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *_):
    pass


def test_tpu_machines_are_known_by_their_metadata(tmp_path, monkeypatch):
  _without_cluster(monkeypatch)
  server = http.server.HTTPServer(('127.0.0.1', 0), _Metadata)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setenv('GCE_METADATA_IP', f'127.0.0.1:{server.server_port}')
  monkeypatch.setattr(_Metadata, 'workers', 'a:b:10.0.0.1,a:b:10.0.0.2')
  chip = tmp_path / 'accel0'
  monkeypatch.setattr(hosts, '_CHIPS', (f'{tmp_path}/accel*',))
  try:
    assert hosts.cluster() is None  # no chips: nobody is asked
    chip.touch()
    assert hosts.cluster() == 'TPU pod'
    monkeypatch.setattr(_Metadata, 'workers', 'a:b:10.0.0.1')
    assert hosts.cluster() is None
    monkeypatch.setattr(_Metadata, 'workers', None)
    assert hosts.cluster() is None
  finally:
    server.shutdown()
    server.server_close()
  assert hosts.cluster() is None  # nobody answers


@pytest.mark.parametrize(
  'variables, words',
  [
    (dict(SLURM_NTASKS='abc'), "SLURM_NTASKS='abc'"),
    (dict(SLURM_NTASKS='4', SLURM_STEP_NUM_TASKS='-1'), "NUM_TASKS='-1'"),
    (dict(SLURM_STEP_NUM_TASKS='9' * 5000), 'no whole number from 1 to'),
    (dict(SLURM_NTASKS='2', SLURM_PROCID='2'), "SLURM_PROCID='2'.*0 to 1"),
    (dict(SLURM_NTASKS='2', SLURM_JOB_ID='x'), "SLURM_JOB_ID='x'"),
    (dict(JOB_COMPLETION_INDEX='0', JOB_COMPLETIONS='4.0'), "'4.0'"),
    (
      dict(OMPI_MCA_orte_hnp_uri='x', OMPI_COMM_WORLD_SIZE='0'),
      "WORLD_SIZE='0'",
    ),
    (dict(JAX_COORDINATOR_ADDRESS='nonsense'), "'nonsense'; it is host:port"),
  ],
)
def test_a_cluster_that_describes_itself_wrongly(variables, words, monkeypatch):
  _without_cluster(monkeypatch)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
    if name.startswith('SLURM'):
      monkeypatch.setenv('SLURM_STEP_NODELIST', 'a')
  with pytest.raises(build.ConfigError, match=words):
    hosts.start()


def test_flags_that_go_together():
  with pytest.raises(build.ConfigError, match='--process go together'):
    hosts.start(coordinator='localhost:1')
  for address, count, number in (
    ('localhost', 2, 0), ('localhost:x', 2, 0), (':1', 2, 0),
    ('a:99999', 2, 0), ('a:1', 0, 0), ('a:1', 2, 2), ('a:1', 2, -1),
  ):  # fmt: skip
    with pytest.raises(build.ConfigError, match='process 0|--processes='):
      hosts.start(address, count, number)


def test_who_waits_says_for_whom_and_gives_up(monkeypatch, capsys):
  left = threading.Event()
  code = []

  def leave(status):
    code.append(status)
    left.set()

  monkeypatch.setattr(hosts.os, '_exit', leave)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))  # nobody listens
    address = f'127.0.0.1:{probe.getsockname()[1]}'
    with hosts._waiting(address, address, 3, 1, (0.01, 0.02)):
      assert left.wait(10)
  waits, ends = capsys.readouterr().err.splitlines()
  assert 'gen_rl: waiting for the other 2 of 3 processes' in waits
  assert address in waits and 'no process 0 answers' in waits
  assert ends.startswith('gen_rl: gave up after') and code == [2]
  with hosts._waiting(address, address, 2, 0, (60, 61)):
    pass  # they came
  assert capsys.readouterr().err == ''


def test_one_process_needs_nobody():
  assert hosts.from_first(lambda: 'mine') == 'mine'
  assert hosts.any_process(True) and not hosts.any_process(False)
  x = np.arange(3)
  assert hosts.fetch({'a': x})['a'] is x
  assert hosts.lost(ValueError('x')) is None
