"""Tables of a study in Markdown, from the rows of results.csv."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from experiments.rows import Row
from experiments.study import Study

# Column of results.csv (or a value made of some), heading, format.
_TABLE = (
  ('base_strict', 'gold: base', '.3f'),
  ('strict', 'gold: trained', '.3f'),
  ('base_proxy', 'reward: base', '.3f'),
  ('proxy', 'reward: trained', '.3f'),
  ('kept', 'diversity kept', '.2f'),
  ('kl', 'KL, nats', '.1f'),
  ('samples', 'samples drawn', ',.0f'),
)


def value(row: Mapping[str, Any], column: str) -> float:
  """A number of a row; NaN where nobody measured it."""
  if column == 'kept':
    base = value(row, 'base_diversity')
    return value(row, 'diversity') / base if base else math.nan
  text = row.get(column)
  return math.nan if text in (None, '', 'None') else float(text)


def cell(rows: Sequence[Row], column: str, form: str = '') -> str:
  """'0.910 (0.902 to 0.916)': the mean over seeds, the lowest, the highest.

  Args:
    rows: of one arm.
    column: see `value`.
    form: a format; '': three digits or more.
  """
  values = [value(row, column) for row in rows]
  values = [x for x in values if math.isfinite(x)]
  if not values:
    return '–'
  mean = sum(values) / len(values)
  if not form:
    form = '.3f' if abs(mean) < 10 else '.1f' if abs(mean) < 100 else ',.0f'
  mean, low, high = (format(x, form) for x in (mean, min(values), max(values)))
  return mean if low == high else f'{mean} ({low} to {high})'


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """A table; columns of nothing but dashes are left out."""
  keep = [i for i in range(len(heads)) if any(line[i] != '–' for line in lines)]
  table = [heads, ['---'] * len(heads), *lines]
  return '\n'.join(
    '| ' + ' | '.join(line[i] for i in keep) + ' |' for line in table
  )


def arms(study: Study) -> str:
  """What each arm is."""
  lines = []
  for name, arm in study.arms.items():
    about = arm.about + (f'; starts from `{arm.after}`' if arm.after else '')
    changes = ' '.join(f'{k}={v}' for k, v in arm.overrides.items())
    said = f'`{arm.config}`' + (f' with `{changes}`' if changes else '')
    lines.append((name, about, said))
  return markdown(('arm', 'what', 'config'), lines)


def summary(study: Study, rows: Sequence[Row]) -> str:
  """One line an arm that has rows: means over its seeds."""
  columns = [
    *_TABLE,
    *((column, heading, '') for column, heading in study.columns.items()),
    ('wall_seconds', 'wall, s', ',.0f'),
  ]
  lines = []
  for name in study.arms:
    found = [row for row in rows if row['arm'] == name]
    if not found:
      continue
    cells = [cell(found, column, form) for column, _, form in columns]
    if any(value(row, 'seeds_at_once') > 1 for row in found):
      cells[-1] += ', seeds together'
    lines.append((name, str(len(found)), *cells))
  return markdown(('arm', 'seeds', *(h for _, h, _ in columns)), lines)


def by_task(study: Study, rows: Sequence[Row]) -> str:
  """Gold accuracy of one arm, before and after, task by task."""
  found = [row for row in rows if row['arm'] == study.by_task]
  lines = [
    (task, cell(found, f'base_{task}', '.3f'), cell(found, task, '.3f'))
    for task in study.tasks
  ]
  return markdown((f'{study.by_task}, by task', 'base', 'trained'), lines)


def report(study: Study, rows: Sequence[Row]) -> str:
  """All of them, as the README shows them."""
  parts = [study.title, arms(study)]
  if rows:
    parts.append(summary(study, rows))
  if any(row['arm'] == study.by_task for row in rows):
    parts.append(by_task(study, rows))
  return '\n\n'.join(parts)
