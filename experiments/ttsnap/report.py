"""results.csv, the tables and the plot of `run.py`. Not a program."""

import csv
import io
import pathlib

import numpy as np

from gen_rl.utils import files

HERE = pathlib.Path(__file__).resolve().parent
FEW = 8  # steps of the arm that takes fewer
ARMS = {
  'best_of_n': 'best of n',
  'early_clean': "TTSnap's cuts, clean reward",
  'early_aware': "TTSnap's cuts, noise-aware",
  'late_clean': 'late cuts, clean reward',
  'late_mixed': 'late cuts, noise-aware, levels mixed',
  'late_aware': 'late cuts, noise-aware',
  'zero_order': 'zero-order search',
  'best_of_n_few': f'best of n, {FEW} steps',
}
READERS = {
  'clean': 'clean reward',
  'mixed': 'noise-aware, levels mixed',
  'aware': 'noise-aware, curriculum',
}
METRICS = ('verifier', 'gold')
FIELDS = ('seed', 'arm', 'metric', 'x', 'value', 'date', 'git_commit')


def read() -> list[dict[str, str]]:
  path = HERE / 'results.csv'
  if not path.exists():
    return []
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def write(rows: list[dict]) -> None:
  """Replaces results.csv as a whole; numbers to five digits."""
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, FIELDS, lineterminator='\n')
  writer.writeheader()
  for row in rows:
    short = {k: f'{v:.5g}' for k, v in row.items() if isinstance(v, float)}
    writer.writerow(row | short)
  files.write_text(HERE / 'results.csv', text.getvalue())


def values(rows: list[dict], arm: str, metric: str) -> dict[float, list[float]]:
  """{x: values of the seeds}; x is a budget, a level, or 0 where it is none."""
  out: dict[float, list[float]] = {}
  for row in rows:
    if (row['arm'], row['metric']) == (arm, metric):
      out.setdefault(float(row['x'] or 0), []).append(float(row['value']))
  return out


def cell(found: list[float], form: str = '{:.3f}') -> str:
  """Mean, smallest and largest."""
  three = np.mean(found), min(found), max(found)
  return f'{form} ({form} to {form})'.format(*three)


def summary(rows: list[dict]) -> str:
  """Markdown: what budgets buy, what that gains, who reads which level."""
  budgets = list(values(rows, 'best_of_n', 'gold'))
  shown = budgets[1:5]
  lines = []
  for metric in METRICS:
    heads = [metric, *(f'budget {b:.0f}' for b in shown), 'area gain']
    lines += ['| ' + ' | '.join(heads) + ' |', '| --- ' * 6 + '|']
    for arm, name in ARMS.items():
      found = values(rows, arm, metric)
      gain = values(rows, arm, f'gain_{metric}')[0]
      cells = [name, *(cell(found[b]) for b in shown), cell(gain, '{:+.1%}')]
      lines.append('| ' + ' | '.join(cells) + ' |')
    lines.append('')
  levels = (0, 2, 4, 6, 8, 11, 14)
  heads = ['tau at step', *map(str, levels)]
  lines += ['| ' + ' | '.join(heads) + ' |', '| --- ' * 8 + '|']
  for reader, name in READERS.items():
    found = values(rows, reader, 'tau')
    cells = [name, *(cell(found[s], '{:.2f}') for s in levels)]
    lines.append('| ' + ' | '.join(cells) + ' |')
  tried = 'early_aware', 'late_aware', 'best_of_n_few'
  for arm, metric in (
    *((arm, 'candidates') for arm in tried),
    ('all', 'reward_price'),
    ('all', 'distil_seconds'),
  ):
    found = {x: np.mean(v) for x, v in values(rows, arm, metric).items()}
    said = ', '.join(f'{x:.0f}: {v:.4g}' for x, v in found.items())
    lines += ['', f'{arm} {metric} {said}']
  return '\n'.join(lines)


def plot(rows: list[dict]) -> None:
  """results.png: score over budget, by verifier and gold; tau over steps."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.2))
  cycle = pyplot.rcParams['axes.prop_cycle'].by_key()['color']

  def draw(axis, arm, metric, name, color, flip=False):
    found = values(rows, arm, metric)
    x, y = list(found), np.array(list(found.values()))
    y = 1 - y if flip else y
    style = '.--' if arm.startswith('early') else '.-'
    axis.plot(x, y.mean(1), style, color=color, label=name)
    axis.fill_between(x, y.min(1), y.max(1), color=color, alpha=0.2)

  for axis, metric in zip(axes, METRICS):
    for (arm, name), color in zip(ARMS.items(), cycle):
      draw(axis, arm, metric, name, color, flip=metric == 'verifier')
    budgets = [round(b) for b in values(rows, 'best_of_n', metric)]
    axis.set(xlabel='budget of a prompt, network calls', xscale='log')
    axis.set_xticks(budgets, map(str, budgets))
    axis.minorticks_off()
  axes[0].set_yscale('log')
  for (reader, name), color in zip(READERS.items(), cycle[3:]):
    draw(axes[2], reader, 'tau', name, color)
  axes[0].set(ylabel='1 - reward searched by (learned detector)')
  axes[1].set(ylabel='gold: strict accuracy of the oracle')
  axes[2].set(
    xlabel='step of the estimate, of 20', ylabel="Kendall's tau with the end"
  )
  axes[0].legend(fontsize=7)
  axes[2].legend(fontsize=7)
  figure.tight_layout()
  figure.savefig(HERE / 'results.png', dpi=100)
