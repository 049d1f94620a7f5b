"""A seed of the vmapped program is the single run of that seed."""

import json

import jax
import numpy as np
import pytest

from configs import toy
from experiments import vmapped
from gen_rl import build, metrics, train
from gen_rl.models.files import weights


def _config(seed: int):
  config = toy.get_config('tiny')
  config.seed = seed
  config.steps = 3
  config.eval.every = 2
  config.export = 'exported'
  return config


def _agree(a, b, path=''):
  """Numbers to float tolerance, everything else exactly."""
  if isinstance(a, dict):
    assert a.keys() == b.keys(), path
    for key in a:
      _agree(a[key], b[key], f'{path}/{key}')
  elif isinstance(a, float):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5, err_msg=path)
  else:
    assert a == b, path


def _exported(workdir):
  tree = weights.load(workdir / 'exported.safetensors')[0]
  leaves = jax.tree.leaves(tree)
  return np.concatenate([np.ravel(x) for x in leaves]).astype(np.float32)


def test_a_vmapped_seed_equals_its_single_run(tmp_path):
  workdirs = [tmp_path / 'together-3', tmp_path / 'together-5']
  together = vmapped.vmapped_runs([_config(3), _config(5)], workdirs)
  for result, workdir in zip(together, workdirs):
    assert result['seeds_at_once'] == 2
    assert json.loads((workdir / 'result.json').read_text()) == result

  alone_dir, workdir, result = tmp_path / 'alone', workdirs[1], together[1]
  alone = train.train_and_evaluate(_config(5), str(alone_dir))
  for key in ('config_name', 'seed', 'steps', 'base', 'trained', 'kl'):
    _agree(alone[key], result[key], key)
  lines = [
    [metrics.comparable(line) for line in metrics.read(d / metrics.FILE)]
    for d in (alone_dir, workdir)
  ]
  assert [line['step'] for line in lines[0]] == [0, 1, 2, 2, 3, 3]
  for a, b in zip(*lines, strict=True):
    _agree(a, b, f'step {a["step"]}')
  # Stored as float16.
  same, mine, other = map(_exported, (alone_dir, workdir, workdirs[0]))
  np.testing.assert_allclose(same, mine, rtol=2e-3, atol=1e-4)
  assert not np.allclose(other, mine, atol=1e-2)  # two seeds, two runs


def test_configs_that_differ_in_more_than_the_seed(tmp_path):
  other = _config(1)
  other.optimizer.lr = 1.0
  with pytest.raises(build.ConfigError, match='seed only, not in optimizer.lr'):
    vmapped.vmapped_runs([_config(0), other], [tmp_path / 'a', tmp_path / 'b'])
