"""Text files read so that every complaint names the file and the line.

Files are UTF-8 whatever the locale, with or without a byte-order mark; lines
end as on Unix or Windows. What is in no text is refused: a NUL, of which UTF-16
is full, and a carriage return within a line.
"""

from collections.abc import Iterator, Sequence
import csv
import json
import math
import os
from typing import Any

_BLANK = '\ufeff \t\r\n\v\f\0'  # what may stand around a text


def located(path: str) -> str:
  """The path of a prompt file, with `~` expanded.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no file is named, or it is none.
  """
  path = os.path.expanduser(os.fspath(path))
  if not path:
    raise ValueError(
      'no prompt file is named: set config.data.prompts.path, and '
      'config.eval.prompts.path for the prompts of evaluations'
    )
  if not os.path.exists(path):
    raise FileNotFoundError(f'prompt file {path} does not exist')
  if not os.path.isfile(path):
    raise ValueError(
      f'prompt file {path} cannot be read: it is a folder or a device'
    )
  return path


def raw_lines(path: str) -> list[str]:
  """All lines of a text file, as they are but for their ends.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it cannot be read, or a line is not UTF-8.
  """
  path = located(path)
  try:
    with open(path, 'rb') as f:
      data = f.read()
  except OSError as e:
    raise ValueError(f'prompt file {path} cannot be read: {e.strerror}') from e
  out = []
  data = data.removeprefix(b'\xef\xbb\xbf').removesuffix(b'\n')
  for number, line in enumerate(data.split(b'\n') if data else (), 1):
    line = line.removesuffix(b'\r')
    for code, name in ((b'\0', 'a NUL'), (b'\r', 'a carriage return')):
      if code in line:
        raise ValueError(
          f'prompt file {path} line {number} holds {name}; save it as UTF-8 '
          'text whose lines end as on Unix or Windows'
        )
    try:
      out.append(line.decode())
    except UnicodeDecodeError:
      raise ValueError(
        f'prompt file {path} line {number} is not UTF-8 text'
      ) from None
  return out


def lines(path: str) -> list[tuple[int, str]]:
  """(line number, stripped line) of the non-blank lines of a text file.

  Raises:
    FileNotFoundError: no such file.
    ValueError: as `raw_lines`, or there are none.
  """
  stripped = [line.strip().strip(_BLANK) for line in raw_lines(path)]
  out = [(number, text) for number, text in enumerate(stripped, 1) if text]
  if not out:
    raise ValueError(f'prompt file {path} is empty: it has no non-blank line')
  return out


class _Repeated(ValueError):
  """A name that an object of JSON has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  made = dict(pairs)
  if len(made) < len(pairs):
    names = [name for name, _ in pairs]
    raise _Repeated(next(n for n in names if names.count(n) > 1))
  return made


def json_records(path: str) -> list[tuple[int, dict[str, Any]]]:
  """(line number, object) of a file with one JSON object a line.

  Raises:
    FileNotFoundError: no such file.
    ValueError: naming the line that is no JSON object.
  """
  records = []
  for number, line in lines(path):
    where = f'prompt file {path} line {number}'
    try:
      record = json.loads(line, object_pairs_hook=_object)
    except _Repeated as e:
      raise ValueError(f'{where} says {str(e)!r} twice') from None
    except json.JSONDecodeError as e:
      raise ValueError(
        f'{where} is not valid JSON: {e.msg} at column {e.colno}; a file has '
        'one object a line'
      ) from None
    except (ValueError, RecursionError):  # numbers of 5,000 digits, brackets
      raise ValueError(f'{where} holds JSON that cannot be read') from None
    if not isinstance(record, dict):
      raise ValueError(f'{where} is not a JSON object')
    records.append((number, record))
  return records


def table_records(path: str) -> list[tuple[int, dict[str, str]]]:
  """(line number, {column: cell}) of a table whose first line names columns.

  Cells are separated by tabs if the first line has any, and then a row is a
  line; else by commas, and a cell in double quotes may hold commas, quotes
  (doubled) and line ends. Cells missing at the end of a row are ''.

  Raises:
    FileNotFoundError: no such file.
    ValueError: naming the line that does not fit; columns without a name or of
      one name.
  """
  rows = _rows_of_table(path, raw_lines(path))
  header = next(rows, (0, []))[1]
  columns = [name.strip(_BLANK) for name in header]
  if not any(columns):
    raise ValueError(
      f'prompt file {path} is empty: the first line of a table names its '
      'columns'
    )
  repeated = sorted({name for name in columns if columns.count(name) > 1})
  if repeated:
    raise ValueError(
      f'prompt file {path}: several columns are named {repeated[0]!r}'
    )
  records = []
  for number, cells in rows:
    if not any(cell.strip(_BLANK) for cell in cells):
      continue
    if len(cells) > len(columns):
      raise ValueError(
        f'prompt file {path} line {number} has {len(cells)} cells, and the '
        f'first line names {len(columns)} columns'
      )
    cells = cells + [''] * (len(columns) - len(cells))
    cells = [cell.strip(_BLANK) for cell in cells]
    records.append((number, dict(zip(columns, cells, strict=True))))
  if not records:
    raise ValueError(
      f'prompt file {path} is empty: it has no row but the first'
    )
  return records


def _rows_of_table(
  path: str, raw: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
  """(line number, cells)."""
  if raw and '\t' in raw[0]:
    for number, line in enumerate(raw, 1):
      yield number, [_unquoted(cell) for cell in line.split('\t')]
    return
  reader = csv.reader((f'{line}\n' for line in raw), strict=True)
  while True:
    number = reader.line_num + 1
    try:
      cells = next(reader)
    except StopIteration:
      return
    except csv.Error as e:
      raise ValueError(
        f'prompt file {path} line {number} is no row of a table: {e}'
      ) from None
    yield number, cells


def _unquoted(cell: str) -> str:
  """A cell of a table with tabs; quotes around all of it are no part of it."""
  inner = cell[1:-1].replace('""', '')
  if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner:
    return cell[1:-1].replace('""', '"')
  return cell


def text_of(
  path: str,
  number: int,
  record: dict[str, Any],
  name: str,
  option: str,
  numbers: bool = False,
) -> str:
  """A field of a record as a text that is not blank.

  Args:
    path: of the file, for messages.
    number: of the line.
    record: that it holds.
    name: of the field.
    option: of the reader, which says what the field is called.
    numbers: take numbers too, as JSON writes them.

  Raises:
    ValueError: naming the line that has no such field, or another value.
  """
  where = f'prompt file {path} line {number}'
  text = _field(where, record, name, option)
  number_like = isinstance(text, int | float) and not isinstance(text, bool)
  if numbers and number_like and math.isfinite(text):
    text = json.dumps(text)
  kind = 'a text or a number' if numbers else 'a text'
  return _text(text, f'{where}: "{name}"', kind)


def texts_of(
  path: str, number: int, record: dict[str, Any], name: str, option: str
) -> tuple[str, ...]:
  """A field of a record as texts, one or more, of which none is blank.

  Args:
    path: as of `text_of`, as all others.
    number: of the line.
    record: that it holds.
    name: of the field.
    option: of the reader, which says what the field is called.

  Raises:
    ValueError: as `text_of`, or the field is no list, or an empty one.
  """
  where = f'prompt file {path} line {number}'
  texts = _field(where, record, name, option)
  if not isinstance(texts, list) or not texts:
    raise ValueError(
      f'{where}: "{name}" is not a list of one or more texts but {texts!r:.80}'
    )
  named = f'{where}: "{name}"[%d]'
  return tuple(_text(x, named % i, 'a text') for i, x in enumerate(texts))


def _field(where: str, record: dict[str, Any], name: str, option: str) -> Any:
  if name not in record:
    raise ValueError(
      f'{where} has no "{name}" field, only {sorted(record)}; {option} says '
      'which one it is'
    )
  return record[name]


def _text(text: Any, what: str, kind: str) -> str:
  if not isinstance(text, str) or not text.strip(_BLANK):
    raise ValueError(f'{what} is not {kind} but {text!r:.80}')
  if any('\ud800' <= letter <= '\udfff' for letter in text):
    raise ValueError(f'{what} holds half a letter, {text!a:.80}')
  return text.strip().strip(_BLANK)
