import os
import subprocess
import sys

import numpy as np
import pytest

from gen_rl.data import pipeline, prompts, tokenizers
from gen_rl.worlds import grammar

COUNTS = {'train': 24, 'heldout': 9}
FIELDS = ('task', 'include_color')


def _run(code, *argv):
  """Runs in its own process: TensorFlow stays out of this one."""
  env = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'CUDA_VISIBLE_DEVICES': ''}
  done = subprocess.run(
    [sys.executable, '-c', code, *argv],
    capture_output=True,
    text=True,
    env={**env, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('tfds'))
  _run(
    'import sys; from gen_rl.data import shapes_tfds;'
    f'b = shapes_tfds.ShapesWorld(counts={COUNTS}, data_dir=sys.argv[1]);'
    'b.download_and_prepare()',
    path,
  )
  return path


def test_read_without_tensorflow(data_dir):
  out = _run(
    'import sys; from gen_rl.data import prompts;'
    's = prompts.tfds("shapes_world", data_dir=sys.argv[1]);'
    'print(len([r["text"] for r in s]), "tensorflow" in sys.modules)',
    data_dir,
  )
  assert out.split() == ['24', 'False']


def test_what_was_written_is_what_the_renderer_draws(data_dir):
  from gen_rl.data import shapes_tfds

  for split, count in COUNTS.items():
    source = prompts.tfds('shapes_world', split, 'caption', FIELDS, 'image',
                          data_dir=data_dir)  # fmt: skip
    assert len(source) == count
    texts = set(prompts.shapes(split).texts)
    for i, example in shapes_tfds.examples(split, count):
      record = source[i]
      assert record['text'] == example['caption'] in texts
      for name in FIELDS:
        np.testing.assert_array_equal(record['info'][name], example[name])
      np.testing.assert_array_equal(
        np.round(source.media[i] * 255), example['image']
      )
      spec = grammar.spec_arrays(grammar.parse(record['text']))
      assert all(np.array_equal(example[k], v) for k, v in spec.items())


def test_examples_do_not_depend_on_how_many():
  from gen_rl.data import shapes_tfds

  few = dict(shapes_tfds.examples('rl', 3))
  many = dict(shapes_tfds.examples('rl', 260))
  for i, example in few.items():
    for name, value in example.items():
      np.testing.assert_array_equal(value, many[i][name])
  other = dict(shapes_tfds.examples('rl', 3, seed=1))
  assert any((other[i]['image'] != few[i]['image']).any() for i in few)
  # Tasks equally often: 260 / 7 = 37 each, standard deviation 5.6.
  count = np.bincount([e['task'] for e in many.values()], minlength=7)
  assert count.min() > 15 and count.max() < 60


def test_pipeline_from_files(data_dir):
  source = prompts.tfds(
    'shapes_world', 'train', 'caption', FIELDS, 'image', data_dir
  )
  tokenizer = tokenizers.word_level(grammar.WORDS)

  def stream():
    return pipeline.prompt_batches(source, 5, 0, tokenizer, grammar.MAX_WORDS)

  whole = stream()
  next(whole)
  state = whole.get_state()  # what was read ahead does not count
  assert state['next_step'] == 1
  resumed = stream()
  resumed.set_state(state)
  for _ in range(6):
    (batch, texts), (again, _) = next(whole), next(resumed)
    np.testing.assert_array_equal(batch['media'], again['media'])
    assert batch['media'].shape == (5, 24, 24, 3)
    assert batch['media'].dtype == np.float32
    assert batch['media'].min() >= 0 and batch['media'].max() <= 1
    assert batch['info']['include_color'].shape == (5, 2)
    assert batch['info']['task'].dtype == np.int32
    for i, text in enumerate(texts):
      assert batch['info']['task'][i] == grammar.parse(text).task


@pytest.mark.parametrize(
  'args, message',
  [
    (('no_such_set', 'train'), "'no_such_set' is neither known"),
    (('shapes_world', 'test'), "split 'test' cannot be read: Unknown split"),
    (('shapes_world', 'train', 'text'), "no field 'text'; it has caption,"),
    (('shapes_world', 'train', 'caption/en'), "no field 'caption/en'"),
    (('shapes_world', 'train', 'caption', ('size',)), "no field 'size'"),
  ],
)
def test_errors_are_sentences(data_dir, args, message):
  with pytest.raises(ValueError, match=message) as e:
    prompts.tfds(*args, data_dir=data_dir)
  assert '\n' not in str(e.value)
