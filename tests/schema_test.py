"""Configs from files and notebooks are held to the fields of base.py."""

import inspect

import pytest

from configs import (
  alignprop,
  diffusion_nft,
  flow_grpo,
  sd3_flow_grpo,
  sd15_ddpo,
)
from gen_rl import build, schema, specs


def _mistakes(config=None, **changed):
  config = config or flow_grpo.get_config('tiny')
  with config.unlocked():
    for path, value in changed.items():
      *above, last = path.split('.')
      node = config
      for key in above:
        node = node[key]
      with node.ignore_type():
        node[last] = value
  return [mistake.says for mistake in schema.mistakes(config)]


@pytest.mark.parametrize(
  'path, value, says',
  [
    ('microbatch', 3, "config has no field 'microbatch' (did you mean 'mic"),
    ('eval.num_prompt', 3, "config.eval has no field 'num_prompt' (did you"),
    ('data.reader.len', 3, "config.data.reader has no field 'len'"),
    ('monitor', {}, "did you mean 'monitors'"),
    ('lora.rnk', 3, "config.lora has no field 'rnk' (did you mean 'rank'?)"),
    ('optimizer.lrr', 1.0, "config.optimizer: adamw in gen_rl.optim has no"),
    ('policy.transition.eta', 1, 'config.policy.transition: flow_sde in'),
    ('steps', 4.0, 'config.steps is 4.0; it must be a whole number at'),
    ('ema', 1.5, 'config.ema is 1.5; it must be at least 0 and below 1'),
    ('ema', -0.5, 'config.ema is -0.5; it must be'),
    ('data.balance', 2, 'config.data.balance is 2; it must be True or False'),
    ('data.weights', dict(text=-1), "config.data.weights is {'text': -1}"),
    ('optimizer.lr', float('nan'), 'lr of adamw is nan; it must be a finite'),
    ('optimizer.b2', 1.0, 'b2 of adamw is 1.0; it must be at least 0 and b'),
    ('optimizer.decay', 'steep', "it must be 'constant' or 'cosine' or"),
    ('policy.null_prob', 3.0, 'null_prob of denoising is 3.0; it must be bet'),
    ('advantage.clip', -1.0, 'clip of grpo is -1.0; it must be above 0 or'),
    ('rewards.oracle.weight', float('inf'), 'oracle.weight is inf; it must be'),
    ('rewards.oracle', 'shapes_geneval', 'is a part, dict(name=...)'),
    ('rewards.more', dict(weight=1.0), 'config.rewards.more: A spec for'),
    ('policy.weight', 0.0, "has no key 'weight'"),
    ('eval.gold.oracle.weight', 0.3, "has no key 'weight'"),
    ('model.vocab', 5, "has no key 'vocab'"),
    ('advantage.group_size', 5, "has no key 'group_size'"),
    ('copies.mine', dict(name='adamw'), "'adamw' is not for this place"),
    ('optimizer.name', 'ramp_decay', "valid: adamw, muon"),
    ('copies.ema', dict(name='constant_decay'), 'config.copies.ema has a name'),
    ('behaviour', 'rfe', "config.behaviour is 'rfe', which is no copy of the "
     "parameters (did you mean 'ref'?); valid: params, ref, ema"),
    ('objective.kl.ref', 'reff', "config.objective.kl.ref is 'reff', which is"),
    ('objective.kl.ref', 'params', "'params', which is no copy"),
    ('objective.kl.path', True, "set config.policy.event to 'sum'"),
    ('export', '../x', "config.export is '../x'; it must be the name"),
    ('export', '..', 'it must be the name of a file'),
    ('offload', 'ema', "each is 'ema' or 'optimizer'"),
    ('trainable', '(', "config.trainable is '('; it must be a regular"),
    ('data.view', dict(noise=1.0), 'config.data.view has noise and names no f'),
    ('eval.rollout', dict(x=1), 'config.eval.rollout changes data'),
    ('objective', {}, 'nothing would be trained'),
    ('eval', 5, 'config.eval is 5; it has fields'),
  ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(path, value, says):
  (said,) = _mistakes(**{path: value})
  assert says in said


@pytest.mark.parametrize('name', ['', 'flux_text'])
def test_a_network_is_given_the_features_it_reads(name):
  config = sd3_flow_grpo.get_config('tiny')
  config.data.embed.encoder.name = name
  (said,) = schema.mistakes(config)
  assert 'the network mmdit is given the features of sd3_text' in str(said)
  config.data.embed.encoder = dict(name='sd3_text', dtype='half')
  assert "dtype of sd3_text is 'half'" in str(schema.mistakes(config)[0])


def test_all_of_them_are_found():
  changed = {
    'steps': 0, 'ema': 2.0, 'optimizer.lr': -1.0, 'oops': 1, 'behaviour': 'y',
    'rewards.oracle.name': 'x',
  }  # fmt: skip
  said = _mistakes(**changed)
  assert (
    len(said) == 5
  )  # none of `behaviour`: which copies there are is unknown
  config = flow_grpo.get_config('tiny')
  config.steps, config.updates = 0, -1
  with pytest.raises(build.ConfigError) as error:
    schema.check(config)
  assert str(error.value).startswith('2 things are wrong:\n  1. config.steps')
  assert (
    str(error.value).splitlines()[2].startswith('  2. config.updates is -1')
  )


def test_copies_that_are_there():
  config = diffusion_nft.get_config('tiny')
  assert not _mistakes(config)
  (said,) = _mistakes(config, behaviour='slo')
  assert "(did you mean 'slow'?)" in said
  (said,) = _mistakes(**{'objective.kl.ref': 'ema', 'ema': 0.0})
  assert 'there is no average: config.ema is 0' in said
  assert not _mistakes(**{'objective.kl.ref': 'ema'})


def test_what_would_do_nothing():
  never = dict(name='linear', steps=3, start=0.0, end=0.0)
  for changed, says in (
    ({'objective.pg.schedule': never}, 'pg.schedule is 0 from start to end'),
    ({'optimizer.decay': 'constant', 'optimizer.decay_to': 0.5}, 'set decay'),
    ({'mix': dict(name='gated', gate='orakel')}, "did you mean 'oracle'"),
    (
      {'eval.name': 'labelled', 'eval.sets.far': dict(name='frechet')},
      'config.eval.sets measures samples',
    ),
  ):
    (said,) = _mistakes(**changed)
    assert says in said
  assert not _mistakes(mix=dict(name='gated', gate='oracle'))


def test_what_is_mixed_is_there():
  for mix, more, says in (
    (dict(name='gated', gate='orakel/strict'), {}, "'orakel' is no reward"),
    (dict(name='tiered', tiers=dict(orakel=1)), {}, 'mix.tiers.orakel names'),
    (dict(name='tiered', tiers={}), {}, 'config.mix: tiers is empty'),
    (dict(name='base_bonus', base='oracle'), {}, 'which mixes 2 rewards'),
    (dict(name='log_tame'), {}, 'with a weight are: oracle'),
    (dict(name='group_range'), {'data.group_size': 1}, 'data.group_size is 1'),
    (
      dict(name='log_tame', threshold=0.2, within='group'),
      {'evals.few': dict(samples=1)},
      'config.evals.few.samples is 1',
    ),
  ):
    (said,) = _mistakes(mix=mix, **more)
    assert says in said, said
  assert not _mistakes(mix=dict(name='base_bonus', base='oracle/strict'))
  assert not _mistakes(mix=dict(name='log_tame', threshold=0.2))
  assert not _mistakes(mix=dict(name='tiered', tiers=dict(oracle=1)))


def test_the_grid_of_a_discrete_process():
  config = sd15_ddpo.get_config('tiny')
  assert not _mistakes(config)
  (said,) = _mistakes(config, **{'policy.grid.name': ''})
  assert said.endswith('set it to ddim or lcm')


def test_parts_inside_parts():
  spec = dict(name='win_rate', reward=dict(name='shapes_genevl'))
  (said,) = _mistakes(**{'rewards.wins': spec})
  assert said.startswith('config.rewards.wins.reward: ')
  assert "did you mean 'shapes_geneval'" in said
  assert not _mistakes(alignprop.get_config('tiny'))


def test_what_base_takes_its_fields_from_stays_of_the_package(
  tmp_path, monkeypatch
):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'base.py').write_text('fields = None\n')
  monkeypatch.chdir(tmp_path)
  schema.base.cache_clear()
  assert 'steps' in schema.base()['fields']()


def test_numbers_of_signatures_are_annotated():
  """What is not cannot be checked."""
  for path, module in specs.SPECS.items():
    for name in build.names(module):
      for key, p in build.keywords(build.find(module, name)).items():
        assert p.annotation is not inspect.Parameter.empty, (path, name, key)


def test_directions_of_rewards_are_added():
  config = alignprop.get_config('tiny')
  config.objective.reward.per_reward = True
  assert not _mistakes(config)
  (said,) = _mistakes(config, mix=dict(name='product'))
  assert (
    "adds the directions of the rewards, and config.mix.name is 'pro" in said
  )
