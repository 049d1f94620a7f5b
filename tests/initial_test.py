"""What runs start from, of files with weights."""

import jax
import pytest

from configs import base
from gen_rl import build, initial, testing
from gen_rl.models.files import weights

POLICY = testing.make_policy()
SHAPES = jax.eval_shape(POLICY.init, jax.random.key(0))


def test_weights_of_files():
  assert initial.weighted('a,b*c.safetensors') == [('a,b*c.safetensors', 1.0)]
  assert initial.weighted('a*0.7,b*x*-.3') == [('a', 0.7), ('b*x', -0.3)]


def test_a_run_starts_from_a_mean_of_others(tmp_path):
  runs = [testing.drawn(SHAPES, seed) for seed in (1, 2)]
  a, b = (str(tmp_path / name) for name in 'ab')
  for path, params in zip((a, b), runs):
    weights.save(path, params, {})

  def started(init):
    config = base.get_config()
    config.init = init
    return initial.params(config, POLICY)

  for init in (a, f'{a}*1,{b}*0'):
    testing.assert_same(started(init), runs[0], to=0)
  expected = jax.tree.map(lambda x, y: 1.5 * x - 0.5 * y, *runs)
  got = started(f'{a}*1.5,{b}*-0.5')
  testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
  with pytest.raises(build.ConfigError, match='have to add up to 1'):
    started(f'{a}*0.7,{b}*0.7')
