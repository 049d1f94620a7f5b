"""Evaluation and sampling with what a workdir holds."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import adv_grpo, flow_grpo
from gen_rl import (
  assemble,
  build,
  checkpoint,
  inference,
  initial,
  search,
  sharding,
)
from gen_rl import evaluate as evaluate_lib
from gen_rl.models.files import weights
from gen_rl.policies import ode
from gen_rl.utils import image, rng, tree
from gen_rl.worlds import grammar, shapes


def _config(**changes):
  config = flow_grpo.get_config('tiny')
  config.trainable = ''
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture
def policy():
  return assemble.setup(_config()).policy


def _params(policy, value):
  """Parameters that are `value` everywhere."""
  like = jax.eval_shape(policy.init, jax.random.key(0))
  return jax.tree.map(lambda s: np.full(s.shape, value, s.dtype), like)


def _checkpoint(workdir, config, values, given=(), extra=()):
  """Saves {step: (trained, ema, frozen)}, each a number for its leaves."""
  built = assemble.setup(config)
  _, tx, advantage = assemble.make_step(config, built, sharding.one_device())
  with_manager = checkpoint.open_manager(f'{workdir}/checkpoints', 5)
  for step, (trained, ema, frozen) in values.items():
    state = initial.state(
      config, built, _params(built.policy, frozen), tx, advantage
    )

    def full(tree, value):
      return jax.tree.map(lambda x: jnp.full_like(x, value), tree)

    state = state.replace(
      params=full(state.params, trained),
      refs={k: full(v, ema) for k, v in state.refs.items()},
    )
    checkpoint.save(
      with_manager, step, state, config.to_dict(), dict(extra), given=given
    )
  checkpoint.close(with_manager)


def _same(params, like):
  same = jax.tree.map(np.array_equal, params, like)  # and the same structure
  return all(jax.tree.leaves(same))


def test_newest_checkpoint_averaged_or_not(tmp_path, policy, monkeypatch):
  config = _config()
  _checkpoint(tmp_path, config, {3: (1, 2, 0), 7: (5, 6, 0)})
  monkeypatch.chdir(tmp_path.parent)  # a relative workdir will do
  loaded = inference.load_params(config, tmp_path.name, policy)
  assert loaded.step == 7 and 'EMA parameters of step 7' in loaded.source
  assert _same(loaded.params, _params(policy, 6))
  older = inference.load_params(config, tmp_path.name, policy, step=3)
  assert older.step == 3 and _same(older.params, _params(policy, 2))
  with pytest.raises(
    checkpoint.CheckpointError, match='no checkpoint 5 .*3, 7'
  ):
    inference.load_params(config, tmp_path.name, policy, step=5)
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint in'):
    inference.load_params(config, tmp_path.name + '/x', policy, step=5)
  plain = inference.load_params(_config(ema=0.0), str(tmp_path), policy)
  assert 'EMA' not in plain.source
  assert _same(plain.params, _params(policy, 5))


def test_half_written_checkpoint_is_passed_over(tmp_path, policy):
  config = _config()
  _checkpoint(tmp_path, config, {3: (1, 2, 0), 7: (5, 6, 0)})
  for path in (tmp_path / 'checkpoints' / '7' / 'meta').rglob('*'):
    if path.is_file():
      path.write_text('')
  loaded = inference.load_params(config, str(tmp_path), policy)
  assert loaded.step == 3 and _same(loaded.params, _params(policy, 2))


def test_frozen_parameters_come_with_the_trained_ones(tmp_path, policy):
  config = _config(trainable='text')
  _checkpoint(tmp_path, config, {1: (1, 2, 9)})
  loaded = inference.load_params(config, str(tmp_path), policy)
  values = {
    'text' in jax.tree_util.keystr(path): np.unique(x).tolist()
    for path, x in jax.tree_util.tree_leaves_with_path(loaded.params)
  }
  assert values == {True: [2], False: [9]}
  assert jax.tree.structure(loaded.params) == jax.tree.structure(
    _params(policy, 0)
  )


def test_what_was_not_trained_is_made_as_the_run_made_it(tmp_path, policy):
  config = _config(trainable='text')
  base = initial.params(config, policy)
  trained, frozen = tree.split(base, config.trainable)
  extra = dict(frozen=tree.checksum(frozen))
  _checkpoint(tmp_path, config, {1: (1, 2, 9)}, ['frozen', 'refs/ref'], extra)
  config.seed = 5  # of the noise of samples
  loaded = inference.load_params(config, str(tmp_path), policy)
  twos = jax.tree.map(lambda x: jnp.full_like(x, 2), trained)
  assert tree.equal(loaded.params, tree.merge(twos, frozen))
  # a run that began from other parameters than the config names now
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(initial, 'params', lambda *_: _params(policy, 3))
    with pytest.raises(checkpoint.CheckpointError, match='began from others'):
      inference.load_params(config, str(tmp_path), policy)

  # neither prompts nor rewards are needed, and may be gone
  config.data.prompts = dict(name='txt', path=str(tmp_path / 'gone.txt'))
  config.rewards.pick = dict(
    name='pickscore', folder=str(tmp_path / 'gone'), weight=1.0
  )
  with pytest.raises((OSError, ValueError), match='gone'):
    assemble.setup(config)
  with pytest.raises(build.ConfigError, match='--config.export=NAME'):
    inference.export_params(config, str(tmp_path))
  config.export = 'final'
  path = inference.export_params(config, str(tmp_path), step=1)
  assert path == tmp_path / 'final.safetensors'
  like = jax.eval_shape(policy.init, jax.random.key(0))
  back, facts = weights.load(path, like, cast=True)
  expected = jax.tree.map(lambda x: np.float16(x), loaded.params)
  assert _same(back, expected) and facts['steps'] == '1'
  with pytest.raises(checkpoint.CheckpointError, match='nothing to export'):
    inference.export_params(config, str(tmp_path / 'empty'))


def test_without_a_checkpoint_the_initial_parameters(
  tmp_path, policy, monkeypatch
):
  wanted = _params(policy, 4)
  monkeypatch.setattr(initial, 'params', lambda *_: wanted)
  loaded = inference.load_params(_config(), str(tmp_path), policy)
  assert loaded.step is None and loaded.params is wanted
  assert 'drawn from seed 0' in loaded.source
  assert str(tmp_path) in loaded.source
  loaded = inference.load_params(_config(init='asset:x'), str(tmp_path), policy)
  assert 'asset:x' in loaded.source


def test_another_model_than_the_checkpoints(tmp_path, policy, caplog):
  _checkpoint(tmp_path, _config(), {1: (1, 2, 0)})
  inference.load_params(_config(seed=5), str(tmp_path), policy)
  assert not caplog.records  # of no consequence for what the model is
  inference.load_params(_config(**{'policy.shift': 1.5}), str(tmp_path), policy)
  assert 'policy.shift: 2.0 -> 1.5' in caplog.text
  wide = _config(**{'model.width': 24})
  with pytest.raises(checkpoint.CheckpointError, match='where .* is wanted'):
    inference.load_params(wide, str(tmp_path), assemble.setup(wide).policy)


def test_evaluate_is_the_evaluation_of_training(tmp_path, monkeypatch, capsys):
  """The evaluator is assemble's; here it is replaced by one that is known."""
  config = _config()
  _checkpoint(tmp_path, config, {2: (1, 0.5, 0)})

  def make_evaluator(*_):
    def run(params):
      value = float(np.mean([x.mean() for x in jax.tree.leaves(params)]))
      media = np.zeros((3, 2, 24, 24, 3))
      return evaluate_lib.Evaluation(
        value,
        {'counting': 0.25, 'position': 0.75},
        {'partial': 0.625},
        float('nan'),
        0.125,
        media,
        np.zeros((3, 2)),
        ['a', 'b', 'c'],
      )

    return run, {}

  monkeypatch.setattr(assemble, 'make_evaluator', make_evaluator)
  inference.evaluate(config, str(tmp_path))
  out = capsys.readouterr().out
  lines = [line.split() for line in out.splitlines()]
  assert ['counting', '0.250'] in lines and ['position', '0.750'] in lines
  assert ['all', 'tasks', '(gold)', '0.500'] in lines
  assert 'EMA parameters of step 2' in out
  record = json.loads((tmp_path / 'eval.json').read_text())
  assert record.pop('source') in out
  assert record == dict(
    config_name='flow_grpo:tiny',
    gold='accuracy',
    best=0.0,
    worst=0.0,
    evaluated=6,
    invalid={},
    eval_seed=1234,
    prompts=3,
    samples=2,
    denoising_steps=2,
    step=2,
    strict=0.5,
    strict_per_task={'counting': 0.25, 'position': 0.75},
    parts={'partial': 0.625},
    proxy=None,
    diversity=0.125,
  )


def test_evaluate_for_real(tmp_path, monkeypatch):
  """A net that is 0 everywhere takes mid-grey for the clean image."""
  config = _config()
  config.eval.update(num_prompts=2, samples=2)
  monkeypatch.setattr(initial, 'params', lambda _, policy: _params(policy, 0))
  result = inference.evaluate(config, str(tmp_path / 'new'))
  assert result.strict == 0 and result.media.shape == (2, 2, 24, 24, 3)
  np.testing.assert_allclose(result.media, 0.5, atol=1e-5)
  np.testing.assert_allclose(result.diversity, 0, atol=1e-5)
  record = json.loads((tmp_path / 'new' / 'eval.json').read_text())
  assert record['step'] is None and record['strict'] == 0


@pytest.fixture
def painter(monkeypatch):
  """A model that draws what was asked for, but in every third picture noise."""
  spec = grammar.spec_arrays(grammar.parse('two red circles'))
  spec = jax.tree.map(jnp.asarray, spec)

  def sampler(params, rows):
    del params
    right = jax.vmap(lambda key: shapes.render(key, spec))(rows.keys)
    noise = rng.uniform(rng.stream_keys(rows.keys, 'init'), right.shape[1:])
    third = jnp.arange(len(right)) % 3 == 2
    return 2 * jnp.where(third[:, None, None, None], noise, right) - 1

  segments = ode.Segments(
    steps=2,
    calls=1,
    noise=lambda rows: sampler(None, rows),
    run=lambda params, x, cond, start, stop: (x, x[None]),
    through=lambda params, x, cond: x,
  )
  setup = assemble.setup
  monkeypatch.setattr(
    assemble,
    'setup',
    lambda c, **k: setup(c, **k)._replace(sampler=sampler, segments=segments),
  )
  monkeypatch.setattr(initial, 'params', lambda _, policy: _params(policy, 0))


def test_sample_is_judged_by_the_oracle(tmp_path, painter, capsys):
  config = _config()
  drawn = inference.sample(config, str(tmp_path), 'Two red  circles.', 7)
  assert drawn.correct.tolist() == [True, True, False] * 2 + [True]
  out, error = capsys.readouterr()
  assert '5 of 7' in out and str(tmp_path / 'sample.png') in out
  assert 'initial parameters' in out
  assert error == ''
  pixels = np.asarray(Image.open(drawn.path)).reshape(-1, 3).tolist()
  green, red = pixels.count([*image.GREEN]), pixels.count([*image.RED])
  assert green / red == pytest.approx(5 / 2, rel=0.01)  # areas of the borders


def test_the_best_of_some_by_the_reward(tmp_path, painter, capsys):
  """Every third candidate is noise; the reward of the config never takes it."""
  args = str(tmp_path), 'two red circles'
  assert inference.sample(_config(), *args, 6, best_of=1).correct.sum() == 4
  drawn = inference.sample(_config(), *args, 6, best_of=3)
  assert drawn.media.shape == (6, 24, 24, 3)
  assert drawn.correct.all() and '6 of 6' in capsys.readouterr().out
  config = _config()
  config.search = dict(name='best_of_n', n=3)
  same = inference.sample(config, *args, 6)
  np.testing.assert_array_equal(same.media, drawn.media)


def test_best_of_needs_a_reward_that_can_judge(tmp_path, painter, capsys):
  args = str(tmp_path), 'the word "cat"'
  detector = flow_grpo.get_config('proxy,tiny')  # has never seen a word
  inference.sample(detector, *args, 2, best_of=2)
  assert 'cannot judge' in capsys.readouterr().err
  host = flow_grpo.get_config('jpeg_host,tiny')
  with pytest.raises(build.ConfigError, match='jpeg runs on the host'):
    inference.sample(host, *args, 2, best_of=2)
  with pytest.raises(build.ConfigError, match='--best_of'):
    inference.sample(_config(), *args, 2, best_of=0)
  both = _config()
  both.search = dict(name='best_of_n', n=3)
  with pytest.raises(build.ConfigError, match='both say how to search'):
    inference.sample(both, *args, 2, best_of=2)


def test_best_of_by_a_reward_that_is_trained(tmp_path, monkeypatch):
  """It scores with what the checkpoint holds, all candidates side by side."""
  config = adv_grpo.get_config('tiny')
  args = str(tmp_path), 'a red circle', 1
  with pytest.raises(build.ConfigError, match='no checkpoint that holds it'):
    inference.sample(config, *args, best_of=3)
  _checkpoint(tmp_path, config, {2: (0, 0, 0)})
  seen = []

  def judge(policy, params, reward, reward_params):
    ask = plain(policy, params, reward, reward_params)

    def noted(latents, rows, group_size):
      seen.append((jax.tree.structure(reward_params['real']), group_size))
      return ask(latents, rows, group_size)

    return noted

  plain = search.judge
  monkeypatch.setattr(search, 'judge', judge)
  found = inference.sample(config, *args, best_of=3)
  assert found.media.shape == (1, 24, 24, 3)
  reward = assemble.setup(config).rewards['real'][0]
  head = jax.eval_shape(reward.learner.init, jax.random.key(0))
  assert seen == [(jax.tree.structure((reward.params, head)), 3)]


@pytest.mark.parametrize(
  ('field', 'value'), [('sampler', 'policy'), ('solver', 'dpm2')]
)
def test_best_of_searches_what_it_can_stop(tmp_path, field, value):
  config = _config()
  config.eval[field] = value
  with pytest.raises(build.ConfigError, match=f"eval.{field}='{value}'"):
    inference.sample(config, str(tmp_path), 'a red circle', 2, best_of=2)


def test_other_seeds_other_pictures(tmp_path, painter):
  def draw(seed, name):
    return inference.sample(
      _config(seed=seed), str(tmp_path), 'a red dog', 2, tmp_path / name
    )

  first, again, other = draw(0, 'a.png'), draw(0, 'b.png'), draw(1, 'c/d.png')
  np.testing.assert_array_equal(first.media, again.media)
  assert first.path.read_bytes() == again.path.read_bytes()
  assert not np.array_equal(first.media, other.media)
  assert not np.array_equal(first.media[0], first.media[1])


def test_prompts_nobody_can_judge(tmp_path, painter, capsys):
  drawn = inference.sample(_config(), str(tmp_path), 'a red dog and a zebra', 1)
  assert drawn.correct is None and drawn.path.exists()
  out, error = capsys.readouterr()
  assert 'what the prompt asks for' not in out
  assert error.count('\n') == 1
  # "dog" is a word the world can write.
  assert "'zebra'" in error and 'dog' not in error


def test_prompts_that_cannot_be(tmp_path):
  config = _config()
  with pytest.raises(ValueError, match='has 17 tokens but the limit is 16'):
    inference.sample(config, str(tmp_path), 'a red ' * 8 + 'circle')
  with pytest.raises(build.ConfigError, match='needs a prompt'):
    inference.sample(config, str(tmp_path), ' ')
  with pytest.raises(build.ConfigError, match='--num'):
    inference.sample(config, str(tmp_path), 'a circle', 0)
  assert not list(tmp_path.iterdir())


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='file/run'):
    inference.evaluate(_config(), str(tmp_path / 'file' / 'run'))
