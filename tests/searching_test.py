"""The evaluation with and without a search, and settings that cannot be."""

import json

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
from PIL import Image
import pytest

from configs import ar_grpo, flow_grpo, flux_search, pref_grpo, search, toy
from gen_rl import (
  assemble,
  build,
  inference,
  initial,
  resume,
  rollout,
  schema,
  searching,
  selection,
)
from gen_rl.data import feeds
from gen_rl.rewards import combine
from gen_rl.worlds import world


def points(**how):
  """Samples of the mixture world, and how to search them."""
  config = toy.get_config('tiny')
  config.search = how
  return config


def test_what_is_found_beside_what_is_drawn(tmp_path, capsys):
  config = points(name='best_of_n', n=4)
  drawn, found = searching.compare(config, str(tmp_path / 'run'))
  same = inference.evaluate(config, str(tmp_path / 'run'))
  np.testing.assert_array_equal(drawn.media, same.media)
  # The first candidate is the sample: none gets worse, most get better.
  assert (found.reward >= drawn.reward).all()
  assert (found.reward > drawn.reward).mean() > 0.5
  assert found.calls == selection.Cost(4 * 4, 4)
  said = json.loads((tmp_path / 'run' / 'search.json').read_text())
  assert said['search'] == dict(name='best_of_n', n=4)
  assert said['drawn']['calls']['network_calls'] == 4
  assert said['found']['calls'] == dict(
    network_calls=16, reward_calls=4, backward_calls=0
  )
  assert said['found']['proxy'] == pytest.approx(found.reward.mean())
  assert said['step'] is None and said['samples'] == 8
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ['network', 'calls', 'a', 'sample', '4', '16'] in rows
  assert Image.open(tmp_path / 'run' / 'search.png').size > (112, 112)


def test_a_climb_through_the_exact_flow(tmp_path):
  """The reward is smooth, and nothing is worse than where it began."""
  config = points(name='noise_gradient', n=1, updates=4, rate=1.0, clip=0.3)
  drawn, found = searching.compare(config, str(tmp_path))
  assert (found.reward >= drawn.reward).all()
  assert found.proxy > drawn.proxy + 0.1
  assert found.calls == selection.Cost(4 * 5, 5, 4 * 4)


def test_a_judge_of_pairs_without_mistakes():
  """Its knock-out finds what best of n finds by the scores it compares."""
  media = {}
  for name in ('best_of_n', 'tournament'):
    config = points()
    config.eval.search = config_dict.create(name=name, n=4)
    if name == 'tournament':
      config.rewards.distance = config_dict.create(
        name='win_rate', reward=dict(name='mixture_distance')
      )
    built = assemble.setup(config)
    run, _ = assemble.make_evaluator(config, built)
    media[name] = run(initial.params(config, built.policy)).media
  np.testing.assert_allclose(media['tournament'], media['best_of_n'], atol=1e-6)


@pytest.mark.parametrize(
  'how, words',
  [
    (dict(name=''), 'needs a search: .*best_of_n'),
    (dict(name='best_of_m'), 'did you mean'),
    (dict(name='best_of_n', n=1), 'n of best_of_n is 1; it must .* at least 2'),
    (dict(name='best_of_n', m=2), "no key 'm'"),
    (dict(name='pruned', steps=(3,)), 'after step 3.*eval.steps=4'),
    (dict(name='pruned', steps=(2, 1), keep=(0.5, 0.5)), 'have to rise'),
    (dict(name='best_of_n', ranks=True), 'there is distance alone'),
  ],
)
def test_searches_that_cannot_be(how, words, tmp_path):
  config = points(**how)
  with pytest.raises(build.ConfigError, match=words):
    searching.compare(config, str(tmp_path))
  assert not list(tmp_path.iterdir())


def sampled(sampler):
  config = points()
  config.eval.sampler = sampler
  return config


def mixed():
  config = points()
  config.rewards.more = config.rewards.distance.copy_and_resolve_references()
  config.mix.name = 'product'
  return config


@pytest.mark.parametrize(
  'config, words',
  [
    (sampled('policy'), "Euler steps .* eval.sampler='policy'"),
    (ar_grpo.get_config('tiny'), 'of a policy that denoises'),
    (flow_grpo.get_config('jpeg_host,tiny'), 'jpeg runs on the host'),
    (flow_grpo.get_config('tiny'), 'gradient of the rewards, and oracle has'),
    (pref_grpo.get_config('tiny'), 'those of .* mean something beside each'),
    (mixed(), 'sums ranks of the rewards, and config.mix'),
  ],
)
def test_configs_that_cannot_be_searched(config, words, tmp_path):
  name = 'noise_gradient' if 'gradient' in words else 'zero_order'
  config.search = dict(name=name)
  if 'ranks' in words:
    config.search = dict(name='best_of_n', ranks=True)
  with pytest.raises(build.ConfigError, match=words):
    searching.compare(config, str(tmp_path))


def test_evaluations_that_search():
  config = points()
  config.evals.more = dict(search=dict(name='best_of_n', n=1))
  says = [m.says for m in schema.mistakes(config)]
  assert ['n of best_of_n is 1' in text for text in says] == [True]
  config.evals.more = dict(search=dict(name=''))
  assert schema.mistakes(config) == []


def test_checkpoints_from_before_searches_had_names():
  ours = points().to_dict()
  old = {**ours, 'eval': {**ours['eval'], 'best_of': 1}}
  del old['search'], old['eval']['search']
  assert resume.changes(old, ours) == []


@pytest.mark.parametrize('variant', ['', 'few'])
@pytest.mark.parametrize('name', search.SEARCHES)
def test_searches_of_the_config_fit_it(name, variant):
  """And cost about as much as best of 8, by the prices it says."""
  config = search.get_config(','.join(filter(None, (name, variant))))
  built = assemble.setup(config, use='search')
  _, find = assemble.searcher(
    config, built, built.segments, config.search, built.rewards, 64
  )
  params = jax.eval_shape(built.policy.init, jax.random.key(0))
  _, (said,) = world.understood(['a red circle'])
  batch = feeds.alone(config, built, 'a red circle', said.facts, True)
  rows = rollout.make_rows(batch, 1, jax.random.key(0), jnp.int32(0))
  rewards = combine.params(built.rewards)
  cost = jax.eval_shape(find, params, rows, rewards).cost
  assert 57 < cost.total(1.0, 0.37, 2.0) < 77


def test_candidates_of_a_published_budget():
  """2,000 TFLOPs at TTSnap's prices, for 20 steps; one more would cost more."""

  def price(how, n):
    keep = selection.keep_counts(n, how.get('keep', ()))
    cost = selection.search_cost(20, n, how.get('steps', ()), keep)
    return cost.total(9.9, 1.2)

  for name in 'best_of_n', 'pruned':
    how = flux_search.SEARCHES[name]
    assert price(how, how['n']) <= 2000 < price(how, how['n'] + 1)
  # By hand: 33 for 3 steps, 13 for 4, 5 for 5 and 2 for the last 8.
  by_hand = 9.9 * (99 + 52 + 25 + 16) + 1.2 * (33 + 13 + 5 + 2)
  assert price(flux_search.SEARCHES['pruned'], 33) == pytest.approx(by_hand)
