"""What a config's monitors and nested specs become."""

import jax
import jax.numpy as jnp
import pytest

from configs import flow_grpo, vlm_grpo
from gen_rl import assemble, sharding
from gen_rl.build import ConfigError
from gen_rl.data import feeds
from gen_rl.utils import tree


def test_monitors_are_built_and_kept_apart_from_rewards():
  config = flow_grpo.get_config('tiny')
  config.monitors.gold = dict(name='shapes_strict')
  config.monitors.off = dict(name='saturation', weight=0.0)
  built = assemble.setup(config)
  assert list(built.rewards) == ['oracle'] and list(built.monitors) == ['gold']
  config.monitors.files = dict(name='host_jpeg_compressibility')
  with pytest.raises(ConfigError, match='monitors.files runs on the host'):
    assemble.setup(config)


def test_frozen_parameters_in_half_the_memory():
  """Masters of what is trained stay float32, and so does what is computed."""
  config = flow_grpo.get_config('lora,tiny')
  config.frozen_dtype = 'bfloat16'
  built = assemble.setup(config)
  params = tree.named(assemble.initial_params(config, built.policy))
  for name, x in params.items():
    trained = name.endswith(('_lora_a', '_lora_b'))
    assert x.dtype == (jnp.float32 if trained else jnp.bfloat16), name
  shapes = tree.named(assemble.param_shapes(config, built.policy))
  assert {k: (x.shape, x.dtype) for k, x in params.items()} == {
    k: (x.shape, x.dtype) for k, x in shapes.items()
  }
  step, tx, advantage = assemble.make_step(config, built, sharding.one_device())
  state = assemble.initial_state(
    config, built, tree.nest(params), tx, advantage
  )
  batch, _ = next(feeds.training(config, built))
  key = jax.random.key(0)
  traj, inputs, _ = jax.eval_shape(step.sample, state, batch, key)
  assert traj.sample.dtype == inputs.media.dtype == jnp.float32
  new, _ = jax.eval_shape(step.train_step, state, batch, key)
  assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(
    lambda x: x.dtype, state
  )
  config.frozen_dtype = 'int8'
  with pytest.raises(ConfigError, match='float32 or bfloat16'):
    assemble.setup(config)


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
