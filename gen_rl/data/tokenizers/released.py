"""Tokenizers of released models, and of ours in their format.

Only the `tokenizers` package is imported by this package: `transformers` takes
about a second and is imported by the two functions here that need it.
"""

from collections import Counter
from collections.abc import Mapping
import html
import json
import os
from typing import Any

import ftfy
import numpy as np

from gen_rl.data.tokenizers.words import PAD, UNK, Tokenizer, padded
from gen_rl.data.tokenizers.worlds import world_words
from gen_rl.fields import Spec
from gen_rl.utils import origins
from gen_rl.utils.words import few


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


def clip(folder: str = '', world: Spec = 'shapes') -> Tokenizer:
  """CLIP's, of a released pipeline, or words, for networks that are drawn.

  Args:
    folder: of the pipeline; '': there is none.
    world: whose words they then are.

  Raises:
    ValueError: see `pretrained`.
  """
  if not folder:
    return world_words(world)
  from gen_rl.models.files import folders

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
  if os.path.isdir(path):
    origins.note(path)
  else:
    origins.give_up()
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
    return padded(texts, rows, length, pad, truncate)

  def decode(ids):
    return backend.batch_decode(np.asarray(ids), skip_special_tokens=True)

  def unknown(texts):
    rows = backend(list(texts), add_special_tokens=False, verbose=False)
    return Counter(
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
  """Raises ValueError if words are missing or have other ids than they say.

  transformers makes a tokenizer of the special tokens where the files of the
  words are not there, and gives an added token whose id leaves a hole the next
  free one.
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
    if whole in inside and backend.is_fast:
      with open(os.path.join(path, whole), encoding='utf-8') as f:
        added = json.load(f).get('added_tokens') or ()
      for token in added:
        word, said = token['content'], token['id']
        if ids.get(word, said) != said:
          raise ValueError(
            f'{where} cannot give {word!r} the id {said} that its {whole} '
            f'says, only {ids[word]}: there are no words between'
          )
  special = {str(x) for x in backend.added_tokens_decoder.values()}
  if not set(ids) - special - {'', '\u2581'}:  # the mark of a space
    raise ValueError(
      f'{where} has no words, only {few(sorted(special)) or "nothing"}: the '
      'files of its vocabulary are missing'
    )
