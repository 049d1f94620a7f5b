"""What a config's monitors and nested specs become."""

import pytest

from configs import flow_grpo
from gen_rl import assemble
from gen_rl.build import ConfigError


def test_monitors_are_built_and_kept_apart_from_rewards():
  config = flow_grpo.get_config('tiny')
  config.monitors.gold = dict(name='shapes_strict')
  config.monitors.off = dict(name='saturation', weight=0.0)
  built = assemble.setup(config)
  assert list(built.rewards) == ['oracle'] and list(built.monitors) == ['gold']
  config.monitors.files = dict(name='host_jpeg_compressibility')
  with pytest.raises(ConfigError, match='monitors.files runs on the host'):
    assemble.setup(config)


def test_nested_specs_have_keywords():
  assert 'strict_weight' in assemble.keywords(
    'rewards.wins.reward', 'shapes_geneval'
  )
  assert 'strict_weight' in assemble.keywords('monitors.gold', 'shapes_geneval')
  assert 'std' in assemble.keywords('advantage.each', 'grpo')
