"""results.csv of a study: a row a run.

Columns are those of COLUMNS, what the study adds, and accuracy by task,
`base_<task>` and `<task>`. `curve` is what the plot needs of an evaluation,
"updates seconds gold proxy; ...". Files with fewer or other columns are read
and added to all the same.
"""

from collections.abc import Sequence
import csv
import datetime
import json
import math
import os
import pathlib
from typing import Any

from gen_rl import metrics
from gen_rl.utils import files, system

COLUMNS = (
  'arm', 'seed', 'date', 'steps', 'samples', 'base_strict', 'strict',
  'base_proxy', 'proxy', 'base_diversity', 'diversity', 'kl', 'wall_seconds',
  'seconds_to_first_metric', 'samples_per_second', 'peak_rss_bytes',
  'updates_skipped', 'device', 'cpus', 'jax_version', 'git_commit',
)  # fmt: skip
Row = dict[str, Any]  # of results.csv: text, or numbers not yet written


def read(folder: pathlib.Path) -> list[Row]:
  """Rows of the results.csv of a study's folder; [] without one."""
  path = folder / 'results.csv'
  if not path.exists():
    return []
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def append(
  folder: pathlib.Path, row: Row, key: Sequence[str] = ('arm', 'seed')
) -> None:
  """Adds a row to results.csv, unless that arm and seed (`key`) have one.

  New columns go to the end. The file is replaced as a whole, under a lock: a
  process killed meanwhile leaves the old one, two processes add two rows.
  """
  path = folder / 'results.csv'
  with files.locked(folder / 'results.csv.lock'):
    rows = read(folder)
    if any(all(r[k] == str(row[k]) for k in key) for r in rows):
      return
    rows.append(row)
    partial = path.with_name('results.csv.part')
    with partial.open('w', newline='') as file:
      columns = list(dict.fromkeys(key for r in rows for key in r))
      writer = csv.DictWriter(file, columns, lineterminator='\n')
      writer.writeheader()
      writer.writerows(rows)
    os.replace(partial, path)


def stamp() -> Row:
  """The columns that say when, and from which code, a row was measured."""
  today = datetime.date.today().isoformat()
  return dict(date=today, git_commit=system.git_commit())


def curve(workdir: pathlib.Path) -> str:
  """'updates seconds gold proxy; ...' of a run's evaluations; '' of none."""
  lines = metrics.read(workdir / metrics.FILE)
  points = []
  for line in lines:
    if line.get('eval/strict') is not None:
      proxy = line.get('eval/proxy')
      proxy = math.nan if proxy is None else proxy
      seconds = line['time'] - lines[0]['time']
      points.append(
        f'{line["step"]} {seconds:.1f} {line["eval/strict"]:.4f} {proxy:.4f}'
      )
  return '; '.join(points)


def row_of(workdir: pathlib.Path, **more: Any) -> Row:
  """The row of a finished run.

  Args:
    workdir: of the run.
    more: columns that say more than its files do, `arm`, or better.
  """
  result = json.loads((workdir / 'result.json').read_text('utf-8'))
  row = {key: result.get(key) for key in COLUMNS}
  drawn = [line.get('samples') for line in metrics.read(workdir / metrics.FILE)]
  row['samples'] = max(filter(None, drawn), default=None)
  for prefix, part in (('base_', result['base']), ('', result['trained'])):
    for key in ('strict', 'proxy', 'diversity'):
      row[f'{prefix}{key}'] = part[key]
    for task, strict in part['strict_per_task'].items():
      row.setdefault(f'{prefix}{task}', strict)
  if 'seeds_at_once' in result:
    row['seeds_at_once'] = result['seeds_at_once']
  return {**row, **more, 'curve': curve(workdir)}
