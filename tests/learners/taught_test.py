"""What is trained beside the policy, on every rollout and apart from it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import (
  advantages,
  objectives,
  testing,
  train_state,
  train_step,
)
from gen_rl.build import ConfigError
from gen_rl.train_state import Taught
from gen_rl.types import Learner, Reward, RewardOut, Term
from gen_rl.utils import tree

KEY = jax.random.key(0)


def brightness(scale=1.0, turn=''):
  """One number is learned, the threshold between real and fake brightness."""

  def distance(params, traj, shown):
    frozen, threshold = params
    mean = lambda x: x.mean((1, 2, 3))
    middle = (mean(shown.real) + mean(shown.fake)) / 2
    return scale * frozen * jnp.square(threshold - middle)

  def loss(replay, exp, keys):
    value = replay.ask('self', 'distance', exp.shown)
    darker = (exp.shown.fake - exp.shown.real).mean((1, 2, 3))
    metrics = dict(darker=darker[:, None], lighter=-darker[:, None])
    mask = exp.shown.mask[:, None]
    return Term(value[:, None], mask, every_row=True), metrics

  def score(params, inputs, key):
    _, threshold = params
    value = inputs.media.mean((1, 2, 3)) - threshold
    return RewardOut(value, {}, jnp.isfinite(value) & (inputs.info['fine'] > 0))

  learner = Learner(
    lambda key: jnp.float32(0.0), loss, dict(distance=distance), shown=True,
    turn=turn,
  )  # fmt: skip
  return Reward('brightness', jnp.float32(2.0), score, learner=learner)


def batch():
  given = testing.batch()
  fine = np.ones(len(given['prompt_id']), np.float32)
  return {**given, 'info': {**given['info'], 'fine': fine}}


def make(reward=None, decode=None, every=1, **kwargs):
  reward = reward or brightness()
  policy, tx = testing.make_policy(), optax.sgd(0.1)
  if decode:
    policy = policy._replace(decode=decode(policy.decode))
  advantage = advantages.grpo(4)
  taught = dict(real=Taught(reward.learner, optax.sgd(0.1), every))
  white = lambda rows: jnp.ones((len(rows.group), *testing.SHAPE)), ()
  kwargs = (
    dict(learners=taught, reals=lambda rows: (white[0](rows), rows.cond))
    | kwargs
  )
  step = train_step.make(
    policy, dict(pg=(objectives.clipped_pg(1e-2), 1.0)), tx,
    rewards=dict(real=(reward, 1.0)), advantage=advantage, group_size=4,
    **kwargs,
  )  # fmt: skip
  state = train_state.create(
    policy.init(KEY), tx, advantage, reward_params=dict(real=reward.params),
    learners=taught, key=KEY,
  )  # fmt: skip
  return step, state


def test_a_step_by_hand():
  """Real media are white: 1. Loss 2 (p - (1 + fake) / 2)^2, lr 0.1."""
  step, state = make()
  _, inputs, outs = step.sample(state, batch(), KEY)
  fake = float(inputs.media.mean())
  np.testing.assert_allclose(  # scored before the threshold moves
    outs['real'].score, inputs.media.mean((1, 2, 3)), rtol=1e-6
  )
  state, log = step.train_step(state, batch(), KEY)
  moved = 0.1 * 2 * 2 * (1 + fake) / 2
  assert float(state.aux['real']['params']) == pytest.approx(moved, rel=1e-4)
  assert log['learner/skipped'] == 0
  first = float(log['learner/real/loss'])
  for _ in range(20):
    state, log = step.train_step(state, batch(), KEY)
  assert log['learner/real/loss'] < 0.2 * first


def test_a_learner_and_the_policy_leave_each_other_alone():
  step, state = make()
  before = jax.device_get(state.params)
  after, _ = step.train_step(state, batch(), KEY)
  # One with much to say about the samples says nothing to the policy.
  step, state = make(brightness(1e6))
  loud_after, _ = step.train_step(state, batch(), KEY)
  assert tree.equal(after.params, loud_after.params)
  assert not tree.equal(after.params, before)


@pytest.mark.parametrize('turn', ['darker', 'lighter'])
def test_turns(turn):
  """Samples are darker than white: the learner moves by the first alone."""
  step, state = make(brightness(turn=turn), microbatches=4)
  before = jax.device_get(state)
  after, log = step.train_step(state, batch(), KEY)
  its = turn == 'darker'
  assert log['learner/real/turn'] == its
  assert tree.equal(after.aux, before.aux) != its
  assert tree.equal(after.params, before.params) == its
  # To wait is not to fail.
  assert log['learner/skipped'] == log['optim/skipped'] == 0
  assert log['optim/grad_norm'] > 0


def test_a_step_that_is_not_finite_is_left_out():
  step, state = make(brightness(jnp.nan))
  before = jax.device_get(state.aux)
  new, log = step.train_step(state, batch(), KEY)
  assert log['learner/skipped'] == 1
  assert tree.equal(jax.device_get(new.aux), before)


def test_rows_without_a_score_or_numbers_teach_nothing():
  """By hand: row 3 is NaN, the four of the second prompt were not scored."""
  spoilt = lambda decode: lambda params, x: decode(params, x).at[3].set(jnp.nan)
  given = batch()
  given['info']['fine'][1] = 0.0
  step, state = make(decode=spoilt)
  _, inputs, _ = step.sample(state, given, KEY)
  fake = np.asarray(inputs.media).mean((1, 2, 3))
  kept = np.delete(fake, [3, 4, 5, 6, 7])
  new, log = step.train_step(state, given, KEY)
  assert log['learner/skipped'] == 0
  want = np.mean(2 * ((1 + kept) / 2) ** 2)
  assert float(log['learner/real/loss']) == pytest.approx(want, rel=1e-5)
  moved = 0.1 * np.mean(4 * (1 + kept) / 2)
  assert float(new.aux['real']['params']) == pytest.approx(moved, rel=1e-4)


def test_microbatches_and_a_cadence():
  whole = make()
  parts = make(microbatches=2, every=2)
  aux = lambda state: float(state.aux['real']['params'])
  first, _ = whole[0].train_step(whole[1], batch(), KEY)
  step, state = parts
  seen = []
  for _ in range(3):
    state, _ = step.train_step(state, batch(), KEY)
    seen.append(aux(state))
  assert seen[0] == pytest.approx(aux(first), rel=1e-5)
  assert seen[0] == seen[1] != seen[2]


def test_a_policy_that_waits_for_its_learner():
  step, state = make(policy_every=2)
  params, logs = [jax.device_get(state.params)], []
  for _ in range(3):
    state, log = step.train_step(state, batch(), KEY)
    params.append(jax.device_get(state.params))
    logs.append(jax.device_get(log))
  same = [tree.equal(a, b) for a, b in itertools.pairwise(params)]
  assert same == [False, True, False]
  assert [bool(np.isnan(x['pg/loss'])) for x in logs] == same
  assert len({float(x['learner/real/loss']) for x in logs}) == 3
  assert logs[1]['optim/skipped'] == 0


def test_what_a_learner_needs():
  with pytest.raises(ConfigError, match='real learns what is real'):
    make(reals=None)
  with pytest.raises(ConfigError, match='the reward real is trained'):
    make(learners={})
