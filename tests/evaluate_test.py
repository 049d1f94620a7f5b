"""Evaluation of labels: shares by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, evaluate
from gen_rl.types import Policy

TEXTS, TASKS = ['one', 'two', 'three'], ['x', 'y', 'x']
BATCH = dict(
  tokens=np.zeros((3, 2), np.int32),
  prompt_id=np.arange(3, dtype=np.int32),
  info={'label': np.array([0, 1, 2], np.int32)},
)


def labelled(correct, encode):
  refuse = lambda *_: 1 / 0
  policy = Policy(
    refuse, refuse, refuse, refuse, lambda _, x: x, correct=correct
  )
  return build.build(
    evaluate,
    'labelled',
    policy=policy,
    sampler=None,
    encode=encode,
    batch=BATCH,
    texts=TEXTS,
    tasks=TASKS,
    gold={},
    proxy=None,
    samples=2,
    seed=0,
  )


def test_labelled():
  def encode(rows):
    x = jnp.arange(6.0)[:, None, None, None] % 2 * jnp.ones((6, 4, 4, 3))
    return x, {'label': rows.info['label']}

  # Prompt i is labelled params[member]: right where that is i.
  correct = lambda params, x, cond: (
    params[x[:, 0, 0, 0].astype(int)] == cond['label']
  )
  result = labelled(correct, encode)(jnp.array([0, 2]))
  np.testing.assert_array_equal(result.gold, [[1, 0], [0, 0], [0, 1]])
  assert result.strict == pytest.approx(2 / 6)
  assert result.strict_per_task == pytest.approx({'x': 0.5, 'y': 0.0})
  assert result.proxy is None
  assert result.diversity == pytest.approx(1.0)  # black against white
  assert result.media.shape == (3, 2, 4, 4, 3)
  assert result.metrics()['eval/strict/x'] == pytest.approx(0.5)


def test_labelled_needs_labels():
  with pytest.raises(build.ConfigError, match='sampled'):
    labelled(None, lambda rows: rows)
  with pytest.raises(build.ConfigError, match='sampled'):
    labelled(lambda *_: 0, None)
