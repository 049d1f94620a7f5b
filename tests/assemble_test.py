"""What a config's monitors and nested specs become."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import alignprop, ar_grpo, flow_grpo, toy, vlm_grpo
from gen_rl import assemble, initial, setups, sharding, testing
from gen_rl import build as builder
from gen_rl.build import ConfigError
from gen_rl.data import feeds, prompts
from gen_rl.utils import tree
from gen_rl.utils.tasks import task_code


def test_monitors_are_built_and_kept_apart_from_rewards():
  config = flow_grpo.get_config('tiny')
  config.monitors.gold = dict(name='shapes_strict')
  config.monitors.off = dict(name='saturation', weight=0.0)
  built = assemble.setup(config)
  assert list(built.rewards) == ['oracle'] and list(built.monitors) == ['gold']
  config.monitors.files = dict(nam='host_jpeg_compressibility')
  with pytest.raises(ConfigError, match='files: .* needs a name'):
    assemble.setup(config)


def test_frozen_parameters_in_half_the_memory():
  """Masters of what is trained stay float32, and so does what is computed."""
  config = flow_grpo.get_config('lora,tiny')
  config.frozen_dtype = 'bfloat16'
  built = assemble.setup(config)
  params = tree.named(initial.params(config, built.policy))
  for name, x in params.items():
    trained = name.endswith(('_lora_a', '_lora_b'))
    assert x.dtype == (jnp.float32 if trained else jnp.bfloat16), name
  shapes = tree.named(initial.shapes(config, built.policy))
  assert {k: (x.shape, x.dtype) for k, x in params.items()} == {
    k: (x.shape, x.dtype) for k, x in shapes.items()
  }
  step, tx, advantage = assemble.make_step(config, built, sharding.one_device())
  state = jax.eval_shape(
    lambda p: initial.state(config, built, p, tx, advantage), tree.nest(params)
  )
  batch, _ = next(feeds.training(config, built))
  key = jax.random.key(0)
  traj, inputs, outs = jax.eval_shape(step.sample, state, batch, key)
  assert traj.sample.dtype == inputs.media.dtype == jnp.float32
  new, _ = jax.eval_shape(step.learn, state, traj, inputs, outs, key)
  assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(
    lambda x: x.dtype, state
  )
  config.frozen_dtype = 'int8'
  with pytest.raises(ConfigError, match="'float32' or 'bfloat16'"):
    assemble.setup(config)


def test_an_autoencoder_is_not_trained():
  config = ar_grpo.get_config('tiny')
  config.trainable = ''
  built = assemble.setup(config)
  shapes = initial.shapes(config, built.policy)
  _, tx, advantage = assemble.make_step(config, built, sharding.one_device())
  with pytest.raises(ConfigError, match='of the autoencoder.*"\\^net/"'):
    jax.eval_shape(
      lambda params: initial.state(config, built, params, tx, advantage),
      shapes,
    )


def test_answers_and_what_is_said_have_room():
  config = vlm_grpo.get_config('tiny')
  config.policy.length = 3
  with pytest.raises(ConfigError, match=r'do not fit policy\.length=3.* 4'):
    assemble.setup(config)


def test_a_folder_of_a_released_model_needs_such_a_network():
  config = flow_grpo.get_config('tiny')
  config.released = 'models/sd3'
  with pytest.raises(ConfigError, match='and the network dit is none; set'):
    assemble.setup(config)


@pytest.mark.parametrize(
  'method, sampler, offered',
  [
    (flow_grpo, 'greedy', 'denoising offers ode, policy'),
    (flow_grpo, 'euler', 'denoising offers ode, policy'),
    (vlm_grpo, 'ode', 'tokens offers policy, greedy'),
  ],
)
def test_a_sampler_the_policy_has_not(method, sampler, offered):
  config = method.get_config('tiny')
  config.eval.sampler = sampler
  with pytest.raises(
    ConfigError, match=f"eval.sampler is '{sampler}'.*{offered}"
  ):
    assemble.setup(config)


def test_policies_within_a_policy_leave_out_no_decision_either():
  """What the KL from the base sums over."""
  second = dict(
    name='denoising.denoising', steps=5, window=2, deterministic=True,
    window_start=dict(name='random_window'), noise=0.3,
  )  # fmt: skip
  spec = dict(
    name='text_then_image', length=4, second=second,
    first=dict(name='tokens', length=3, drop_truncated=True, greedy_first=True),
    model=dict(name='dit', window=7),
  )  # fmt: skip
  assert setups._all_decisions(spec) == dict(
    spec,
    first=dict(
      name='tokens', length=3, drop_truncated=False, greedy_first=False
    ),
    second=dict(second, window=0, deterministic=False, window_start=None),
  )


def test_pictures_of_the_data_are_seen_in_evaluation(monkeypatch):
  """A question about a picture of its own, asked and shown."""
  pictures = np.random.default_rng(0).random((40, 24, 24, 3), np.float32)

  def build(module, spec, **bound):
    built = plain_build(module, spec, **bound)
    if not isinstance(built, prompts.Prompts):
      return built
    few = {k: v[:40] for k, v in built.info.items()}
    return dataclasses.replace(
      built, texts=built.texts[:40], ids=built.ids[:40], info=few,
      tasks=(), answers=built.answers[:40], media=pictures,
    )  # fmt: skip

  plain_build = builder.build
  monkeypatch.setattr(builder, 'build', build)
  config = vlm_grpo.get_config('tiny')
  config.data.view = dict(name='given')
  built = assemble.setup(config)
  run, batch = assemble.make_evaluator(config, built)
  params = testing.drawn(initial.shapes(config, built.policy))
  found = run(params)
  np.testing.assert_allclose(found.seen[:, 1], batch['media'], atol=1e-6)
  assert batch['media'].std((0, 1, 2)).min() > 0.2
  assert found.shown(2).pictures.shape[:2] == (2, 2)


def test_rewards_with_gradients_keep_groups_together():
  """Some read a prompt once for its group: 4 groups, not 8 rows, are cut."""
  config = alignprop.get_config('tiny')
  config.microbatches = 8
  built = assemble.setup(config)
  layout = assemble.make_layout(config, built, jax.devices()[:1])
  with pytest.raises(ConfigError, match='4 groups .* microbatches=8'):
    assemble.make_step(config, built, layout)


def test_rewards_for_tasks():
  """Of a config; a task that no prompt is of is named."""
  config = flow_grpo.get_config('tiny')
  config.rewards.oracle.tasks = ('text', 'colors')
  with pytest.raises(ConfigError, match='color_attr, .*, position, single'):
    assemble.setup(config)
  config.data.weights = dict(text=1.0, colors=2.0)
  config.monitors.gold = dict(name='shapes_strict', tasks=('counting',))
  built = assemble.setup(config)
  assert built.rewards['oracle'][0].tasks == ('text', 'colors')
  assert built.monitors['gold'][0].tasks == ('counting',)
  batch, _ = next(feeds.training(config, built))
  codes = set(map(task_code, ('text', 'colors')))
  assert set(batch['info']['task_code'].tolist()) == codes
  config.monitors.gold.tasks = ('countin',)
  with pytest.raises(ConfigError, match="'countin'.*'counting'.*color_attr, "):
    assemble.setup(config)
  config.monitors.gold = dict(name='shapes_strict', tasks='counting')
  with pytest.raises(ConfigError, match='gold.tasks is .* a tuple'):
    assemble.setup(config)


def test_optimizer_steps_of_who_waits():
  """Of 5 rollouts of 2 minibatches, every third: 0, 3, 6 and 9."""
  config = toy.get_config('tiny')
  config.update(steps=5, updates=2)
  assert initial.minibatches(config) == 10
  assert initial.minibatches(config, 3) == 4
