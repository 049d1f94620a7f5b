"""Every mistake in one go, and before anything is drawn."""

import jax
import pytest

from configs import flow_grpo, flow_grpo_2b, sd3_flow_grpo
from gen_rl import assemble, build, checks, initial, sharding, testing, train
from gen_rl.utils import chips


def _config(**changes):
  config = flow_grpo.get_config('tiny')
  config.update_from_flattened_dict(changes)
  return config


def test_a_run_lists_all_that_is_wrong(tmp_path):
  config = _config(
    **{
      'log.every': 0,
      'trainable': '(',
      'mesh.fsdp': 3,
      'optimizer.decay': 'steep',
      'objective.pg.clipp': 1.0,
      'advantage.std': 'global',
    }
  )
  with pytest.raises(build.ConfigError) as error:
    train.train_and_evaluate(config, str(tmp_path / 'run'))
  text = str(error.value)
  assert text.startswith('5 things are wrong:\n  1. ')
  for part in ('log.every', 'trainable', 'fsdp', 'steep', 'clipp'):
    assert part in text
  assert len(text.splitlines()) == 6
  assert not (tmp_path / 'run').exists()


def test_rows_and_fields_in_one_go(tmp_path):
  config = _config(**{'microbatches': 3, 'rollout_chunks': 5})
  with pytest.raises(build.ConfigError) as error:
    train.train_and_evaluate(config, str(tmp_path))
  text = str(error.value)
  assert 'microbatches' in text and '5 rollout_chunks' in text
  assert 'things are wrong' in text


def test_rewards_that_read_are_given_what_they_read_with(tmp_path):
  config = sd3_flow_grpo.get_config('tiny')
  config.update_from_flattened_dict({'log.every': 0, 'mesh.fsdp': 3})
  with pytest.raises(build.ConfigError) as error:
    train.train_and_evaluate(config, str(tmp_path))
  assert str(error.value).startswith('2 things are wrong:')
  assert 'reader' not in str(error.value)


def test_a_bucket_is_no_workdir():
  with pytest.raises(build.ConfigError, match='gs://b/run is no folder'):
    train.train_and_evaluate(_config(), 'gs://b/run')


def test_one_mistake_is_one_sentence(tmp_path):
  with pytest.raises(build.ConfigError) as error:
    train.train_and_evaluate(_config(**{'log.every': 0}), str(tmp_path))
  assert str(error.value).startswith('config.log.every is 0')
  assert '\n' not in str(error.value)


def test_a_state_that_is_too_large_is_refused_before_it_is_made():
  """16 bytes a trained parameter, of 2.6 billion: shapes only."""
  config = flow_grpo_2b.get_config('full')
  config.objective.kl.weight = 0.0
  config.ema = 0.0
  built = assemble.setup(config)
  layout = sharding.one_device()
  layout = layout._replace(axes=built.policy.axes)
  _, tx, advantage = assemble.make_step(config, built, layout)
  shapes = initial.shapes(config, built.policy)
  state = jax.eval_shape(
    lambda p: initial.state(config, built, p, tx, advantage), shapes
  )
  gpu = chips.Chip('gpu', 24 * 2**30, None, None, None)
  with pytest.raises(build.ConfigError) as error:
    checks.memory(state, layout, gpu)
  text = str(error.value)
  assert '29.2 GiB' in text and 'optimizer 19.4' in text and '24.0' in text
  assert 'gen_rl.plan' in text and 'data.embed' not in text
  beside = {'text encoders': 4 * 2**30}
  with pytest.raises(build.ConfigError, match=r'33\.2 .*ers 4\.0.*data\.embed'):
    checks.memory(state, layout, gpu, beside)
  checks.memory(state, layout, gpu._replace(hbm=32 * 2**30))


def test_shapes_that_do_not_go_together_are_found_before_the_first_step():
  step, state = testing.make_step()
  checks.step(step.train_step, state, testing.batch(), jax.random.key(0))
  batch = testing.batch()
  batch['tokens'] = batch['tokens'][:, None, None]
  with pytest.raises(build.ConfigError, match='do not go together'):
    checks.step(step.train_step, state, batch, jax.random.key(0))


def test_the_trace_is_kept_for_the_first_step():
  """Looking does not cost twice."""
  traces = []
  plain = testing.color_reward()

  def score(params, inputs, key):
    traces.append(1)
    return plain.score(params, inputs, key)

  step, state = testing.make_step(reward=plain._replace(score=score))
  key = jax.random.key(0)
  checks.step(step.train_step, state, testing.batch(), key)
  once = len(traces)
  step.train_step(state, testing.batch(), key)
  assert once and len(traces) == once
