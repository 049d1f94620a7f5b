"""What every world promises, whichever it is; and how texts find theirs."""

import functools

import jax
import numpy as np
import pytest

from gen_rl import build, worlds
from gen_rl.data import prompts, tokenizers
from gen_rl.rewards.worlds import world_verdict
from gen_rl.types import RewardInputs
from gen_rl.worlds import world as world_lib

WORLDS = {name: build.build(worlds, name) for name in build.names(worlds)}
ROWS = 96
every_world = pytest.mark.parametrize('world', WORLDS.values(), ids=WORLDS)


def some(world, rows=ROWS):
  """Sentences from all over the world, as often as need be."""
  every = world.sentences()
  return [every[i * len(every) // rows] for i in range(rows)]


def as_key(facts):
  return tuple(np.asarray(x).tobytes() for x in facts.values())


@every_world
def test_sentences_are_of_its_tasks_and_splits_share_no_facts(world):
  every = world.sentences()
  assert WORLDS[world.name] is world
  assert len({s.prompt_id for s in every}) == len(every)
  assert {s.task for s in every} == set(world.tasks)
  assert len(set(world.tasks)) == len(world.tasks)
  home = {}
  for s in every:
    assert tuple(s.facts) == world.facts
    assert home.setdefault(as_key(s.facts), s.split) == s.split, s.text
  for split in world.splits:  # every task is in every split
    assert {s.task for s in every if s.split == split} == set(world.tasks)


@every_world
def test_its_words_are_those_it_says(world):
  """Every one; and ids give back the sentence, but for blanks around marks."""
  tokenizer = tokenizers.world_words(world.name, end=True)
  texts = {s.text for s in world.sentences()}
  texts = sorted(texts | {s.answer for s in world.sentences()})
  assert not tokenizer.unknown(texts)
  ids = tokenizer.encode(texts, max(len(text) for text in texts) // 2 + 2)
  solid = lambda text: ''.join(text.split())
  assert list(map(solid, tokenizer.decode(ids))) == list(map(solid, texts))


@every_world
def test_its_parser_understands_its_own_sentences_alone(world):
  answered = any(s.answer for s in world.sentences())
  for s in some(world):
    for other in WORLDS.values():
      if other is world and not answered:
        found = world.parse(s.text)
        assert (found.text, found.task) == (s.text, s.task)
        assert as_key(found.facts) == as_key(s.facts)
      else:
        with pytest.raises(ValueError):
          other.parse(s.text)


@every_world
@pytest.mark.parametrize(
  'text', ['', 'a red dog', 'north by red', 'red top left, blue top left', '?']
)
def test_a_wrong_sentence_is_refused_in_one(world, text):
  with pytest.raises(ValueError) as error:
    world.parse(text)
  said = str(error.value)
  assert '\n' not in said and 20 < len(said) < 300


@functools.cache
def judged(render, mutate, judge):
  """A program: (keys, facts) -> verdicts on right and on wrong renders."""

  @jax.jit
  def run(keys, facts):
    right = jax.vmap(render)(keys, facts)
    wrong = jax.vmap(render)(keys, jax.vmap(mutate)(keys, facts))
    return right, judge(right, facts), judge(wrong, facts)

  return run


@every_world
def test_its_oracle_says_what_is_rendered(world):
  facts = world_lib.columns(some(world))
  keys = jax.random.split(jax.random.key(0), ROWS)
  run = judged(world.render, world.mutate, world.judge)
  media, (credit, right), (less, wrong) = jax.device_get(run(keys, facts))
  assert media.shape == (ROWS, *world.shape) and right.dtype == bool
  assert media.min() >= 0 and media.max() <= 1
  # The oracle of ShapesWorld is exact to half a per cent (shapes_oracle_test).
  assert right.mean() > 0.97 and wrong.mean() < 0.03
  for x in (credit, less):
    assert x.min() >= 0 and x.max() <= 1
  assert credit.mean() > less.mean()
  same = run(keys, facts)[0]
  np.testing.assert_array_equal(media, same)


@every_world
def test_prompts_of_a_split(world):
  source = prompts.world_prompts(world.name, '+'.join(world.splits))
  every = world.sentences()
  assert source.texts == tuple(s.text for s in every)
  assert source.info.keys() == set(world.facts)
  for name, column in source.info.items():
    assert column.dtype in (np.int32, np.float32)
    np.testing.assert_array_equal(column[-1], every[-1].facts[name])
  few = prompts.world_prompts(world.name, world.splits[-1], world.tasks[-1:])
  assert set(few.tasks) == {world.tasks[-1]}
  for record in few:
    assert source.by_id(record['prompt_id'])['text'] == record['text']
  valid = ', '.join(world.splits)
  with pytest.raises(ValueError, match=f"no split 'test'; choose from {valid}"):
    prompts.world_prompts(world.name, 'test')
  with pytest.raises(ValueError, match=f"'no'; choose from {world.tasks[0]}"):
    prompts.world_prompts(world.name, world.splits[0], ['no'])


def test_a_file_is_understood_by_the_world_it_is_of(tmp_path, caplog):
  path = tmp_path / 'prompts.txt'
  path.write_text('Red top left.\nblue bottom right,  green top left\n')
  source = prompts.txt(path)
  assert source.tasks == ('one', 'two')
  assert source.info['tiles'].tolist() == [[0, -1, -1, -1], [1, -1, -1, 2]]
  assert not caplog.records
  path.write_text('red top left\nred in the middle\n')
  assert not prompts.txt(path).info
  assert "text 2 of 2 is no sentence of the world 'tiles'" in caplog.text
  assert "'red in the middle' is no tile" in caplog.text


def test_rewards_of_other_prompts_say_what_is_missing():
  media = np.zeros((1, 8, 8, 3), np.float32)
  with pytest.raises(build.ConfigError, match='tiles missing.*world="tiles"'):
    world_verdict('tiles').score((), RewardInputs(media, {}, 1), None)
  with pytest.raises(build.ConfigError, match='mixture, shapes.*tiles'):
    world_verdict('nope')


def test_tasks_are_told_in_the_order_of_their_world():
  tasks = WORLDS['shapes'].tasks
  assert world_lib.ordered([*sorted(tasks[2:]), tasks[2]]) == list(tasks[2:])
  assert world_lib.ordered(['two', 'four', 'two']) == ['two', 'four']
  assert world_lib.ordered(['b', 'one', 'a']) == ['a', 'b', 'one']
  assert world_lib.ordered([]) == []
