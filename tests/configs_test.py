"""Every config takes two steps, compiled once; every variant builds."""

import importlib

import jax
import numpy as np
from PIL import Image
import pytest
import transformers

from gen_rl import (
  arguments,
  assemble,
  estimate,
  initial,
  sharding,
  testing,
)
from gen_rl.data import feeds
from gen_rl.models import blip
from gen_rl.models.files import released
from gen_rl.rewards import combine, detections
from gen_rl.rewards import evaluate as host

CONFIGS = {
  name: importlib.import_module(f'configs.{name}')
  for name in arguments.installed_configs()
}
VARIANTS = [
  (name, variant)
  for name, module in CONFIGS.items()
  for variant in ('', *module.VARIANTS)
  if variant != 'tiny'
]
# What a person has to give before a variant builds: files, and a function.
NEEDED = {
  ('sd3_flow_grpo', 'ocr'): ('quoted', {}),
  ('sd3_flow_grpo', 'geneval'): (
    'geneval', {'rewards.geneval.detector': 'tests.configs_test:finds_nothing'},
  ),
  ('sd3_flow_grpo', 'files'): ('txt', {}),
  ('flux_flow_grpo', 'files'): ('txt', {}),
  ('flux_search', 'files'): ('txt', {}),
  ('flux_search', 'imagereward'): (
    'txt', {'rewards.imagereward.sizes': dict(
      image=8, patch=4, width=16, layers=2, heads=2,
    )},
  ),
  ('sd15_tpo', 'files'): ('captions', {}),
}  # fmt: skip
FILES = dict(
  quoted='a sign that says "go"\n',
  txt='a sign\n',
  geneval='{"prompt": "a photo of a cat", "tag": "single_object", '
  '"include": [{"class": "cat", "count": 1}]}\n',
  captions='{"prompt": "a cat", "image": "cat.png", "wrong_prompts": '
  '["a dog"]}\n',
)
# Compiled and run: every config, and variants of the main job whose programs
# no config has. Of the rest of its variants the program is traced.
# sd15_tpo: see test_two_steps_on_captioned_pictures; flux_search trains none;
# sd15_alignprop takes a minute to compile, and sd3_refl is of the same parts;
# cls_rl is of those of vlm_grpo.
NOT_RUN = 'sd15_tpo', 'flux_search', 'sd15_alignprop', 'cls_rl'
RUN = [v for v in VARIANTS if not v[1] and v[0] not in NOT_RUN]
RUN += [('flow_grpo', variant) for variant in ('jpeg_host', 'lora')]
TRACED = [v for v in VARIANTS if v[0] == 'flow_grpo' and v not in RUN]
TRACED += [('sd15_alignprop', ''), ('cls_rl', 'think')]


def finds_nothing():
  """A detector, for configs that need one; it is not called."""
  return detections.Finder((), lambda params, images: None)


def _tiny(name, variant=''):
  arg = ','.join(filter(None, (variant, 'tiny')))
  config = CONFIGS[name].get_config(arg)
  assert config.steps == 2
  return config


def _give_files(config, name, variant, folder):
  """What the variant needs: see `NEEDED`."""
  kind, fields = NEEDED[name, variant]
  path = folder / 'prompts'
  path.write_text(FILES[kind])
  Image.new('RGB', (9, 7), 'red').save(folder / 'cat.png')
  paths = {'data.prompts.path': str(path), 'eval.prompts.path': str(path)}
  if variant == 'imagereward':
    paths = _image_reward(folder, fields['rewards.imagereward.sizes'])
    fields = {}
  with config.unlocked():
    config.update_from_flattened_dict(paths | fields)


def _image_reward(folder, sizes):
  """A tiny ImageReward and its tokenizer, and the fields that name them."""
  words = '[PAD] [UNK] [CLS] [SEP] [MASK] a red cat'.split()
  (folder / 'vocab.txt').write_text('\n'.join(words))
  transformers.BertTokenizerFast(str(folder / 'vocab.txt')).save_pretrained(
    folder / 'bert'
  )
  says = dict(
    model_type='bert', hidden_size=12, intermediate_size=20,
    num_hidden_layers=2, num_attention_heads=3, vocab_size=8,
    max_position_embeddings=40, add_cross_attention=True,
  )  # fmt: skip
  net = blip.image_reward(**sizes, **blip.config(says))
  params = jax.jit(net.init)(jax.random.key(0))
  released.save(folder / 'reward', params, blip.NAMES, says)
  return {
    'rewards.imagereward.folder': str(folder / 'reward'),
    'rewards.imagereward.sizes': sizes,
    'data.reader.tokenizer.path': str(folder / 'bert'),
  }


def _two_steps(config):
  """(metrics of the two steps, the Step they took)."""
  built = assemble.setup(config)
  layout = assemble.make_layout(config, built, jax.devices()[:1])
  step, tx, advantage = assemble.make_step(config, built, layout)
  params = testing.drawn(initial.shapes(config, built.policy), config.seed)
  state = initial.state(config, built, params, tx, advantage)
  state = layout.put(state)  # its model says what every dimension is
  batches = feeds.training(config, built)
  _, host_rewards = combine.split(built.rewards or {})
  key, logs = jax.random.key(config.seed), []
  for _ in range(2):
    batch, _ = next(batches)
    if host_rewards:
      traj, inputs, outs = step.sample(state, batch, key)
      host_outs, _ = host.evaluate_host(host_rewards, inputs, key)
      outs = {**outs, **host_outs}
      state, logged = step.learn(state, traj, inputs, outs, key)
    else:
      state, logged = step.train_step(state, batch, key)
    logs.append(jax.device_get(logged))
  assert int(state.step) == 2
  return logs, step


@pytest.mark.parametrize('name, variant', RUN)
def test_two_tiny_steps_and_one_compilation(name, variant):
  logs, step = _two_steps(_tiny(name, variant))
  used = [
    f for f in (step.train_step, step.sample, step.learn) if f._cache_size()
  ]
  assert used and all(f._cache_size() == 1 for f in used)
  for logged in logs:
    assert logged['optim/skipped'] == 0
    # Often 0: what an untrained model draws all scores the same.
    assert np.isfinite(logged['optim/grad_norm'])


def test_two_steps_on_captioned_pictures(tmp_path):
  """A pair has one picture, time and noise: only its captions can differ.

  If the network saw them alike the gradient would be 0.
  """
  config = _tiny('sd15_tpo', 'files')
  _give_files(config, 'sd15_tpo', 'files', tmp_path)
  logs, _ = _two_steps(config)
  np.testing.assert_allclose(logs[0]['preference/loss'], np.log(2), rtol=1e-3)
  assert all(np.isfinite(x['optim/grad_norm']) for x in logs)
  assert logs[0]['optim/grad_norm'] > 1e-3


def _kind(x):
  return x.shape, x.dtype, x.weak_type


@pytest.mark.parametrize('name', [n for n, variant in VARIANTS if not variant])
def test_evaluations_go_with_what_is_sampled(name):
  config = _tiny(name)
  built = assemble.setup(config)
  run, _ = assemble.make_evaluator(config, built)
  run.trace(initial.shapes(config, built.policy))


@pytest.mark.parametrize('name, variant', TRACED)
def test_a_step_traces_and_gives_a_state_of_the_same_kind(name, variant):
  """So that the second step is the same program."""
  config = _tiny(name, variant)
  _, layout, step, state, batch, key = estimate.abstract(
    config, jax.devices()[:1]
  )
  with layout.scope():
    after, logs = step.train_step.trace(state, batch, key).out_info
  assert jax.tree.map(_kind, after) == jax.tree.map(_kind, state)
  assert {'optim/grad_norm', 'reward/score'} <= set(logs)
  assert all(x.shape == () for x in logs.values())


_MODELS = set()  # of equal ones, the parameters are traced once


@pytest.mark.parametrize('name, variant', VARIANTS)
def test_builds_at_full_size(name, variant, tmp_path):
  """Shapes only: no parameter is drawn and nothing is compiled."""
  config = CONFIGS[name].get_config(variant)
  config.lock()  # as on the command line: fields exist and keep their types
  config.eval.num_prompts = min(config.eval.num_prompts, 8)  # tables, drawn
  if (name, variant) in NEEDED:
    _give_files(config, name, variant, tmp_path)
  built = assemble.setup(config)
  assemble.make_step(config, built, sharding.one_device())
  assemble.make_evaluator(config, built)
  model = str((config.model, config.tokenizer, config.data.length))
  if model not in _MODELS:
    shapes = jax.eval_shape(built.policy.init, jax.random.key(0))
    assert jax.tree.leaves(shapes)
    _MODELS.add(model)


@pytest.mark.parametrize('name', CONFIGS)
def test_names_say_how_to_get_the_config_again(name):
  assert CONFIGS[name].get_config('').name == name
  assert CONFIGS[name].get_config('tiny').name == f'{name}:tiny'


@pytest.mark.parametrize('name', CONFIGS)
def test_docstring_has_the_command_and_every_variant(name):
  module = CONFIGS[name]
  assert f'--config=configs/{name}.py' in module.__doc__
  text = module.__doc__ + (module.get_config.__doc__ or '')
  assert all(variant in text for variant in module.VARIANTS)


@pytest.mark.parametrize('name', CONFIGS)
def test_unknown_variant_lists_those_there_are(name):
  with pytest.raises(ValueError) as error:
    CONFIGS[name].get_config('nope')
  assert "'nope'" in str(error.value)
  assert all(variant in str(error.value) for variant in CONFIGS[name].VARIANTS)


def test_tiny_reproduces_bitwise():
  first, _ = _two_steps(_tiny('toy'))
  again, _ = _two_steps(_tiny('toy'))
  assert first == again
