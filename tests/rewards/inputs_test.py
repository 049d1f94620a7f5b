"""Whoever scores rows shows rewards the same of them."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import evaluate, objectives, rollout, search, testing
from gen_rl.data import prompts
from gen_rl.policies import ode
from gen_rl.rewards import evaluate as reward_calls
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.types import Reward, RewardInputs, RewardOut

KEY = jax.random.key(0)
PROMPTS = testing.batch((0, 1, 2, 3))
POLICY = testing.make_policy(deterministic=True, window_low=0)


def witness(where='device', needs=('said', 'seen')):
  """1 where all that is shown of a row is of that row; `testing.batch` says."""

  def score(params, inputs, key):
    del params, key
    xp = np if where == 'host' else jnp
    shown = xp.clip((inputs.said + 1) / 2, 0, 1)
    true = [
      abs(shown - inputs.media).max((1, 2, 3)) < 1e-6,
      inputs.seen['tokens'][:, 0] == inputs.ids % 7 + 1,
      inputs.info['channel'] == inputs.ids % 3,
    ]
    if inputs.group_size > 1:
      place = xp.arange(len(inputs.ids)) % inputs.group_size
      true += [inputs.member == place]
    if where == 'host':
      true += [inputs.texts == np.array(list('abcd'))[inputs.ids]]
      true += [inputs.columns['twice'] == 2 * inputs.ids]
    member = inputs.member.astype(np.float32)
    value = xp.stack(true).all(0).astype(np.float32)
    # Something that moves with the picture, for rewards with gradients.
    if where == 'device':
      value += 0 * inputs.media.sum((1, 2, 3))
    return RewardOut(value, dict(member=member), xp.isfinite(value))

  return Reward('witness', (), score, where, where == 'device', needs=needs)


def asked(samples):
  source = prompts.Prompts(
    'file', tuple('abcd'), np.arange(4, dtype=np.int32),
    extra=dict(twice=(0, 2, 4, 6)),
  )  # fmt: skip
  return source.asked(range(4), samples)


def test_in_training_and_in_gradients():
  """Of rewards and monitors, and of replayed samples, shuffled and cut."""
  r = objectives.reward_backprop(cut='fixed', last=1)
  step, state = testing.make_step(
    POLICY, dict(r=(r, 1.0)), reward=witness(), updates=2, microbatches=2,
    monitors=dict(seen=(witness(), 1.0)),
  )  # fmt: skip
  _, (log, *_) = testing.run(step, state, 1)
  assert log['reward/score'] == log['monitor/seen'] == log['r/reward'] == 1
  assert log['monitor/seen/member'] == 1.5  # of 0, 1, 2, 3


def test_in_evaluation_and_search():
  params = POLICY.init(KEY)
  sampler = ode.sampler(testing.perceptron(), 4)
  # Noise follows the place of a prompt, and rewards see the prompt.
  batch = dict(PROMPTS, source_id=PROMPTS['prompt_id'])
  batch['prompt_id'] = PROMPTS['prompt_id'] + 10
  watched = dict(
    device=(witness(), 1.0), host=(witness('host'), 1.0)
  )  # fmt: skip
  run = evaluate.sampled(
    POLICY, sampler, batch, list('abcd'), [], watched, None, samples=3,
    seed=1, asked=asked(3), monitors=watched, chunk=9,
  )  # fmt: skip
  found = run(params)
  assert found.strict == 2 and found.invalid['gold'] == 0  # the sum of two
  assert found.monitors == dict(device=1, host=1)

  rows = rollout.make_rows(PROMPTS, 3, KEY, jnp.int32(0))
  verify = search.verifier(POLICY, params, witness(), (), 3)
  segments = ode.segments(testing.perceptron(), 4)
  best = jax.jit(
    lambda rows: search.best_of_n(segments, params, verify, rows, 3, chunk=6)
  )(rows)
  assert (best.score == 1).all()


def test_the_host_is_sent_what_is_needed():
  rows = rollout.make_rows(PROMPTS, 2, KEY, jnp.int32(0))
  media = np.zeros((8, 2, 2, 3), np.float32)
  inputs = inputs_lib.of(rows, media, 2, said=2 * media - 1)
  for needs, said, seen in (
    ((), False, False), (('said',), True, False), (('seen', 'said'), True, True)
  ):  # fmt: skip
    used = dict(
      a=(witness('host', ()), 1.0),
      b=(witness('host', needs), 1.0),
      off=(witness('host'), 0.0),
    )
    found = inputs_lib.on_host(inputs, used, asked(2))
    assert isinstance(found.said, tuple) != said
    assert isinstance(found.seen, tuple) != seen
  outs, metrics = reward_calls.evaluate_host(
    dict(a=(witness('host'), 1.0)), found, KEY, groups_per_call=3
  )
  assert outs['a'].score.tolist() == [1] * 8 and not metrics['reward/invalid']


def test_fields_are_walked_and_changed_as_those_of_a_named_tuple():
  seen = RewardInputs('media', {}, 2)
  assert {'media', 'info', 'texts', 'columns'} <= set(seen._fields)
  changed = seen._replace(media='other')
  assert (changed.media, changed.group_size) == ('other', 2)
