"""Text and then a picture, on nets whose every number is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_rl import build, objectives, policies, rollout, sharding, testing
from gen_rl.objectives import segments as segments_lib
from gen_rl.policies import compose as compose_lib
from gen_rl.policies import masked as masked_lib
from gen_rl.policies import tokens as tokens_lib
from gen_rl.types import Policy, Reward, RewardOut

KEY = jax.random.key(testing.SEED)
continued = jax.jit(compose_lib.continued, static_argnums=(2, 3, 4))
END, K = 5, 3
LENGTH = 5  # of the second's prompts: two words and three more


def make(second='codes', keep_prompt=True, **options):
  first = tokens_lib.tokens(testing.bigram(6), K, END)
  made = dict(
    codes=lambda: tokens_lib.tokens(testing.bigram(4), 2),
    masked=lambda: masked_lib.masked(testing.mask_table(3, 4), steps=2),
    flow=lambda: testing.make_policy(**(dict(event='sum') | options)),
  )[second]()
  both = compose_lib.compose(first, made, LENGTH, END, keep_prompt)
  return tuple(map(testing.jitted, (both, first, made)))


def make_rows(group=4):
  return rollout.make_rows(testing.batch(), group, KEY, jnp.int32(0))


def test_second_prompts_by_hand():
  prompt = jnp.array([[7, 0, 6], [0, 0, 0], [1, 2, 3], [4, 0, 0]])
  said = jnp.array([[1, 2, END], [3, END, 4], [4, 4, 4], [END, 1, 2]])
  assert continued(prompt, said, 7, END).tolist() == [
    [7, 6, 1, 2, 0, 0, 0],
    [3, 0, 0, 0, 0, 0, 0],
    [1, 2, 3, 4, 4, 4, 0],
    [4, 0, 0, 0, 0, 0, 0],
  ]
  # The same of a tokenizer whose id 0 is a word and whose padding is 9.
  other = lambda x: jnp.where(x == 0, 9, jnp.where(x == 6, 0, x))
  found = continued(other(prompt), said, 7, END, 9)
  same = continued(prompt, said, 7, END)
  np.testing.assert_array_equal(found, other(same))
  # What does not fit is cut off; without an end token all of it is said.
  assert continued(prompt, said, 4, None).tolist() == [
    [7, 6, 1, 2], [3, END, 4, 0], [1, 2, 3, 4], [4, END, 1, 2],
  ]  # fmt: skip
  nothing = prompt[:, :0]
  assert continued(nothing, said, 2, END).tolist() == [
    [1, 2], [3, 0], [4, 4], [0, 0],
  ]  # fmt: skip


@pytest.mark.parametrize('second', ['codes', 'masked', 'flow'])
@pytest.mark.parametrize('keep', [True, False])
def test_both_segments_are_scored_as_they_were_sampled(second, keep):
  policy, first, after = make(second, keep)
  params = policy.init(KEY)
  rows = make_rows(8)
  traj = policy.rollout(params, rows, 0)
  k = traj.log_prob.shape[1]
  k2 = dict(codes=2, masked=2, flow=3)[second]
  assert k == K + k2 == len(segments_lib.segments(traj))
  assert segments_lib.segments(traj).tolist() == [0] * K + [1] * k2
  for x in (traj.mask, traj.noise, traj.times[..., 0]):
    assert x.shape == (32, k)
  dist = policy.ops['dist'](params, traj)
  log_prob, kl = jax.jit(lambda d, x: (d.log_prob(x), d.kl(d)))(
    dist, traj.actions
  )
  on = np.asarray(traj.mask) > 0
  assert on[:, K:].all() and not on[:, :K].all()
  np.testing.assert_allclose(
    traj.log_prob, np.where(on, log_prob, 0), atol=1e-5
  )
  assert not np.asarray(kl).any()
  # Each by its own policy, the second given words that are put together here.
  alone = first.rollout(params['first'], rows, 0)
  np.testing.assert_array_equal(traj.actions.first, alone.actions)
  np.testing.assert_allclose(traj.log_prob[:, :K], alone.log_prob, atol=1e-6)
  prompts = np.zeros((32, LENGTH), np.int32)
  for i, said in enumerate(np.asarray(alone.actions).tolist()):
    said = said[: said.index(END)] if END in said else said
    said = [word for word in said if word]  # 0 is padding, whoever says it
    words = [int(w) for w in rows.cond['tokens'][i] if w] if keep else []
    prompts[i, : len(words + said)] = words + said
  other = traj.replace(
    cond=dict(tokens=jnp.asarray(prompts)), states=traj.states.second,
    actions=traj.actions.second, times=traj.times[:, K:],
    noise=traj.noise[:, K:],
  )  # fmt: skip
  own = after.ops['dist'](params['second'], other).log_prob(other.actions)
  np.testing.assert_allclose(traj.log_prob[:, K:], own, atol=1e-5)
  media = policy.decode(params, traj.sample)
  np.testing.assert_array_equal(media['text'], alone.actions)
  np.testing.assert_array_equal(
    media['image'], after.decode(params['second'], traj.sample['image'])
  )


def test_the_second_draws_numbers_of_its_own():
  """Two policies alike would say the same if they shared their keys."""
  first = tokens_lib.tokens(testing.bigram(), 2)
  policy = compose_lib.compose(first, first, 4)
  params = policy.init(KEY)
  params['second'] = params['first']
  traj = policy.rollout(params, make_rows(64), 0)
  same = np.asarray(traj.actions.first == traj.actions.second).mean()
  assert 0.05 < same < 0.7


def test_nothing_is_learned_after_the_end():
  policy, _, _ = make()
  params = policy.init(KEY)
  traj = policy.rollout(params, make_rows(4), 0)

  @jax.jit
  def grad(weight):
    def loss(params):
      log_prob = policy.ops['dist'](params, traj).log_prob(traj.actions)
      return jnp.where(traj.mask > 0, weight * log_prob, 0.0).sum()

    return jax.grad(loss)(params)

  big = jnp.where(traj.mask > 0, 1.0, 1e6)
  testing.assert_close(grad(big), grad(jnp.ones_like(big)))
  # The text's decisions train the first, the picture's the second.
  words = jnp.where(jnp.arange(5) < K, jnp.ones_like(big), 0.0)
  found = grad(words)
  assert all(np.asarray(g).any() for g in jax.tree.leaves(found['first']))
  assert not any(np.asarray(g).any() for g in jax.tree.leaves(found['second']))


def test_greedy_is_both():
  policy, first, second = make()
  params, rows = policy.init(KEY), make_rows(2)
  said = first.ops['greedy'](params['first'], rows)
  prompt = continued(rows.cond['tokens'], said, LENGTH, END)
  shown = rows.replace(cond=dict(tokens=prompt))
  found = policy.ops['greedy'](params, rows)
  np.testing.assert_array_equal(found['text'], said)
  np.testing.assert_array_equal(
    found['image'], second.ops['greedy'](params['second'], shown)
  )
  assert 'greedy' not in make('flow')[0].ops


def hits():
  """How often the second says code 1 + what the prompt asks for."""

  def score(params, inputs, key):
    del params, key
    hit = inputs.image == inputs.info['channel'][:, None] + 1
    return RewardOut(
      hit.mean(1, dtype=np.float32), {}, jnp.ones(len(hit), bool)
    )

  return Reward('hits', (), score)


def make_step(policy=None, terms=None, **settings):
  on_policy = 'updates' not in settings
  terms = terms or dict(
    pg=(objectives.clipped_pg(0.2, on_policy=on_policy), 1.0),
    kl=(objectives.sampled_kl(), 0.1),
    entropy=(objectives.entropy(), 0.01),
  )
  return testing.make_step(
    policy or make()[0], terms, reward=settings.pop('reward', None) or hits(),
    tx=settings.pop('tx', testing.LINEAR), **settings,
  )  # fmt: skip


def test_ratio_is_one_and_it_learns():
  step, state = make_step(group_size=32)
  _, logs = testing.run(step, state, 40)
  assert logs[0]['pg/log_ratio_abs_max'] == 0 and logs[0]['kl/kl'] == 0
  assert logs[-1]['reward/score'] > logs[0]['reward/score'] + 0.2


def test_the_text_alone_learns_what_the_picture_is_worth():
  """The second policy is fixed, and sees what was said."""
  policy, _, _ = make(keep_prompt=False)
  step, state = make_step(
    policy, group_size=32, trainable='^first/', tx=optax.adam(0.1)
  )
  before = jax.device_get(state.frozen['policy'])
  state, logs = testing.run(step, state, 40)
  assert logs[-1]['reward/score'] > logs[0]['reward/score'] + 0.05
  testing.assert_close(state.frozen['policy'], before, 0, 0)


@pytest.mark.parametrize('second', ['codes', 'flow'])
def test_microbatches_equal_the_full_batch(second):
  reward = testing.color_reward() if second == 'flow' else hits()
  run = lambda **settings: testing.run(
    *make_step(make(second)[0], reward=reward, updates=2, **settings)
  )
  whole, logs = run()
  parts, part_logs = run(microbatches=4)
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(part_logs, logs)


def test_a_rollout_in_chunks():
  policy = make('flow')[0]
  reward = testing.color_reward()
  whole, _ = testing.run(*make_step(policy, reward=reward), steps=1)
  parts, _ = testing.run(
    *make_step(policy, reward=reward, rollout_chunks=4), steps=1
  )
  testing.assert_close(parts.params, whole.params)


def test_refusals():
  for term in (objectives.nll(), objectives.flow_matching(),
               objectives.reward_backprop()):  # fmt: skip
    step, state = make_step(
      make('flow')[0], dict(term=(term, 1.0)), reward=testing.color_reward()
    )
    with pytest.raises(
      build.ConfigError, match=r'config.objective.term: asks for .* offers dist'
    ):
      step.train_step(state, testing.batch(), KEY)
  with pytest.raises(build.ConfigError, match='policy.length=0'):
    first = tokens_lib.tokens(testing.bigram(), K)
    compose_lib.compose(first, first, 0)
  flow = testing.make_policy()
  policy = compose_lib.compose(flow, flow, LENGTH)
  params = policy.init(KEY)
  with pytest.raises(build.ConfigError, match='has to say tokens'):
    policy.rollout(params, make_rows(), 0)


def test_axes_are_those_of_the_own_net():
  """Though both nets have parameters of the same name."""
  policy, first, second = make()
  a, b = (
    p._replace(axes=(('after', name),))
    for p, name in ((first, ('embed',)), (second, ('mlp',)))
  )
  both = compose_lib.compose(a, b, LENGTH).axes
  assert sharding.logical_axes('first/after', 1, both) == ('embed',)
  assert sharding.logical_axes('mu/second/net/after', 1, both) == ('mlp',)
  layout = sharding.Layout(sharding.make_mesh(), policy.axes)
  assert jax.tree.leaves(layout.params(policy.init(KEY)))


def test_from_a_config():
  spec = dict(
    name='text_then_image',
    first=dict(name='tokens', length=3),
    second=dict(name='denoising', steps=2),
    model=dict(
      name='dit', image=(8, 8, 3), width=16, layers=1, heads=2, patch=4,
      text_width=8, text_layers=1,
    ),
    length=6,
  )  # fmt: skip
  net = testing.bigram(8)
  policy = build.build(policies, spec, net=net, end=END)
  assert isinstance(policy, Policy)

  @jax.jit
  def run():
    params = policy.init(KEY)
    traj = policy.rollout(params, make_rows(), 0)
    return params, traj, policy.decode(params, traj.sample)

  params, traj, media = run()
  assert params['second']['text']['position'].shape == (6, 8)
  assert media['image'].shape == (16, 8, 8, 3)
  assert media['text'].shape == (16, 3) and traj.mask.shape == (16, 4)
  with pytest.raises(build.ConfigError, match="no key 'size'"):
    build.build(policies, {**spec, 'first': dict(name='tokens', size=3)},
                net=net, end=END)  # fmt: skip
