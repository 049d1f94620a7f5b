"""Meshes and layouts by hand; programs on them are in invariants/."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from gen_rl import (
  advantages,
  build,
  checkpoint,
  rollout,
  sharding,
  testing,
  train_state,
)
from gen_rl.models.parts import layers
from gen_rl.utils import chips, tree

AXES = (
  ('qkv/kernel$', ('embed', 'heads')),
  ('down/kernel$', ('mlp', 'embed')),
  ('bias$', (None,)),
)


class _Mesh:
  """Only its shape is asked for."""

  shape = dict(data=2, fsdp=4, tensor=2)
  size = 16


class _Narrow(_Mesh):
  shape = dict(data=2, fsdp=4, tensor=1)


def _spec(shape, *names, **rules):
  layout = sharding.Layout(_Mesh(), AXES, sharding.RULES | rules)
  return layout.spec(shape, names)


def test_slices_lie_along_the_first_axis():
  """Of chips of two slices, whose neighbours are those of their own slice."""
  pytest.importorskip('libtpu')
  chips.devices('v5e:2x2')  # sets what the library needs
  topology = topologies.get_topology_desc(
    platform='tpu', topology_name='v5e:2x2', num_slices=2
  )
  devices = list(reversed(topology.devices))
  assert {d.slice_index for d in devices} == {0, 1}
  mesh = sharding.make_mesh(data=2, fsdp=4, devices=devices)
  assert dict(mesh.shape) == dict(data=2, fsdp=4, tensor=1)
  for i, part in enumerate(mesh.devices):
    assert {d.slice_index for d in part.ravel()} == {i}
  one = [d for d in devices if d.slice_index == 1]
  assert sharding.make_mesh(devices=one).shape['data'] == 4


def test_specs():
  assert _spec((8, 6), 'embed', 'heads') == PartitionSpec('fsdp', 'tensor')
  assert _spec((6, 8), 'mlp', 'embed') == PartitionSpec('tensor', 'fsdp')
  assert _spec((8,), 'batch') == PartitionSpec(('data', 'fsdp'))
  # An axis of one device splits nothing.
  narrow = sharding.Layout(_Narrow(), AXES)
  assert narrow.spec((8, 6), ('embed', 'heads')) == PartitionSpec('fsdp')
  # 6 is not a multiple of 4, nor 5 of 2.
  assert _spec((6, 5), 'embed', 'heads') == PartitionSpec()
  # "fsdp" belongs to the rows already.
  assert _spec((8, 8), 'batch', 'embed') == PartitionSpec(('data', 'fsdp'))
  assert _spec((8,), None) == PartitionSpec()
  assert _spec((8, 8), 'embed', 'heads', heads=None, embed='tensor') == (
    PartitionSpec('tensor')
  )


def test_logical_axes():
  def axes(name, ndim=2):
    return sharding.logical_axes(name, ndim, AXES)

  assert axes('block_0/qkv/kernel') == ('embed', 'heads')
  assert axes('opt_state/0/mu/down/kernel') == ('mlp', 'embed')
  assert axes('blocks/down/kernel', 3) == (None, 'mlp', 'embed')  # stacked
  assert axes('qkv/kernel_lora_a') == ('embed', None)
  assert axes('qkv/kernel_lora_b') == (None, 'heads')
  for name, ndim in (('qkv/other', 2), ('qkv/kernel', 1)):
    with pytest.raises(ValueError, match=f'{ndim} dimensions of {name!r}'):
      axes(name, ndim)


def test_a_state_is_placed_like_its_parameters():
  policy = testing.make_policy(testing.dit())
  step, state = testing.make_step(policy)
  del step
  mesh = jax.sharding.AbstractMesh((2, 4, 2), sharding.MESH_AXES)
  part = dict(params=state.params, opt_state=state.opt_state)
  state = state.replace(aux=dict(own=part, other=part))
  layout = sharding.Layout(
    mesh, policy.axes, learners=dict(own=policy.axes)
  )  # fmt: skip
  placed = tree.named(layout.state(state))
  whole = {n: s for n, s in placed.items() if n.startswith('aux/other/')}
  assert {s.spec for s in whole.values()} == {PartitionSpec()}
  placed = {n: s for n, s in placed.items() if n not in whole}
  found = {n: s.spec for n, s in placed.items() if n.endswith('qkv/kernel')}
  for name, spec in found.items():
    assert spec == PartitionSpec('fsdp', 'tensor'), name
  moments = [name for name in found if 'opt_state/' in name]
  assert len(moments) == 4  # of Adam, also of the learner
  assert {n for n in found if n not in moments} == {
    f'{part}/block_0/qkv/kernel'
    for part in (
      'params',
      'aux/own/params',
      *(f'refs/{r}' for r in state.refs),
    )
  }
  assert placed['step'].spec == PartitionSpec()
  with pytest.raises(ValueError, match='of its model'):
    layout._replace(axes=AXES).state(state)


def test_constraints_need_a_scope():
  x = jnp.ones((2, 2))
  assert layers.constrain(x, 'batch', None) is x


@pytest.mark.parametrize(
  'sizes, shape',
  [
    ((), (8, 1, 1)),
    ((-1, 4), (2, 4, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 8, 1), (1, 8, 1)),
  ],
)
def test_mesh_shapes(sizes, shape, monkeypatch):
  made = []
  monkeypatch.setattr(jax, 'make_mesh', lambda *a, **k: made.append(a[0]))
  sharding.make_mesh(*sizes, devices=range(8))
  assert made == [shape]


@pytest.mark.parametrize(
  'sizes, words',
  [
    ((2, 2, 1), 'data=2 x fsdp=2 x tensor=1, and there are 8 devices; data=4'),
    ((3, 1, 1), '8 devices; data=8 would'),
    ((-1, 3, 1), 'has to divide 8'),
    ((-1, -1, 1), 'one may be -1'),
    ((0, 1, 1), 'sizes are positive'),
  ],
)
def test_meshes_that_cannot_be(sizes, words):
  with pytest.raises(build.ConfigError, match=words):
    sharding.make_mesh(*sizes, devices=range(8))


_CHAIN = """
  import runpy, sys
  runpy.run_path('tests/sharding_test.py')['save_and_restore'](sys.argv[1])
"""
# Devices, then data x fsdp x tensor of them.
MESHES = (
  (8, 8, 1, 1), (4, 1, 4, 1), (1, 1, 1, 1), (8, 2, 4, 1), (8, 2, 2, 2),
  (8, 1, 2, 4),
)  # fmt: skip


def save_and_restore(folder):
  """A state goes from mesh to mesh, through checkpoints, and stays itself."""
  policy = testing.make_policy(testing.dit(), window=2)
  advantage = advantages.history(4, num_prompts=8, buffer=4, min_count=2)
  _, state = testing.make_step(policy, advantage=advantage)
  # Nothing is zero: moments, averages, statistics of prompts.
  state = jax.tree.map(
    lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), state
  )
  first, samples = jax.device_get(state), []
  rows = rollout.make_rows(
    testing.dit_batch(), 2, jax.random.key(1), jnp.int32(1)
  )
  for i, (count, *sizes) in enumerate(MESHES):
    mesh = sharding.make_mesh(*sizes, jax.devices()[:count])
    away = ('ema', 'optimizer') if sizes == [2, 4, 1] else ()
    layout = sharding.Layout(mesh, policy.axes, offload=away)
    manager = checkpoint.open_manager(folder, keep=1)
    if i:
      state = layout.put(jax.tree.map(jnp.zeros_like, first))
      restored = checkpoint.restore_latest(manager, state)
      assert restored.extra == dict(cursor=i - 1)
      state = restored.state
    else:
      state = layout.put(state)
    places = layout.state(state)
    if count > 1:
      jax.tree.map(lambda x, s: s == x.sharding or 1 / 0, state, places)
    assert tree.differing(jax.device_get(state), first) == []
    if i in (0, len(MESHES) - 1):
      with layout.scope():
        params = train_state.full_params(state)
        traj = jax.jit(policy.rollout)(params, rows, jnp.int32(1))
        samples.append(jax.device_get(traj.sample))
    checkpoint.save(manager, i, state, extra=dict(cursor=i))
    checkpoint.close(manager)
  np.testing.assert_allclose(*samples, atol=1e-5)


def test_a_checkpoint_fits_any_mesh(tmp_path):
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8'
  subprocess.run(
    [sys.executable, '-c', textwrap.dedent(_CHAIN), tmp_path],
    check=True,
    cwd=pathlib.Path(__file__).parents[1],
    env=os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu'),
  )
