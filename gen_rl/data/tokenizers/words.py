"""Word-level tokenizers over a fixed vocabulary, and the common interface.

A word-level tokenizer maps a prompt x to

  ids(x) = [id(w) for w in split(lower(x))],  id(w) = unk if w is not known (1)

where split cuts at white space and puts every punctuation mark (quotes
included) on its own. Rows are padded on the right with `pad_id` to a fixed
length; there is no begin or end token.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from gen_rl.fields import Count

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


def padded(
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
    return padded(texts, rows, length, 0, truncate)

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
