"""Policies of tokens, on a bigram net whose every probability is known."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from gen_rl import build, rollout, testing
from gen_rl.models import lm, vq
from gen_rl.models.files import weights
from gen_rl.policies import speech
from gen_rl.policies import tokens as tokens_lib

KEY = jax.random.key(0)
V, K, END = 6, 4, 5


def make_rows(group=64, prompts=(1, 2), cond=None):
  batch = dict(
    tokens=np.array(prompts, np.int32)[:, None],
    prompt_id=np.arange(len(prompts), dtype=np.int32),
    info={},
  )
  rows = rollout.make_rows(batch, group, KEY, jnp.int32(0))
  return rows.replace(cond={**rows.cond, **(cond or {})})


def make(**options):
  net = testing.bigram(V)
  policy = tokens_lib.tokens(net, **(dict(length=K, end=END) | options))
  policy = testing.jitted(policy)
  return policy, net.init(jax.random.key(1))


def logits_of(params, prompt, before):
  """By numpy, of the token after `before` (V: the first)."""
  logits = params['after'][before] + params['prompt'][prompt]
  return np.asarray(logits, np.float64)


def test_what_is_sampled_is_what_is_scored():
  policy, params = make(temperature=0.7)
  rows = make_rows()
  traj = policy.rollout(params, rows, 0)
  assert traj.actions.shape == (128, K) and traj.actions.dtype == jnp.int32
  log_prob = testing.log_prob(policy.ops['dist'](params, traj), traj.actions)
  np.testing.assert_allclose(
    traj.log_prob, np.where(traj.mask > 0, log_prob, 0.0), atol=1e-5
  )
  # By hand, for every row.
  for i, said in enumerate(np.asarray(traj.actions)):
    before, alive = V, True
    for j, token in enumerate(said):
      assert traj.mask[i, j] == alive
      if not alive:
        assert token == 0 and traj.log_prob[i, j] == 0
        continue
      prompt = int(rows.cond['tokens'][i, 0])
      p = special.log_softmax(logits_of(params, prompt, before) / 0.7)
      np.testing.assert_allclose(traj.log_prob[i, j], p[token], atol=1e-5)
      alive, before = token != END, token
  lengths = np.asarray(traj.mask.sum(1))
  assert {1, K} <= set(lengths)  # some end at once, some not at all


def test_frequencies_are_the_probabilities():
  """All sequences of two tokens."""
  n = 65536
  policy, params = make(length=2)
  traj = policy.rollout(params, make_rows(n, (3,)), 0)
  first = special.softmax(logits_of(params, 3, V))
  expected, found = [], []
  for a, b in itertools.product(range(V), range(V)):
    rest = special.softmax(logits_of(params, 3, a))[b]
    if a == END:
      rest = float(b == 0)
    expected.append(first[a] * rest)
    found.append(int((np.asarray(traj.actions) == [a, b]).all(1).sum()))
  expected = n * np.array(expected)
  keep = expected > 5
  _, p = stats.chisquare(
    [*np.array(found)[keep], sum(np.array(found)[~keep])],
    [*expected[keep], expected[~keep].sum()],
  )
  assert p > 1e-3


def test_truncation_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))
  kept = lambda **k: np.isfinite(speech.truncated(logits, **k))[0].tolist()
  assert kept(top_k=2) == [True, True, False, False]
  assert kept(top_p=0.5) == [True, False, False, False]
  assert kept(top_p=0.51) == [True, True, False, False]
  assert kept(top_p=0.9) == [True, True, True, False]
  assert kept(top_p=1e-6) == [True, False, False, False]
  # Of what top_k left: 2/3 and 1/3.
  assert kept(top_k=2, top_p=0.6) == [True, False, False, False]
  assert kept() == kept(top_k=9) == [True] * 4


def test_truncated_samples_and_whole_scores():
  policy, params = make(top_k=1)
  plain, _ = make()
  rows = make_rows(8)
  traj = policy.rollout(params, rows, 0)
  np.testing.assert_array_equal(
    traj.actions, policy.ops['greedy'](params, rows)
  )
  log_prob = testing.log_prob(plain.ops['dist'](params, traj), traj.actions)
  np.testing.assert_allclose(
    traj.log_prob, np.where(traj.mask > 0, log_prob, 0), atol=1e-5
  )


@pytest.mark.parametrize('score', ['guided', 'cond'])
def test_guidance_by_hand(score):
  w = 3.0
  policy, params = make(guidance_scale=w, score=score, end=None)
  rows = make_rows(2048, (2,))
  traj = policy.rollout(params, rows, 0)
  assert traj.mask.all()
  own, free = (logits_of(params, p, V) for p in (2, 0))
  guided = free + w * (own - free)
  count = np.bincount(traj.actions[:, 0], minlength=V)
  share = special.softmax(guided)
  assert stats.chisquare(count, 2048 * share).pvalue > 0.01
  scored = special.log_softmax(guided if score == 'guided' else own)
  np.testing.assert_allclose(
    traj.log_prob[:, 0], scored[traj.actions[:, 0]], atol=1e-5
  )
  again = testing.log_prob(policy.ops['dist'](params, traj), traj.actions)
  np.testing.assert_allclose(traj.log_prob, again, atol=1e-5)


def test_gradients_of_the_two_halves():
  """w and 1 - w times that of 'cond' where the probabilities agree (00i)."""
  w, found = 3.0, {}
  for gradient, score in (
    ('both', 'guided'),
    ('conditional', 'guided'),
    ('both', 'cond'),
  ):
    policy, params = make(
      guidance_scale=w,
      guidance_gradient=gradient,
      score=score,
      end=None,
      length=1,
    )
    # The null prompt is as likely as the prompt: p is the same for both.
    params = jax.device_get(params)
    prompt = params['prompt'].copy()
    prompt[0] = prompt[2]
    params['prompt'] = prompt
    traj = policy.rollout(params, make_rows(4, (2,)), 0)

    def total(params, policy=policy, traj=traj):
      return policy.ops['dist'](params, traj).log_prob(traj.actions).sum()

    found[gradient, score] = np.asarray(testing.grad(total)(params)['prompt'])
  own = found['both', 'cond']
  assert own[2].any() and not own[0].any()
  np.testing.assert_allclose(found['conditional', 'guided'], w * own, atol=1e-5)
  want = w * own
  want[0] = (1 - w) * own[2]
  np.testing.assert_allclose(found['both', 'guided'], want, atol=1e-5)


def test_forced_tokens_are_said_and_not_chosen():
  forced = np.full((128, K), -1, np.int32)
  forced[:, 1] = 2
  policy, params = make(end=None)
  traj = policy.rollout(params, make_rows(cond=dict(forced=forced)), 0)
  assert (traj.actions[:, 1] == 2).all()
  assert traj.mask.tolist() == [[1, 0, 1, 1]] * 128
  assert not np.asarray(traj.log_prob[:, 1]).any()
  # The next one is drawn given it.
  log_prob = testing.log_prob(policy.ops['dist'](params, traj), traj.actions)
  np.testing.assert_allclose(traj.log_prob[:, 2], log_prob[:, 2], atol=1e-5)
  # An ended row says no more, whatever is forced.
  ended, _ = make()
  forced[:, 0] = END
  traj = ended.rollout(params, make_rows(cond=dict(forced=forced)), 0)
  assert not np.asarray(traj.actions[:, 1:]).any() and not traj.mask.any()


def test_rows_have_their_own_numbers():
  policy, params = make()
  rows = make_rows(8)
  order = np.random.default_rng(0).permutation(16)
  mixed = jax.tree.map(lambda x: x[order] if x.ndim else x, rows)
  whole = policy.rollout(params, rows, 0).actions
  np.testing.assert_array_equal(
    policy.rollout(params, mixed, 0).actions, whole[order]
  )
  few = jax.tree.map(lambda x: x[:3] if x.ndim else x, rows)
  np.testing.assert_array_equal(
    policy.rollout(params, few, 0).actions, whole[:3]
  )


def test_nll_is_the_mean_over_what_is_said():
  policy, params = make()
  x = jnp.array([[1, 2, END, 0], [END, 3, 3, 3], [4, 4, 4, 4]])
  cond = dict(tokens=jnp.array([[1], [2], [3]]))
  keys = jax.random.split(KEY, 3)
  found = policy.ops['nll'](params, testing.given(x, cond), keys)
  for row, prompt, n, value in zip(x, (1, 2, 3), (3, 1, 4), found):
    steps = zip([V, *row[: n - 1]], row[:n], strict=True)
    log_p = [
      special.log_softmax(logits_of(params, prompt, int(a)))[int(b)]
      for a, b in steps
    ]
    np.testing.assert_allclose(value, -np.mean(log_p), rtol=1e-5)
  dropped, _ = make(null_prob=1.0)
  free = dict(tokens=jnp.zeros((3, 1), jnp.int32))
  np.testing.assert_allclose(
    dropped.ops['nll'](params, testing.given(x, cond), keys),
    policy.ops['nll'](params, testing.given(x, free), keys),
  )


@pytest.mark.parametrize(
  'options, words',
  [
    (dict(length=0), 'policy.length=0'),
    (dict(temperature=0.0), 'eval.sampler="greedy"'),
    (dict(top_p=0.0), r'\(0, 1\]'),
    (dict(top_k=-1), 'top_k=-1'),
    (dict(score='both'), "'guided' or 'cond'"),
  ],
)
def test_bad_input(options, words):
  with pytest.raises(build.ConfigError, match=words):
    make(**options)


def test_forced_tokens_of_another_length():
  policy, params = make()
  rows = make_rows(cond=dict(forced=jnp.zeros((128, 2), jnp.int32)))
  with pytest.raises(build.ConfigError, match='2 tokens, policy.length is 4'):
    policy.rollout(params, rows, 0)


CODEC = dict(
  name='fsq_codec', image=(8, 8, 3), patch=4, levels=(3, 2), width=8, layers=1,
  heads=2,
)  # fmt: skip


def test_codes_become_pictures(tmp_path):
  net = testing.bigram(6)
  policy = testing.jitted(tokens_lib.image_tokens(net, CODEC, null_prob=0.0))
  params = policy.init(KEY)
  traj = policy.rollout(params, make_rows(4), 0)
  assert traj.actions.shape == (8, 4) and traj.mask.all()
  book = vq.fsq_codec(**{k: v for k, v in CODEC.items() if k != 'name'})
  book = testing.jitted(book)
  media = policy.decode(params, traj.sample)
  np.testing.assert_array_equal(
    media, book.decode(params['codec'], traj.sample)
  )
  # Pictures of data become codes, of which there is a likelihood; the codec
  # has no gradient.
  x = jax.random.uniform(KEY, (8, 8, 8, 3))
  codes = book.encode(params['codec'], x)
  np.testing.assert_array_equal(policy.ops['compress'](params, x), codes)
  assert policy.ops['compress'](params, x[:, ::2]).shape == codes.shape
  loss = lambda p, x: policy.ops['nll'](
    p, traj.replace(sample=policy.ops['compress'](p, x)), traj.group
  ).sum()
  grads = jax.jit(jax.grad(loss))(params, x)
  assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads['codec']))
  assert np.asarray(grads['net']['after']).any()
  path = tmp_path / 'codec.safetensors'
  weights.save(path, jax.tree.map(lambda a: a + 1.0, params['codec']))
  given = jax.jit(tokens_lib.image_tokens(net, CODEC, str(path)).init)(KEY)
  testing.assert_close(given['net'], params['net'])
  testing.assert_close(
    given['codec'], jax.tree.map(lambda a: a + 1.0, params['codec'])
  )


def test_a_codec_of_another_size():
  with pytest.raises(build.ConfigError, match='model.codes=6'):
    tokens_lib.image_tokens(testing.bigram(5), CODEC)


def test_rows_that_do_not_end_are_not_trained():
  policy, params = make()
  dropping, _ = make(drop_truncated=True, pad=3)
  rows = make_rows()
  traj = policy.rollout(params, rows, 0)
  kept = dropping.rollout(params, rows, 0)
  said = np.where(traj.mask > 0, traj.actions, 3)  # 3 may have been said, too
  np.testing.assert_array_equal(kept.actions, said)
  ended = (np.asarray(traj.actions) == END).any(1)
  assert 0 < ended.sum() < len(ended)
  np.testing.assert_array_equal(kept.mask, traj.mask * ended[:, None])
  with pytest.raises(build.ConfigError, match='there is no end token'):
    tokens_lib.tokens(testing.bigram(V), drop_truncated=True)


def test_the_first_of_a_group_may_be_greedy():
  policy, params = make()
  critical, _ = make(greedy_first=True)
  rows = make_rows(group=8)
  traj = critical.rollout(params, rows, 0)
  first = np.arange(16) % 8 == 0
  np.testing.assert_array_equal(
    traj.actions[first], policy.ops['greedy'](params, rows)[first]
  )
  np.testing.assert_array_equal(
    traj.actions[~first], policy.rollout(params, rows, 0).actions[~first]
  )
  assert (traj.mask[first] == 0).all() and (traj.mask[~first, 0] == 1).all()
  # In any part of a batch: who is first does not hang on the place.
  part = jax.tree.map(lambda x: x[3:13], rows.replace(key=None))
  cut = critical.rollout(params, part, 0)
  np.testing.assert_array_equal(cut.actions, traj.actions[3:13])


@pytest.mark.parametrize('score', ['guided', 'cond'])
def test_logits_a_few_decisions_at_a_time(score):
  net = lm.lm(vocab=V, length=1, width=8, layers=1, heads=2)
  options = dict(length=K, end=END, temperature=0.7, guidance_scale=2.0,
                 score=score)  # fmt: skip
  params = jax.jit(net.init)(KEY)
  rows = make_rows(2)
  said = np.array([[1, 2, 3, 5], [5, 0, 0, 0], [3, 3, 3, 3], [0, 5, 0, 0]])

  def of(chunk):
    policy = tokens_lib.tokens(net, head_chunk=chunk, **options)
    traj = testing.given(said, rows.cond).replace(actions=said)

    def loss(params):
      log_prob = policy.ops['dist'](params, traj).log_prob(said)
      nll = policy.ops['nll'](params, traj, rows.keys)
      return (log_prob.sum(1) + nll).sum(), (log_prob, nll)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  testing.assert_same(of(3), of(0))
  with pytest.raises(build.ConfigError, match='no head of its own'):
    make(head_chunk=2)


def test_shared_prompts_and_ended_rows_change_nothing(monkeypatch):
  """Against every row with a prompt of its own, said in one loop."""
  net = lm.lm(vocab=V, length=3, width=8, layers=1, heads=2, kv_heads=1)
  params = testing.moved(jax.jit(net.init)(KEY), jax.random.key(1), 0.5)
  policy = tokens_lib.tokens(net, length=64, end=END, guidance_scale=1.5)
  policy = testing.jitted(policy)
  batch = dict(
    tokens=np.array([[1, 2, 3], [4, 1, 0], [2, 0, 0]], np.int32),
    prompt_id=np.arange(3, dtype=np.int32),
    info={},
  )
  rows = rollout.make_rows(batch, 8, KEY, jnp.int32(0))
  assert rows.alike == 8
  shared = policy.rollout(params, rows, 0)
  lengths = np.asarray(shared.mask.sum(1)).reshape(3, 8)
  # The last rows of every group are said by the smallest loop.
  assert (np.sort(lengths, 1)[:, 3] < lengths.max(1) - 1).all()
  monkeypatch.setattr(speech, 'LONG', 65)
  alone = policy.rollout(params, rows.replace(alike=1), 0)
  np.testing.assert_array_equal(shared.actions, alone.actions)
  np.testing.assert_array_equal(shared.mask, alone.mask)
  np.testing.assert_allclose(shared.log_prob, alone.log_prob, atol=1e-5)
  log_prob = policy.ops['dist'](params, shared).log_prob(shared.actions)
  np.testing.assert_allclose(shared.log_prob, shared.mask * log_prob, atol=2e-5)


def test_rows_said_to_be_alike_that_are_not():
  net = lm.lm(vocab=V, length=1, width=8, layers=1, heads=2)
  policy = testing.jitted(tokens_lib.tokens(net, length=2))
  rows = make_rows(2)
  assert rows.alike == 1  # as `cond` was replaced
  rows = rows.replace(alike=2)
  order = np.array([2, 0, 1, 3])
  mixed = jax.tree.map(lambda x: x[order] if x.ndim else x, rows)
  params = jax.jit(net.init)(KEY)
  assert np.isfinite(policy.rollout(params, rows, 0).log_prob).all()
  assert np.isnan(policy.rollout(params, mixed, 0).log_prob).all()


def test_a_step_does_not_copy_keys_and_values():
  """It would be most of its time."""
  net = lm.lm(vocab=V, length=1, width=8, layers=2, heads=2)
  policy = tokens_lib.tokens(net, length=5)
  run = jax.jit(lambda params, rows: policy.rollout(params, rows, 0).actions)
  params = jax.eval_shape(net.init, KEY)
  program = run.lower(params, make_rows(3)).compile().as_text()
  loops, _ = program.split('\nENTRY')
  assert 'f32[6,1,2,5,4]{4,3,2,1,0} fusion(' in loops  # what is written
  assert not re.findall(r'f32\[6,1,2,5,4\]\S* copy\(', loops)
