"""Prompts that are encoded before a run."""

import jax
import pytest

from configs import flow_grpo, sd3_flow_grpo
from gen_rl import embed
from gen_rl.build import ConfigError


def config(folder):
  (folder / 'train.txt').write_text('a red circle\nfür Elise\na red circle\n')
  (folder / 'test.txt').write_text('a cat\nfür Elise\n')
  c = sd3_flow_grpo.get_config('tiny')
  c.data.prompts = dict(name='txt', path=str(folder / 'train.txt'))
  c.data.weights = {}
  c.eval.prompts = dict(name='txt', path=str(folder / 'test.txt'))
  c.eval.gold = {}
  c.data.embed.cache = str(folder / 'cache')
  return c


def files(folder):
  return list((folder / 'cache').rglob('*.safetensors'))


def test_every_different_prompt_once(tmp_path, capsys):
  c = config(tmp_path)
  # Two of training, one more of the evaluation, and that of no prompt.
  assert embed.fill(c) == len(files(tmp_path)) == 4
  assert '4 different prompts' in capsys.readouterr().err
  files(tmp_path)[0].unlink()
  assert embed.fill(c) == 1 and len(files(tmp_path)) == 4
  assert embed.fill(c) == 0


def test_processes_share_them(tmp_path, monkeypatch):
  c = config(tmp_path)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  shares = []
  for i in range(3):
    monkeypatch.setattr(jax, 'process_index', lambda i=i: i)
    shares.append(embed.fill(c))
  assert shares == [2, 1, 1] and len(files(tmp_path)) == 4


def test_nothing_to_fill(tmp_path):
  with pytest.raises(ConfigError, match='encoder.name is empty'):
    embed.fill(flow_grpo.get_config())
  c = config(tmp_path)
  c.data.embed.cache = ''
  with pytest.raises(ConfigError, match='data.embed.cache=FOLDER'):
    embed.fill(c)
