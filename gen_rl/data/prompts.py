"""Where prompts come from: files, tensorflow-datasets, the ShapesWorld grammar.

Every public function gives a `Prompts`: a fixed, indexable list of texts with
numeric columns (`info`, these go on the device), Python columns (`extra`,
these stay on the host, for rewards scored there) and a task label per prompt
where the source has one. Nothing is shuffled here; see `pipeline`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import random
from typing import Any

import numpy as np

from gen_rl.data import columns, text_files
from gen_rl.rewards import geneval as geneval_lib
from gen_rl.rewards import ocr
from gen_rl.worlds import grammar, questions
from gen_rl.worlds import mixture as mixture_world


@dataclasses.dataclass(frozen=True)
class Prompts:
  """N prompts. Immutable; columns are parallel to `texts`."""

  name: str  # for messages and for the fingerprint of unread sources
  texts: Any  # [N] of str; a tuple where everything is in memory
  ids: np.ndarray  # [N] int32, unique: the prompt_id of each
  info: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # [N ...]
  extra: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
  tasks: Sequence[str] = ()  # [N] task labels, or empty
  media: Any = None  # [N h w c] or [N 2 h w c] float32 in [0, 1], or None
  # [N] of K texts each that are false where the text is true, or empty
  wrong: Sequence[Sequence[str]] = ()
  answers: Sequence[str] = ()  # [N] what is right to say, or empty
  # [N] of K questions each that are to be answered by yes ('': none), or empty
  checks: Sequence[Sequence[str]] = ()

  def __len__(self) -> int:
    return len(self.texts)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Record {"text": str, "prompt_id": int, "info": {...}}.

    `info` has the numeric columns as numpy arrays and the Python ones as they
    were read.
    """
    columns = {**self.info, **self.extra}
    return {
      'text': self.texts[i],
      'prompt_id': int(self.ids[i]),
      'info': {name: column[i] for name, column in columns.items()},
    }

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[i] for i in range(len(self)))

  def by_id(self, prompt_id: int) -> dict[str, Any]:
    """The record of a prompt id, for rewards scored on the host."""
    return self[self._index_of[int(prompt_id)]]

  @functools.cached_property
  def _index_of(self) -> dict[int, int]:
    return {int(p): i for i, p in enumerate(self.ids)}

  @functools.cached_property
  def fingerprint(self) -> str:
    """Changes when a prompt, its order or its numeric info changes.

    A source that is not in memory is identified by its name and size.
    """
    digest = hashlib.sha256()
    texts = self.texts if isinstance(self.texts, tuple) else [self.name]
    digest.update(json.dumps([len(self), *texts]).encode())
    digest.update(json.dumps(list(self.tasks)).encode())
    if self.answers:
      digest.update(json.dumps(list(self.answers)).encode())
    if self.wrong:
      digest.update(json.dumps(list(map(list, self.wrong))).encode())
    digest.update(np.ascontiguousarray(self.ids).tobytes())
    for name, column in sorted(self.info.items()):
      digest.update(name.encode())
      if isinstance(column, np.ndarray):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


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


def tfds(
  name: str,
  split: str = 'train',
  text_field: str = 'caption',
  info_fields: Sequence[str] = (),
  media_field: str | None = None,
  data_dir: str | None = None,
) -> Prompts:
  """Fields of a tensorflow-datasets dataset in array_record format.

  Read by random access through `tfds.data_source`: records are read when they
  are asked for, images that were not asked for are not decoded, and TensorFlow
  is not imported (preparing a dataset may import it). Prompt ids are the
  positions in the split.

  Args:
    name: tfds name, "coco_captions" or "my_dataset/config:1.0.0".
    split: tfds split expression, "train" or "train[:1000]".
    text_field: name of the text feature; "a/b" is field b of feature a; of
      several texts per record the first is taken.
    info_fields: numeric features of one shape each, given as `info`.
    media_field: image feature of one size, given as `media`.
    data_dir: where datasets are kept; None is the tfds default.

  Raises:
    ValueError: unknown dataset, split or field, not random-access, or empty.
  """
  import tensorflow_datasets

  where = f'tfds dataset {name!r}'
  fields = [text_field, *info_fields, *([media_field] if media_field else [])]

  def data_source(decoders=None) -> Any:
    return tensorflow_datasets.data_source(
      name,
      split=split,
      data_dir=data_dir,
      decoders=decoders,
      builder_kwargs={'file_format': 'array_record'},
    )

  try:
    source = data_source()
  except tensorflow_datasets.core.DatasetNotFoundError as e:
    raise ValueError(
      f'{where} is neither known to tensorflow-datasets nor found in'
      f' {data_dir or "its data_dir"}'
    ) from e
  except (NotImplementedError, OSError, ValueError) as e:
    reason = ' '.join(str(e).split())[:300]
    raise ValueError(f'{where} split {split!r} cannot be read: {reason}') from e
  if not len(source):
    raise ValueError(f'{where} split {split!r} is empty')
  for field in fields:
    try:
      columns.Column(source.__getitem__, 1, field)[0]
    except (KeyError, TypeError, IndexError):
      raise ValueError(
        f'{where} has no field {field!r}; it has {", ".join(sorted(source[0]))}'
      ) from None
  # Decoding pictures nobody asked for would cost more than everything else.
  unused = {
    feature: tensorflow_datasets.decode.SkipDecoding()
    for feature, kind in source.dataset_info.features.items()
    if isinstance(kind, tensorflow_datasets.features.Image)
    and feature not in fields
  }
  source = data_source(unused)
  read = functools.lru_cache(256)(source.__getitem__)
  size = len(source)
  return Prompts(
    f'{name}/{split}/{"+".join(fields)}',
    columns.Text(read, size, text_field),
    np.arange(size, dtype=np.int32),
    info={field: columns.Column(read, size, field) for field in info_fields},
    media=columns.Media(read, size, media_field) if media_field else None,
  )


def shapes(split: str = 'rl', tasks: Sequence[str] | None = None) -> Prompts:
  """Every sentence of a split of the ShapesWorld grammar.

  `info` is `grammar.spec_arrays`, stacked; prompt ids are those of the
  grammar, so a sentence keeps its id whichever tasks are chosen; `checks` are
  `questions.checks`.

  Args:
    split: "train", "rl", "heldout", or several joined by "+".
    tasks: names out of grammar.TASKS; None is all of them.

  Raises:
    ValueError: unknown split or task, naming the valid ones.
  """
  chosen = grammar.enumerate_prompts(split, tuple(tasks) if tasks else None)
  if not chosen:
    raise ValueError(f'ShapesWorld split {split!r} has no prompt of {tasks}')
  specs = [grammar.spec_arrays(prompt.spec) for prompt in chosen]
  checks = [questions.checks(prompt.spec) for prompt in chosen]
  most = max(map(len, checks))
  return Prompts(
    f'shapes/{split}',
    tuple(prompt.text for prompt in chosen),
    np.array([prompt.prompt_id for prompt in chosen], np.int32),
    info={name: np.stack([s[name] for s in specs]) for name in specs[0]},
    tasks=tuple(grammar.TASKS[prompt.spec.task] for prompt in chosen),
    checks=tuple(c + ('',) * (most - len(c)) for c in checks) if most else (),
  )


def shapes_questions(
  split: str = 'rl', kinds: Sequence[str] | None = None
) -> Prompts:
  """Questions about ShapesWorld pictures, and their answers.

  `info` says what the picture shows (`grammar.spec_arrays`, for
  `pictures.shapes_pictures`), "tasks" are the kinds of questions.

  Args:
    split: "train", "rl", "heldout", or several joined by "+".
    kinds: names out of questions.KINDS; None is all of them.

  Raises:
    ValueError: unknown split or kind, naming the valid ones.
  """
  chosen = questions.enumerate_questions(split, tuple(kinds) if kinds else None)
  scenes = [grammar.spec_arrays(question.scene) for question in chosen]
  return Prompts(
    f'shapes_questions/{split}',
    tuple(question.text for question in chosen),
    np.array([question.question_id for question in chosen], np.int32),
    info={name: np.stack([s[name] for s in scenes]) for name in scenes[0]},
    tasks=tuple(question.kind for question in chosen),
    answers=tuple(question.answer for question in chosen),
  )


def shapes_contrasts(
  split: str = 'rl',
  tasks: Sequence[str] | None = None,
  kinds: Sequence[str] = grammar.KINDS,
  alternatives: int = 4,
) -> Prompts:
  """`shapes`, each sentence with false ones that differ in one thing (TDPO).

  False sentences are worded like the true one (same prefix and order where it
  has them) and are combinations of the same splits. Sentences with none of the
  kinds of change are left out.

  Args:
    split: as `shapes`.
    tasks: as `shapes`.
    kinds: changes out of grammar.KINDS.
    alternatives: K false sentences each, drawn once, with repeats where there
      are fewer.

  Raises:
    ValueError: unknown split, task or kind, naming the valid ones.
  """
  unknown = sorted(set(kinds) - set(grammar.KINDS))
  if unknown or not kinds:
    raise ValueError(
      f'unknown kinds of change {unknown}; choose from '
      f'{", ".join(grammar.KINDS)}'
    )
  source = shapes(split, tasks)
  home = grammar.combinations()
  splits = split.split('+')
  keep, wrong = [], []
  for i, text in enumerate(source.texts):
    spec = grammar.parse(text)
    changed = [
      s
      for s in grammar.mutations(spec, tuple(kinds))
      if home.get(grammar.canonical(s)) in splits
    ]
    if not changed:
      continue
    draw = random.Random(int(source.ids[i]))
    same = grammar.wordings(spec)
    place = same.index(text) if text in same else 0
    keep.append(i)
    chosen = [draw.choice(changed) for _ in range(alternatives)]
    options = map(grammar.wordings, chosen)
    wrong.append(tuple(o[place % len(o)] for o in options))
  rows = np.array(keep)
  return Prompts(
    f'shapes_contrasts/{split}',
    tuple(source.texts[i] for i in keep),
    source.ids[rows],
    info={name: column[rows] for name, column in source.info.items()},
    tasks=tuple(source.tasks[i] for i in keep),
    wrong=tuple(wrong),
  )


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


def mixture() -> Prompts:
  """The four prompts of the mixture world.

  `info` has `named`, the index of the word, and `target` [2], its centre.
  """
  words = mixture_world.WORDS
  named = np.arange(len(words), dtype=np.int32)
  target = np.array(mixture_world.CENTERS, np.float32)
  return Prompts(
    'mixture', words, named, info=dict(named=named, target=target), tasks=words
  )
