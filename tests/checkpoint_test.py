"""Checkpoints: bitwise round trips and everything that can go wrong."""

import os
import pathlib
import shutil
from typing import NamedTuple

from absl import logging
from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from gen_rl import build, checkpoint, checkpoint_format
from gen_rl.utils import tree as tree_lib

ROOT = pathlib.Path(__file__).parents[1]


class Pair(NamedTuple):
  a: jax.Array
  b: tuple


class State(struct.PyTreeNode):
  step: jax.Array
  params: dict
  opt_state: tuple
  extra: Pair
  keys: jax.Array
  none: None = None


def make_state(seed=0):
  k = jax.random.key(seed)
  params = {
    'conv_0': {
      'kernel': jax.random.normal(k, (3, 3, 4)),
      'bias': jax.random.normal(k, (4,), jnp.bfloat16),
    },
    'empty': jnp.zeros((0, 3)),
    'odd': jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42], jnp.float32),
  }
  return State(
    step=jnp.int32(7 + seed),
    params=params,
    opt_state=optax.adamw(1e-3).init(params),
    extra=Pair(
      jnp.array([2**32 - 1, seed], jnp.uint32),
      (np.arange(3, dtype=np.int64), jnp.array([True, False])),
    ),
    keys=jax.random.split(jax.random.key(seed), 5),
  )


def config():
  return ml_collections.ConfigDict(
    dict(
      seed=1,
      steps=10,
      betas=(0.9, 0.99),
      eval=dict(every=5),
      policy=dict(name='flow', noise=0.7),
      evaluation=1,
    )
  )


def write(path, numbers, **kwargs):
  manager = checkpoint.open_manager(path, **kwargs)
  for n in numbers:
    assert checkpoint.save(
      manager, n, make_state(n), config(), extra={'data': {'index': n}}
    )
  checkpoint.close(manager)


def read(path, **kwargs):
  manager = checkpoint.open_manager(path)
  try:
    return checkpoint.restore_latest(
      manager, make_state(99), config(), **kwargs
    )
  finally:
    checkpoint.close(manager)


@pytest.fixture
def warnings_of(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: lines.append(text % args)
  )
  return lines


def test_round_trip_is_bitwise(tmp_path):
  write(tmp_path / 'new' / 'dir', [3])
  got = read(tmp_path / 'new' / 'dir')
  assert got.step == 3
  assert got.extra == {'data': {'index': 3}}
  assert tree_lib.differing(got.state, make_state(3)) == []
  assert tree_lib.equal(got.state, make_state(3))
  assert isinstance(got.state.extra.b[0], np.ndarray)
  np.testing.assert_array_equal(
    jax.vmap(jax.random.normal)(got.state.keys),
    jax.vmap(jax.random.normal)(make_state(3).keys),
  )


def test_abstract_state_suffices(tmp_path):
  write(tmp_path, [3])
  manager = checkpoint.open_manager(tmp_path)
  abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_state()))
  with pytest.raises(checkpoint.CheckpointError, match='int64'):
    checkpoint.restore_latest(manager, abstract)
  state = make_state()
  abstract = jax.tree.map(
    lambda x: (
      x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype)
    ),
    state,
  )
  got = checkpoint.restore_latest(manager, abstract)
  assert tree_lib.equal(got.state, make_state(3))
  checkpoint.close(manager)


def test_nothing_to_restore_is_none(tmp_path):
  assert read(tmp_path / 'x') is None


def test_state_may_be_donated_at_once(tmp_path):
  manager = checkpoint.open_manager(tmp_path)
  bump = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jnp.zeros((3_000_000,), jnp.float32)
  checkpoint.save(manager, 1, {'x': x})
  for _ in range(4):
    x = bump(x)
  checkpoint.check(manager, wait=True)
  got = checkpoint.restore_latest(manager, {'x': x})
  assert not np.any(np.asarray(got.state['x']))
  checkpoint.close(manager)


def test_keeps_newest_and_best(tmp_path):
  manager = checkpoint.open_manager(
    tmp_path, keep=2, best='eval/accuracy', best_mode='max'
  )
  for n, score in enumerate([0.1, 0.9, float('nan'), 0.3, 0.2]):
    checkpoint.save(manager, n, make_state(), metrics={'eval/accuracy': score})
  checkpoint.close(manager)
  assert checkpoint.steps(tmp_path) == [1, 3, 4]


def test_keeps_newest_only(tmp_path):
  write(tmp_path, [1, 2, 3, 4], keep=2)
  assert checkpoint.steps(tmp_path) == [3, 4]


def test_saving_a_step_twice_is_a_no_op(tmp_path):
  manager = checkpoint.open_manager(tmp_path)
  assert checkpoint.save(manager, 1, make_state())
  assert not checkpoint.save(manager, 1, make_state())
  checkpoint.close(manager)


def damage(path, how):
  data = path.read_bytes()
  if how == 'delete':
    path.unlink()
  elif how == 'truncate':
    path.write_bytes(data[: len(data) // 2])
  elif how == 'zero':
    path.write_bytes(bytes(len(data)))
  else:
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes(flipped)


@pytest.mark.parametrize('how', ['delete', 'truncate', 'zero', 'flip'])
def test_any_damaged_file_falls_back_or_does_not_matter(
  tmp_path, how, warnings_of
):
  write(tmp_path / 'good', [1, 2])
  files = [p for p in (tmp_path / 'good' / '2').rglob('*') if p.is_file()]
  assert len(files) > 5
  fell_back = 0
  for i, file in enumerate(files):
    copy = tmp_path / str(i)
    shutil.copytree(tmp_path / 'good', copy)
    damage(copy / file.relative_to(tmp_path / 'good'), how)
    warnings_of.clear()
    got = read(copy)
    assert tree_lib.equal(got.state, make_state(got.step))
    assert got.extra == {'data': {'index': got.step}}
    if got.step == 1:
      fell_back += 1
      assert len(warnings_of) == 1
      assert 'Checkpoint 2 in' in warnings_of[0]
      assert 'newest whole one, 1' in warnings_of[0]
  assert fell_back >= 3


def test_a_step_that_was_broken_can_be_saved_again(tmp_path):
  write(tmp_path, [1, 2])
  for _ in range(2):
    shutil.rmtree(tmp_path / '2' / 'state')
    assert read(tmp_path).step == 1
    write(tmp_path, [2])
    assert read(tmp_path).step == 2
  assert {'2.broken', '2.broken2'} <= set(os.listdir(tmp_path))


def test_none_whole_is_an_error(tmp_path):
  write(tmp_path, [1, 2])
  for n in (1, 2):
    shutil.rmtree(tmp_path / str(n) / 'state')
  with pytest.raises(checkpoint.CheckpointError, match=r'None of.*2, 1'):
    read(tmp_path)
  assert checkpoint.steps(tmp_path) == [1, 2]  # nothing was moved


def test_unfinished_save_is_discarded_with_a_warning(tmp_path, warnings_of):
  write(tmp_path, [1])
  shutil.copytree(tmp_path / '1', tmp_path / '2.orbax-checkpoint-tmp')
  assert read(tmp_path).step == 1
  assert 'checkpoint 2 was cut short' in warnings_of[0]
  assert 'is 1.' in warnings_of[0]
  assert sorted(os.listdir(tmp_path)) == ['1']


def test_other_config_names_the_fields_that_matter(tmp_path):
  write(tmp_path, [1])
  manager = checkpoint.open_manager(tmp_path)
  new = config()
  new.steps, new.eval.every = 99, 1
  assert checkpoint.restore_latest(manager, make_state(), new).step == 1
  new.policy.noise, new.evaluation = 0.5, 2
  with pytest.raises(build.ConfigError) as error:
    checkpoint.restore_latest(manager, make_state(), new)
  assert 'policy.noise: 0.7 -> 0.5' in str(error.value)
  assert 'evaluation: 1 -> 2' in str(error.value)
  assert 'steps' not in str(error.value)
  checkpoint.close(manager)


def test_given_fields_are_not_of_the_checkpoint(tmp_path):
  x = jnp.arange(3.0)
  manager = checkpoint.open_manager(tmp_path)
  saved = dict(params=dict(x=x), frozen=dict(old=x, both=x))
  assert checkpoint.save(manager, 1, saved)
  checkpoint.check(manager, wait=True)
  ours = dict(params=dict(x=0 * x), frozen=dict(both=x + 1, new=x + 2))
  got = checkpoint.restore_latest(manager, ours, given=['frozen']).state
  wanted = dict(params=dict(x=x), frozen=dict(both=x + 1, new=x + 2))
  assert tree_lib.equal(got, wanted)
  with pytest.raises(checkpoint.CheckpointError, match='frozen/new is missing'):
    checkpoint.restore_latest(manager, ours)
  checkpoint.close(manager)


def test_other_state_names_the_arrays(tmp_path):
  write(tmp_path, [1])
  manager = checkpoint.open_manager(tmp_path)
  state = make_state()
  params = dict(state.params, odd=jnp.zeros((5,)), new=jnp.zeros(()))
  del params['conv_0']
  with pytest.raises(checkpoint.CheckpointError) as error:
    checkpoint.restore_latest(manager, state.replace(params=params))
  text = str(error.value)
  assert 'params/odd is float32[4] where float32[5] is wanted' in text
  assert 'params/new is missing' in text
  assert 'params/conv_0/kernel is not wanted' in text
  checkpoint.close(manager)
  assert checkpoint.steps(tmp_path) == [1]


def test_newer_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint_format, 'FORMAT', 2)
  write(tmp_path, [1])
  monkeypatch.setattr(checkpoint_format, 'FORMAT', 1)
  with pytest.raises(checkpoint.CheckpointError, match='format 2'):
    read(tmp_path)


def test_unwritable_directory_is_a_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  for bad in (tmp_path / 'file' / 'run', '/proc/nope/run'):
    with pytest.raises(checkpoint.CheckpointError, match='Cannot write'):
      checkpoint.open_manager(bad)


def test_restore_params_only(tmp_path, warnings_of):
  write(tmp_path, [1, 2])
  want = make_state(2)
  got = checkpoint.restore_params(tmp_path)
  assert got.step == 2 and got.config['policy']['noise'] == 0.7
  assert tree_lib.equal(got.state['params'], want.params)
  got = checkpoint.restore_params(
    tmp_path,
    ('params/conv_0', 'extra'),
    step=1,
    abstract={'params/conv_0': want.params['conv_0'], 'extra': want.extra},
  )
  assert tree_lib.equal(got.state['extra'], make_state(1).extra)
  with pytest.raises(checkpoint.CheckpointError, match="no 'ema'; it has"):
    checkpoint.restore_params(tmp_path, ('ema',))
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint 9'):
    checkpoint.restore_params(tmp_path, step=9)
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint in'):
    checkpoint.restore_params(tmp_path / 'x')
  shutil.rmtree(tmp_path / '2' / 'state')
  assert checkpoint.restore_params(tmp_path).step == 1
  assert 'Checkpoint 2' in warnings_of[0]
  assert checkpoint.steps(tmp_path) == [1, 2]  # reading moves nothing


def test_failing_write_keeps_the_last_whole_checkpoint(tmp_path, monkeypatch):
  from orbax.checkpoint import PyTreeCheckpointHandler

  manager = checkpoint.open_manager(tmp_path, keep=1)
  checkpoint.save(manager, 1, make_state(1), config())
  checkpoint.check(manager, wait=True)

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(PyTreeCheckpointHandler, 'finalize', full)
  checkpoint.save(manager, 2, make_state(2), config())
  monkeypatch.setattr(manager, 'close', full)  # as Orbax may, once more
  with pytest.raises(checkpoint.CheckpointError, match='disk is full.*1 is'):
    checkpoint.close(manager)
  monkeypatch.undo()
  assert read(tmp_path).step == 1
