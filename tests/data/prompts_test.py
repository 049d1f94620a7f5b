import dataclasses
import json

import numpy as np
from PIL import Image
import pytest

from gen_rl.data import prompts
from gen_rl.worlds import grammar

LINES = [
  {
    'tag': 'counting',
    'include': [{'class': 'clock', 'count': 2}],
    'exclude': [{'class': 'clock', 'count': 3}],
    'prompt': 'a photo of two clocks',
  },
  {
    'tag': 'colors',
    'include': [{'class': 'dog', 'count': 1, 'color': 'red'}],
    'prompt': ' a photo of a red dog ',
  },
]


def _write(tmp_path, text, name='prompts.txt'):
  path = tmp_path / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return str(path)


def test_txt(tmp_path):
  path = _write(tmp_path, '\ufeffa red circle\r\n\n  the word “HI” \n\n')
  source = prompts.txt(path)
  assert len(source) == 2
  assert source[0] == {'text': 'a red circle', 'prompt_id': 0, 'info': {}}
  assert source[1]['text'] == 'the word “HI”'
  assert [record['prompt_id'] for record in source] == [0, 1]


def test_metadata_jsonl(tmp_path):
  path = _write(tmp_path, '\n\n'.join(map(json.dumps, LINES)))
  source = prompts.metadata_jsonl(path)
  assert source.texts == ('a photo of two clocks', 'a photo of a red dog')
  assert source.tasks == ('counting', 'colors')
  assert source[0]['info'] == {
    name: LINES[0][name] for name in ('tag', 'include', 'exclude')
  }
  assert source.by_id(1)['info'] == {
    'tag': 'colors',
    'include': LINES[1]['include'],
    'exclude': None,
  }
  assert json.dumps(source[1])
  assert not source.info  # nothing of it can go on a device


def test_answers_of_jsonl(tmp_path):
  path = _write(
    tmp_path, '{"prompt": "how many ?", "answer": " two "}\n{"prompt": "why ?"}'
  )
  assert prompts.metadata_jsonl(path).answers == ()
  with pytest.raises(ValueError, match='line 2 has no "answer" field, only'):
    prompts.metadata_jsonl(path, answer_field='answer')
  path = _write(tmp_path, '{"prompt": "how many ?", "answer": " two "}')
  source = prompts.metadata_jsonl(path, answer_field='answer')
  assert source.answers == ('two',)


@pytest.mark.parametrize(
  'answer, text',
  [('4', '4'), ('-0.5', '-0.5'), ('"four"', 'four'), ('12345678', '12345678')],
)
def test_answers_may_be_numbers(tmp_path, answer, text):
  path = _write(tmp_path, f'{{"q": "how many ?", "a": {answer}}}')
  source = prompts.metadata_jsonl(path, prompt_field='q', answer_field='a')
  assert source.texts == ('how many ?',) and source.answers == (text,)


@pytest.mark.parametrize('answer', ['true', 'null', 'NaN', '1e999', '[]', '""'])
def test_answers_that_are_none(tmp_path, answer):
  path = _write(tmp_path, f'\n{{"prompt": "how many ?", "a": {answer}}}')
  with pytest.raises(ValueError, match='line 2: "a" is not a text or a number'):
    prompts.metadata_jsonl(path, answer_field='a')


TSV = 'Prompt\tKind\tNote\r\n"an ""old"" robot"\tArtifact\n\n a dusk \tOut\tx'
CSV = '\ufeffPrompt,Kind,Note\n"an ""old"" robot",Artifact,\n\na dusk,Out,x\n'


@pytest.mark.parametrize('text', [TSV, CSV], ids=['tsv', 'csv'])
def test_tables(tmp_path, text):
  path = _write(tmp_path, text, 'table')
  source = prompts.table(path, 'Prompt', task_column='Kind')
  assert source.texts == ('an "old" robot', 'a dusk')
  assert source.tasks == ('Artifact', 'Out')
  assert source.by_id(1)['info'] == {'Kind': 'Out', 'Note': 'x'}
  assert source.by_id(0)['info']['Note'] == ''
  with pytest.raises(ValueError, match="no column 'prompt'; it has 'Prompt'"):
    prompts.table(path, 'prompt')


@pytest.mark.parametrize(
  'text, message',
  [
    ('prompt\tb\na dog\t1\n a cat\t1\t2', 'line 3 has 3 cells'),
    ('prompt,b\n"a ""dog",1\n"a "cat",1', 'line 3 is no row of a table'),
    ('prompt,prompt\na,b', "several columns are named 'prompt'"),
    ('prompt,b\n', 'no row but the first'),
    ('prompt,b\na dog,1\n,2', 'line 3: "prompt" is not a text'),
  ],
)
def test_bad_tables_are_named(tmp_path, text, message):
  path = _write(tmp_path, text, 'table')
  with pytest.raises(ValueError, match=message) as e:
    prompts.table(path)
  assert path in str(e.value) and '\n' not in str(e.value)


def test_lines_of_something_else_are_no_prompts(tmp_path):
  with pytest.raises(ValueError, match="name the column .*'Prompt', 'Kind'"):
    prompts.txt(_write(tmp_path, TSV))
  with pytest.raises(ValueError, match='metadata_jsonl'):
    prompts.txt(_write(tmp_path, '{"prompt": "a"}\n{"prompt": "b"}'))
  # A tab in one line of many is a blank.
  assert len(prompts.txt(_write(tmp_path, 'a\tb\nc\nd'))) == 3


def _pictures(tmp_path, *sizes):
  """A file of questions about pictures beside it, each of one grey."""
  (tmp_path / 'sub').mkdir()
  for i, size in enumerate(sizes):
    grey = Image.new('L', size, 51 * i)
    grey.save(tmp_path / 'sub' / f'{i}.png')
  lines = [
    json.dumps(dict(image=f'sub/{i}.png', prompt='how many ?', answer=i))
    for i in range(len(sizes))
  ]
  return _write(tmp_path, '\n'.join(lines))


GOOD_PICTURE = '{"prompt": "a", "image": "sub/0.png"}'


def test_pictures_of_a_file(tmp_path, monkeypatch):
  path = _pictures(tmp_path, (4, 2), (4, 2))
  monkeypatch.chdir('/')  # paths start at the file
  source = prompts.metadata_jsonl(path, 'answer', image_field='image')
  assert source.media[[1, 0]].shape == (2, 2, 4, 3)
  np.testing.assert_allclose(source.media[1], np.full((2, 4, 3), 0.2))
  assert source.answers == ('0', '1')
  # What is transparent is white; the middle of what is not square is taken.
  clear = Image.new('RGBA', (8, 4), (255, 0, 0, 0))
  clear.paste((0, 0, 255, 255), (2, 0, 6, 4))
  clear.save(tmp_path / 'sub' / '0.png')
  with pytest.raises(ValueError, match=r'line 2: .*sub/1.png has 4 x 2 pixels'):
    prompts.metadata_jsonl(path, image_field='image')
  source = prompts.metadata_jsonl(path, image_field='image', image_size=4)
  np.testing.assert_allclose(source.media[0], np.tile([0.0, 0, 1], (4, 4, 1)))


def test_several_pictures_of_a_prompt(tmp_path):
  _pictures(tmp_path, *[(4, 2)] * 4)
  line = lambda *which: json.dumps(
    dict(prompt='a', image=[f'sub/{i}.png' for i in which])
  )
  path = _write(tmp_path, line(0, 1) + '\n' + line(3, 2))
  media = prompts.metadata_jsonl(path, image_field='image').media
  assert len(media) == 2 and np.asarray(media).shape == (2, 2, 2, 4, 3)
  one = lambda i: prompts.metadata_jsonl(
    _write(tmp_path, line(i)), image_field='image'
  ).media[0][0]
  want = [[one(3), one(2)], [one(0), one(1)]]
  np.testing.assert_array_equal(media[[1, 0]], want)
  path = _write(tmp_path, line(0, 1) + '\n' + line(3))
  with pytest.raises(ValueError, match='line 2: "image" lists 1 pictures'):
    prompts.metadata_jsonl(path, image_field='image')
  path = _write(tmp_path, line(0) + '\n' + GOOD_PICTURE)
  with pytest.raises(ValueError, match='line 2: "image" is not a list'):
    prompts.metadata_jsonl(path, image_field='image')


@pytest.mark.parametrize(
  'content, message',
  [(None, 'is no file'), (b'', 'cannot be read'), (b'text', 'cannot be read')],
)
def test_pictures_that_are_none_are_named(tmp_path, content, message):
  path = _pictures(tmp_path, (4, 2), (4, 2))
  broken = tmp_path / 'sub' / '1.png'
  broken.unlink()
  if content is not None:
    broken.write_bytes(content)
  with pytest.raises(ValueError, match=f'line 2: the picture .*{message}'):
    prompts.metadata_jsonl(path, image_field='image')


@pytest.mark.parametrize('name', ['../1.png', 'sub/../../1.png', '/1.png'])
def test_pictures_lie_in_the_folder_of_the_file(tmp_path, name):
  path = _pictures(tmp_path, (4, 2))
  line = json.dumps(dict(prompt='a', image=name))
  path = _write(tmp_path, f'{GOOD_PICTURE}\n{line}\n')
  with pytest.raises(ValueError, match=f'line 2: the picture {name} is not in'):
    prompts.metadata_jsonl(path, image_field='image')


def _wrong(tmp_path, *lines):
  path = _write(tmp_path, '\n'.join(json.dumps(line) for line in lines))
  return prompts.metadata_jsonl(path, wrong_field='wrong_prompts')


def test_false_prompts_of_a_file(tmp_path):
  source = _wrong(
    tmp_path,
    dict(prompt='a red cup', wrong_prompts=[' a blue cup', 'a red mug']),
    dict(prompt='rain', wrong_prompts=['sun']),
  )
  assert source.wrong == (('a blue cup', 'a red mug'), ('sun',))
  other = dataclasses.replace(source, wrong=(('a blue cup',), ('sun',)))
  assert source.fingerprint != other.fingerprint


@pytest.mark.parametrize(
  'wrong, message',
  [
    (None, 'is not a list of one or more texts but None'),
    ([], r'is not a list of one or more texts but \[\]'),
    ('sun', "is not a list of one or more texts but 'sun'"),
    (['sun', 3], r'"wrong_prompts"\[1\] is not a text but 3'),
    ([' '], r'"wrong_prompts"\[0\] is not a text'),
    (['sun', 'rain '], '"wrong_prompts" holds the prompt itself'),
    (..., r'no "wrong_prompts" field.*data\.prompts\.wrong_field'),
  ],
)
def test_lines_without_good_false_prompts_are_named(tmp_path, wrong, message):
  line = dict(prompt='rain') | (
    {} if wrong is ... else {'wrong_prompts': wrong}
  )
  with pytest.raises(ValueError, match=f'line 2.* ?{message}') as e:
    _wrong(tmp_path, dict(prompt='fog', wrong_prompts=['sun']), line)
  assert '\n' not in str(e.value)


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path):
  path = _pictures(tmp_path, (40, 20))
  broken = tmp_path / 'sub' / '0.png'
  broken.write_bytes(broken.read_bytes()[:-30])
  source = prompts.metadata_jsonl(path, image_field='image')
  with pytest.raises(ValueError, match='line 1: the picture .* is damaged'):
    source.media[0]


def test_what_rewards_in_python_read(tmp_path):
  lines = [dict(prompt='a', n=1, s='x'), dict(prompt='b', n=2.5, s=['y', 'z'])]
  path = _write(tmp_path, '\n'.join(map(json.dumps, lines)))
  asked = prompts.metadata_jsonl(path, 'n').asked([1, 0, 1], group_size=2)
  assert asked['texts'].tolist() == ['b', 'b', 'a', 'a', 'b', 'b']
  assert asked['ids'].tolist() == [1, 1, 0, 0, 1, 1]
  columns = asked['columns']
  assert set(columns) == {'n', 's', 'answer'}
  np.testing.assert_array_equal(columns['n'], [2.5, 2.5, 1, 1, 2.5, 2.5])
  assert columns['s'][1:3].tolist() == [['y', 'z'], 'x']
  assert columns['answer'][::3].tolist() == ['2.5', '1']
  asked = prompts.shapes('rl').asked(prompts.shapes('rl').ids[:1])
  assert asked['columns']['task'].tolist() == [prompts.shapes('rl').tasks[0]]


GOOD = json.dumps(LINES[0])


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"prompt": "a', 'line 3 is not valid JSON: .* at column'),
    ('["a"]', 'line 3 is not a JSON object'),
    ('{"tag": "x"}', 'line 3 has no "prompt" field'),
    ('{"prompt": 3}', 'line 3: "prompt" is not a text but 3'),
    ('{"prompt": " "}', 'line 3: "prompt" is not a text'),
    (b'{"prompt": "\xff"}', 'line 3 is not UTF-8'),
  ],
)
def test_bad_jsonl_lines_are_named(tmp_path, line, message):
  line = line if isinstance(line, bytes) else line.encode()
  path = _write(tmp_path, GOOD.encode() + b'\n\n' + line, 'metadata.jsonl')
  with pytest.raises(ValueError, match=message) as e:
    prompts.metadata_jsonl(path)
  assert path in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('read', [prompts.txt, prompts.metadata_jsonl])
def test_missing_and_empty_files_are_named(tmp_path, read):
  missing = str(tmp_path / 'none.txt')
  with pytest.raises(FileNotFoundError, match='none.txt does not exist'):
    read(missing)
  with pytest.raises(ValueError, match=r'set config\.data\.prompts\.path'):
    read('')
  for content in ('', '\n  \n'):
    with pytest.raises(ValueError, match='empty.txt is empty'):
      read(_write(tmp_path, content, 'empty.txt'))
  with pytest.raises(ValueError, match='cannot be read'):
    read(str(tmp_path))


def test_shapes_info_is_what_the_sentences_say():
  source = prompts.shapes('rl')
  assert len({record['prompt_id'] for record in source}) == len(source)
  for record in list(source)[::7]:
    wanted = grammar.spec_arrays(grammar.parse(record['text']))
    assert wanted.keys() == record['info'].keys()
    for name, value in wanted.items():
      np.testing.assert_array_equal(record['info'][name], value)
  assert set(source.tasks) == set(grammar.TASKS)
  assert [grammar.TASKS[t] for t in source.info['task']] == list(source.tasks)


def test_shapes_by_task_keeps_the_ids():
  everything = prompts.shapes('heldout')
  some = prompts.shapes('heldout', ['colors', 'text'])
  assert set(some.tasks) == {'colors', 'text'}
  for record in some:
    assert everything.by_id(record['prompt_id'])['text'] == record['text']


def test_fingerprint_sees_every_change(tmp_path):
  def of(text):
    return prompts.txt(_write(tmp_path, text)).fingerprint

  assert of('a\nb\n') == of('a\n\nb')
  assert len({of('a\nb'), of('b\na'), of('a'), of('ab'), of('a\nb\nc')}) == 5
  assert prompts.shapes('rl').fingerprint == prompts.shapes('rl').fingerprint
  assert (
    prompts.shapes('rl').fingerprint != prompts.shapes('heldout').fingerprint
  )


# --- contrasts and pairs


def test_false_prompts_are_false_and_of_the_same_splits():
  source = prompts.shapes_contrasts('train+rl')
  home = grammar.combinations()
  kinds = set()
  for text, wrong in zip(source.texts, source.wrong):
    spec = grammar.parse(text)
    assert len(wrong) == 4
    for other in wrong:
      changed = grammar.parse(other)
      assert grammar.canonical(changed) != grammar.canonical(spec)
      assert home[grammar.canonical(changed)] != 'heldout'
      kinds.add(other.split()[0] == text.split()[0])
  assert source.tasks and len(source) > 0.9 * len(prompts.shapes('train+rl'))


def test_contrasts_of_one_kind():
  source = prompts.shapes_contrasts('train', kinds=('relation',))
  assert set(source.tasks) == {'position'}
  for text, wrong in zip(source.texts, source.wrong):
    spec = grammar.parse(text)
    opposite = spec._replace(relation=grammar.OPPOSITE[spec.relation])
    assert {grammar.canonical(grammar.parse(w)) for w in wrong} == {
      grammar.canonical(opposite)
    }
  with pytest.raises(ValueError, match='shape, color, count'):
    prompts.shapes_contrasts(kinds=('size',))


def test_colours_and_places_at_once():
  source = prompts.shapes_placed('heldout')
  at = source.texts.index('a photo of a red circle left of a blue square')
  one = source[at]
  assert one['text'] == 'a photo of a red circle left of a blue square'
  asked = {k: v.tolist() for k, v in one['info'].items()}
  assert asked == dict(
    task=4, include_class=[0, 1], include_color=[0, 2], include_count=[1, 1],
    relation=0, word=-1, word_color=-1,
  )  # fmt: skip
  assert source.checks[at] == (
    'is there a red circle ?', 'is there a blue square ?',
    'is the circle left of the square ?',
  )  # fmt: skip
  home = grammar.combinations()
  for text in source.texts[::97]:  # the pair of colours is held out
    pair = grammar.parse(text)._replace(task=5, relation=-1)
    assert home[grammar.canonical(pair)] == 'heldout'
  # Ids do not hang on the split, and are of no other sentence.
  every = prompts.shapes_placed('train+rl+heldout')
  assert set(source.ids) < set(every.ids)
  assert len(set(every.ids)) == len(set(every.texts)) == len(every)
  assert min(every.ids) > max(prompts.shapes('train+rl+heldout').ids)
  assert set(every.tasks) == {'placed'}
  with pytest.raises(ValueError, match='choose from train, rl, heldout'):
    prompts.shapes_placed('test')


def test_quoted(tmp_path):
  path = tmp_path / 'ocr.txt'
  path.write_text('A sign that says "Open 24"\n\nA "B" and "other text"\n')
  source = prompts.quoted(path)
  assert source.texts == (
    'A sign that says "Open 24"',
    'A "B" and "other text"',
  )
  codes = [[ord(c) for c in text] for text in ('open24', 'b')]
  want = [codes[0] + [0], codes[1] + [0] * 6]
  assert source.info['text'].tolist() == want
  path.write_text('A "word"\na sign\n')
  with pytest.raises(ValueError, match='line 2: no text in double quotes'):
    prompts.quoted(path)


def test_geneval_names_the_line(tmp_path):
  path = tmp_path / 'metadata.jsonl'
  good = '{"tag": "colors", "prompt": "a cat", "include": %s}'
  path.write_text(good % '[{"class": "gorilla", "count": 1}]')
  with pytest.raises(ValueError, match="line 0: unknown class 'gorilla'"):
    prompts.geneval(path)
  path.write_text('{"prompt": "a cat", "include": []}')
  with pytest.raises(ValueError, match='no "tag" field'):
    prompts.geneval(path)
