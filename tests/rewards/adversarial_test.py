"""The adversarial reward: hinge losses, and that it tells pictures apart."""

import json

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import optax
from PIL import Image
import pytest

from configs import adv_grpo
from gen_rl import estimate, testing
from gen_rl.build import ConfigError
from gen_rl.rewards import adversarial as lib
from gen_rl.types import Experience, RewardInputs, RowKeys, Shown
from gen_rl.worlds import grammar, shapes

KEY = jax.random.key(0)


def score_of(reward, params, inputs):
  score = lambda params, media: reward.score(
    (reward.params, params), inputs.replace(media=media), None
  )
  return jax.jit(score)(params, inputs.media)


def loss_of(reward, params, real, fake):
  """[b] of the learner's loss."""
  ones = np.ones(len(real), np.float32)
  blank = (None, np.zeros((len(real), 1)), ones, None)
  exp = Experience(*blank, shown=Shown(fake, real, ones))
  ask = reward.learner.ops['reality']
  replay = testing.answers(
    reality=lambda which, media: ask((reward.params, params), None, media)
  )
  return reward.learner.loss(replay, exp, None)[0].value[:, 0]


def test_loss_and_score_by_hand():
  """A head that ignores the picture: h = 0.5 everywhere."""
  reward = lib.adversarial(patch_weight=0.25)
  params = jax.jit(reward.learner.init)(KEY)
  params = dict(params, down=0 * params['down'], down_bias=jnp.float32(0.5))
  media = jax.random.uniform(KEY, (2, 24, 24, 3))
  loss = jax.jit(lambda p: loss_of(reward, p, media, media))(params)
  # (relu(1 - 0.5) + relu(1 + 0.5)) / 2 = 1, and a quarter of it on top
  np.testing.assert_allclose(loss, 1.25, rtol=1e-6)
  inputs = RewardInputs(media.at[1, 0, 0, 0].set(jnp.nan), {}, 2)
  out = score_of(reward, params, inputs)
  np.testing.assert_allclose(out.score, 0.5, rtol=1e-6)
  np.testing.assert_array_equal(out.valid, [True, False])


def test_it_learns_to_tell_renders_from_noisy_ones():
  reward = lib.adversarial()
  texts = ('two red circles', 'a blue square above a cross')
  specs = [grammar.spec_arrays(grammar.parse(t)) for t in texts]
  spec = {k: np.repeat(np.stack([s[k] for s in specs]), 16, 0)
          for k in specs[0]}  # fmt: skip

  @jax.jit
  def both(key, spec):
    real = jax.vmap(shapes.render)(jax.random.split(key, 32), spec)
    noise = 0.1 * jax.random.normal(key, real.shape)
    return real, jnp.clip(real[::-1] + noise, 0, 1)

  real, fake = both(KEY, spec)
  params, tx = jax.jit(reward.learner.init)(KEY), optax.adam(3e-3)

  @jax.jit
  def step(params, opt_state):
    loss = lambda p: loss_of(reward, p, real, fake).mean()
    value, grads = jax.value_and_grad(loss)(params)
    deltas, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, deltas), opt_state, value

  opt_state, losses = jax.jit(tx.init)(params), []
  for _ in range(60):
    params, opt_state, value = step(params, opt_state)
    losses.append(float(value))
  assert losses[-1] < 0.3 * losses[0]
  score = lambda x: score_of(reward, params, RewardInputs(x, {}, 1)).score
  assert score(real).mean() > score(fake).mean() + 1.0


def test_the_detector_may_be_frozen():
  assert jax.eval_shape(lib.adversarial().learner.init, KEY)['trunk']
  reward = lib.adversarial(frozen=True)
  media = jax.random.uniform(KEY, (2, 24, 24, 3))
  params = jax.jit(reward.learner.init)(KEY)
  loss = lambda p: loss_of(reward, p, media, media)
  grads = jax.jit(jax.grad(lambda p: loss(p).sum()))(params)
  assert params['trunk'] == {}  # the head's alone
  assert np.abs(grads['up']).max() > 0
  with pytest.raises(Exception, match='nowhere'):
    lib.adversarial(dict(name='shapes_detector', weights='nowhere.safetensors'))


def test_a_preference_model_learns_to_prefer_what_is_real():
  texts = ('two red circles', 'a blue square above a cross')
  specs = [grammar.spec_arrays(grammar.parse(t)) for t in texts]
  spec = {k: np.stack([s[k] for s in specs]) for k in specs[0]}
  ones = np.ones(2, np.float32)
  reward = lib.adversarial_preference('shapes_detector', '^head/')
  assert reward.learner.turn == 'lead'
  always = lib.adversarial_preference(
    'shapes_detector', '^head/', scale=2.0, trigger=False
  )
  assert always.learner.turn == ''
  trained = reward.learner.init(KEY)
  assert set(trained) == {'head'} and 'head' not in reward.params

  def loss_of(trained, real, fake):
    exp = Experience(
      testing.given(ones, {}), None, ones, None,
      inputs=RewardInputs((), spec, 2), shown=Shown(fake, real, ones),
    )  # fmt: skip
    ask = always.learner.ops['prefers']
    replay = testing.answers(
      prefers=lambda who, *args: ask((always.params, trained), None, *args)
    )
    term, metrics = always.learner.loss(replay, exp, RowKeys(None, None))
    return term.value.sum(), (term.value[:, 0], metrics['lead'][:, 0])

  grad = jax.jit(jax.grad(loss_of, has_aux=True))
  real = jax.jit(jax.vmap(shapes.render))(jax.random.split(KEY, 2), spec)
  blank = np.zeros_like(real)
  lead = score_of(reward, trained, RewardInputs(real, spec, 1)).score
  lead -= score_of(reward, trained, RewardInputs(blank, spec, 1)).score
  assert (lead > 0.5).all()
  for sign, two in ((1, (real, blank)), (-1, (blank, real))):
    grads, (value, found) = grad(trained, *two)
    np.testing.assert_allclose(found, sign * lead, rtol=1e-5)
    np.testing.assert_allclose(
      value, np.log1p(np.exp(-2.0 * sign * lead)), rtol=1e-5
    )
    assert np.abs(grads['head']['kernel']).max() > 0


def test_a_step_reads_references_of_files(tmp_path):
  """Traced alone: several pictures of a prompt go in with the batch."""
  for i in range(3):
    Image.new('RGB', (30, 24), (80 * i, 0, 0)).save(tmp_path / f'{i}.png')
  names = [f'{i}.png' for i in range(3)]
  path = tmp_path / 'real.jsonl'
  lines = [dict(prompt=f'{n} squares', images=names) for n in ('two', 'three')]
  path.write_text('\n'.join(map(json.dumps, lines)))
  c = adv_grpo.get_config('oracle,tiny')
  c.data.prompts = config_dict.create(
    name='metadata_jsonl', path=str(path), image_field='images', image_size=24
  )
  c.data.weights, c.data.prompts_per_step = {}, 2
  c.critic.reals.name = 'references'
  _, layout, step, *given = estimate.abstract(c, jax.devices()[:1])
  assert given[1]['media'].shape == (2, 3, 24, 24, 3)
  with layout.scope():
    _, logs = step.train_step.trace(*given).out_info
  assert 'learner/real/loss' in logs


@pytest.mark.parametrize(
  'reward, trained, says',
  [
    ('jpeg_compressibility', '', 'has no parameters'),
    (dict(name='win_rate', reward='shapes_detector'), '', 'one picture at'),
    ('adversarial', '', 'not trained itself'),
    ('shapes_detector', 'tail', "'tail' matches none"),
  ],
)
def test_what_is_no_preference_model(reward, trained, says):
  with pytest.raises(ConfigError, match=says):
    lib.adversarial_preference(reward, trained)
