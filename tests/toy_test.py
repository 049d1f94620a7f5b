"""The toy config learns: reward up, towards the closed-form optimum."""

import jax
import numpy as np

from configs import toy
from gen_rl import assemble, initial, sharding, train_state
from gen_rl.data import pipeline
from gen_rl.rewards import combine


def test_a_short_run_raises_the_reward():
  config = toy.get_config()
  config.steps = 30
  config.data.group_size = 32
  config.policy.steps = 6
  config.model.width = 16
  config.optimizer.lr = 1e-2
  config.eval.update(samples=128, steps=12)
  built = assemble.setup(config)
  step, tx, advantage = assemble.make_step(config, built, sharding.one_device())
  base = initial.params(config, built.policy)
  before_params = jax.tree.map(np.array, base)
  state = train_state.create(
    base,
    tx,
    advantage,
    trainable='',
    refs=['ema', 'ref'],
    reward_params=combine.params(built.rewards),
  )
  batches = pipeline.prompt_batches(
    built.source, 4, 0, built.tokenizer, 1, group_size=32
  )
  key = jax.random.key(0)
  history = []
  for _ in range(config.steps):
    state, logged = step.train_step(state, next(batches)[0], key)
    history.append(jax.device_get(logged))
  assert history[0]['kl/kl'] == 0 and history[0]['pg/ratio'] == 1
  assert history[-1]['kl/kl'] > 0
  score = [h['reward/score'] for h in history]
  assert np.mean(score[-5:]) > np.mean(score[:5]) + 0.1

  evaluate, _ = assemble.make_evaluator(config, built)
  before = evaluate(before_params)
  after = evaluate(train_state.full_params(state, 'params'))
  assert after.proxy > before.proxy + 0.1
  assert after.strict > before.strict + 0.1
  gap = 'optimum_mean_gap'
  assert after.parts[gap] < 0.7 * before.parts[gap]
  shown = after.shown(4)
  assert shown.pictures.shape == (4, 1, 112, 112, 3)
  np.testing.assert_allclose(shown.gold[:, 0], after.gold[:4].mean(1))
  np.testing.assert_allclose(shown.reward[:, 0], after.reward[:4].mean(1))
