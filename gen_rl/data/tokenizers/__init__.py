"""Prompt text to token ids: fixed word vocabularies and released tokenizers.

All have one interface, `Tokenizer`: `words` makes one of a list of words,
`worlds` of a world's, `released` of a released model (T5, CLIP, a language
model).
"""

# ruff: noqa: F401  # what is imported here is what configs can name

from gen_rl.data.tokenizers.released import (
  cleaned,
  clip,
  pretrained,
  to_transformers,
)
from gen_rl.data.tokenizers.words import (
  END,
  NONE,
  PAD,
  UNK,
  Tokenizer,
  encode_answers,
  padded,
  word_level,
)
from gen_rl.data.tokenizers.worlds import (
  mixture_words,
  shapes_language,
  shapes_words,
  world_words,
)

BUILDS = ('Tokenizer',)
