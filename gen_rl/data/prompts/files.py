"""Prompts of files: lines of text, of JSON, and pairs of pictures."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from gen_rl.data import array_files, columns, text_files
from gen_rl.data.prompts.source import Prompts
from gen_rl.fields import Index
from gen_rl.scoring import geneval as geneval_lib
from gen_rl.scoring import spelling
from gen_rl.utils.words import few
from gen_rl.worlds import world


def _understood(texts: Sequence[str]) -> dict[str, Any]:
  """`info` and `tasks` of the sentences of a world, if all of them are."""
  found = world.understood(texts)
  if found is None:
    return {}
  _, said = found
  return dict(info=world.columns(said), tasks=tuple(s.task for s in said))


def txt(path: str) -> Prompts:
  """One prompt per line; blank lines are skipped.

  Where every line is a sentence of one world, `info` and `tasks` are those of
  `world_prompts`, so that its oracle can judge.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is empty, a line is not UTF-8, or lines are rows of a
      table or objects of JSON.
  """
  found = text_files.lines(path)
  texts = tuple(text for _, text in found)
  tabs = sum('\t' in text for text in texts)
  if 2 * tabs >= len(texts):
    names = ', '.join(map(repr, texts[0].split('\t')))
    raise ValueError(
      f'prompt file {path} has tabs in {tabs} of {len(texts)} lines: it is a '
      'table; name the column with data.prompts.name="table" and '
      f'data.prompts.column, one of {names:.200}'
    )
  if all(text[0] == '{' and text[-1] == '}' for text in texts):
    raise ValueError(
      f'prompt file {path} has a JSON object in every line; read it with '
      'data.prompts.name="metadata_jsonl"'
    )
  ids = np.arange(len(texts), dtype=np.int32)
  return Prompts(str(path), texts, ids, as_listed=True, **_understood(texts))


def metadata_jsonl(
  path: str,
  answer_field: str = '',
  prompt_field: str = 'prompt',
  image_field: str = '',
  image_size: Index = 0,
  wrong_field: str = '',
) -> Prompts:
  """One JSON object a line, such as GenEval's metadata.

  "tag" is the task label, of all lines or none. All fields but the prompt are
  kept as Python objects in `extra` (absent ones are None). Sentences of a world
  as `txt`.

  Args:
    path: of the file.
    answer_field: name of the text or number that is right to say, in every
      line; '': there are no answers.
    prompt_field: name of the prompt, a text.
    image_field: name of the path of the picture a prompt is about, from the
      folder of the file on, and in it; '': there are no pictures. Each is read
      when it is drawn. The policy sees them with data.view=dict(name='given'),
      or learns to make them with rollout=dict(name='given'). Of several, a list
      of as many in every line, rows draw theirs with dict(name='references').
    image_size: pixels of a side, to which the middle square of every picture is
      brought; 0: they are all of one size and stay as they are.
    wrong_field: name of a list of one or more texts, in every line, that are
      false of the picture, such as the prompt with another colour, for
      rollout=dict(name='given_prompt_pairs'); '': there are none.

  Raises:
    FileNotFoundError: no such file.
    ValueError: naming the line that is malformed, or lacks a prompt, an answer,
      a picture, a false prompt or a label that others have.
  """
  records = text_files.json_records(path)
  source = _of_records(
    path, records, (prompt_field, 'prompt_field'),
    (answer_field, 'answer_field'), (image_field, 'image_field'), image_size,
    'tag',
  )  # fmt: skip
  if not wrong_field:
    return source
  wrong = tuple(
    text_files.texts_of(
      path, number, record, wrong_field, 'data.prompts.wrong_field'
    )
    for number, record in records
  )
  for (number, _), text, false in zip(
    records, source.texts, wrong, strict=True
  ):
    if text in false:
      raise ValueError(
        f'prompt file {path} line {number}: "{wrong_field}" holds the prompt '
        f'itself, {text!r:.80}'
      )
  return dataclasses.replace(source, wrong=wrong)


def table(
  path: str,
  column: str = 'prompt',
  answer_column: str = '',
  task_column: str = '',
  image_column: str = '',
  image_size: Index = 0,
) -> Prompts:
  """A table whose first line names the columns, separated by tabs or commas.

  All columns but the prompt are kept as texts in `extra`. Sentences of a world
  as `txt`.

  Args:
    path: of the file, such as PartiPrompts.tsv.
    column: name of the prompts.
    answer_column: name of what is right to say; '': there are no answers.
    task_column: name of the task labels, or ''.
    image_column: see `metadata_jsonl`, as `image_size`.
    image_size: see `metadata_jsonl`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: there is no such column, listing those there are; naming the
      line that does not fit.
  """
  records = text_files.table_records(path)
  names = list(records[0][1])
  for name in (column, answer_column, task_column, image_column):
    if name and name not in names:
      raise ValueError(
        f'prompt file {path} has no column {name!r}; it has '
        f'{", ".join(map(repr, names))} (data.prompts.column says which one '
        'the prompts are)'
      )
  return _of_records(
    path, records, (column, 'column'), (answer_column, 'answer_column'),
    (image_column, 'image_column'), image_size, task_column,
  )  # fmt: skip


def _of_records(
  path: str,
  records: Sequence[tuple[int, dict[str, Any]]],
  prompt: tuple[str, str],
  answer: tuple[str, str],
  image: tuple[str, str],
  image_size: int,
  task: str,
) -> Prompts:
  """Prompts of (line, {field: value}).

  Args:
    path: of the file.
    records: its lines.
    prompt: (name of the field, option that says so).
    answer: likewise; name '' is none.
    image: likewise.
    image_size: see `metadata_jsonl`.
    task: name of the field of task labels, texts of all or of none.
  """

  def column(field: tuple[str, str], numbers: bool = False) -> tuple[str, ...]:
    name, option = field
    return tuple(
      text_files.text_of(
        path, number, record, name, f'data.prompts.{option}', numbers
      )
      for number, record in (records if name else ())
    )

  texts, answers = column(prompt), column(answer, True)
  if image_size < 0:
    raise ValueError(f'data.prompts.image_size is {image_size}, not 0 or more')
  media = _pictures(path, records, image, image_size) if image[0] else None
  names = dict.fromkeys(name for _, record in records for name in record)
  extra = {
    name: tuple(record.get(name) for _, record in records)
    for name in names
    if name != prompt[0]
  }
  labels = extra.get(task, ())
  for (number, _), label in zip(records, labels):
    if not isinstance(label, str):
      raise ValueError(
        f'prompt file {path} line {number}: {task!r} is {label!r:.40}; it is '
        'the label of the task, a text in every line or in none'
      )
  understood = _understood(texts)
  return Prompts(
    str(path),
    texts,
    np.arange(len(records), dtype=np.int32),
    info=understood.get('info', {}),
    extra=extra,
    tasks=labels or understood.get('tasks', ()),
    media=media,
    answers=answers,
    as_listed=True,
  )


def _pictures(
  path: str,
  records: Sequence[tuple[int, dict[str, Any]]],
  image: tuple[str, str],
  size: int,
) -> columns.Pictures | columns.Several:
  """[N h w 3] of files that are read when asked for; of lists, [N k h w 3].

  Args:
    path: see `_of_records`, as all others.
    records: [N] of them.
    image: (name of the field, option that says so).
    size: of their sides.
  """
  name, option = image[0], f'data.prompts.{image[1]}'
  several = isinstance(records[0][1].get(name), list)
  read = text_files.texts_of if several else text_files.text_of
  found = [read(path, i, record, name, option) for i, record in records]
  rows = found if several else [(file,) for file in found]
  folder, paths, called = os.path.dirname(text_files.located(path)), [], []
  for (number, _), files in zip(records, rows, strict=True):
    where = f'prompt file {path} line {number}'
    if len(files) != len(rows[0]):
      raise ValueError(
        f'{where}: "{name}" lists {len(files)} pictures, and that of line '
        f'{records[0][0]} {len(rows[0])}; all lines have as many'
      )
    for file in files:
      beyond = os.path.normpath(file).split(os.sep)[0] == os.pardir
      if beyond or os.path.isabs(file):
        raise ValueError(
          f'{where}: the picture {file} is not in the folder of the file; '
          'paths start there and do not leave it'
        )
      paths.append(os.path.join(folder, file))
      called.append(f'{where}: the picture {file}')
  pictures = columns.Pictures(paths, called, size)
  return columns.Several(pictures, len(rows[0])) if several else pictures


def geneval(path: str) -> Prompts:
  """GenEval's own prompts (or others written like them), for its rewards.

  `info` has the fields of scoring.geneval.Clauses and `confidence`, how sure a
  detection has to be.

  Raises:
    FileNotFoundError: no such file.
    ValueError: naming the line that is malformed, lacks a prompt or a tag, or
      asks for a class, a colour or a relation that GenEval does not have.
  """
  source = metadata_jsonl(path)
  records = []
  for number, record in text_files.json_records(path):
    text_files.text_of(path, number, record, 'tag', 'GenEval')
    records.append(record)
  try:
    clauses = geneval_lib.parse_metadata(records, geneval_lib.CLASSES)
  except ValueError as error:
    raise ValueError(f'prompt file {path}: {error}') from None
  info = {f.name: getattr(clauses, f.name) for f in dataclasses.fields(clauses)}
  info['confidence'] = geneval_lib.thresholds(source.tasks)
  return dataclasses.replace(source, info=info)


def quoted(path: str) -> Prompts:
  """Prompts with a text in double quotes, one per line, for OCR rewards.

  `info` has `text`, the code points of the first text in quotes, in lower case
  and without spaces, padded with 0.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is empty, or a line has no text in double quotes.
  """
  found = text_files.lines(path)
  wanted = []
  for number, text in found:
    try:
      wanted.append(spelling.quoted_text(text))
    except ValueError as error:
      raise ValueError(f'prompt file {path} line {number}: {error}') from None
  codes, _ = spelling.encode(wanted, max(map(len, wanted)))
  return dataclasses.replace(txt(path), info=dict(text=codes), tasks=())


def pairs(path: str) -> Prompts:
  """Preference pairs from an .npz file, for Diffusion-DPO.

  Arrays `prompt` [N] of texts, `preferred` and `other` [N h w c], uint8 or
  float in [0, 1]. Sentences of a world as `txt`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not such a file, saying what it lacks.
  """
  file = array_files.Archive(path, 'file of pairs')
  names = 'prompt', 'preferred', 'other'
  if missing := sorted(set(names) - set(file.headers)):
    raise ValueError(
      f'{file.where} lacks {", ".join(missing)}; it has '
      f'{few(sorted(file.headers)) or "nothing"}'
    )
  prompt, one, two = (file.headers[name] for name in names)
  if prompt.dtype.kind != 'U':
    raise ValueError(f'{file.where}: prompt is no text but {prompt.dtype}')
  if (
    len(prompt.shape) != 1
    or len(one.shape) != 4
    or one.shape != two.shape
    or one.shape[:1] != prompt.shape
    or one.shape[-1] not in (1, 3)
    or 0 in one.shape
  ):
    raise ValueError(
      f'{file.where}: prompt [N], preferred and other [N h w c], c of 1 or 3, '
      f'are {prompt.shape}, {one.shape}, {two.shape}'
    )
  known = one.dtype == np.uint8 or one.dtype.kind == 'f'
  if one.dtype != two.dtype or not known:
    raise ValueError(
      f'{file.where}: preferred and other are {one.dtype} and {two.dtype}; '
      'pictures are both uint8, or both floats in [0, 1]'
    )
  given, *both = file.read(names)
  texts = tuple(map(str, given))
  if blank := [i for i, text in enumerate(texts) if not text.strip()]:
    raise ValueError(f'{file.where}: prompt is blank in row {few(blank)}')
  for name, x in zip(names[1:], both, strict=True):
    if one.dtype.kind == 'f' and not ((x >= 0) & (x <= 1)).all():
      raise ValueError(
        f'{file.where}: {name} has numbers that are not in [0, 1], from '
        f'{x.min():g} to {x.max():g}'
      )
  media = np.stack(both, 1)
  scale = 255 if media.dtype == np.uint8 else 1
  return Prompts(
    os.path.expanduser(os.fspath(path)),
    texts,
    np.arange(len(texts), dtype=np.int32),
    media=media.astype(np.float32) / scale,
    as_listed=True,
    **_understood(texts),
  )
