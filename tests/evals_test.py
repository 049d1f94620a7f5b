"""Evaluations beside the main one: changes to it, cadence and place."""

import json

import numpy as np

from configs import toy
from gen_rl import evals, evaluation, schema, train


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
