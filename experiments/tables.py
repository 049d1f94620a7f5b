"""Tables of a study in Markdown, from the rows of results.csv."""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

from experiments.rows import Row
from experiments.study import Study
from gen_rl.utils import files

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
  """What each arm is; overrides that all arms share are said once, below."""
  every = list(study.arms.values())
  shared = set.intersection(*(set(arm.overrides.items()) for arm in every))
  if len(every) == 1:
    shared = set()

  def text(overrides) -> str:
    return ' '.join(f'{k}={v}' for k, v in overrides)

  lines = []
  for name, arm in study.arms.items():
    about = arm.about + (f'; starts from `{arm.after}`' if arm.after else '')
    about += ''.join(f'; `{k}` of `{v}`' for k, v in arm.uses.items())
    about += f'; rows of `{arm.shared}`' if arm.shared else ''
    own = text(x for x in arm.overrides.items() if x not in shared)
    said = f'`{arm.config}`' + (f' with `{own}`' if own else '')
    lines.append((name, about, said))
  table = markdown(('arm', 'what', 'config'), lines)
  if shared:
    common = text(x for x in every[0].overrides.items() if x in shared)
    table += f'\n\nAll with `{common}`.'
  return table


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


def report(study: Study, rows: Sequence[Row]) -> dict[str, str]:
  """{part: table} of what there is, for `fill`."""
  parts = dict(arms=arms(study))
  if rows:
    parts['summary'] = summary(study, rows)
  if any(row['arm'] == study.by_task for row in rows):
    parts['by_task'] = by_task(study, rows)
  return parts


def fill(text: str, parts: Mapping[str, str]) -> str:
  """A README with its tables renewed.

  A part stands between the lines `<!-- summary -->` and `<!-- end -->`. Parts
  that a text does not show are left out, other marks are left alone.

  Raises:
    ValueError: a part's end is missing.
  """
  for name, table in parts.items():
    before, mark, rest = text.partition(f'<!-- {name} -->\n')
    if not mark:
      continue
    _, end, after = rest.partition('<!-- end -->')
    if not end:
      raise ValueError(f'<!-- {name} --> has no <!-- end --> after it')
    text = f'{before}{mark}\n{table}\n\n{end}{after}'
  return text


def fill_file(path: pathlib.Path, parts: Mapping[str, str]) -> None:
  """The same in place; no file, nothing done."""
  if path.exists():
    files.write_text(path, fill(path.read_text(), parts))
