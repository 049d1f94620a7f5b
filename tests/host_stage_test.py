"""Steps with rewards in Python: in parts, while the next part is drawn."""

import threading

import jax
import numpy as np
import pytest

from gen_rl import host_stage, testing
from gen_rl.types import Reward, RewardOut

KEY = jax.random.key(0)
G = 4


def asked(ids, group_size):
  ids = np.repeat(np.asarray(ids), group_size)
  return dict(texts=np.array([f'prompt {i}' for i in ids], object), ids=ids)


def judge(calls):
  """Scores that depend on the prompt's text, the picture and the call's key."""

  def score(params, inputs, key):
    calls.append((threading.get_ident(), sorted(set(inputs.texts.tolist()))))
    number = np.array([float(text.split()[1]) for text in inputs.texts])
    chance = np.asarray(jax.random.uniform(key, (len(number),)))
    value = number + chance + inputs.media.mean((1, 2, 3))
    return RewardOut(value, dict(chance=chance), np.ones(len(value), bool))

  return Reward('judge', (), score, where='host')


def one_step(count, groups_per_call=1):
  calls = []
  reward = judge(calls)
  step, state = testing.make_step(
    reward=reward, group_size=G, tx=testing.LINEAR, rollout_chunks=2
  )
  host = host_stage.Host(
    dict(color=(reward, 1.0)), asked, dict(groups_per_call=groups_per_call)
  )
  state, log = host_stage.scored_step(
    step, host, state, testing.batch((3, 1, 0, 2)), KEY, count
  )
  return jax.device_get(state.params), jax.device_get(log), calls


def test_a_step_in_parts_is_the_step_as_a_whole():
  params, log, calls = one_step(1)
  parts, cut_log, cut_calls = one_step(2)
  testing.assert_close(parts, params)
  for name in ('reward/score', 'reward/color/chance', 'pg/loss'):
    np.testing.assert_allclose(cut_log[name], log[name], rtol=1e-4, atol=1e-6)
  # One call a prompt, the same ones either way, and never by this thread.
  assert sorted(c for _, c in calls) == sorted(c for _, c in cut_calls)
  assert [c for _, c in cut_calls][:2] in (
    [['prompt 3'], ['prompt 1']], [['prompt 1'], ['prompt 3']]
  )  # fmt: skip
  assert threading.get_ident() not in {thread for thread, _ in cut_calls}


def test_calls_of_several_prompts_have_the_keys_of_the_whole():
  _, log, _ = one_step(1, groups_per_call=2)
  _, cut, _ = one_step(2, groups_per_call=2)
  name = 'reward/color/chance'
  np.testing.assert_allclose(cut[name], log[name], rtol=1e-6)


@pytest.mark.parametrize(
  ('wanted', 'shards', 'groups', 'called_on', 'count'),
  [
    (4, 1, 1, 'groups', 4),
    (3, 1, 1, 'groups', 1),  # 8 prompts are not three equal parts
    (4, 16, 1, 'groups', 1),  # 8 rows of a part on 16 devices
    (4, 1, 4, 'groups', 1),  # a call is of more prompts than a part
    (2, 1, 4, 'groups', 2),
    (4, 1, 0, 'groups', 1),  # one call
    (4, 1, 1, 'batch', 1),
  ],
)
def test_where_a_step_can_be_cut(wanted, shards, groups, called_on, count):
  reward = judge([])._replace(called_on=called_on)
  host = host_stage.Host(
    dict(a=(reward, 1.0)), asked, dict(groups_per_call=groups)
  )
  assert host_stage.parts(wanted, 8, G, shards, host, {}) == count
