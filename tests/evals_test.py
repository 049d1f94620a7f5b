"""Evaluations beside the main one: changes to it, cadence and place."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_vlm, toy
from gen_rl import (
  assemble,
  build,
  evals,
  evaluation,
  initial,
  rollout,
  schema,
  setups,
  testing,
  train,
)
from gen_rl.data import feeds


def test_what_is_not_changed_is_as_in_eval():
  config = toy.get_config('tiny')
  config.evals.more = dict(samples=3, guidance_scale=2.0, gold={})
  main, more = evals.configs(config).values()
  assert main is config
  assert (more.eval.samples, more.eval.guidance_scale) == (3, 2.0)
  assert not more.eval.gold and config.eval.gold
  assert more.eval.steps == config.eval.steps
  assert more.policy == config.policy


def test_mistakes_are_named_with_their_label():
  config = toy.get_config('tiny')
  config.evals.more = dict(stepz=3, samples=0, gold=dict(a=dict(name='moon')))
  says = ' '.join(m.says for m in schema.mistakes(config))
  assert "config.evals.more has no field 'stepz' (did you mean 'steps'?" in says
  assert 'config.evals.more.samples is 0; it must be at least 1' in says
  assert "config.evals.more.gold.a: gen_rl.rewards has no 'moon'" in says
  config.evals = dict(more=3)
  assert 'has fields' in schema.mistakes(config)[0].says


def test_a_run_with_two(tmp_path):
  config = toy.get_config('tiny')
  config.steps = 3
  config.eval.every = 2
  config.evals.few = dict(num_prompts=2, samples=2, every=3, chunk=2)
  config.evals.unjudged = dict(samples=2, gold={}, every=1)
  result = train.train_and_evaluate(config, str(tmp_path))
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  at = {}
  for line in map(json.loads, lines):
    for name in line:
      place = name.rpartition('/')[0]
      if name.endswith('/diversity'):
        at.setdefault(place, set()).add(line['step'])
  assert at == {
    'eval': {0, 2, 3}, 'evals/few': {0, 3}, 'evals/unjudged': {0, 1, 2, 3},
  }  # fmt: skip
  few, unjudged = (result['evals'][k] for k in ('few', 'unjudged'))
  assert few['base']['evaluated'] == few['trained']['evaluated'] == 4
  assert unjudged['trained']['gold'] is None
  assert few['trained_on'] == 1.0  # all prompts of this world
  page = (tmp_path / 'report.html').read_text()
  assert 'few (gold)' in page and 'unjudged (proxy)' in page
  assert (tmp_path / 'images').exists()


def test_a_policy_with_other_steps():
  config = toy.get_config('tiny')
  config.policy.update(window=0, window_high=0)
  config.evals.more = dict(sampler='policy', policy=dict(steps=3, noise=0.5))
  built = assemble.setup(config)
  params = initial.params(config, built.policy)
  batch, _ = next(feeds.training(config, built))
  rows = rollout.make_rows(batch, 2, jax.random.key(0), jnp.int32(0))
  more = evals.configs(config)['more']
  sampler, _ = setups.sampler_of(more, built.policy, built.net)
  config.policy.update(steps=3, noise=0.5)
  policy = assemble.setup(config).policy
  whole = jax.jit(policy.rollout)(params, rows, jnp.int32(0))
  testing.assert_close(jax.jit(sampler)(params, rows), whole.sample)
  more.eval.policy = dict(steps=1)
  with pytest.raises(build.ConfigError, match='config.eval.policy: .* window'):
    setups.sampler_of(more, built.policy, built.net)
  config.evals.more = dict(policy=dict(stepz=3))
  says = [m.says for m in schema.mistakes(config)]
  assert 'config.evals.more.policy: ' in says[0] and "'stepz'" in says[0]
  config.evals.more = dict(policy=dict(steps=3))
  with pytest.raises(build.ConfigError, match="sampler is 'ode'; set it"):
    assemble.setup(config)


def test_pictures_that_training_lacks():
  config = pretrain_vlm.get_config('tiny')
  config.data.view.name = ''
  config.eval.view = dict(name='world_pictures', world='shapes', shared=True)
  config.evals.none = dict(view={})
  built = assemble.setup(config)
  params = initial.params(config, built.policy)
  of = evals.configs(config)
  run, _ = assemble.make_evaluator(of[evals.MAIN], built)
  run.trace(params)
  with pytest.raises(ValueError, match='prompts come without a picture'):
    assemble.make_evaluator(of['none'], built)[0].trace(params)
  config.evals.none = dict(view=dict(shots=-1, shaerd=True))
  says = ' '.join(m.says for m in schema.mistakes(config))
  assert 'config.evals.none.view' in says and "'shaerd'" in says


def judged(gold, verdict):
  return evaluation.Evaluation(
    0.0, {}, {}, None, 0.0, None, np.array(gold), [], verdict=verdict
  )


def test_best_and_worst_of_n_by_hand():
  nan = np.nan
  found = judged([[1, 0, nan], [0, 0, 0], [1, 1, 1]], True).extremes()
  np.testing.assert_allclose(found, [2 / 3, 1 / 3])
  found = judged([[1, 5, nan], [nan] * 3, [2, 0, 3]], False).extremes()
  np.testing.assert_allclose(found, [4, 0.5])
