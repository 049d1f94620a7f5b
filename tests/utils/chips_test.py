"""Names of topologies, and what is said where there is none."""

import sys

import pytest

from gen_rl import build
from gen_rl.utils import chips


@pytest.mark.parametrize(
  ('topology', 'count'),
  [('v4:2x2x1', 4), ('v5e:4x4', 16), ('v5p:2x2x2', 8), ('v6e:2x4', 8)],
)
def test_a_chip_is_a_device(topology, count):
  pytest.importorskip('libtpu')
  devices, chip = chips.devices(topology)
  assert len(devices) == count
  assert {d.platform for d in devices} == {'tpu'}
  kind = topology.split(':')[0]
  assert chip.name.endswith(kind) and chip.hbm and chip.flops


@pytest.mark.parametrize(
  'topology', ['v9:2x2', 'v5e', 'v5e:16', 'v5p:4x4', 'v5e:axb', 'cpu', 'gpu:8']
)
def test_an_unknown_topology_lists_those_there_are(topology):
  with pytest.raises(build.ConfigError) as error:
    chips.devices(topology)
  for part in (topology, 'v5e:4x4', 'v6e', 'cpu:N', 'local'):
    assert part in str(error.value)


def test_a_shape_that_is_not_built():
  pytest.importorskip('libtpu')
  with pytest.raises(build.ConfigError, match="'v5e:3x3' does not exist"):
    chips.devices('v5e:3x3')


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(build.ConfigError) as error:
    chips.devices('v5e:4x4')
  assert 'pip install' in str(error.value) and '[plan]' in str(error.value)
  assert '\n' not in str(error.value)


def test_devices_there_are():
  devices, chip = chips.devices('local')
  assert devices[0].platform == 'cpu' and chip.name == 'CPU'
  assert 2**28 < chip.hbm * len(devices) < 2**45


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('NVIDIA H100 80GB HBM3', 'H100'), ('NVIDIA L4', 'L4'),
    ('NVIDIA L40S', 'NVIDIA L40S'), ('TPU v5 lite', 'TPU v5e'),
    ('TPU v5', 'TPU v5p'),
  ],
)  # fmt: skip
def test_kinds_of_devices(kind, name):
  assert chips.of_kind(kind).name == name
