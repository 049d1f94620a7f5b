"""Text files read so that every complaint names the file and the line."""

from collections.abc import Sequence
import json
import os
from typing import Any


def lines(path: str) -> list[tuple[int, str]]:
  """(line number, stripped line) of the non-blank lines of a text file."""
  path = os.path.expanduser(os.fspath(path))
  if not path:
    raise ValueError(
      'no prompt file is named: set config.data.prompts.path, and '
      'config.eval.prompts.path for the prompts of evaluations'
    )
  try:
    with open(path, 'rb') as f:
      data = f.read()
  except FileNotFoundError:
    raise FileNotFoundError(f'prompt file {path} does not exist') from None
  except OSError as e:
    raise ValueError(f'prompt file {path} cannot be read: {e.strerror}') from e
  out = []
  for number, line in enumerate(
    data.removeprefix(b'\xef\xbb\xbf').split(b'\n')
  ):
    try:
      text = line.decode().strip()
    except UnicodeDecodeError:
      raise ValueError(
        f'prompt file {path} line {number + 1} is not UTF-8 text'
      ) from None
    if text:
      out.append((number + 1, text))
  if not out:
    raise ValueError(f'prompt file {path} is empty: it has no non-blank line')
  return out


def json_records(path: str, texts: Sequence[str]) -> list[dict[str, Any]]:
  """The objects of a file with one JSON object a line.

  Args:
    path: of the file.
    texts: fields that every object has, as texts that are not blank.

  Raises:
    FileNotFoundError: no such file.
    ValueError: naming the line that is malformed or lacks a field.
  """
  records = []
  for number, line in lines(path):
    where = f'prompt file {path} line {number}'
    try:
      record = json.loads(line)
    except json.JSONDecodeError as e:
      raise ValueError(
        f'{where} is not valid JSON: {e.msg} at column {e.colno}'
      ) from None
    if not isinstance(record, dict):
      raise ValueError(f'{where} is not a JSON object')
    for name in texts:
      if name not in record:
        raise ValueError(
          f'{where} has no "{name}" field, only {sorted(record)}'
        )
      text = record[name]
      if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "{name}" is not a text but {text!r}')
    records.append(record)
  return records
