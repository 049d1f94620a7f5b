"""What evaluations are made on."""

import dataclasses

import numpy as np
import pytest

from configs import flow_grpo, toy, vlm_grpo
from gen_rl import build
from gen_rl.data import feeds, prompts


@pytest.mark.parametrize(
  'config, changes, share',
  [
    (toy, {}, 1.0),
    (flow_grpo, {}, 0.0),
    (flow_grpo, {'eval.prompts.split': 'train+rl'}, 1.0),
    (vlm_grpo, {}, 0.0),  # the same questions, about other pictures
  ],
)
def test_prompts_of_the_evaluation_that_are_trained_on(config, changes, share):
  c = config.get_config('tiny')
  c.update_from_flattened_dict(changes)
  source = build.build(prompts, c.data.prompts)
  assert feeds.trained_on(c, source) == share


def test_pictures_and_columns_make_prompts_differ(monkeypatch):
  """Two of four: one text is new, one has another picture."""
  media = np.zeros((4, 2, 2, 3), np.float32)
  source = prompts.Prompts(
    'mine', ('a', 'b', 'c', 'd'), np.arange(4), {'n': np.arange(4)}, media=media
  )
  other = dataclasses.replace(
    source, texts=('a', 'b', 'c', 'e'), media=media.copy()
  )
  other.media[1] += 0.5
  monkeypatch.setattr(feeds, 'evaluation_prompts', lambda config: other)
  assert feeds.trained_on(None, source) == 0.5
  lazy = dataclasses.replace(source, texts=list('abcd'))
  assert feeds.trained_on(None, lazy) is None
