"""Prompts that are encoded before a run."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from configs import flow_grpo, sd3_flow_grpo
from gen_rl import build, embed
from gen_rl.build import ConfigError
from gen_rl.data import embeddings, feeds, prompts, tokenizers


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


def of_a_run(c, keep=100):
  """(what `ahead` is given of a Setup, what was encoded, when it was freed)."""
  asked, freed = [], []

  def encode(texts):
    asked.extend(texts)
    return dict(text=np.zeros((len(texts), 2), np.float32))

  shapes = dict(text=jax.ShapeDtypeStruct((2,), np.float32))
  encoder = embeddings.Encoder(
    encode, shapes, 'test', networks=list,
    free=lambda: freed.append(len(asked)),
  )  # fmt: skip
  built = types.SimpleNamespace(
    source=build.build(prompts, c.data.prompts),
    embed=embeddings.cached(encoder, '', c.data.embed.cache, keep),
    tokenizer=tokenizers.shapes_words(),
    reader=None,
  )
  return built, asked, freed


def many(folder):
  """20 prompts of which three steps of two draw some; two are evaluated."""
  c = config(folder)
  lines = [f'{n} red circles' for n in range(20)]
  (folder / 'train.txt').write_text('\n'.join(lines))
  c.steps, c.data.prompts_per_step = 3, 2
  c.data.embed.cache = ''
  return c


def test_what_a_run_draws_is_encoded_ahead(tmp_path, capsys, monkeypatch):
  c = many(tmp_path)
  built, asked, freed = of_a_run(c, keep=9)
  embed.ahead(c, built, str(tmp_path))
  assert '9 prompts are encoded before' in capsys.readouterr().err
  assert len(asked) == len(set(asked)) == 9 and freed == [9]
  assert not embed.resident(c, built)
  # The run asks for nothing else.
  batches = feeds.training(c, built)
  drawn = {text for _ in range(3) for text in next(batches)[1]}
  evaluated = feeds.evaluation(c, built)[1]
  assert {'', *drawn, *evaluated} == set(asked) and len(asked) == 9
  # One that had taken two steps needs what is left.
  built, asked, _ = of_a_run(c)
  monkeypatch.setattr(embed.checkpoint, 'steps', lambda folder: [1, 2])
  assert embed.ahead(c, built, str(tmp_path)) == asked and len(asked) == 5
  monkeypatch.setattr(embed.checkpoint, 'steps', lambda folder: [3])
  assert embed.ahead(c, built, str(tmp_path)) == []  # it has ended


def test_false_prompts_are_encoded_ahead(tmp_path):
  c = many(tmp_path)
  built, _, _ = of_a_run(c)
  wrong = tuple((f'no {t}', f'not {t}') for t in built.source.texts)
  built.source = dataclasses.replace(built.source, wrong=wrong)
  encoded = embed.ahead(c, built, str(tmp_path))
  assert len(encoded) == 9 + 2 * 6  # of six prompts
  drawn = {text for text in encoded if f'not {text}' in encoded}
  assert len(drawn) == 6 and all(f'no {text}' in encoded for text in drawn)


def test_more_than_memory_keeps_is_not_encoded_ahead(tmp_path, capsys):
  c = many(tmp_path)
  built, asked, freed = of_a_run(c, keep=8)
  embed.ahead(c, built, str(tmp_path))
  assert not asked and not freed and embed.resident(c, built)
  assert 'keep=8; with --config.data.embed.cache' in capsys.readouterr().err
  c.data.embed.cache = str(tmp_path / 'cache')
  built, asked, freed = of_a_run(c, keep=8)
  assert not embed.resident(c, built)
  embed.ahead(c, built, str(tmp_path))
  assert len(asked) == 9 and freed == [9]


@pytest.mark.parametrize('shared', [True, False])
def test_processes_share_what_is_ahead(tmp_path, monkeypatch, shared):
  """Of 9 in a folder of all, each encodes 3; in one of its own, all of them."""
  c = many(tmp_path)
  c.data.embed.cache = str(tmp_path / 'cache')
  built, asked, freed = of_a_run(c)
  other, *_ = of_a_run(c)
  waited = []

  def others_encode(flag):
    waited.append(len(asked))
    if shared:
      other.embed.rows([*map(str, built.source.texts), 'a cat', 'für Elise'])
    return flag

  monkeypatch.setattr(embed.hosts, 'from_first', lambda value: value())
  monkeypatch.setattr(embed.hosts, 'any_process', others_encode)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  embed.ahead(c, built, str(tmp_path))
  assert waited == [3, 3 if shared else 9] and freed == waited[1:]
