"""Parts of configs and the keywords they take."""

from gen_rl import specs


def test_nested_specs_have_keywords():
  assert 'strict_weight' in specs.keywords(
    'rewards.wins.reward', 'shapes_geneval'
  )
  assert 'strict_weight' in specs.keywords('monitors.gold', 'shapes_geneval')
  assert 'std' in specs.keywords('advantage.each', 'grpo')


def test_autoencoders_have_keywords():
  assert {'channels', 'blocks', 'groups'} <= set(
    specs.keywords('model.vae', 'vae')
  )
  assert specs.keywords('model.size', 'vae') is None
