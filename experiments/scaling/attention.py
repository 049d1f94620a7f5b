"""Bytes that released networks move through a TPU's memory, by kernel.

  python -m experiments.scaling.attention            # what results.csv lacks
  python -m experiments.scaling.attention --report   # the table of it

A picture a chip, forward, and forward and backward to its latent with remat
(weights frozen, as beside adapters), in bfloat16, weights split over four chips
that need not be there. The bound is the larger of the times that products and
memory take at the figures of data sheets; the network's is not in it.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp

from experiments import rows as rows_lib
from experiments import tables
from gen_rl import sharding
from gen_rl.models import flux, mmdit
from gen_rl.utils import chips, flops, hlo, system

FOLDER = pathlib.Path(__file__).parent
# name -> (function, sizes, text tokens, numbers of the pooled text)
NETS = {
  'SD3.5-M, 512': (mmdit.mmdit, dict(image=(64, 64, 16)), 333, 2048),
  'FLUX.1, 512': (flux.flux, dict(image=(64, 64, 16)), 512, 768),
  'FLUX.1, 1024': (flux.flux, dict(image=(128, 128, 16)), 512, 768),
}
TOPOLOGIES = ('v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')
KERNELS = ('xla', 'splash')
HEADS = (
  'network, pixels', 'chip', 'forward, GB: xla', 'splash',
  'with backward, GB: xla', 'splash', 'bound, ms: xla', 'splash',
)  # fmt: skip


def measure(name: str, topology: str, kernel: str) -> rows_lib.Row:
  """Compiles one network for four chips."""
  make, sizes, tokens, pooled = NETS[name]
  net = make(
    **sizes, scan=True, remat='full', dtype='bfloat16', attention=kernel
  )
  devices, chip = chips.devices(topology)
  mesh = sharding.make_mesh(data=1, fsdp=len(devices), devices=devices)
  layout = sharding.Layout(mesh, net.axes)
  rows = jax.sharding.PartitionSpec(sharding.ROW_AXES)

  def array(*shape, dtype=jnp.bfloat16):
    place = jax.sharding.NamedSharding(mesh, rows)
    return jax.ShapeDtypeStruct((len(devices), *shape), dtype, sharding=place)

  shapes = jax.eval_shape(net.init, jax.random.key(0))
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s),
    shapes, layout.params(shapes),
  )  # fmt: skip
  x, t = array(*net.shape, dtype=jnp.float32), array(dtype=jnp.float32)
  cond = dict(text=array(tokens, 4096), pooled=array(pooled))

  def forward(params, x, t, cond):
    return net.apply(params, x, t, net.encode(params, cond))

  def backward(params, x, t, cond):
    loss = lambda x: jnp.square(forward(params, x, t, cond)).mean()
    return jax.grad(loss)(x)

  row, start = {}, time.time()
  with layout.scope():
    for key, function in (('forward', forward), ('backward', backward)):
      traced = jax.jit(function).trace(params, x, t, cond)
      moved = hlo.traffic(traced.lower().compile().as_text())
      operations = flops.count(traced.jaxpr).flops / len(devices)
      seconds = operations / chip.flops, moved.memory / chip.bandwidth
      row |= {
        f'{key}_gb': moved.memory / 1e9,
        f'{key}_bound_ms': 1e3 * max(seconds),
        f'{key}_kernels': sum(moved.kernels.values()),
      }
  return dict(
    arm=f'attention, {name}, {kernel}', topology=topology, **row,
    compile_seconds=time.time() - start, git_commit=system.git_commit(),
  )  # fmt: skip


def table(rows: list[rows_lib.Row]) -> str:
  """A line a network and chip."""
  found = {(r['arm'], r['topology']): r for r in rows}
  lines = []
  for name in NETS:
    for topology in TOPOLOGIES:
      pair = [found.get((f'attention, {name}, {k}', topology)) for k in KERNELS]
      if all(pair):
        columns = ('forward_gb', 'backward_gb', 'backward_bound_ms')
        cells = [f'{float(r[c]):.1f}' for c in columns for r in pair]
        lines.append([name, f'TPU {topology.partition(":")[0]}', *cells])
  return tables.markdown(HEADS, lines)


def main() -> None:
  """See the module docstring."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--report', action='store_true')
  if not parser.parse_args().report:
    done = {(r['arm'], r['topology']) for r in rows_lib.read(FOLDER)}
    for name in NETS:
      for topology in TOPOLOGIES:
        for kernel in KERNELS:
          if (f'attention, {name}, {kernel}', topology) not in done:
            row = measure(name, topology, kernel)
            rows_lib.append(FOLDER, row, ('arm', 'topology'))
            print(row, flush=True)
  rows = rows_lib.read(FOLDER)
  tables.fill_file(FOLDER / 'README.md', dict(attention=table(rows)))


if __name__ == '__main__':
  main()
