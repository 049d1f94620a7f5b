"""Masked policies, on a net of three tables whose every number is known."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from gen_rl import build, objectives, rollout, testing
from gen_rl.models import mask_image
from gen_rl.policies import filling
from gen_rl.policies import masked as masked_lib
from gen_rl.types import Reward, RewardOut

KEY = jax.random.key(0)
V, N, T = 3, 4, 2


def make_rows(group=16, prompts=(1, 2)):
  batch = dict(
    tokens=np.array(prompts, np.int32)[:, None],
    prompt_id=np.arange(len(prompts), dtype=np.int32),
    info={},
  )
  return rollout.make_rows(batch, group, KEY, jnp.int32(0))


def make(vocab=V, length=N, **options):
  net = testing.mask_table(vocab, length)
  policy = masked_lib.masked(net, **(dict(steps=T) | options))
  return testing.jitted(policy), net.init(jax.random.key(1))


def logits_of(params, codes, prompt):
  """By numpy, [n v] of one row."""
  place, left, words = (
    np.asarray(params[k], np.float64) for k in ('place', 'left', 'prompt')
  )
  return place + left[np.roll(codes, 1)] + words[prompt]


def test_every_schedule_commits_all():
  for places in (*range(1, 20), 64, 256, 1024):
    for steps in range(1, min(places, 24) + 1):
      counts = filling.schedule(places, steps)
      assert counts.shape == (steps,) and counts.sum() == places
      assert counts.min() >= 1


@pytest.mark.parametrize('places, steps', [(5, 3), (9, 1), (7, 7)])
def test_each_place_is_committed_once(places, steps):
  counts = filling.schedule(places, steps)
  policy, params = make(length=places, steps=steps)
  traj = policy.rollout(params, make_rows(4), 0)
  committed = np.asarray(traj.states.committed)
  np.testing.assert_array_equal(committed.sum(1), 1)
  np.testing.assert_array_equal(
    committed.sum(2), np.broadcast_to(counts, (8, steps))
  )


def test_the_schedule_by_hand():
  """16 cos(pi t / 16): 15.7, 14.8, 13.3, 11.3, 8.9, 6.1, 3.1, 0, rounded down.

  And of 4 places in 4 steps (3.7, 2.8, 1.5, 0) one at each.
  """
  assert filling.schedule(16, 8).tolist() == [1, 1, 1, 2, 3, 2, 3, 3]
  assert filling.schedule(4, 4).tolist() == [1, 1, 1, 1]
  # 7 cos(pi t / 8): 6.5, 4.9, 2.7, 0.
  assert filling.schedule(7, 4).tolist() == [1, 2, 2, 2]


@pytest.mark.parametrize('choice', [0.0, 4.5, math.inf])
def test_what_is_sampled_is_what_is_scored(choice):
  policy, params = make(temperature=0.7, choice_temperature=choice, steps=3)
  rows = make_rows()
  traj = policy.rollout(params, rows, 0)
  assert traj.actions.shape == (32, 3, N) and traj.actions.dtype == jnp.int32
  assert traj.log_prob.shape == (32, 3) and (traj.mask == 1).all()
  log_prob = testing.log_prob(policy.ops['dist'](params, traj), traj.actions)
  np.testing.assert_allclose(traj.log_prob, log_prob, atol=1e-5)
  # By hand, for every row: states, and the sums of (5).
  traj = jax.device_get(traj)
  for i in range(32):
    codes, prompt = np.full(N, V), int(np.asarray(rows.cond['tokens'])[i, 0])
    for t in range(3):
      np.testing.assert_array_equal(traj.states.codes[i, t], codes)
      new = np.asarray(traj.states.committed[i, t])
      assert (codes[new] == V).all()
      said = np.asarray(traj.actions[i, t])
      assert (said[~new] == V).all() and (said[new] < V).all()
      p = special.log_softmax(logits_of(params, codes, prompt) / 0.7, axis=-1)
      total = sum(p[j, said[j]] for j in np.flatnonzero(new))
      np.testing.assert_allclose(traj.log_prob[i, t], total, atol=1e-5)
      codes = np.where(new, said, codes)
    np.testing.assert_array_equal(traj.sample[i], codes)
  again = policy.rollout(params, rows, 0)
  np.testing.assert_array_equal(again.sample, traj.sample)


def test_frequencies_of_a_random_order():
  """All pictures of two codes, one after the other, from either side."""
  n = 32768
  policy, params = make(2, 2, choice_temperature=math.inf)
  traj = policy.rollout(params, make_rows(n, (3,)), 0)
  start = special.softmax(logits_of(params, np.array([2, 2]), 3), axis=-1)
  expected, found = [], []
  for z in itertools.product(range(2), range(2)):
    total = 0.0
    for first in range(2):
      codes = np.array([2, 2])
      codes[first] = z[first]
      other = 1 - first
      rest = special.softmax(logits_of(params, codes, 3), axis=-1)
      total += 0.5 * start[first, z[first]] * rest[other, z[other]]
    expected.append(n * total)
    found.append(int((np.asarray(traj.sample) == z).all(1).sum()))
  assert stats.chisquare(found, expected).pvalue > 1e-3


def test_confident_places_come_first():
  """Without noise, the likeliest of the codes drawn, which keys tell."""
  policy, params = make(choice_temperature=0.0, length=6, steps=3)
  traj = policy.rollout(params, make_rows(8), 0)
  assert filling.schedule(6, 3)[0] == 1
  whole = jax.jit(jax.nn.log_softmax)(
    testing.mask_table(V, 6).apply(
      params, np.full((16, 6), V, np.int32), traj.cond
    )
  )

  @jax.jit
  @jax.vmap
  def draw(k, row):
    k = jax.random.fold_in(k, 0)
    each = jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(6))
    return jax.vmap(jax.random.categorical)(each, row)

  drawn = draw(make_rows(8).keys, whole)
  sure = np.take_along_axis(
    np.asarray(whole), np.asarray(drawn)[..., None], -1
  )[..., 0]
  np.testing.assert_array_equal(
    np.asarray(traj.states.committed)[:, 0].argmax(-1), sure.argmax(-1)
  )


@pytest.mark.parametrize('choice, biased', [(math.inf, False), (0.0, True)])
def test_mean_of_the_score_is_zero_where_places_are_random(choice, biased):
  """E[d log p] = 0 is what makes a policy gradient exact; see (6)."""
  n = 16384
  policy, params = make(2, 2, choice_temperature=choice)
  traj = policy.rollout(params, make_rows(n, (3,)), 0)

  def total(shift):
    moved = {**params, 'place': params['place'] + shift}
    dist = policy.ops['dist'](moved, traj)
    return dist.log_prob(traj.actions).sum(1)

  zero = np.zeros((2, 2), np.float32)
  each = jax.jit(jax.jacfwd(total))(zero)
  each = np.asarray(each)[..., 0]  # of code 0 at each place: [b 2]
  z = each.mean(0) / (each.std(0) / n**0.5)
  assert (np.abs(z).max() > 10) == biased
  assert biased or np.abs(z).max() < 4


def test_no_gradient_where_nothing_is_committed():
  """Not even from logits that are not numbers."""
  policy, params = make()
  traj = policy.rollout(params, make_rows(2), 0)
  dist = policy.ops['dist'](params, traj)

  def total(logits):
    return dist.replace(logits=logits).log_prob(traj.actions).sum()

  new = np.asarray(traj.states.committed)[..., None]
  logits = np.where(new, dist.logits, np.nan)
  grad = np.asarray(testing.grad(total)(logits))
  assert not grad[~np.broadcast_to(new, grad.shape)].any()
  assert (np.abs(grad).sum(-1) > 0)[new[..., 0]].all()
  # Softmax and the committed code: onehot - p.
  p = special.softmax(np.asarray(dist.logits), axis=-1)
  hot = np.eye(V + 1)[np.asarray(traj.actions)][..., :V]
  np.testing.assert_allclose(grad, np.where(new, hot - p, 0), atol=1e-5)


def test_kl_and_entropy_are_sums_over_committed_places():
  policy, params = make()
  other = jax.tree.map(
    lambda x: (
      x + 0.3 * np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    ),
    jax.device_get(params),
  )
  traj = policy.rollout(params, make_rows(2), 0)
  p, q = policy.ops['dist'](params, traj), policy.ops['dist'](other, traj)
  a, b = (special.softmax(np.asarray(x.logits, float), axis=-1) for x in (p, q))
  new = np.asarray(traj.states.committed)
  kl = np.where(new, stats.entropy(a, b, axis=-1), 0).sum(-1)
  found = jax.jit(lambda p, q: (p.kl(q), p.entropy(), p.kl(p)))(p, q)
  np.testing.assert_allclose(found[0], kl, atol=1e-5)
  entropy = np.where(new, stats.entropy(a, axis=-1), 0).sum(-1)
  np.testing.assert_allclose(found[1], entropy, rtol=1e-5)
  assert not np.asarray(found[2]).any()


@pytest.mark.parametrize('score', ['guided', 'cond'])
def test_guidance_by_hand(score):
  w = 3.0
  policy, params = make(guidance_scale=w, score=score, steps=1)
  rows = make_rows(2048, (2,))
  traj = policy.rollout(params, rows, 0)
  start = np.full(N, V)
  own, free = (logits_of(params, start, prompt) for prompt in (2, 0))
  guided = free + w * (own - free)
  share = special.softmax(guided, axis=-1)
  for j in range(N):
    count = np.bincount(np.asarray(traj.sample)[:, j], minlength=V)
    assert stats.chisquare(count, 2048 * share[j]).pvalue > 1e-3
  p = special.log_softmax(guided if score == 'guided' else own, axis=-1)
  total = p[np.arange(N), np.asarray(traj.sample)].sum(-1)
  np.testing.assert_allclose(traj.log_prob[:, 0], total, atol=1e-4)
  log_prob = lambda q: policy.ops['dist'](q, traj).log_prob(traj.actions).sum()
  value, grads = testing.value_and_grad(log_prob)(params)
  np.testing.assert_allclose(value, total.sum(), rtol=1e-5)
  # Logits are sums: the halves' gradients are as 1 - w to w.
  grads = np.asarray(grads['prompt'])
  share = (1 - w) / w if score == 'guided' else 0.0
  assert grads[2].any()
  np.testing.assert_allclose(grads[0], share * grads[2], atol=1e-2)


def test_greedy():
  """One step: the likeliest code at every place. More: the same each time."""
  policy, params = make(steps=1)
  rows = make_rows(3, (1, 2, 5))
  for row, prompt in zip(
    np.asarray(policy.ops['greedy'](params, rows)),
    (1,) * 3 + (2,) * 3 + (5,) * 3,
  ):
    best = logits_of(params, np.full(N, V), prompt).argmax(-1)
    np.testing.assert_array_equal(row, best)
  policy, _ = make(steps=4, choice_temperature=math.inf)
  found = np.asarray(policy.ops['greedy'](params, rows)).reshape(3, 3, N)
  assert (found == found[:, :1]).all() and (found < V).all()
  # By hand: the surest place first.
  for row, prompt in zip(found[:, 0], (1, 2, 5), strict=True):
    codes = np.full(N, V)
    for _ in range(4):
      p = special.log_softmax(logits_of(params, codes, prompt), axis=-1)
      best = np.where(codes == V, p.max(-1), -np.inf)
      j = best.argmax()
      codes[j] = p[j].argmax()
    np.testing.assert_array_equal(row, codes)


def test_nll_masks_at_the_cosine_rate():
  """Where nothing depends on neighbours: the mean over random places."""
  n = 4096
  policy, params = make()
  params['left'] = np.zeros_like(params['left'])
  x = np.tile(np.int32([[0, 1, 2, 0]]), (n, 1))
  cond = dict(tokens=np.full((n, 1), 2, np.int32))
  found = policy.ops['nll'](
    params, testing.given(x, cond), jax.random.split(KEY, n)
  )
  p = special.log_softmax(logits_of(params, np.full(N, V), 2), axis=-1)
  each = -p[np.arange(N), x[0]]
  # ceil(4 cos(pi u / 2)) = m for u in (acos(m / 4), acos((m - 1) / 4)) 2 / pi.
  edges = np.arccos(np.arange(N + 1) / N) * 2 / np.pi
  rate = edges[:-1] - edges[1:]
  means = {
    m: [np.mean(c) for c in itertools.combinations(each, m)]
    for m in range(1, N + 1)
  }
  expected = {}
  for m, values in means.items():
    for value in values:
      expected[round(value, 4)] = rate[m - 1] / len(values)
  values, counts = np.unique(np.round(found, 4), return_counts=True)
  nearest = [min(expected, key=lambda e, v=v: abs(e - v)) for v in values]
  assert max(abs(a - b) for a, b in zip(values, nearest, strict=True)) < 2e-4
  tally = dict.fromkeys(expected, 0)
  for value, count in zip(nearest, counts, strict=True):
    tally[value] += count
  chance = n * np.array(list(expected.values()))
  assert stats.chisquare(list(tally.values()), chance).pvalue > 1e-3
  dropped, _ = make(null_prob=1.0)
  free = dict(tokens=np.zeros((8, 1), np.int32))
  keys = jax.random.split(KEY, 8)
  testing.assert_close(
    dropped.ops['nll'](
      params, testing.given(x[:8], dict(tokens=cond['tokens'][:8])), keys
    ),
    policy.ops['nll'](params, testing.given(x[:8], free), keys),
  )


CODEC = dict(
  name='fsq_codec', image=(8, 8, 3), patch=4, levels=(3, 2), width=8, layers=1,
  heads=2,
)  # fmt: skip


def test_codes_become_pictures():
  policy = masked_lib.masked_image(testing.mask_table(6), CODEC, steps=2)

  @jax.jit
  def run(key):
    params = policy.init(key)
    traj = policy.rollout(params, make_rows(2), 0)
    media = policy.decode(params, traj.sample)
    loss = lambda p: policy.ops['nll'](
      p,
      traj.replace(sample=policy.ops['compress'](p, media)),
      jax.random.split(key, 4),
    ).sum()
    return media, jax.grad(loss)(params)

  media, grads = run(KEY)
  assert media.shape == (4, 8, 8, 3)
  assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads['codec']))
  assert np.asarray(grads['net']['place']).any()


@pytest.mark.parametrize(
  'options, words',
  [
    (dict(steps=0), 'policy.steps=0: a picture of 4 codes'),
    (dict(steps=5), '1 to 4 steps'),
    (dict(temperature=0.0), 'eval.sampler="greedy"'),
    (dict(choice_temperature=-1.0), 'choice_temperature=-1.0 not negative'),
    (dict(score='both'), "'guided' or 'cond'"),
  ],
)
def test_bad_input(options, words):
  with pytest.raises(build.ConfigError, match=words):
    make(**options)


@pytest.mark.parametrize(
  'net, words',
  [
    (testing.mask_table(5), 'model.codes=6'),
    (testing.mask_table(6, 9), r'model.grid=\(2, 2\)'),
  ],
)
def test_a_codec_of_another_size(net, words):
  with pytest.raises(build.ConfigError, match=words):
    masked_lib.masked_image(net, CODEC)


def reward():
  """How often a row says the code that its prompt asks for."""

  def score(params, inputs, key):
    del params, key
    hit = inputs.media == inputs.info['channel'][:, None]
    return RewardOut(
      hit.mean(1, dtype=np.float32), {}, jnp.ones(len(hit), bool)
    )

  return Reward('hits', (), score)


def make_step(**settings):
  policy = masked_lib.masked(
    testing.mask_table(), steps=3, choice_temperature=math.inf
  )
  return testing.make_step(
    policy,
    dict(
      pg=(objectives.clipped_pg(0.2, on_policy='updates' not in settings), 1.0),
      kl=(objectives.kl(), 0.1),
    ),
    reward=reward(), tx=testing.LINEAR, **settings,
  )  # fmt: skip


def test_ratio_is_one_and_it_learns():
  step, state = make_step(group_size=32)
  _, logs = testing.run(step, state, 40)
  assert logs[0]['pg/log_ratio_abs_max'] == 0 and logs[0]['kl/kl'] == 0
  assert logs[-1]['reward/score'] > logs[0]['reward/score'] + 0.3


def test_microbatches_equal_the_full_batch():
  whole, logs = testing.run(*make_step(updates=2))
  parts, part_logs = testing.run(*make_step(updates=2, microbatches=4))
  testing.assert_close(parts.params, whole.params)
  testing.assert_close(part_logs, logs)


@pytest.mark.parametrize('score', ['guided', 'cond'])
def test_logits_a_few_places_at_a_time(score):
  net = mask_image.mask_image(
    vocab=4, length=1, codes=V, grid=(2, 2), width=8, layers=1, heads=2,
    text_width=8, text_layers=0,
  )  # fmt: skip
  options = dict(steps=T, guidance_scale=2.0, temperature=0.7, score=score)
  params = jax.jit(net.init)(KEY)
  traj = jax.jit(masked_lib.masked(net, **options).rollout)(
    params, make_rows(2), 0
  )

  def of(chunk):
    policy = masked_lib.masked(net, head_chunk=chunk, **options)

    def loss(params):
      dist = policy.ops['dist'](params, traj)
      base = policy.ops['dist'](jax.tree.map(lambda x: 0.9 * x, params), traj)
      numbers = dist.log_prob(traj.actions), dist.kl(base), dist.entropy()
      return sum(x.sum() for x in numbers), numbers

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  testing.assert_same(of(3), of(0))
  with pytest.raises(build.ConfigError, match='no head of its own'):
    make(head_chunk=2)
