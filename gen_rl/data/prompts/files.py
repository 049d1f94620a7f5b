"""Prompts of files: lines of text, of JSON, and pairs of pictures."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from gen_rl.data import text_files
from gen_rl.data.prompts.source import Prompts
from gen_rl.rewards import geneval as geneval_lib
from gen_rl.rewards import ocr
from gen_rl.worlds import grammar


def _understood(texts: Sequence[str]) -> dict[str, Any]:
  """`info` and `tasks` of sentences of ShapesWorld, if all of them are."""
  specs = [grammar.parse(text) for text in texts]
  if None in specs:
    return {}
  rows = [grammar.spec_arrays(spec) for spec in specs]
  return dict(
    info={name: np.stack([row[name] for row in rows]) for name in rows[0]},
    tasks=tuple(grammar.TASKS[spec.task] for spec in specs),
  )


def txt(path: str) -> Prompts:
  """One prompt per line; blank lines are skipped.

  Where every line is a sentence of ShapesWorld, `info` and `tasks` are those
  of `shapes`, so that its oracle can judge.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is empty or a line is not UTF-8.
  """
  texts = tuple(text for _, text in text_files.lines(path))
  ids = np.arange(len(texts), dtype=np.int32)
  return Prompts(str(path), texts, ids, **_understood(texts))


def metadata_jsonl(path: str, answer_field: str = '') -> Prompts:
  """GenEval metadata: one JSON object a line with a "prompt" field.

  "tag" is the task label. All fields but the prompt are kept as Python
  objects in `extra` (absent ones are None). Sentences of ShapesWorld as `txt`.

  Args:
    path: of the file.
    answer_field: name of the text that is right to say, in every line; '':
      there are no answers.

  Raises:
    FileNotFoundError: no such file.
    ValueError: naming the line that is malformed, lacks a prompt, or lacks an
      answer.
  """
  needed = ('prompt', answer_field) if answer_field else ('prompt',)
  records = text_files.json_records(path, needed)
  names = {name: None for record in records for name in record}
  tagged = all(isinstance(record.get('tag'), str) for record in records)
  texts = tuple(record['prompt'].strip() for record in records)
  understood = _understood(texts)
  tags = tuple(record['tag'] for record in records) if tagged else ()
  return Prompts(
    str(path),
    texts,
    np.arange(len(records), dtype=np.int32),
    info=understood.get('info', {}),
    extra={
      name: tuple(record.get(name) for record in records)
      for name in names
      if name != 'prompt'
    },
    tasks=tags or understood.get('tasks', ()),
    answers=tuple(record[answer_field].strip() for record in records)
    if answer_field
    else (),
  )


def geneval(path: str) -> Prompts:
  """GenEval's own prompts (or others written like them), for its rewards.

  `info` has the fields of rewards.geneval.Clauses and `confidence`, how sure a
  detection has to be.

  Raises:
    FileNotFoundError: no such file.
    ValueError: naming the line that is malformed, lacks a prompt or a tag, or
      asks for a class, a colour or a relation that GenEval does not have.
  """
  source = metadata_jsonl(path)
  records = text_files.json_records(path, ('prompt', 'tag'))
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
      wanted.append(ocr.quoted_text(text))
    except ValueError as error:
      raise ValueError(f'prompt file {path} line {number}: {error}') from None
  codes, _ = ocr.encode(wanted, max(map(len, wanted)))
  return dataclasses.replace(txt(path), info=dict(text=codes), tasks=())


def pairs(path: str) -> Prompts:
  """Preference pairs from an .npz file, for Diffusion-DPO.

  Arrays `prompt` [N] of texts, `preferred` and `other` [N h w c], uint8 or
  float in [0, 1]. Sentences of ShapesWorld as `txt`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not such a file, saying what it lacks.
  """
  path = os.path.expanduser(os.fspath(path))
  if not os.path.exists(path):
    raise FileNotFoundError(f'file of pairs {path} does not exist')
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
  except (ValueError, OSError) as e:
    raise ValueError(f'file of pairs {path} is no .npz file: {e}') from None
  missing = sorted({'prompt', 'preferred', 'other'} - set(arrays))
  if missing:
    raise ValueError(
      f'file of pairs {path} lacks {", ".join(missing)}; it has '
      f'{", ".join(sorted(arrays)) or "nothing"}'
    )
  media = np.stack([arrays['preferred'], arrays['other']], 1)
  texts = tuple(str(text) for text in arrays['prompt'])
  if not texts or len(media) != len(texts) or media.ndim != 5:
    raise ValueError(
      f'file of pairs {path}: prompt [N], preferred and other [N h w c] are '
      f'{arrays["prompt"].shape}, {arrays["preferred"].shape}, '
      f'{arrays["other"].shape}'
    )
  scale = 255 if media.dtype == np.uint8 else 1
  return Prompts(
    str(path),
    texts,
    np.arange(len(texts), dtype=np.int32),
    media=media.astype(np.float32) / scale,
    **_understood(texts),
  )
