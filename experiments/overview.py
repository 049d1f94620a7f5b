"""All studies in one table, and how much code each method takes.

  python experiments/overview.py   # prints them and renews README.md

Claims are what run.py says, numbers are from results.csv, verdicts by the rule
of verdicts.py; studies of searches bring lines of their own. Lines
of code are those of a method's config and of the functions that are its own,
as its study names them; docstrings, comments and blank lines do not count.
"""

import ast
import importlib
import io
import math
import pathlib
import statistics
import sys
import tokenize

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import rows, study, tables, verdicts

_NO_CODE = (
  tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
  tokenize.DEDENT, tokenize.ENDMARKER,
)  # fmt: skip


def studies() -> dict[str, study.Study]:
  """{folder: Study} of all folders whose run.py defines one."""
  out = {}
  for path in sorted((study.ROOT / 'experiments').glob('*/run.py')):
    if 'study.Study(' in path.read_text(encoding='utf-8'):
      name = path.parent.name
      out[name] = importlib.import_module(f'experiments.{name}.run').STUDY
      study.check(out[name])
  return out


def lines_of(what: str, root: pathlib.Path = study.ROOT) -> int:
  """Lines of code of a file, or of a function in it: 'gen_rl/optim.py:adamw'.

  Those that hold more than a docstring or a comment.

  Raises:
    ValueError: there is no such function, listing those there are.
  """
  file, _, name = what.partition(':')
  text = (root / file).read_text(encoding='utf-8')
  module = ast.parse(text)
  tokens = tokenize.generate_tokens(io.StringIO(text).readline)
  code = {
    line
    for token in tokens
    if token.type not in _NO_CODE
    for line in range(token.start[0], token.end[0] + 1)
  }
  defined = ast.FunctionDef, ast.ClassDef
  for node in ast.walk(module):
    if isinstance(node, (ast.Module, *defined)) and ast.get_docstring(node):
      code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
  if not name:
    return len(code)
  found = {node.name: node for node in module.body if isinstance(node, defined)}
  if name not in found:
    raise ValueError(f'{file} has no {name!r}; it has {", ".join(found)}')
  node = found[name]
  first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
  return len(code & set(range(first, node.end_lineno + 1)))


def searches() -> dict[str, list[tuple[str, ...]]]:
  """{folder: lines of the claims' table} of run.py's with `overview_lines`."""
  out = {}
  for path in sorted((study.ROOT / 'experiments').glob('*/run.py')):
    if 'def overview_lines(' in path.read_text(encoding='utf-8'):
      name = path.parent.name
      run = importlib.import_module(f'experiments.{name}.run')
      out[name] = run.overview_lines()
  return out


def claims(
  everything: dict[str, study.Study],
  others: dict[str, list[tuple[str, ...]]] | None = None,
) -> str:
  """A line a claim.

  Args:
    everything: studies by folder.
    others: lines of other folders, without the first cell.
  """
  lines = []
  for name, s in everything.items():
    found = rows.read(s.folder)
    for claim in s.claims:
      cells, counts, values = [], [], []
      for number in (claim.baseline, claim.ours):
        arm, _, column = number.partition('.')
        mine = [row for row in found if row['arm'] == arm]
        label = arm + ' base' * column.startswith('base_')
        cells.append(f'{tables.cell(mine, column)}, {label}')
        counts.append(str(len(mine)))
        numbers = [tables.value(row, column) for row in mine]
        values.append([x for x in numbers if math.isfinite(x)])
      d, error = verdicts.difference(*values)
      shown = f'{d:+.3f} ± {error:.3f}' if math.isfinite(error) else '–'
      lines.append((
        f'[{name}]({name})', claim.text, claim.metric, *cells, shown,
        ' and '.join(dict.fromkeys(counts)),
        verdicts.verdict(d, error, claim.margin),
      ))  # fmt: skip
  for name, theirs in (others or {}).items():
    lines += [(f'[{name}]({name})', *line) for line in theirs]
  heads = (
    'study', 'claim', 'metric', 'baseline', 'ours', 'difference', 'seeds',
    'verdict',
  )  # fmt: skip
  return tables.markdown(heads, lines)


def code(everything: dict[str, study.Study]) -> str:
  """A line a method, and the median of the methods."""
  counts, lines = [], []
  for s in everything.values():
    for method, parts in s.code.items():
      counts.append(sum(map(lines_of, parts)))
      where = ', '.join(f'`{part}`' for part in parts)
      lines.append((method, str(counts[-1]), where))
  if counts:
    lines.append(('**median**', f'**{statistics.median(counts):g}**', ''))
  return tables.markdown(('method', 'lines', 'where'), lines)


def tables_of(everything: dict[str, study.Study]) -> dict[str, str]:
  """Both tables, for `tables.fill`."""
  return dict(claims=claims(everything, searches()), code=code(everything))


if __name__ == '__main__':
  both = tables_of(studies())
  print(*both.values(), sep='\n\n')
  tables.fill_file(study.ROOT / 'experiments' / 'README.md', both)
