"""Programs whose traffic is known, compiled for chips that are not there."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from gen_rl.utils import chips, hlo

N = 4


@pytest.fixture(scope='module')
def mesh():
  pytest.importorskip('libtpu')
  devices, _ = chips.devices('v5e:2x2')
  return jax.make_mesh((N,), ('x',), devices=devices)


def _traffic(mesh, f, *shapes, spec=('x',)):
  """Of f under shard_map, every argument split along its first dimension."""
  spec = PartitionSpec(*spec)
  args = [
    jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec))
    for s in shapes
  ]
  mapped = jax.shard_map(
    f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  lowered = jax.jit(mapped).trace(*args).lower(lowering_platforms=('tpu',))
  return hlo.traffic(lowered.compile().as_text())


def test_a_collective_in_a_loop_counts_every_turn(mesh):
  def f(x):
    turn = lambda _, x: jnp.sin(jax.lax.psum(x, 'x'))
    return jax.lax.fori_loop(0, 5, turn, x)

  found = _traffic(mesh, f, (N * 512, 256))
  one = 512 * 256 * 4
  assert found.network == {'all-reduce': 5 * 2 * (N - 1) / N * one}
  assert found.open_loops == 0


def test_loops_in_loops(mesh):
  def inner(x):
    turn = lambda x, _: (jnp.sin(jax.lax.psum(x, 'x')), None)
    return jax.lax.scan(turn, x, None, length=3)[0]

  def f(x):
    return jax.lax.scan(lambda x, _: (inner(x) + 1, None), x, None, length=7)[0]

  found = _traffic(mesh, f, (N * 512, 256))
  one = 2 * (N - 1) / N * 512 * 256 * 4
  assert found.network == {'all-reduce': 21 * one}


def test_gather_scatter_and_permute(mesh):
  def gather(x):
    return jax.lax.all_gather(jnp.sin(x), 'x', axis=0, tiled=True)[:512] + x

  one = 512 * 256 * 4
  found = _traffic(mesh, gather, (N * 512, 256)).network
  assert sum(found.values()) == pytest.approx((N - 1) * one)

  def permute(x):
    around = [(i, (i + 1) % N) for i in range(N)]
    return jax.lax.ppermute(jnp.sin(x), 'x', around)

  found = _traffic(mesh, permute, (N * 512, 256)).network
  assert found == {'collective-permute': one}


def test_layers_read_their_own_parameters_only(mesh):
  """A loop over stacked matrices reads each once, not all of them each turn."""
  layers, d = 12, 1024

  def f(w, x):
    turn = lambda x, w: (jnp.tanh(x @ w), None)
    return jax.lax.scan(turn, x[0], w[0])[0][None]

  found = _traffic(mesh, f, (N, layers, d, d), (N, 8, d))
  weights = layers * d * d * 4
  assert weights <= found.memory < 2.5 * weights
  assert not found.network


@pytest.mark.parametrize(
  ('groups', 'n'),
  [
    ('replica_groups={{0,1},{2,3}}, x', 2),
    ('replica_groups=[2,8]<=[16], x', 8),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}, x", 4),
    ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}, x", 8),
    ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}, x", 2),
  ],
)
def test_sizes_of_groups(groups, n):
  text = f"""HloModule m

ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {{
  %p = bf16[8,128]{{1,0}} parameter(0)
  ROOT %r = bf16[8,128]{{1,0}} all-reduce(%p), channel_id=1, {groups}
}}
"""
  sent = hlo.traffic(text).network['all-reduce']
  assert sent == 2 * (n - 1) / n * 8 * 128 * 2


_LOOP = """HloModule m

%body (a: (s32[], f32[64])) -> (s32[], f32[64]) {{
  %a = (s32[], f32[64]) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %x = f32[64]{{0}} get-tuple-element(%a), index=1
  %step = s32[] constant(2)
  %more = s32[] add(%i, %step)
  %r = f32[64]{{0}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}}}}
  ROOT %t = (s32[], f32[64]) tuple(%more, %r)
}}

%test (b: (s32[], f32[64])) -> pred[] {{
  %b = (s32[], f32[64]) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %n = s32[] {limit}
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}}

ENTRY %main (p: f32[64]) -> f32[64] {{
  %p = f32[64]{{0}} parameter(0)
  %start = s32[] constant(1)
  %init = (s32[], f32[64]) tuple(%start, %p)
  %w = (s32[], f32[64]) while(%init), condition=%test, body=%body{known}
  ROOT %out = f32[64]{{0}} get-tuple-element(%w), index=1
}}
"""


def test_how_often_a_loop_turns():
  """Of a counter from 1 by 2 to 12, or what the compiler says, or unknown."""
  run = functools.partial(_LOOP.format, known='')
  found = hlo.traffic(run(limit='constant(12)'))
  assert found.network['all-reduce'] == 6 * 256 and found.open_loops == 0
  said = ', backend_config={"known_trip_count":{"n":"9"}}'
  found = hlo.traffic(_LOOP.format(limit='parameter(1)', known=said))
  assert found.network['all-reduce'] == 9 * 256
  found = hlo.traffic(run(limit='parameter(1)'))
  assert found.network['all-reduce'] == 256 and found.open_loops == 1


def test_what_fusions_read_of_what_they_are_given():
  """A layer of a stack, through a fusion inside; rows of a table; a whole."""
  text = """HloModule m

%inner (a: f32[9,4,8], i: s32[]) -> f32[4,8] {
  %a = f32[9,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = f32[1,4,8]{2,1,0} dynamic-slice(%a, %i, %z, %z)
  ROOT %b = f32[4,8]{1,0} bitcast(%s)
}

%outer (x: f32[2,4], w: f32[9,4,8], t: f32[100,8], j: s32[2], k: s32[]) -> f32[2,8] {
  %x = f32[2,4]{1,0} parameter(0)
  %w = f32[9,4,8]{2,1,0} parameter(1)
  %t = f32[100,8]{1,0} parameter(2)
  %j = s32[2]{0} parameter(3)
  %k = s32[] parameter(4)
  %layer = f32[4,8]{1,0} fusion(%w, %k), kind=kLoop, calls=%inner
  %rows = f32[2,8]{1,0} gather(%t, %j)
  %product = f32[2,8]{1,0} convolution(%x, %layer)
  ROOT %sum = f32[2,8]{1,0} add(%product, %rows)
}

ENTRY %main (x: f32[2,4], w: f32[9,4,8], t: f32[100,8], j: s32[2], k: s32[]) -> f32[2,8] {
  %x = f32[2,4]{1,0} parameter(0)
  %w = f32[9,4,8]{2,1,0} parameter(1)
  %t = f32[100,8]{1,0} parameter(2)
  %j = s32[2]{0} parameter(3)
  %k = s32[] parameter(4)
  ROOT %f = f32[2,8]{1,0} fusion(%x, %w, %t, %j, %k), kind=kOutput, calls=%outer
}
"""  # noqa: E501
  indices = 2 + 1
  read = 2 * 4 + 4 * 8 + 2 * 8 + indices
  assert hlo.traffic(text).memory == 4 * (read + 2 * 8)


def test_cpu_programs_are_read_too():
  x = np.ones((256, 256), np.float32)
  f = jax.jit(
    lambda x: jax.lax.fori_loop(0, 10, lambda _, y: jnp.sin(y @ x), x)
  )
  found = hlo.traffic(f.lower(x).compile().as_text())
  assert found.network == {} and found.open_loops == 0
  # Each turn reads two matrices, writes one, and goes over it once more.
  assert 10 * 3 * x.nbytes <= found.memory < 10 * 10 * x.nbytes
