"""What the study of PromptEcho says of judges and of what they taught."""

import numpy as np
import pytest

from configs import pretrain_vlm, promptecho_flow_grpo
from experiments.promptecho import run, worth


def test_net_wins_by_hand():
  """Two prompts of two pictures: 3 of 4 pairs won and a tie, 3 of 4 lost."""
  ours = np.array([[0.9, 0.5], [0.1, 0.6]])
  base = np.array([[0.5, 0.2], [0.7, 0.4]])
  # Of the first prompt + + 0 +, of the second - - - +.
  assert worth.net_wins(ours, base) == pytest.approx((3 - 2) / 8)
  assert worth.net_wins(base, ours) == pytest.approx(-1 / 8)
  assert worth.net_wins(base, base) == 0.0
  assert worth.net_wins(ours + 1, base) == 1.0
  # What was not judged loses, and ties with its like.
  ours[0] = np.nan
  assert worth.net_wins(ours[:1], base[:1]) == -1.0
  assert worth.net_wins(ours[:1], ours[:1]) == 0.0


@pytest.mark.parametrize('name', [n for n in run.ARMS if n[0] in 'dto'])
def test_arms_train_by_one_reward(name):
  """And it is this one whose weights are those of a judge that was trained."""
  arm = run.ARMS[name]
  config = promptecho_flow_grpo.get_config(arm.config.partition(':')[2])
  with config.unlocked():
    changes = {k: v for k, v in arm.overrides.items() if 'model' not in k}
    config.update_from_flattened_dict(changes)
  (used,) = (k for k, spec in config.rewards.items() if spec.weight)
  assert (used == 'oracle') == name.endswith('oracle')
  assert (used == 'asked') == name.endswith('asked')
  judged = name.startswith('dense') and used != 'oracle'
  assert list(arm.uses) == [f'rewards.{used}.weights'] * judged


def test_the_narrow_judge_is_the_small_one():
  model = promptecho_flow_grpo.get_config().rewards.echo.model
  for field, value in run.NARROW.items():
    model[field.rpartition('.')[2]] = value
  small = pretrain_vlm.get_config('small').model
  assert model.to_dict() == small.to_dict()
