"""Prompts in chunks: which go where, and that nothing but memory changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import chunks


@pytest.mark.parametrize(
  'prompts, samples, rows, shards, shape',
  [
    (70, 8, 0, 1, (1, 70)),  # all at once
    (70, 8, 96, 1, (6, 12)),  # 12 prompts have 96 samples
    (70, 8, 4, 1, (70, 1)),  # a prompt's samples stay together
    (7, 2, 0, 8, (1, 8)),  # 14 rows do not divide over 8 devices, 16 do
    (7, 3, 12, 4, (2, 4)),  # 4 prompts of 3 are 12 rows, 3 on each of 4
    (9, 1, 6, 2, (2, 6)),  # two of 6 and not one of 6 and one of 4
  ],
)
def test_places_by_hand(prompts, samples, rows, shards, shape):
  at = chunks.places(prompts, samples, rows, shards)
  assert at.shape == shape
  assert at.size * samples % shards == 0
  assert at.reshape(-1)[:prompts].tolist() == list(range(prompts))
  assert at.max() == prompts - 1


def test_what_is_filled_up_is_dropped():
  programs = []

  @jax.jit
  def run(scale, prompts):
    programs.append(1)
    x = scale * prompts['x']
    return dict(rows=jnp.repeat(x, 3), prompts=x, none=None)

  batch = dict(x=np.arange(5.0), prompt_id=np.arange(5))
  evaluate = chunks.evaluator(run, batch, samples=3, rows=6)
  found = evaluate(np.float32(2.0))
  np.testing.assert_array_equal(found['prompts'], 2 * np.arange(5.0))
  np.testing.assert_array_equal(found['rows'], np.repeat(found['prompts'], 3))
  traced = evaluate.trace(jax.ShapeDtypeStruct((), jnp.float32))
  assert traced.out_info['rows'].shape == (6,)
  assert len(programs) == 1  # of all chunks, and traced before
