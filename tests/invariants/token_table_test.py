"""Rows of tokens of unlike lengths through the whole step.

The policy is a table: the logits of every place, for every prompt.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import advantages, aggregate, build, objectives, rewards, testing
from gen_rl.distributions import Categorical, decision_keys
from gen_rl.types import Policy, Trajectory

END, V, K, PROMPTS = 1, 5, 4, 3
ANSWERS = np.array([[2, -1, -1], [3, 4, -1], [4, 2, 3]], np.int32)


def table_policy():
  """Logits [P k v]: every word likely, the end as likely as a word."""

  def init(key):
    return dict(logits=0.1 * jax.random.normal(key, (PROMPTS, K, V)))

  def logits(params, group):
    forbidden = jnp.where(jnp.arange(V) == 0, -jnp.inf, 0.0)  # padding
    return params['logits'][group] + forbidden

  def rollout(params, rows, step):
    dist = Categorical(logits(params, rows.group))
    drawn = dist.sample(decision_keys(rows.keys, (len(rows.group), K)))
    ended = jnp.cumsum(drawn == END, 1) - (drawn == END) > 0
    actions = jnp.where(ended, 0, drawn)
    zeros = jnp.zeros(drawn.shape)
    return Trajectory(
      cond=rows.cond,
      states=(),
      actions=actions,
      times=jnp.zeros((*drawn.shape, 2)),
      noise=zeros,
      log_prob=dist.log_prob(drawn),
      mask=1.0 - ended,
      sample=actions,
      group=rows.group,
    )

  return Policy(
    init,
    rollout,
    lambda params, tokens: tokens,
    dict(dist=lambda params, traj: Categorical(logits(params, traj.group))),
  )


def batch():
  ids = np.arange(PROMPTS, dtype=np.int32)
  return dict(tokens=ids[:, None] + 1, prompt_id=ids, info=dict(answer=ANSWERS))


def reward(**spec):
  return build.build(rewards, dict(name='exact_match', end=END) | spec)


def make(terms, **settings):
  settings = dict(reward=reward(), tx=testing.LINEAR, group_size=8) | settings
  return testing.make_step(table_policy(), terms, **settings)


def everything(on_policy):
  pg = objectives.clipped_pg(0.2, 0.28, on_policy=on_policy, dual_clip=3.0)
  return dict(
    pg=(pg, 1.0),
    gspo=(objectives.gspo(0.1, 0.1, on_policy=on_policy), 0.5),
    gspo_token=(objectives.gspo(0.1, 0.1, True, on_policy), 0.5),
    cispo=(objectives.cispo(on_policy=on_policy), 0.5),
    kl=(objectives.sampled_kl('ref', 'k3+', True, on_policy=on_policy), 0.1),
    path=(objectives.sampled_kl('ref', 'k1', True, True, on_policy), 0.1),
    entropy=(objectives.entropy(), 0.01),
  )  # fmt: skip


@pytest.mark.parametrize('aggregator', ['seq_mean_token_mean', 'const'])
def test_microbatches_equal_the_full_batch(aggregator):
  """Of every objective of tokens, in two updates; truncated rows are lost."""
  inner = dict(name='tagged_answer', begin=2, close=3, end=END)
  settings = dict(
    reward=reward(name='drop_truncated', reward=dict(inner, whole=True)),
    advantage=advantages.reinforce_pp(8, baseline=True),
    aggregate=getattr(aggregate, aggregator),
    updates=2,
  )
  whole, logs = testing.run(
    *make(everything(False), **settings), prompts=batch()
  )
  parts, part_logs = testing.run(
    *make(everything(False), microbatches=6, **settings), prompts=batch()
  )
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(part_logs, logs)
  assert logs[0]['reward/invalid'] > 0 and logs[0]['optim/grad_norm'] > 0
  assert logs[0]['pg/log_ratio_abs_max'] > 1e-3  # of the second update


def test_ratios_are_one_on_policy():
  step, state = make(everything(True), advantage=advantages.rloo(8))
  _, (log,) = testing.run(step, state, 1, batch())
  for name in ('pg', 'gspo', 'gspo_token', 'cispo'):
    assert log[f'{name}/log_ratio_abs_max'] == log[f'{name}/approx_kl'] == 0
    assert log[f'{name}/ratio'] == pytest.approx(1, rel=1e-6)
  assert log['kl/kl'] == log['path/kl'] == 0  # the reference is the start


def test_places_behind_the_end_do_not_learn():
  """Where the mask says that all rows ended after two tokens."""
  step, state = make(everything(True), advantage=advantages.rloo(8))
  key = jax.random.key(testing.SEED)
  _, exp, _ = jax.jit(step.collect)(state, batch(), key)
  reached = np.asarray(exp.traj.mask).reshape(PROMPTS, 8, K).max(1)
  mask = exp.traj.mask * (jnp.arange(K) < 2)
  exp = exp.replace(traj=exp.traj.replace(mask=mask))
  before = jax.device_get(state.params['logits'])
  state, _ = jax.jit(step.update)(state, exp, key)
  moved = np.abs(state.params['logits'] - before).sum(-1) > 0
  assert reached[:, 2:].any() and not moved[:, 2:].any()
  assert moved[:, :2].any()


@pytest.mark.parametrize(
  'terms, updates',
  [
    (dict(pg=(objectives.clipped_pg(0.2, 0.28), 1.0)), 1),
    (
      dict(
        pg=(objectives.gspo(0.1, 0.1, on_policy=False), 1.0),
        kl=(objectives.sampled_kl('ref', 'k2', True, on_policy=False), 1e-3),
      ),
      2,
    ),
    (dict(pg=(objectives.cispo(on_policy=False), 1.0)), 2),
  ],
  ids=['pg', 'gspo', 'cispo'],
)
def test_a_table_learns_its_answers(terms, updates):
  """From under a tenth to nearly always right, on exact matches alone."""
  step, state = make(
    terms,
    tx=optax.adam(0.1),
    advantage=advantages.dr_grpo(32),
    group_size=32,
    updates=updates,
    aggregate=aggregate.const,
  )
  _, logs = testing.run(step, state, 60, batch())
  scores = [log['reward/score'] for log in logs]
  assert scores[0] < 0.2 and np.mean(scores[-5:]) > 0.8
