"""Schedulers of released flows, with diffusers' own times."""

import json

import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.diffusion import schedules
from gen_rl.models import flow_files
from gen_rl.models.files.weights import WeightsError

diffusers = pytest.importorskip('diffusers')

EULER = 'FlowMatchEulerDiscreteScheduler'


@pytest.mark.parametrize(
  'said',
  [
    {},
    dict(shift=6.0, num_train_timesteps=500),
    dict(use_dynamic_shifting=True),
    dict(use_dynamic_shifting=True, base_shift=0.3, max_image_seq_len=2048),
    dict(
      use_dynamic_shifting=True, time_shift_type='linear', max_shift=2.5,
      base_image_seq_len=64,
    ),
  ],
)  # fmt: skip
@pytest.mark.parametrize('tokens', [256, 1024])
def test_the_times_of_diffusers(said, tokens):
  theirs = diffusers.FlowMatchEulerDiscreteScheduler(**said)
  found = flow_files.config(json.loads(theirs.to_json_string()), tokens)
  steps, mu = 7, None
  if said.get('use_dynamic_shifting'):
    c = theirs.config  # as the pipelines have it
    slope = (c.max_shift - c.base_shift) / (
      c.max_image_seq_len - c.base_image_seq_len
    )
    mu = c.base_shift + slope * (tokens - c.base_image_seq_len)
  theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
  np.testing.assert_allclose(
    schedules.linear(steps, found['shift']), theirs.sigmas, atol=1e-6
  )
  assert found['train_steps'] == theirs.config.num_train_timesteps


def test_flows_of_other_samplers():
  """Wan's."""
  theirs = diffusers.UniPCMultistepScheduler(
    prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0
  )
  assert flow_files.config(theirs.config, 4)['shift'] == 3.0


@pytest.mark.parametrize(
  'said, message',
  [
    (dict(shift=6.0), r'there shift=6\.0 and not 3\.0;.*config\.policy\.grid'),
    (dict(shift=3, num_train_timesteps=500), 'train_steps=500 and not 1000'),
    (dict(shift=3, use_dynamic_shifting=True), r'there shift=1\.\d+ and not 3'),
    (dict(shift=3, use_karras_sigmas=True), 'use_karras_sigmas=True, where'),
    (dict(shift='x'), "no number in shift='x'"),
    (dict(shift=3.0001), None),
    (dict(shift=3, _class_name='DDIMScheduler'), None),
  ],
)
def test_another_grid_than_the_config_says(tmp_path, said, message):
  at = tmp_path / 'scheduler'
  at.mkdir()
  said = dict(_class_name=EULER) | said
  (at / 'scheduler_config.json').write_text(json.dumps(said))
  for grid, shift, part in (
    (dict(name='sd3', shift=3.0), 1.0, 'grid'), (dict(name='sd3'), 1.0, 'grid'),
    (None, 3.0, 'policy'),
  ):  # fmt: skip
    if not message or (part == 'policy' and 'train_steps' in message):
      flow_files.same_grid(str(tmp_path), (8, 8, 16), grid, shift)
      continue
    message = message if part == 'grid' else message.replace(r'\.grid', '')
    with pytest.raises(ValueError, match=message) as error:
      flow_files.same_grid(str(tmp_path), (8, 8, 16), grid, shift)
    assert isinstance(error.value, ConfigError) == ('not' in message)


def test_a_shift_of_the_size(tmp_path):
  """FLUX's, of 32 x 32 tokens; and a folder without a scheduler."""
  flow_files.same_grid(str(tmp_path), (64, 64, 16), None, 9.0)
  at = tmp_path / 'scheduler'
  at.mkdir()
  said = dict(_class_name=EULER, use_dynamic_shifting=True, shift=3.0)
  (at / 'scheduler_config.json').write_text(json.dumps(said))
  shift = schedules.flux_shift(1024)
  grid = dict(name='dynamic_shift', tokens=1024)
  for spec, number in ((None, shift), (grid, 1.0)):
    flow_files.same_grid(str(tmp_path), (64, 64, 16), spec, number)
    with pytest.raises(ConfigError, match='another'):
      flow_files.same_grid(str(tmp_path), (32, 64, 16), spec, number)
  flow_files.is_flow(str(tmp_path))
  (at / 'scheduler_config.json').write_text('{"_class_name": "DDIMScheduler"}')
  with pytest.raises(WeightsError, match='has a DDIMScheduler, and the'):
    flow_files.is_flow(str(tmp_path))
