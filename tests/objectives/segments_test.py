"""An objective on one segment is that objective on a shorter trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, objectives, testing
from gen_rl.objectives import segments
from gen_rl.types import Experience, RowKeys, Trajectory

B, K = 3, (2, 4)
ROWS = RowKeys((), ())


def made(part=None):
  """(Replay, Experience) of two segments, or of one alone."""
  rng = np.random.default_rng(0)
  log_prob, old, mask = rng.normal(size=(3, B, sum(K)))
  mask = (mask > -0.5).astype(np.float32)
  at = dict(first=slice(2), second=slice(2, 6)).get(part, slice(None))
  log_prob, old, mask = (
    jnp.asarray(x[:, at], jnp.float32) for x in (log_prob, old, mask)
  )
  actions = tuple(jnp.zeros((B, k, 7)[: 2 + i]) for i, k in enumerate(K))
  traj = Trajectory(
    cond=(), states=(), actions=actions if part is None else actions[0],
    times=jnp.zeros((*mask.shape, 2)), noise=mask, log_prob=old, mask=mask,
    sample=(), group=jnp.arange(B),
  )  # fmt: skip
  answers = dict(params=log_prob, ref=log_prob * 0.5)
  replay = testing.answers(log_prob=answers.get)
  adv = jnp.array([[1.0], [-0.5], [2.0]])
  return replay, Experience(traj, adv, jnp.ones(B), None)


SPECS = dict(
  clipped_pg=dict(name='clipped_pg', clip=0.2),
  gspo=dict(name='gspo', clip=0.2, clip_high=0.3),
  cispo=dict(name='cispo'),
  sampled_kl=dict(name='sampled_kl'),
)


@pytest.mark.parametrize('name', list(SPECS))
@pytest.mark.parametrize('part', ['first', 'second'])
def test_a_segment_is_a_shorter_trajectory(name, part):
  ref = dict(ref='ref') if name == 'sampled_kl' else {}
  whole = build.build(
    objectives,
    dict(name='of_segment', objective=SPECS[name], part=part, **ref),
    on_policy=False,
  )
  alone = build.build(objectives, SPECS[name], on_policy=False)
  found, metrics = whole(*made(), ROWS)
  wanted, own = alone(*made(part), ROWS)
  if name == 'gspo':
    pick = lambda x: x
  else:
    at = dict(first=slice(2), second=slice(2, 6))[part]
    pick = lambda x: x[:, at]
    rest = np.delete(found.mask, np.r_[at], 1)
    assert not rest.any()
  np.testing.assert_array_equal(pick(found.mask), wanted.mask)
  on = np.asarray(wanted.mask) > 0
  np.testing.assert_allclose(
    np.where(on, pick(found.value), 0), np.where(on, wanted.value, 0), rtol=1e-6
  )
  for key, value in own.items():
    np.testing.assert_allclose(
      np.where(on, pick(metrics[key]), 0), np.where(on, value, 0), rtol=1e-6
    )


def test_which_decision_is_whose():
  _, exp = made()
  assert segments.segments(exp.traj).tolist() == [0, 0, 1, 1, 1, 1]
  _, exp = made('first')
  assert segments.segments(exp.traj).tolist() == [0, 0]


@pytest.mark.parametrize(
  'options, words',
  [
    (dict(part='third'), "'first' or 'second'"),
    (dict(objective=dict(name='rebel')), 'rebel compares the rows'),
    (dict(objective=dict(name='sampled_kl')), "ref='ref' next to part"),
    (dict(objective=dict(name='clipped_pg', clop=1)), "no key 'clop'"),
  ],
)
def test_bad_input(options, words):
  spec = dict(name='of_segment', part='first', objective=SPECS['clipped_pg'])
  with pytest.raises(build.ConfigError, match=words):
    build.build(objectives, spec | options)


def test_a_trajectory_of_one_segment():
  of_first = segments.of_segment(SPECS['clipped_pg'], 'first')
  replay, exp = made('first')
  with pytest.raises(build.ConfigError, match='several segments'):
    of_first(replay, exp, ROWS)
  step, state = testing.make_step(terms=dict(pg=(of_first, 1.0)))
  with pytest.raises(build.ConfigError, match='several segments'):
    step.train_step(state, testing.batch(), jax.random.key(0))
