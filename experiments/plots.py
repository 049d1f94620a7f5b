"""results.png of a study: what was reached, after how long, and how honestly.

Left and middle: gold accuracy over updates and over seconds. Right: gold
accuracy over what the trained reward gained; up and to the right is as it
should be, down and to the right is a reward that is fooled. Thick lines are
means over seeds, with a dot an evaluation, thin ones single seeds; dotted
where of a run only the two ends are known.
"""

from collections.abc import Sequence
import functools
import pathlib

import numpy as np

from experiments import rows as rows_lib
from experiments import tables
from experiments.rows import Row
from experiments.study import Study, workdir_of


def points(study: Study, row: Row, runs: pathlib.Path) -> np.ndarray:
  """[n 4] updates, seconds, gold, proxy of a run's evaluations.

  Where neither the row nor its folder has the curve: its two ends.
  """
  text = row.get('curve')
  if not text:
    arm, seed, commit = row['arm'], row['seed'], row['git_commit']
    text = rows_lib.curve(workdir_of(study, arm, seed, runs, commit))
  if text:
    return np.array([point.split() for point in text.split('; ')], float)
  of = functools.partial(tables.value, row)
  seconds = of('wall_seconds') - of('seconds_to_first_metric')
  return np.array([
    [0, 0, of('base_strict'), of('base_proxy')],
    [of('steps'), seconds, of('strict'), of('proxy')],
  ])  # fmt: skip


def mean(curves: Sequence[np.ndarray]) -> np.ndarray:
  """Over seeds, at the updates after which all of them were evaluated."""
  steps = sorted(set.intersection(*(set(c[:, 0]) for c in curves)))
  at = [[c[c[:, 0] == step][0] for step in steps] for c in curves]
  return np.mean(at, axis=0)


def plot(study: Study, rows: Sequence[Row], runs: pathlib.Path) -> None:
  """Writes results.png beside run.py; nothing without rows.

  Args:
    study: see `Study`.
    rows: of results.csv.
    runs: folder of the runs, for rows without a curve.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  if not any(row['arm'] in study.arms for row in rows):
    return
  figure, axes = pyplot.subplots(
    1, 3, figsize=(13, 4.6), sharey=True, layout='constrained'
  )
  colors = pyplot.get_cmap('tab10' if len(study.arms) <= 10 else 'tab20')
  for i, name in enumerate(study.arms):
    found = [row for row in rows if row['arm'] == name]
    if not found:
      continue
    curves = [points(study, row, runs) for row in found]
    seeds = f'{len(curves)} seed' + 's' * (len(curves) > 1)
    look = dict(color=colors(i), linestyle='-')
    if any(len(curve) <= 2 for curve in curves):
      seeds += ', ends only'
      look['linestyle'] = ':'
    for curve in curves if len(curves) > 1 else ():
      for axis, x in zip(axes, _abscissas(curve)):
        axis.plot(x, curve[:, 2], linewidth=0.8, alpha=0.45, **look)
    middle = mean(curves)
    look |= dict(linewidth=2.2, marker='o', markersize=3.5)
    for axis, x in zip(axes, _abscissas(middle)):
      label = f'{name} ({seeds})' if axis is axes[0] else None
      axis.plot(x, middle[:, 2], label=label, **look)
    end = _abscissas(middle)[2][-1:], middle[-1:, 2]
    axes[2].plot(*end, 'o', markersize=9, color=look['color'])
  axes[0].set(xlabel='updates', ylabel=study.gold)
  axes[1].set(xlabel='seconds since the first metric, evaluations included')
  axes[2].set(xlabel=f'{study.proxy}: change from the base (large dot: end)')
  for axis in axes:
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)
  figure.suptitle(study.title)
  axes[2].locator_params(axis='x', nbins=7)
  longest = max(map(len, axes[0].get_legend_handles_labels()[1]))
  columns = max(1, 150 // (longest + 7))
  figure.legend(loc='outside lower center', ncols=columns, frameon=False)
  figure.savefig(study.folder / 'results.png', dpi=100)
  pyplot.close(figure)


def _abscissas(curve: np.ndarray) -> tuple[np.ndarray, ...]:
  return curve[:, 0], curve[:, 1], curve[:, 3] - curve[0, 3]
