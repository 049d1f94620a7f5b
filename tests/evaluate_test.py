"""Evaluation: the same seeds every time, and what its numbers mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import build, evaluate, rollout, testing, verdicts
from gen_rl.data import prompts
from gen_rl.policies import compose, denoising, ode, tokens
from gen_rl.types import Policy, Reward, RewardOut
from gen_rl.utils import image, rng
from gen_rl.utils.tasks import task_code

TEXTS, TASKS = ['one', 'two', 'three'], ['x', 'y', 'x']
BATCH = dict(
  tokens=np.zeros((3, 2), np.int32),
  prompt_id=np.arange(3, dtype=np.int32),
  info={'label': np.array([0, 1, 2], np.int32)},
)


def labelled(correct, encode):
  refuse = lambda *_: 1 / 0
  ops = dict(correct=correct) if correct else {}
  policy = Policy(refuse, refuse, lambda _, x: x, ops)
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
  correct = lambda params, traj: (
    params[traj.sample[:, 0, 0, 0].astype(int)] == traj.cond['label']
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


# --- policies that sample

KEY = jax.random.key(0)
PROMPTS = testing.batch((0, 1, 2, 3))
PROMPT_TASKS = ['x', 'y', 'x', 'y']
NET = testing.perceptron()
POLICY = denoising.denoising(NET, steps=4, noise=0.5)


def on_host(params, inputs, key):
  """`gold(spoil=True)` of what the prompt file says, on the host."""
  assert inputs.texts.tolist() == [x for x in 'abcd' for _ in range(3)]
  even = inputs.columns['even'].tolist()
  valid = [x is not None for x in even]
  return RewardOut([float(x or 0) for x in even], {}, valid)


ASKED = prompts.Prompts(
  'file', tuple('abcd'), np.arange(4, dtype=np.int32),
  extra=dict(even=(True, None, True, True)),
).asked(range(4), 3)  # fmt: skip


def gold(spoil=False, verdict=True):
  """1 for prompts 0 and 2; with `spoil`, prompt 3 cannot be scored."""

  def score(params, inputs, key):
    even = (inputs.info['channel'] != 1).astype(jnp.float32)  # 0, 2 and 3
    valid = jnp.ones(len(even), bool)
    if spoil:
      valid &= inputs.info['channel'] != 1
    return RewardOut(even + params, {}, valid)

  return Reward('even', jnp.float32(0), score, verdict=verdict)


def evaluator(seed=1, proxy=True, chunk=0, **kwargs):
  return evaluate.sampled(
    POLICY,
    ode.sampler(NET, 3),
    PROMPTS,
    list('abcd'),
    PROMPT_TASKS,
    dict(gold=(gold(**kwargs), 1.0)),
    dict(color=(testing.color_reward(), 2.0)) if proxy else None,
    samples=3,
    seed=seed,
    chunk=chunk,
  )


@pytest.mark.parametrize('judged', [True, False])
def test_rewards_on_the_host_and_no_gold(judged):
  """Gold and monitors in Python read the columns of the prompts."""
  params = POLICY.init(KEY)
  host = Reward('host', (), on_host, where='host', verdict=True)
  monitors = dict(even=(host, 1.0), tint=(testing.color_reward(), 1.0))
  run = evaluate.sampled(
    POLICY, ode.sampler(NET, 3), PROMPTS, list('abcd'), PROMPT_TASKS,
    dict(gold=(host, 1.0)) if judged else {}, None, samples=3, seed=1,
    monitors=monitors, asked=ASKED,
  )  # fmt: skip
  a, b = evaluator()(params), run(params)
  np.testing.assert_array_equal(a.media, b.media)
  assert b.proxy is None
  # prompt 1 could not be scored: of verdicts, that is not right
  assert b.monitors == pytest.approx({'even': 0.75, 'tint': a.proxy / 2})
  assert b.metrics()['eval/monitor/even'] == 0.75
  invalid = {'monitor/even': 3, 'monitor/tint': 0}
  assert b.invalid == (dict(gold=3) if judged else {}) | invalid
  assert b.summary()['gold'] == ('accuracy' if judged else None)
  if judged:
    assert b.strict == 0.75 and b.strict_per_task == dict(x=1.0, y=0.5)
    assert b.metrics()['eval/strict'] == 0.75
  else:
    assert np.isnan(b.strict) and not b.strict_per_task
    assert 'eval/strict' not in b.metrics() and b.shown(2).correct is None
  assert b.summary()['parts'] == b.monitors


def test_diversity_by_hand():
  diversity = jax.jit(evaluate.diversity, static_argnums=1)
  # prompt 0: samples 0, 0 and 3 -> distances 0, 3, 3; prompt 1: all equal
  media = jnp.array([0, 0, 3, 5, 5, 5.0])[:, None, None, None] * jnp.ones(
    (6, 2, 2, 3)
  )
  np.testing.assert_allclose(diversity(media, 3), [2, 0])
  np.testing.assert_allclose(diversity(media, 1), np.zeros(6))
  lost = np.array(media)
  lost[4, 0, 0, 0], lost[1:3] = np.nan, np.inf
  np.testing.assert_allclose(diversity(lost, 3), [np.nan, 0])


def test_evaluation_is_repeatable_and_its_numbers_are_means():
  params = POLICY.init(KEY)
  run = evaluator()
  a, b = run(params), run(params)
  np.testing.assert_array_equal(a.media, b.media)
  assert a.media.shape == (4, 3, 4, 4, 3) and a.gold.shape == (4, 3)
  assert a.reward.shape == (4, 3) and a.proxy == pytest.approx(a.reward.mean())
  # what is trained on stands under the pictures, the verdict around them
  shown = a.shown(2)
  np.testing.assert_array_equal(shown.reward, a.reward[:2])
  np.testing.assert_array_equal(shown.gold, a.gold[:2])
  untrained = evaluator(proxy=False)(params).shown(2)
  np.testing.assert_array_equal(untrained.reward, untrained.gold)
  # tasks: x is prompts 0 and 2 (1, 1), y is 1 and 3 (0, 1 as 3 % 3 is 0)
  assert a.strict == 0.75
  assert a.strict_per_task == dict(x=1.0, y=0.5)
  mean = a.media.mean((2, 3))
  channel = PROMPTS['info']['channel'][:, None, None]
  color = np.take_along_axis(mean, channel, 2)[..., 0] - mean.mean(-1)
  assert a.proxy == pytest.approx(2 * color.mean(), rel=1e-4)
  spread = [
    np.sqrt(np.square(p[i] - p[j]).mean())
    for p in a.media for i in range(3) for j in range(i)
  ]  # fmt: skip
  assert a.diversity == pytest.approx(np.mean(spread), rel=1e-4)
  assert a.texts == list('abcd')
  assert set(a.metrics()) == {
    'eval/strict', 'eval/diversity', 'eval/proxy',
    'eval/strict/x', 'eval/strict/y', 'eval/invalid', 'eval/invalid/proxy',
    'eval/best', 'eval/worst',
  }  # fmt: skip
  assert a.summary()['strict_per_task'] == a.strict_per_task
  # In chunks of three prompts, of which the last holds one and two again.
  parts = evaluator(chunk=9)(params)
  np.testing.assert_allclose(parts.media, a.media, atol=1e-6)
  np.testing.assert_array_equal(parts.gold, a.gold)
  assert parts.proxy == pytest.approx(a.proxy, rel=1e-5)
  assert parts.diversity == pytest.approx(a.diversity, rel=1e-5)
  other = evaluator(seed=2)(params)
  assert np.abs(other.media - a.media).max() > 0.01


def test_two_parameters_share_their_noise():
  """Sampling starts from the noise of the rows' keys, whatever the net."""
  run = evaluator(proxy=False)
  still = jax.tree.map(jnp.zeros_like, POLICY.init(KEY))  # velocity 0
  a = run(still)
  rows = rollout.make_rows(PROMPTS, 3, jax.random.key(1), jnp.int32(0))
  noise = rng.normal(rng.stream_keys(rows.keys, 'init'), testing.SHAPE)
  np.testing.assert_allclose(
    a.media.reshape(noise.shape), np.clip((noise + 1) / 2, 0, 1), atol=1e-6
  )
  assert a.proxy is None and 'eval/proxy' not in a.metrics()


def test_what_cannot_be_judged_is_not_right():
  params = POLICY.init(KEY)
  result = evaluator(spoil=True)(params)
  assert np.isnan(result.gold[1]).all()
  marks = result.shown(2).correct
  assert marks[1].tolist() == [None] * 3
  assert marks[0].tolist() == [True] * 3
  # prompts 0, 2 and 3 are right, and 1 of the tasks "y" is not
  assert result.strict == 0.75
  assert result.strict_per_task == dict(x=1.0, y=0.5)
  assert result.invalid == dict(gold=3, proxy=0)
  assert result.metrics()['eval/invalid'] == 3
  assert result.summary()['evaluated'] == 12
  score = evaluator(spoil=True, verdict=False)(params)
  assert (score.strict, score.invalid['gold']) == (1.0, 3)


def test_pictures_that_are_not_finite():
  """They are wrong to a reward that likes them, and the others stay."""

  def sampler(params, rows):  # of prompt 1 all are lost, of the others one
    lost = (rows.member == 2) | (rows.group == 1)
    shade = rows.member[:, None, None, None] * jnp.ones(testing.SHAPE)
    return jnp.where(lost[:, None, None, None], jnp.nan, shade)

  def score(params, inputs, key):
    b = len(inputs.media)
    part = jnp.arange(b) % 3 * 1.0
    return RewardOut(jnp.ones(b), dict(even=part, odd=part), jnp.ones(b, bool))

  likes = Reward('likes', (), score, verdict=True)
  run = evaluate.sampled(
    POLICY, sampler, PROMPTS, list('abcd'), PROMPT_TASKS,
    dict(a=(likes, 1.0), b=(likes._replace(verdict=False), 0.0)),
    dict(c=(likes, 2.0)), samples=3, seed=1,
    monitors=dict(even=(likes, 1.0), mean=(likes._replace(verdict=False), 1.0)),
  )  # fmt: skip
  found = run(POLICY.init(KEY))
  assert found.strict == 0.5 and found.strict_per_task == dict(x=2 / 3, y=1 / 3)
  assert found.proxy == 2.0
  assert found.monitors == dict(even=0.5, mean=1.0)
  lost = dict.fromkeys(('gold', 'proxy', 'monitor/even', 'monitor/mean'), 6)
  assert found.invalid == lost
  # Members 0 and 1 of prompts 0, 2 and 3 are left: shades 0.5 and 1.
  assert found.diversity == pytest.approx(0.5)
  # A part that is called like a monitor says whose it is.
  assert found.parts == pytest.approx({'a/even': 0.5, 'odd': 0.5})
  assert found.summary()['parts']['even'] == 0.5


@pytest.mark.parametrize(
  'parts, monitors, names',
  [
    (['a', 'a/partial'], ['x'], {'a/partial': 'partial'}),
    (
      ['a', 'a/partial', 'a/score', 'b', 'b/partial'],
      [],
      {'a/partial': 'a/partial', 'a/score': 'score', 'b/partial': 'b/partial'},
    ),
    (['b', 'b/x', 'b/y'], ['x'], {'b/x': 'b/x', 'b/y': 'y'}),
  ],
)
def test_parts_have_names_of_their_own(parts, monitors, names):
  assert verdicts.part_names(parts, {'a', 'b'}, monitors) == names


def test_scores_are_no_verdicts():
  """A gold reward that does not say right or wrong marks no picture."""
  params = POLICY.init(KEY)
  score = evaluator(verdict=False)(params)
  assert score.summary()['gold'] == 'score' and score.strict == 0.75
  assert score.shown(2).correct is None
  verdict = evaluator()(params)
  assert verdict.summary()['gold'] == 'accuracy'
  assert verdict.shown(2).correct.tolist() == [[True] * 3, [False] * 3]


def test_gold_for_some_tasks_says_nothing_of_others():
  """Neither right nor wrong; one that compares a batch must see it whole."""
  batch = dict(PROMPTS, info=dict(PROMPTS['info']))
  codes = [task_code(task) for task in PROMPT_TASKS]
  batch['info']['task_code'] = np.array(codes, np.int32)
  one = gold(spoil=True)._replace(tasks=('y',))

  def make(reward, **more):
    return evaluate.sampled(
      POLICY, ode.sampler(NET, 3), batch, list('abcd'), PROMPT_TASKS,
      dict(gold=(reward, 1.0)), dict(proxy=(reward, 1.0)), samples=3, seed=1,
      **more,
    )  # fmt: skip

  found = make(one)(POLICY.init(KEY))
  # Of the prompts 1 and 3 the first could not be judged, the second is right.
  assert (found.strict, found.strict_per_task) == (0.5, dict(y=0.5))
  assert found.invalid == dict(gold=3, proxy=3) and found.proxy == 1.0
  assert np.isnan(found.gold[::2]).all()
  make(one._replace(called_on='batch'), chunk=12)
  with pytest.raises(build.ConfigError, match='12 samples .* 2 x 6;'):
    make(one._replace(called_on='batch'), chunk=9)


def test_kl_from_base():
  """0 from itself; for a shift of the velocity, the Gaussian closed form."""

  def apply(params, x, t, cond):
    return jnp.full(x.shape, params)

  net = NET._replace(init=lambda key: jnp.float32(0), apply=apply)
  level = 0.5
  for event in ('mean', 'sum'):  # nats per sample whatever the log-prob does
    policy = denoising.denoising(net, steps=4, noise=level, event=event)
    kl = evaluate.kl_from_base(policy, PROMPTS, 2, seed=0)
    assert kl(jnp.float32(0.3), jnp.float32(0.3)) == 0
    # cps: d mean / d v = t' cos(a pi/2) (1 - t) - (1 - t') t
    t = np.array([1.0, 0.75, 0.5])
    t_next = t - 0.25
    slope = t_next * np.cos(level * np.pi / 2) * (1 - t) - (1 - t_next) * t
    std = t_next * np.sin(level * np.pi / 2)
    expected = 48 * np.sum(np.square(0.2 * slope) / (2 * std**2))
    got = kl(jnp.float32(0.3), jnp.float32(0.1))
    assert got == pytest.approx(expected, rel=1e-4)
  # After words, on which both agree: the pictures' nats are summed there too.
  said = tokens.tokens(testing.bigram(6), length=3, end=5)
  policy = denoising.denoising(net, steps=4, noise=level, event='mean')
  both = compose.compose(said, policy, length=2, end=5)
  words = said.init(KEY)
  got = evaluate.kl_from_base(both, PROMPTS, 2, seed=0, chunk=6)(
    *(dict(first=words, second=jnp.float32(v)) for v in (0.3, 0.1))
  )
  assert got == pytest.approx(expected, rel=1e-4)


def test_what_is_said_is_shown_under_what_is_seen():
  """Of tokens: diversity counts sequences that differ."""
  net = testing.bigram(6)
  policy = tokens.tokens(net, length=3, end=5)

  def judge(params, inputs, key):
    score = (inputs.media[:, 0] == 2).astype(jnp.float32)
    return RewardOut(score, {}, jnp.ones(score.shape, bool))

  def view(rows):
    shade = rows.group.astype(jnp.float32)[:, None, None, None] / 8.0
    return jnp.broadcast_to(2 * shade - 1, (len(shade), 24, 24, 3)), rows.cond

  run = evaluate.sampled(
    policy,
    policy.ops['greedy'],
    testing.batch(),
    texts=['?'] * 4,
    tasks=[],
    gold=dict(two=(Reward('two', (), judge), 1.0)),
    proxy=None,
    samples=2,
    seed=0,
    view=view,
    speak=lambda ids: [str(row[0]) for row in ids],
  )
  params = net.init(jax.random.key(0))
  found = run(params)
  assert found.diversity == 0  # the likeliest tokens are the same twice
  assert found.said[::2] == found.said[1::2]
  assert found.strict == np.mean([s == '2' for s in found.said])
  np.testing.assert_allclose(found.seen[3, 1], 3 / 8, atol=1e-6)
  shown = found.shown(2)
  assert shown.pictures.shape[:2] == (2, 2)
  picture, text = np.split(shown.pictures[1, 0], [120])
  assert len(np.unique(picture)) == 1 and len(np.unique(text)) > 1
  assert shown.source is None
  media = jnp.array([[1, 2], [1, 3], [4, 4], [4, 4]])
  assert evaluate.diversity(media, 2).tolist() == [1.0, 0.0]


def test_text_and_picture_and_source_are_shown():
  """Of a policy that is shown a picture, says something and draws another."""
  said = tokens.tokens(testing.bigram(6), length=3, end=5)
  policy = compose.compose(said, testing.make_policy(), length=4, end=5)

  def view(rows):
    shade = rows.group.astype(jnp.float32)[:, None, None, None] / 8.0
    return jnp.broadcast_to(2 * shade - 1, (len(shade), 8, 8, 3)), rows.cond

  def score(params, inputs, key):
    both = (inputs.media['text'] == inputs.text).all(1)
    both &= (inputs.said['text'] == inputs.text).all(1)
    both &= inputs.seen['image'][:, 0, 0, 0] == inputs.ids / 8.0
    return RewardOut(both + 0.0, {}, both)

  run = evaluate.sampled(
    policy, lambda params, rows: policy.rollout(params, rows, 0).sample,
    testing.batch(), ['?'] * 4, [], dict(all=(Reward('all', (), score), 1.0)),
    None, samples=2, seed=0, view=view,
    speak=lambda ids: [str(row[0]) for row in ids],
  )  # fmt: skip
  found = run(policy.init(jax.random.key(0)))
  assert found.strict == 1 and found.media.shape == (4, 2, 4, 4, 3)
  assert len(found.said) == 8
  shown = found.shown(2)
  assert shown.source.shape == (2, 2, 8, 8, 3)
  np.testing.assert_allclose(shown.source[1], 1 / 8, atol=1e-6)
  own = image.captioned(found.media[1, 0], found.said[2])
  np.testing.assert_array_equal(shown.pictures[1, 0], own)
