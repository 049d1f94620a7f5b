"""Rows of an update: those left out are those that say nothing."""

import types

import jax.numpy as jnp
import pytest

from configs import flow_grpo
from gen_rl import advantages, fits, objectives, testing
from gen_rl.step import choose
from gen_rl.types import Experience, RowKeys


def made(weight, adv, update_rows, unit=1, members=0, group_size=1):
  recipe = types.SimpleNamespace(
    update_rows=update_rows, unit=unit, update_members=members,
    group_size=group_size, layout=types.SimpleNamespace(rows=lambda x: x),
  )  # fmt: skip
  rows = jnp.arange(len(weight))
  exp = Experience(rows, jnp.array(adv)[:, None], jnp.array(weight), rows)
  return choose.choose(recipe, exp, RowKeys(rows, rows))


def test_largest_advantages_of_rows_with_a_weight():
  weight = [1.0, 0.0, 1.0, 0.5, 1.0, 1.0]
  adv = [0.1, 9.0, -2.0, 0.3, 0.2, 1.0]  # 9.0 says nothing, 0.3 is half a row
  exp, keys, metrics = made(weight, adv, 3)
  assert exp.traj.tolist() == keys.own.tolist() == [2, 4, 5]  # in their order
  assert exp.adv[:, 0].tolist() == pytest.approx([-2.0, 0.2, 1.0])
  assert float(metrics['update/left_out']) == pytest.approx(2 / 5)
  # More than have one: rows of none fill up, and none is left out.
  exp, _, metrics = made(weight, adv, 6)
  assert exp.traj.tolist() == list(range(6))
  assert float(metrics['update/left_out']) == 0


def test_groups_stay_whole():
  weight, adv = [0.0, 1, 1, 0, 0, 0, 1, 1], [5, 0.1, 0.2, 5, 5, 5, 0.1, 0.3]
  exp, _, metrics = made(weight, adv, 4, unit=2)
  assert exp.traj.tolist() == [2, 3, 6, 7]
  assert float(metrics['update/left_out']) == pytest.approx(1 / 4)


def test_an_update_of_the_rows_that_say_something_is_the_whole():
  """Of a loss that rows of no weight are not in: the same gradients."""
  terms = dict(pg=(objectives.clipped_pg(0.2, on_policy=True), 1.0))
  found = []
  for rows in (0, 8):  # the best and the worst of four groups of four
    step, state = testing.make_step(
      terms=terms, advantage=advantages.best_worst(4), tx=testing.LINEAR,
      update_rows=rows,
    )  # fmt: skip
    state, logs = testing.run(step, state, 2)
    found.append((state.params, logs[-1]['pg/loss']))
  testing.assert_same(*found)
  assert logs[-1]['update/left_out'] == 0


def test_members_of_every_group():
  weight = [0.0, 1, 1, 1, 0, 0, 0, 0]  # nothing to learn from the second group
  adv = [5.0, 0.1, -0.2, 0.3, 0, 0, 0, 0]
  exp, keys, metrics = made(weight, adv, 0, members=2, group_size=4)
  assert exp.traj.tolist() == keys.own.tolist() == [2, 3, 4, 5]
  assert float(metrics['update/left_out']) == pytest.approx(1 / 3)


def test_pairs_alone_are_the_whole_of_dpo():
  """The rows between the best and the worst are not in its loss."""
  found = []
  for members in (0, 2):
    dpo = objectives.dpo(members or 4, beta=5.0)
    step, state = testing.make_step(
      terms=dict(dpo=(dpo, 1.0)), advantage=advantages.best_worst(4),
      tx=testing.LINEAR, update_members=members, whole_groups=True,
      microbatches=2,
    )  # fmt: skip
    state, logs = testing.run(step, state, 2)
    found.append((state.params, logs[-1]['dpo/loss'], logs[-1]['dpo/margin']))
  testing.assert_close(*found, rtol=1e-5, atol=1e-6)
  assert logs[-1]['update/left_out'] == 0


def test_keys_are_those_of_the_row():
  """What a row draws does not hang on who else is taken."""
  terms = dict(nll=(objectives.awm(), 1.0))
  losses = []
  for rows in (0, 8):
    step, state = testing.make_step(
      terms=terms, advantage=advantages.best_worst(4), tx=testing.LINEAR,
      update_rows=rows,
    )  # fmt: skip
    _, logs = testing.run(step, state, 1)
    losses.append(float(logs[0]['nll/loss']))
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_that_cannot_be_taken():
  def errors(rows, unit=1, microbatches=1, members=0):
    c = flow_grpo.get_config()
    c.data.update(prompts_per_step=4, group_size=4)
    c.update(update_rows=rows, microbatches=microbatches, updates=1)
    c.update_members = members
    c.rollout_chunks = 1
    return fits.rows(c, 1, unit)

  assert errors(0) == errors(8) == errors(8, unit=4) == []
  assert 'are too many' in errors(20)[0]
  assert errors(0, unit=2, microbatches=4, members=2) == []
  assert 'cannot be cut' in errors(0, microbatches=3, members=2)[0]
  assert 'of groups of data.group_size=4' in errors(0, members=5)[0]
  assert 'both say' in errors(8, members=2)[0]
  assert 'whole groups of 4' in errors(6, unit=4)[0]
  assert 'cannot be cut' in errors(6, microbatches=4)[0]
