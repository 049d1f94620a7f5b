"""Rewards in Python of two processes against those of one, and 8-bit pixels."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from gen_rl import media as media_lib
from gen_rl.rewards import combine, spread
from gen_rl.types import Reward, RewardInputs, RewardOut
from gen_rl.utils import tree

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


def write(address, number, path):
  """As process `number` of two, whose four devices hold the rows."""
  from gen_rl import sharding
  from gen_rl.utils import hosts

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
  first = hosts.from_first(lambda: ['a', jax.process_index()])
  assert first == ['a', 0]
  np.savez(f'{path}/{number}.npz', **tree.named(found))


def test_two_processes_know_what_one_does(tmp_path):
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
