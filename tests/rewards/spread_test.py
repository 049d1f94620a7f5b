"""Rewards in Python of two processes against those of one, and 8-bit pixels.

Pictures of files, too, of which each process reads what its devices hold.
"""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from gen_rl import chunks, rollout
from gen_rl import media as media_lib
from gen_rl.data import columns, pipeline, prompts, tokenizers
from gen_rl.rewards import combine, spread
from gen_rl.types import Reward, RewardInputs, RewardOut
from gen_rl.utils import hosts, tree

ROOT = pathlib.Path(__file__).parents[2]
SEED = 0  # no key: processes are joined before there is one
G, PROMPTS = 2, 8


def judge(seen=None):
  """Of text, picture and chance; prompt 3 fails, and one has a part more."""

  def score(params, inputs, key):
    if seen is not None:
      seen.append(inputs)
    if 'prompt 3' in inputs.texts:
      raise RuntimeError('not this one')
    number = np.array([float(text.split()[1]) for text in inputs.texts])
    chance = np.asarray(jax.random.uniform(key, (len(number),)))
    parts = dict(chance=chance)
    if number[0] > 4:
      parts['large'] = number
    value = number + chance + inputs.media.mean((1, 2, 3))
    steps = np.stack([number, -number], 1)
    return RewardOut(
      value, parts, np.ones(len(value), bool), steps=steps,
      applies=number != 5,
    )  # fmt: skip

  return Reward('judge', (), score, where='host')


def media():
  return np.random.default_rng(0).random((PROMPTS * G, 2, 2, 3), np.float32)


def answers(x, **settings):
  ids = np.repeat(np.arange(PROMPTS), G)
  texts = np.array([f'prompt {i}' for i in ids], object)
  inputs = RewardInputs(x, {}, G)
  named = dict(judge=(judge(), 1.0))
  settings = dict(groups_per_call=1) | settings
  asker = spread.asker(
    named, inputs, jax.random.key(SEED), dict(texts=texts), **settings
  )
  return spread.gathered([asker])['judge']


class Counted(columns.Pictures):
  """Says which files were read."""

  def _read(self, i):
    self.seen.add(i)
    return super()._read(i)


def pictured(folder, place, held=None, parts=1):
  """(pictures of the rows of a step, placed in parts; files that were read)."""
  paths = sorted(pathlib.Path(folder).glob('*.png'))
  files = Counted(paths, [p.name for p in paths])
  files.seen = set()
  index = np.arange(len(paths), dtype=np.int32)
  source = prompts.Prompts('files', ('a',) * len(paths), index, media=files)
  words = tokenizers.word_level(['a'])
  batch, _ = next(
    pipeline.prompt_batches(source, PROMPTS, SEED, words, 1, held=held)
  )
  key = jax.random.key(SEED)
  of = lambda batch: rollout.make_rows(batch, G, key, 0).media
  found = []
  for at in np.split(np.arange(PROMPTS), parts):
    part = chunks.take(batch, at) if parts > 1 else batch
    found.append(hosts.fetch(jax.jit(of)(place(part))))
  # By their places in the step.
  return np.concatenate(found), np.isin(batch['prompt_id'], [*files.seen])


def write(address, number, path):
  """As process `number` of two, whose four devices hold the rows."""
  from gen_rl import sharding

  hosts.start(address, 2, int(number))
  layout = sharding.Layout(sharding.make_mesh(data=8))
  rows = jax.sharding.PartitionSpec(sharding.ROW_AXES)
  rows = jax.sharding.NamedSharding(layout.mesh, rows)
  x = sharding.put(media(), rows)
  held = hosts._held(x, slice(8 * int(number), 8 * int(number) + 8))
  assert held is not None and hosts._held(x, slice(0, 16)) is None
  found = dict(calls=answers(x), one=answers(x, groups_per_call=0))
  wrong = dict(judge=(judge()._replace(score=lambda *_: 'no answer'), 1.0))
  asker = spread.asker(
    wrong, RewardInputs(x, {}, G), jax.random.key(SEED), {}, groups_per_call=1
  )
  try:
    spread.gathered([asker])
  except ValueError as error:
    found['error'] = np.array(str(error))
  half = np.arange(8) // 4 == int(number)  # of a step; then of each part
  found['whole'], read = pictured(path, layout.place, layout.held(PROMPTS))
  np.testing.assert_array_equal(read, half)
  few = layout.held(PROMPTS, 2)  # four prompts are not split over eight devices
  found['parts'], read = pictured(path, layout.place, few, 2)
  assert read.all()
  layout = sharding.Layout(sharding.make_mesh(data=4, tensor=2))
  held = layout.held(PROMPTS, 2)
  np.testing.assert_array_equal(held, [[0, 1, 4, 5], [2, 3, 6, 7]][int(number)])
  found['quarters'], read = pictured(path, layout.place, held, 2)
  np.testing.assert_array_equal(np.flatnonzero(read), held)
  first = hosts.from_first(lambda: ['a', jax.process_index()])
  assert first == ['a', 0]
  np.savez(f'{path}/{number}.npz', **tree.named(found))


def test_two_processes_know_what_one_does(tmp_path):
  for i in range(PROMPTS + 2):
    picture = np.full((2, 2, 3), 20 * i, np.uint8)
    Image.fromarray(picture).save(tmp_path / f'{i}.png')
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=4'
  program = (
    'import runpy, sys; '
    "runpy.run_path('tests/rewards/spread_test.py')['write'](*sys.argv[1:])"
  )
  both = [
    subprocess.Popen(
      [sys.executable, '-c', program, address, str(i), str(tmp_path)],
      cwd=ROOT, env=os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu'),
    )
    for i in (0, 1)
  ]  # fmt: skip
  want = dict(calls=answers(media()), one=answers(media(), groups_per_call=0))
  whole, read = pictured(tmp_path, lambda batch: batch)
  assert read.all() and len(np.unique(whole)) == PROMPTS
  want |= dict(whole=whole, parts=whole, quarters=whole)
  assert [p.wait(120) for p in both] == [0, 0]
  for number in (0, 1):
    found = dict(np.load(tmp_path / f'{number}.npz'))
    assert "the reward 'judge' answered with" in str(found.pop('error'))
    expected = tree.named(want)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
      np.testing.assert_array_equal(found[name], np.asarray(x), name)
  calls = want['calls']
  np.testing.assert_array_equal(calls.valid, np.repeat(np.arange(8), 2) != 3)
  assert not want['one'].valid.any()


def test_pixels_of_eight_bits():
  """By hand: 0.1 is 25.5 / 255, so 26; a picture that is not finite is none."""
  x = np.full((PROMPTS * G, 2, 2, 3), 0.1, np.float32)
  x[1], x[2, 0], x[3] = 2.0, np.nan, 0.25
  seen = []
  named = dict(judge=(judge(seen), 1.0))
  texts = np.array(['prompt 1'] * len(x), object)
  for given in (x, jax.numpy.asarray(x)):
    asker = spread.asker(
      named,
      RewardInputs(given, {}, G),
      jax.random.key(SEED),
      dict(texts=texts),
      pixels='uint8',
    )
    out = spread.gathered([asker])['judge']
    picture = media_lib.image(seen[-1].media)
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture[0], np.float32(26) / np.float32(255))
    np.testing.assert_array_equal(picture[1], 1.0)
    assert np.isnan(picture[2]).all() and not out.valid[2]
    np.testing.assert_array_equal(picture[3], np.float32(64) / np.float32(255))


@pytest.mark.parametrize(
  ('called_on', 'each', 'processes', 'want'),
  [
    ('rows', 1, 3, [(0, 3), (3, 6), (6, 8)]),
    ('groups', 4, 3, [(0, 4), (4, 8), (8, 8)]),  # two calls
    ('groups', 0, 2, [(0, 8), (8, 8)]),  # one
    ('batch', 1, 2, [(0, 8), (8, 8)]),
  ],
)
def test_who_judges_what(called_on, each, processes, want, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  rewards = dict(a=(judge()._replace(called_on=called_on), 1.0))
  for number, place in enumerate(want):
    monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
    assert spread.stretch(rewards, PROMPTS, each) == place
  assert combine.widest(rewards) == called_on
