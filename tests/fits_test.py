"""What of a config does not go together, as `setup` says it."""

import pytest

from configs import mix_grpo
from gen_rl import assemble, fits
from gen_rl.build import ConfigError


@pytest.mark.parametrize(
  'changes, says',
  [
    (
      {'policy.branch.ways': (3, 3)},
      r'ways=\(3, 3\) are 9 rows, and data.group_size is 12',
    ),
    (
      {'policy.branch.ways': (3, 4), 'explore.size': 24},
      r'ways=\(3, 4\) are 12 rows, and explore.size is 24',
    ),
    (
      {'explore.size': 24, 'explore.policy': dict(deterministic=True)},
      'explore.policy.deterministic: .* all candidates would be alike',
    ),
    (
      {'data.view': dict(name='digit_scans')},
      'data.view digit_scans shows each another picture',
    ),
    ({'policy.branch.after': (1, 3)}, 'the last point is at most 2'),
    (
      {'policy.noise_schedule': dict(name='increasing', floor=0.0)},
      'increasing leaves step 0 without noise',
    ),
  ],
)
def test_branches_that_do_not_fit(changes, says):
  config = mix_grpo.get_config()
  config.policy.branch = dict(name='fixed_branches', after=(0, 1), ways=(3, 4))
  config.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError, match=says):
    assemble.setup(config)


def test_a_policy_that_follows_another_has_no_branches():
  config = mix_grpo.get_config()
  config.policy = dict(
    name='text_then_image', second=dict(branch=dict(name='random_branch'))
  )
  (said,) = fits.branches(config, None)
  assert said.startswith('config.policy.second.branch: ')
