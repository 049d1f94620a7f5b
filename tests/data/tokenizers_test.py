import json
import subprocess
import sys

import numpy as np
import pytest

from gen_rl.data import tokenizers
from gen_rl.worlds import grammar

WORDS = ('a', 'red', 'circle', 'the', 'word', '"', ',', 'cat')


def _sentences():
  return [prompt.text for prompt in grammar.prompts()]


def test_ids_by_hand():
  tokenizer = tokenizers.word_level(WORDS)
  ids = tokenizer.encode(['A red, RED circle', 'the word "cat"', ''], 6)
  assert ids.dtype == np.int32
  # pad 0, unk 1, then a=2 red=3 circle=4 the=5 word=6 "=7 ,=8 cat=9
  np.testing.assert_array_equal(
    ids, [[2, 3, 8, 3, 4, 0], [5, 6, 7, 9, 7, 0], [0] * 6]
  )
  assert (tokenizer.size, tokenizer.pad_id, tokenizer.unk_id) == (10, 0, 1)


def test_typographic_quotes_are_quotes():
  tokenizer = tokenizers.word_level(WORDS)
  straight, curly = tokenizer.encode(['"cat"', '“Cat”'], 3)
  np.testing.assert_array_equal(straight, curly)


@pytest.mark.parametrize(
  'text, want',
  [
    ('A  Cat\tand\n a dog ', 'a cat and a dog'),
    ('Gandalf’s “Gate”', 'gandalf\'s "gate"'),
    ('salt &amp; pepper', 'salt & pepper'),
    ('salt &amp;amp; pepper &lt;3', 'salt & pepper <3'),
    ('schÃ¶n', 'schön'),  # UTF-8 that was read as Latin-1
    ('ＡＢ e\u0301', 'ab é'),
  ],
)
def test_prompts_are_cleaned_as_open_clip_does(text, want):
  assert tokenizers.cleaned(text) == want


def test_unknown_words_are_counted():
  tokenizer = tokenizers.word_level(WORDS)
  texts = ['a blue circle.', 'the blue cat']
  assert tokenizer.unknown(texts) == {'blue': 2, '.': 1}
  assert (tokenizer.encode(texts, 8) == tokenizer.unk_id).sum() == 3


def test_too_long_is_an_error_that_says_what_and_how_much():
  tokenizer = tokenizers.word_level(WORDS)
  with pytest.raises(ValueError, match="'a red circle' has 3 .* limit is 2"):
    tokenizer.encode(['a', 'a red circle'], 2)
  ids = tokenizer.encode(['a red circle'], 2, truncate=True)
  np.testing.assert_array_equal(ids, [[2, 3]])


@pytest.mark.parametrize(
  'words, message',
  [
    (('red', 'red'), 'twice'),
    (('Red',), 'never match'),
    (('red circle',), 'never match'),
    (('red"',), 'never match'),
    (('',), 'never match'),
  ],
)
def test_vocabularies_that_cannot_work(words, message):
  with pytest.raises(ValueError, match=message):
    tokenizers.word_level(words)


def test_transformers_agree(tmp_path):
  tokenizer = tokenizers.word_level(grammar.WORDS)
  texts = [*_sentences()[::20], 'A Photo of something, “else”']
  ids = tokenizer.encode(texts, 20)
  theirs = tokenizers.to_transformers(tokenizer)
  out = theirs(texts, padding='max_length', max_length=20)
  np.testing.assert_array_equal(ids, out['input_ids'])
  np.testing.assert_array_equal(ids != 0, out['attention_mask'])
  # Saved beside a model and read back as any released tokenizer would be.
  theirs.save_pretrained(tmp_path)
  loaded = tokenizers.pretrained(str(tmp_path))
  np.testing.assert_array_equal(loaded.encode(texts, 20), ids)
  assert loaded.unknown(texts).total() == (ids == tokenizer.unk_id).sum()
  assert loaded[3:6] == tokenizer[3:6]
  # Theirs leaves unknown words out, as it does all special tokens.
  assert loaded.decode(ids[:-1]) == tokenizer.decode(ids[:-1])
  with pytest.raises(ValueError, match='limit is 3'):
    loaded.encode(texts, 3)
  assert loaded.encode(texts, 3, truncate=True).shape == (len(texts), 3)


def test_unreadable_pretrained_is_one_sentence(tmp_path):
  with pytest.raises(ValueError, match='no tokenizer can be read from'):
    tokenizers.pretrained(str(tmp_path))


def _lost(folder, *names):
  """Files of a tokenizer of words are there, but for those."""
  theirs = tokenizers.to_transformers(tokenizers.word_level(['red', 'square']))
  theirs.save_pretrained(folder)
  for name in names:
    (folder / name).unlink()


@pytest.mark.parametrize('kind', ['CLIPTokenizer', 'T5Tokenizer'])
def test_a_vocabulary_that_is_not_there(tmp_path, kind):
  """Transformers makes a tokenizer of special tokens of it."""
  _lost(tmp_path, 'tokenizer.json')
  path = tmp_path / 'tokenizer_config.json'
  said = json.loads(path.read_text())
  said['tokenizer_class'] = kind
  path.write_text(json.dumps(said))
  with pytest.raises(ValueError, match=f'{tmp_path}.* has no tokenizer.json'):
    tokenizers.pretrained(str(tmp_path))


@pytest.mark.parametrize(
  'text', ['null', '[]', '{}', '[' * 10**5, 'x', '{"version": ' + '9' * 6000]
)
def test_tokenizers_that_are_broken(tmp_path, text):
  _lost(tmp_path)
  (tmp_path / 'tokenizer.json').write_text(text)
  with pytest.raises(ValueError, match=r'no tokenizer can be read') as error:
    tokenizers.pretrained(str(tmp_path))
  assert len(str(error.value)) < 600 and '\n' not in str(error.value)


def test_only_special_tokens_and_ids_of_another_table(tmp_path):
  _lost(tmp_path)
  path = tmp_path / 'tokenizer.json'
  said = json.loads(path.read_text())
  said['model']['vocab'] = {'<pad>': 0, '<unk>': 1, 'red': 5000}
  path.write_text(json.dumps(said))
  assert tokenizers.pretrained(str(tmp_path)).size == 5001
  said['model']['vocab']['red'] = 2
  blue = {**said['added_tokens'][0], 'content': 'blue', 'id': 3}
  said['added_tokens'].append(blue)
  path.write_text(json.dumps(said))
  assert tokenizers.pretrained(str(tmp_path)).token_id('blue') == 3
  blue['id'] = 6000
  path.write_text(json.dumps(said))
  with pytest.raises(ValueError, match="'blue' the id 6000 .* only 3"):
    tokenizers.pretrained(str(tmp_path))
  said['added_tokens'].pop()
  said['model']['vocab'] = {'<pad>': 0, '<unk>': 1}
  path.write_text(json.dumps(said))
  with pytest.raises(ValueError, match='has no words, only'):
    tokenizers.pretrained(str(tmp_path))


def test_imports_stay_light():
  code = (
    'import sys; from gen_rl.data import pipeline, prompts, tokenizers;'
    'heavy = {"transformers", "tensorflow", "tensorflow_datasets", "torch"};'
    'sys.exit(str(heavy & set(sys.modules) or ""))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stderr.strip() == ''


@pytest.mark.parametrize('around', [[], [1], [1, 2], [2]])
def test_answers_are_without_what_stands_around_every_text(around):
  ids = dict(a=5, b=0)
  first, last = around[:1] if 1 in around else [], [2] if 2 in around else []
  encode = lambda texts, length, truncate=False: tokenizers.padded(
    texts, [[*first, *map(ids.get, t.split()), *last] for t in texts],
    length, 7, truncate,
  )  # fmt: skip
  vocabulary = tokenizers.Tokenizer(
    encode, None, lambda t: 0, 9, 7, -1, None, 2
  )
  answers = tokenizers.encode_answers(vocabulary, ['a b', 'b'], 3)
  assert answers.tolist() == [[5, 0, -1], [0, -1, -1]]
  for text, length in (('a b', 1), ('', 3)):
    with pytest.raises(ValueError, match=f'{text!r} has . tokens'):
      tokenizers.encode_answers(vocabulary, [text], length)
