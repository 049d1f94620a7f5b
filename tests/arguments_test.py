"""Which config a command line means, and what its overrides may say."""

import importlib
import pathlib
import sys

import pytest

from configs import flow_grpo
from gen_rl import arguments

ROOT = pathlib.Path(arguments.__file__).parents[1]


def test_finds_installed_configs_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  installed = f'{ROOT}/configs/flow_grpo.py'
  assert arguments.find_config('flow_grpo') == installed
  assert (
    arguments.find_config('configs/flow_grpo.py:fast') == f'{installed}:fast'
  )
  (tmp_path / 'flow_grpo').mkdir()  # a folder of that name is no config
  assert arguments.find_config('flow_grpo') == installed
  (tmp_path / 'flow_grpo.py').write_text('')
  assert arguments.find_config('flow_grpo.py:a,b') == 'flow_grpo.py:a,b'
  with pytest.raises(ValueError, match='elsewhere/flow_grpo.py'):
    arguments.find_config('elsewhere/flow_grpo.py')


def test_configs_import_gen_rls_base_beside_a_package_of_that_name(
  tmp_path, monkeypatch
):
  for name, module in list(sys.modules.items()):
    if name.partition('.')[0] == 'configs':
      monkeypatch.setitem(sys.modules, name, module)  # put back afterwards
      del sys.modules[name]
  folder = tmp_path / 'configs'
  folder.mkdir()
  for name, text in (
    ('__init__', ''), ('base', 'lr = 1'), ('other', 'rate = 2'),
    ('own', 'from configs import base\ndef get_config(arg=""):\n'
     '  raise ValueError(f"their rate is {base.lr}")'),
  ):  # fmt: skip
    (folder / f'{name}.py').write_text(text)
  (tmp_path / 'mine.py').write_text(
    'from configs import base, other\ndef get_config(arg=""):\n'
    '  config = base.get_config()\n  config.seed = other.rate\n'
    '  return config\n'
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', ['', *sys.path])
  importlib.import_module('configs.base')  # theirs, before ours is looked for
  seed = '--config.seed=1'
  assert arguments.resolve(['main', '--config=toy:tiny', seed])[2] == seed
  assert arguments.resolve(['main', '--config=mine.py', seed])[2] == seed
  # what stands in their package imports from it
  with pytest.raises(ValueError, match='their rate is 1'):
    arguments.resolve(['main', '--config=configs/own.py'])


def test_a_config_that_is_no_python_is_named_with_its_line(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text('# Title\n\na line of words\n')
  with pytest.raises(ValueError, match=r'page\.md, line 3: .*a Python file'):
    arguments.resolve(['main', f'--config={page}'])


def test_resolve_leaves_the_other_arguments_alone():
  argv = ['main', '--num=3', '--config', 'flow_grpo:tiny', '--', '--config=x']
  resolved = arguments.resolve(argv)
  assert resolved[3] == f'{ROOT}/configs/flow_grpo.py:tiny'
  del argv[3], resolved[3]
  assert resolved == argv


@pytest.mark.parametrize(
  'override, words',
  [
    ('nosuch', ['config has no', 'rewards']),
    ('data.group_sise', ["'group_size'", 'prompts_per_step']),
    ('seed.x', ['config.seed is a value (0)']),
    ('', ['names with dots between them']),
    ('offload[0]', ['names with dots between them']),
    ('offload', ['is a tuple']),
    ('model.width.x', ['config.model.width is a value']),
    ('rollout', ['--config.rollout.name=', 'valid: name']),
    ('data.weights', ['--config.data.weights.', 'single_object']),
  ],
)
def test_overrides_of_fields_that_do_not_exist(override, words):
  with pytest.raises(ValueError) as error:
    arguments.check_overrides(
      flow_grpo.get_config(), {'seed': '1', override: '1'}
    )
  assert all(word in str(error.value) for word in (override, *words))


def test_overrides_may_name_keywords_of_the_function():
  config = flow_grpo.get_config()
  arguments.check_overrides(config, {'objective.pg.clip_high': '0.1'})
  arguments.check_overrides(config, {'data.weights.text': '2'})
  file = {'data.prompts.path': 'x.txt'}
  with pytest.raises(ValueError, match="no field 'path'.*name, split, tasks"):
    arguments.check_overrides(config, file)
  arguments.check_overrides(config, {'data.prompts.name': 'txt', **file})
  arguments.check_overrides(config, {'data.weights': "{'text': 2.0}"})
  # of another part, that is changed
  arguments.check_overrides(config, {'explore.policy.tail': '0.4'})
  with pytest.raises(ValueError, match="no field 'tial'.*mean 'tail'"):
    arguments.check_overrides(config, {'explore.policy.tial': '0.4'})
  # the name is wrong, whatever else is said
  with pytest.raises(ValueError, match="no 'text'.*mean 'txt'.*tfds, txt"):
    arguments.check_overrides(config, {**file, 'data.prompts.name': 'text'})


def test_a_label_that_is_another_one_misspelt():
  config = flow_grpo.get_config()
  for label in ('oracle2', 'second', 'judge'):
    name = {f'eval.gold.{label}.name': 'shapes_strict'}
    arguments.check_overrides(config, name)
  with pytest.raises(ValueError, match="'oracel' would be .* beside 'oracle'"):
    arguments.check_overrides(
      config, {'eval.gold.oracel.name': 'shapes_strict'}
    )


def test_overridden_name_drops_what_the_other_function_took():
  config = flow_grpo.get_config()
  config.data.prompts.name = 'txt'
  config.data.prompts.path = 'x.txt'
  overrides = {'data.prompts.name': 'txt', 'data.prompts.path': 'x.txt'}
  arguments.drop_leftovers(config, overrides)
  assert config.data.prompts.to_dict() == dict(name='txt', path='x.txt')
  assert config.data.weights.to_dict() == {}
  config.rewards.oracle.name = 'saturation'  # takes nothing
  arguments.drop_leftovers(config, {'rewards.oracle.name': 'saturation'})
  assert set(config.rewards.oracle) == {'name', 'weight'}
  config.data.prompts.split = 'rl'  # asked for: an error of build, not silence
  arguments.drop_leftovers(config, overrides | {'data.prompts.split': 'rl'})
  assert config.data.prompts.split == 'rl'


def test_narrowed_tasks_drop_the_weights_of_the_others():
  config = flow_grpo.get_config()
  config.data.prompts.tasks = ('text', 'counting')
  overrides = {'data.prompts.tasks': "('text', 'counting')"}
  arguments.drop_leftovers(config, overrides)
  assert config.data.weights.to_dict() == dict(text=0.5, counting=2.0)
  # a weight that was asked for stays, to be complained about
  config = flow_grpo.get_config()
  config.data.prompts.tasks = ('text',)
  arguments.drop_leftovers(config, overrides | {'data.weights.colors': '2'})
  assert len(config.data.weights) == 7


def test_new_parts_are_set_as_a_whole():
  """config_flags sets fields of what is there, and dicts."""
  argv = [
    'main', '--config=toy', '--config.monitors.m.name', 'saturation',
    '--config.monitors.m.tasks=("a", )', '--config.seed=2',
    '--config.evals.x.prompts.name=txt', '--config.evals.x.samples=4',
    '--config.rewards.d.name=shapes_detector', '--config.rewards.d.soft',
    '--workdir=w', '--', '--config.monitors.m.name=y',
  ]  # fmt: skip
  arguments.resolve(argv)
  assert arguments.with_whole_parts(argv) == [
    'main', '--config=toy', '--config.seed=2', '--workdir=w',
    "--config.monitors.m={'name': 'saturation', 'tasks': ('a',)}",
    "--config.evals.x={'prompts': {'name': 'txt'}, 'samples': 4}",
    "--config.rewards.d={'name': 'shapes_detector', 'soft': True}",
    '--', '--config.monitors.m.name=y',
  ]  # fmt: skip
  assert arguments.with_whole_parts(argv[:2]) == argv[:2]
  config = flow_grpo.get_config()
  with pytest.raises(ValueError, match=r'--config\.rewards\.m\.name=\.\.\.'):
    arguments.check_overrides(config, {'rewards.m.weight': '1'})
  with pytest.raises(ValueError, match="no field 'm'"):
    arguments.check_overrides(config, {'rewards.m': '3'})


def test_overrides_of_an_argument_list():
  argv = ['main', '--config=x', '--config.a.b=1', '--noconfig.c', '--config.d']
  assert arguments.overrides_of([*argv, '5', '--', '--config.e=1']) == {
    'a.b': '1', 'c': '--config.d', 'd': '5'
  }  # fmt: skip
