"""Prompt text to token ids: fixed word vocabularies and released tokenizers.

A word-level tokenizer maps a prompt x to

  ids(x) = [id(w) for w in split(lower(x))],  id(w) = unk if w is not known (1)

where split cuts at white space and puts every punctuation mark (quotes
included) on its own. Rows are padded on the right with `pad_id` to a fixed
length; there is no begin or end token. `pretrained` gives the same interface
to the tokenizer of a released model (T5, CLIP, a language model).

Only the `tokenizers` package is imported here: `transformers` takes about a
second and is imported by the two functions that need it.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import html
import os
from typing import Any, NamedTuple

import ftfy
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from gen_rl.fields import Count
from gen_rl.utils.words import few
from gen_rl.worlds import grammar, mixture, questions

PAD, UNK, END = '<pad>', '<unk>', '<end>'
NONE = -1  # in rows of ids, where there is no token


class Tokenizer(NamedTuple):
  """Pure functions over one vocabulary.

  `encode(texts, length, truncate=False)` gives int32 [n length], padded on
  the right; a prompt of more than `length` tokens is a ValueError unless
  `truncate`. `decode(ids)` takes [n l] and gives n strings, without
  padding and end token. `unknown(texts)` counts the words that become `unk_id`
  (always empty where a tokenizer falls back to bytes or pieces). `end_id` ends
  what a model says; None where there is none.
  """

  encode: Callable[..., np.ndarray]
  decode: Callable[[np.ndarray], list[str]]
  unknown: Callable[[Iterable[str]], collections.Counter]
  size: int  # number of ids, special tokens included
  pad_id: int
  unk_id: int
  backend: Any  # tokenizers.Tokenizer | transformers tokenizer
  end_id: int | None = None

  def token_id(self, token: str) -> int:
    """The id of a word or special token.

    Raises:
      ValueError: the vocabulary has no such token.
    """
    lookup = getattr(self.backend, 'token_to_id', None)
    lookup = lookup or self.backend.get_vocab().get
    found = lookup(token)
    if found is None:
      raise ValueError(
        f'the vocabulary of {self.size} tokens has no {token!r}; a special '
        'token has to be written as the tokenizer has it'
      )
    return found


def _rows(
  texts: Sequence[str],
  rows: Sequence[Sequence[int]],
  length: int,
  pad_id: int,
  truncate: bool,
) -> np.ndarray:
  """Ragged ids to int32 [n length]; says which prompt is too long."""
  out = np.full((len(rows), length), pad_id, np.int32)
  for text, row, ids in zip(texts, out, rows, strict=True):
    if len(ids) > length and not truncate:
      start = text if len(text) <= 80 else f'{text[:80]}...'
      raise ValueError(
        f'prompt {start!r} has {len(ids)} tokens but the limit is {length};'
        ' shorten the prompt, set data.truncate=True, or use a model that '
        'reads more (data.length)'
      )
    row[: len(ids)] = ids[:length]
  return out


def encode_answers(
  tokenizer: Tokenizer, texts: Sequence[str], length: Count
) -> np.ndarray:
  """What a model should say: ids, int32 [n length], padded with NONE.

  Without an end token, and without what a tokenizer puts around every text.

  Raises:
    ValueError: an answer is empty, or longer.
  """
  longest = max((len(text.encode()) for text in texts), default=0) + 8
  around, *rows = (
    [int(i) for i in ids if i != tokenizer.pad_id]
    for ids in tokenizer.encode(['', *texts], longest)
  )
  out = np.full((len(texts), length), NONE, np.int32)
  for text, row, ids in zip(texts, out, rows, strict=True):
    before = 0
    while before < len(around) and ids[before : before + 1] == [around[before]]:
      before += 1
    behind = len(around) - before
    ids = ids[before : len(ids) - behind]
    if not 0 < len(ids) <= length:
      raise ValueError(
        f'the answer {text!r} has {len(ids)} tokens; data.answer_length is '
        f'{length}, and an answer has one token at least'
      )
    row[: len(ids)] = ids
  return out


def word_level(words: Sequence[str], end: str | None = None) -> Tokenizer:
  """Lower-casing word tokenizer over a fixed vocabulary.

  Ids: 0 is padding, 1 is the unknown word, then `words` in the given order,
  so appending words keeps the ids of the old ones. Typographic quotes count
  as straight ones.

  Args:
    words: distinct lower-case words or single punctuation marks.
    end: a special token that closes what a model says, after all words.

  Raises:
    ValueError: a word is repeated, or is not what the splitter produces (it
      has capitals, spaces or inner punctuation) and could never be matched.
  """
  vocab = {PAD: 0, UNK: 1}
  model = tokenizers.Tokenizer(models.WordLevel({PAD: 0, UNK: 1}, UNK))
  model.normalizer = normalizers.Sequence(
    [
      normalizers.NFKC(),
      normalizers.Replace(tokenizers.Regex('[“”„«»]'), '"'),
      normalizers.Replace(tokenizers.Regex('[‘’‚`]'), "'"),
      normalizers.Lowercase(),
    ]
  )
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.WhitespaceSplit(),
      pre_tokenizers.Punctuation('isolated'),
    ]
  )
  for word in words:
    text = model.normalizer.normalize_str(word)
    pieces = [p for p, _ in model.pre_tokenizer.pre_tokenize_str(text)]
    if pieces != [word]:
      raise ValueError(
        f'vocabulary word {word!r} can never match: the text is split into'
        f' lower-case words, here {pieces}'
      )
    if word in vocab:
      raise ValueError(f'vocabulary word {word!r} is listed twice')
    vocab[word] = len(vocab)
  if end is not None:
    vocab[end] = len(vocab)
  model.model = models.WordLevel(vocab, UNK)
  if end is not None:
    model.add_special_tokens([end])
  names = {i: w for w, i in vocab.items()}

  def encode(texts, length, truncate=False):
    rows = [e.ids for e in model.encode_batch(list(texts))]
    return _rows(texts, rows, length, 0, truncate)

  def decode(ids):
    silent = {0, vocab.get(end)}
    return [
      ' '.join(names[int(i)] for i in row if int(i) not in silent)
      for row in ids
    ]

  def unknown(texts):
    count = collections.Counter()
    for text in texts:
      text = model.normalizer.normalize_str(text)
      pieces = model.pre_tokenizer.pre_tokenize_str(text)
      count.update(p for p, _ in pieces if p not in vocab)
    return count

  return Tokenizer(
    encode, decode, unknown, len(vocab), 0, 1, model, vocab.get(end)
  )


def shapes_words() -> Tokenizer:
  """The words of the ShapesWorld grammar."""
  return word_level(grammar.WORDS)


def shapes_language() -> Tokenizer:
  """The same, the words of questions and answers, and an end token."""
  return word_level((*grammar.WORDS, *questions.WORDS), END)


def mixture_words() -> Tokenizer:
  """The words of the mixture world."""
  return word_level(mixture.WORDS)


def to_transformers(tokenizer: Tokenizer):
  """The same vocabulary as a transformers.PreTrainedTokenizerFast.

  For saving beside a model (`save_pretrained`) and for code that expects the
  transformers interface. Imports transformers (about a second).
  """
  from transformers import PreTrainedTokenizerFast

  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer.backend,
    pad_token=PAD,
    unk_token=UNK,
    padding_side='right',
  )


def cleaned(text: str) -> str:
  """A prompt as open_clip reads it, before its words are looked up.

  Text that was decoded wrongly is repaired (ftfy), HTML entities stand for
  their letters, twice over, runs of white space are a space, letters are small.
  transformers' tokenizer of CLIP does the last two: of 25,432 prompts of
  PickScore 240 are other tokens.
  """
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split()).lower()


def clip(folder: str = '') -> Tokenizer:
  """CLIP's, of a released pipeline; '': words, for networks that are drawn.

  Raises:
    ValueError: see `pretrained`.
  """
  if not folder:
    return shapes_words()
  from gen_rl.models import folders

  return pretrained(folders.locate(folder, 'tokenizer'))


def pretrained(path: str, **kwargs) -> Tokenizer:
  """Tokenizer of a released model, special tokens as that model expects.

  Args:
    path: folder, or a name on the Hugging Face hub.
    **kwargs: passed to transformers.AutoTokenizer.from_pretrained.

  Raises:
    ValueError: the path holds no tokenizer that can be read, it has lost its
      words, or has neither a padding nor an end token.
  """
  from transformers import AutoTokenizer

  where = f'the tokenizer {os.fspath(path)!r}'
  try:
    backend = AutoTokenizer.from_pretrained(path, **kwargs)
  except Exception as e:  # broken files raise whatever they come upon
    reason = ' '.join(str(e).split())[:300]
    raise ValueError(
      f'no tokenizer can be read from {path!r}: {type(e).__name__}: {reason}'
    ) from e
  ids = backend.get_vocab()
  _check_vocabulary(where, path, backend, ids)
  size = max(len(backend), *(i + 1 for i in ids.values()))
  if size > np.iinfo(np.int32).max:
    raise ValueError(
      f'{where} has the id {size - 1}, beyond any table of words'
    )
  pad = backend.pad_token_id
  pad = backend.eos_token_id if pad is None else pad
  if pad is None:
    raise ValueError(f'{where} has no padding or end token')
  unk = backend.unk_token_id
  unk = -1 if unk is None else unk

  def encode(texts, length, truncate=False):
    # Truncation by the tokenizer itself keeps its closing special tokens.
    rows = backend(
      list(texts),
      truncation=truncate,
      max_length=length if truncate else None,
      verbose=False,
    )['input_ids']
    return _rows(texts, rows, length, pad, truncate)

  def decode(ids):
    return backend.batch_decode(np.asarray(ids), skip_special_tokens=True)

  def unknown(texts):
    rows = backend(list(texts), add_special_tokens=False, verbose=False)
    return collections.Counter(
      backend.convert_ids_to_tokens(i)
      for row in rows['input_ids']
      for i in row
      if i == unk
    )

  return Tokenizer(
    encode, decode, unknown, size, pad, unk, backend,
    backend.eos_token_id,
  )  # fmt: skip


def _check_vocabulary(
  where: str, path: str, backend: Any, ids: Mapping[str, int]
) -> None:
  """Raises ValueError if words are missing: transformers makes do without.

  It makes a tokenizer of the special tokens where the files of the words are
  not there.
  """
  files = dict(backend.vocab_files_names)
  whole = files.pop('tokenizer_file', 'tokenizer.json')
  if os.path.isdir(path):
    inside = os.listdir(path)
    absent = [name for name in files.values() if name not in inside]
    if whole not in inside and files and absent:
      raise ValueError(
        f'{where} has no {whole} and no {" and ".join(absent)}; it has '
        f'{few(sorted(inside), 12) or "nothing"}'
      )
  special = {str(x) for x in backend.added_tokens_decoder.values()}
  if not set(ids) - special - {'', '\u2581'}:  # the mark of a space
    raise ValueError(
      f'{where} has no words, only {few(sorted(special)) or "nothing"}: the '
      'files of its vocabulary are missing'
    )
