"""Weak scaling on paper: what a chip holds, computes and sends, of 1 to 256.

  python -m experiments.scaling.run            # plans what results.csv lacks
  python -m experiments.scaling.run --report   # tables and plot of it

Every chip gets the same number of samples, so ideally nothing changes with the
number of chips. Nothing runs on a TPU: see gen_rl/plan.py. A row is a plan.
"""

import argparse
import importlib
import pathlib

from experiments import rows as rows_lib
from experiments import tables
from gen_rl import estimate
from gen_rl.utils import chips, system

FOLDER = pathlib.Path(__file__).parent
GIB = 2**30
# name -> (config, variant, prompts of a chip, {topology: changes})
ARMS = {
  'default, data': (
    'flow_grpo', '', 42, ('1x1', '2x2', '4x4', '8x8', '16x16'), {},
  ),
  'default, fsdp': (
    'flow_grpo', '', 42, ('1x1', '2x2', '4x4', '8x8', '16x16'),
    {'mesh.data': 1, 'mesh.fsdp': -1},
  ),
  '2b, fsdp': ('flow_grpo_2b', '', 1, ('4x4', '8x8', '16x16'), {}),
}  # fmt: skip
COLUMNS = (
  ('chips', ''), ('hbm_gib', '.3f'), ('tflop', '.2f'), ('memory_gb', '.1f'),
  ('sent_gb', '.3f'), ('compute_s', '.3g'), ('memory_s', '.3g'),
  ('network_s', '.3g'), ('share', '.0%'),
)  # fmt: skip
HEADS = (
  'chips', 'HBM, GiB', 'Tflop', 'through memory, GB', 'sent, GB', 'compute, s',
  'memory, s', 'network, s', 'network / longest',
)  # fmt: skip


def measure(arm: str, topology: str) -> rows_lib.Row:
  """Plans one row."""
  name, variant, prompts, _, changes = ARMS[arm]
  devices, chip = chips.devices(f'v5e:{topology}')
  config = importlib.import_module(f'configs.{name}').get_config(variant)
  changes = changes | {'data.prompts_per_step': prompts * len(devices)}
  p = estimate.plan(config, devices, chip, changes, evaluation=False)
  return dict(
    arm=arm, topology=f'v5e:{topology}', chips=p.chips,
    fits=p.fits, hbm_gib=p.needed / GIB, tflop=p.operations / 1e12,
    memory_gb=p.memory / 1e9, sent_gb=sum(p.network.values()) / 1e9,
    **{f'{k}_s': v for k, v in p.seconds.items()},
    **{k.replace('-', '_'): v / 1e9 for k, v in p.network.items()},
    samples=p.rows, open_loops=p.open_loops, git_commit=system.git_commit(),
    compile_seconds=p.compile_seconds,
  )  # fmt: skip


def share(row: rows_lib.Row) -> float:
  """Time on the network over the longest of the others."""
  others = max(float(row['compute_s']), float(row['memory_s']))
  return float(row['network_s']) / others


def table(rows: list[rows_lib.Row], arm: str) -> str:
  """Of an arm, in the order of chips."""
  lines = []
  for row in sorted(
    (r for r in rows if r['arm'] == arm), key=lambda r: int(r['chips'])
  ):
    row = row | dict(share=share(row))
    lines.append(
      [format(float(row[c]), f) if f else row[c] for c, f in COLUMNS]
    )
  return tables.markdown(HEADS, lines)


def plot(rows: list[rows_lib.Row]) -> None:
  """results.png: memory, bytes sent, and the three times over chips."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
  for arm, colour in zip(ARMS, ('C0', 'C1', 'C2'), strict=True):
    mine = sorted(
      (r for r in rows if r['arm'] == arm), key=lambda r: int(r['chips'])
    )
    if not mine:
      continue
    x = [int(r['chips']) for r in mine]
    column = lambda name, mine=mine: [float(r[name]) for r in mine]
    axes[0].plot(x, column('hbm_gib'), 'o-', color=colour, label=arm)
    axes[1].plot(x, column('sent_gb'), 'o-', color=colour, label=arm)
    axes[2].plot(x, [share(r) for r in mine], 'o-', color=colour, label=arm)
  for axis, title in zip(
    axes,
    ('HBM of a chip, GiB', 'sent by a chip and step, GB',
     'network / longest other bound'),
    strict=True,
  ):  # fmt: skip
    axis.set_xscale('log', base=2)
    axis.set_xlabel('chips (v5e)')
    axis.set_title(title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
  axes[0].axhline(16, color='0.5', linestyle=':')
  axes[0].legend(frameon=False)
  figure.tight_layout()
  figure.savefig(FOLDER / 'results.png', dpi=110)


def main() -> None:
  """See the module docstring."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--report', action='store_true')
  if not parser.parse_args().report:
    done = {(r['arm'], r['topology']) for r in rows_lib.read(FOLDER)}
    for arm, (_, _, _, topologies, _) in ARMS.items():
      for topology in topologies:
        if (arm, f'v5e:{topology}') not in done:
          row = measure(arm, topology)
          rows_lib.append(FOLDER, row, ('arm', 'topology'))
          print(row, flush=True)
  rows = rows_lib.read(FOLDER)
  tables.fill_file(
    FOLDER / 'README.md', {arm: table(rows, arm) for arm in ARMS}
  )
  plot(rows)


if __name__ == '__main__':
  main()
