"""The runner, with children that only pretend; one test has real ones."""

import json
import os
import subprocess
import sys
import textwrap
import types

import pytest

from experiments import rows, study
from gen_rl.utils import files, system

ARMS = {
  'first': study.Arm('configs/toy.py:tiny', 'a stage'),
  'second': study.Arm(
    'configs/toy.py:tiny', 'the next', {'optimizer.lr': 1e-3}, after='first'
  ),
}


def _study(folder, **fields):
  (folder / 'demo').mkdir(exist_ok=True)
  given = dict(file=str(folder / 'demo' / 'run.py'), title='Demo', arms=ARMS)
  return study.Study(**{**given, **fields})


def _result(seed, **more):
  policy = dict(strict=0.5, proxy=0.25, diversity=0.2, strict_per_task={'a': 1})
  return dict(
    seed=int(seed), steps=2, kl=3.0, wall_seconds=4.0, git_commit='other',
    base=policy, trained={**policy, 'strict': 0.75, 'proxy': 0.0}, **more,
  )  # fmt: skip


class _Children:
  """Stands in for `study.call`: leaves what a run leaves."""

  def __init__(self):
    self.commands, self.codes, self.stop = [], {}, False

  def __call__(self, command, lock):
    del lock
    said = ' '.join(command[1:])
    self.commands.append(said)
    for part, code in self.codes.items():
      if part in said:
        raise study.RunFailed(f'ended with code {code}')
    if '--child=extra' in said:
      values = dict(bytes=len(command[-2]), note='x')
      path = os.path.join(command[-1], 'extra.json')
      with open(path, 'w') as file:
        json.dump(values, file)
      return
    if self.stop:
      return
    if '--child=vmap' in said:
      more, workdirs = dict(seeds_at_once=len(command) - 3), command[3:]
    else:
      more, workdirs = {}, [command[-1].partition('=')[2]]
    for workdir in workdirs:
      seed = workdir.split('-')[-2]
      with open(os.path.join(workdir, 'result.json'), 'w') as file:
        json.dump(_result(seed, **more), file)
      with open(os.path.join(workdir, 'metrics.jsonl'), 'w') as file:
        for line in (
          {'step': 0, 'time': 10.0, 'eval/strict': 0.5, 'eval/proxy': 0.25},
          {'step': 2, 'time': 12.0, 'samples': 32, 'reward/score': 0.1},
          {'step': 2, 'time': 12.5, 'eval/strict': 0.75, 'eval/proxy': 0.0},
        ):
          file.write(json.dumps(line) + '\n')
      open(os.path.join(workdir, 'exported.safetensors'), 'w').close()


@pytest.fixture
def children(monkeypatch):
  fake = _Children()
  monkeypatch.setattr(study, 'call', fake)
  monkeypatch.setattr(system, 'git_commit', lambda: 'c' * 40)
  return fake


def test_a_run_is_the_command_of_a_user_and_a_row(tmp_path, children):
  demo = _study(tmp_path, arms={'only': ARMS['second']._replace(after='')})
  assert study.run(demo, ['only'], ['7'], tmp_path / 'runs') == []
  workdir = tmp_path / 'runs' / f'demo-only-7-{"c" * 10}'
  assert children.commands == [
    '-m gen_rl.main --config=configs/toy.py:tiny --config.seed=7 '
    f'--config.optimizer.lr=0.001 --workdir={workdir}'
  ]
  (row,) = rows.read(demo.folder)
  said = dict(
    arm='only', seed='7', steps='2', samples='32', base_strict='0.5',
    strict='0.75', proxy='0.0', kl='3.0', wall_seconds='4.0', base_a='1', a='1',
    git_commit='c' * 40,  # of the runner's checkout when the run began
    curve='0 0.0 0.5000 0.2500; 2 2.5 0.7500 0.0000',
  )  # fmt: skip
  assert {k: row[k] for k in said} == said
  study.run(demo, ['only'], ['7'], tmp_path / 'runs')
  assert len(children.commands) == 1  # a finished row is not run again


def test_extra_columns_and_rows_of_old_files_are_kept(tmp_path, children):
  demo = _study(tmp_path, extra=lambda *_: {})
  old = 'arm,seed,strict,gone\nfirst,0,0.5,1\n'
  (demo.folder / 'results.csv').write_text(old)
  study.run(demo, ['first'], ['0', '1'], tmp_path / 'runs')
  before, new = rows.read(demo.folder)
  assert {k: v for k, v in before.items() if v} == dict(
    arm='first', seed='0', strict='0.5', gone='1'
  )
  assert list(new)[:4] == ['arm', 'seed', 'strict', 'gone']
  assert (new['bytes'], new['note'], new['gone']) == ('1', 'x', '')
  assert f'{demo.file} --child=extra first 1' in children.commands[-1]


def test_a_failure_leaves_the_others_alone(tmp_path, children):
  arms = {'bad': ARMS['first'], 'good': ARMS['first']}
  demo = _study(tmp_path, arms=arms, extra=lambda *_: {})
  children.codes = {'demo-bad': 2}
  failed = study.run(demo, ['bad', 'good'], ['0'], tmp_path / 'runs')
  assert failed == ['bad, seed 0: ended with code 2']
  assert [row['arm'] for row in rows.read(demo.folder)] == ['good']
  # What failed after the run does not cost another run.
  children.codes = {'--child=extra': 1}
  assert study.run(demo, ['bad'], ['0'], tmp_path / 'runs')
  children.codes, children.commands = {}, []
  assert study.run(demo, ['bad'], ['0'], tmp_path / 'runs') == []
  assert len(children.commands) == 1 and 'extra' in children.commands[0]
  assert len(rows.read(demo.folder)) == 2


def test_a_stopped_run_is_no_result(tmp_path, children):
  demo = _study(tmp_path)
  children.stop = True
  with pytest.raises(SystemExit, match='first, seed 0 was stopped'):
    study.run(demo, ['first'], ['0'], tmp_path / 'runs')
  assert rows.read(demo.folder) == []
  children.stop = False
  study.run(demo, ['first'], ['0'], tmp_path / 'runs')  # in the same folder
  assert children.commands[0] == children.commands[1]
  assert len(rows.read(demo.folder)) == 1


def test_a_result_is_taken_for_the_same_command_and_commit_only(tmp_path):
  commit, words = 'c' * 40, ['--config=a']
  assert not study.finished(tmp_path / 'run', words, commit)
  assert not study.finished(tmp_path / 'run', words, commit)
  result = tmp_path / 'run' / 'result.json'
  result.write_text('{}')
  assert study.finished(tmp_path / 'run', words, commit)
  assert not study.finished(tmp_path / 'run', words, f'{commit}-dirty')
  assert not result.exists()
  result.write_text('{}')
  assert not study.finished(tmp_path / 'run', ['--config=b'], commit)


def test_a_stage_runs_first_and_hands_on_its_parameters(
  tmp_path, children, monkeypatch
):
  demo, runs = _study(tmp_path), tmp_path / 'runs'
  study.run(demo, ['second'], ['0'], runs)
  first, second = children.commands
  assert 'demo-first-0' in first and '--config.export=exported' in first
  stage = f'demo-first-0-{"c" * 10}'
  assert f'--config.init={runs / stage}/exported.safetensors' in second
  assert '--config.export' not in second
  by_arm = {row['arm']: row for row in rows.read(demo.folder)}
  assert by_arm['second']['init'] == stage and not by_arm['first'].get('init')

  monkeypatch.setattr(system, 'git_commit', lambda: 'd' * 40)
  children.commands = []
  (demo.folder / 'results.csv').unlink()  # of the second: once more
  rows.append(demo.folder, by_arm['first'])
  study.run(demo, ['second'], ['0'], runs)
  assert len(children.commands) == 1  # the stage's row says where it is
  assert stage in children.commands[0]

  (runs / stage / 'exported.safetensors').unlink()
  (demo.folder / 'results.csv').unlink()
  rows.append(demo.folder, by_arm['first'])
  study.run(demo, ['second'], ['0'], runs)
  assert f'demo-first-0-{"d" * 10}' in children.commands[-2]
  kept = {row['arm']: row for row in rows.read(demo.folder)}
  assert kept['first']['git_commit'] == 'c' * 40 and len(kept) == 2

  # Only the file is gone: the run is asked for it again.
  (runs / f'demo-first-0-{"d" * 10}' / 'exported.safetensors').unlink()
  (demo.folder / 'results.csv').unlink()
  study.run(demo, ['second'], ['0'], runs)
  assert f'demo-first-0-{"d" * 10}' in children.commands[-1]


def test_a_stage_of_one_seed(tmp_path, children):
  demo = _study(tmp_path, arms={
    'first': ARMS['first'], 'second': ARMS['second']._replace(after='first:4')
  })  # fmt: skip
  study.run(demo, ['second'], ['0', '1'], tmp_path / 'runs')
  ran = [c.rpartition('/')[2] for c in children.commands]
  end = f'-{"c" * 10}'
  assert ran == [f'demo-first-4{end}', f'demo-second-0{end}',
                 f'demo-second-1{end}']  # fmt: skip


def test_stages_whose_files_are_values_of_fields(tmp_path, children):
  runs, end = tmp_path / 'runs', f'-{"c" * 10}'
  judge = study.Arm('configs/toy.py:tiny', 'what a reward reads')
  demo = _study(tmp_path, arms={
    'old': judge, 'new': judge, 'run': ARMS['second']._replace(
      uses={'rewards.a.weights': 'new', 'rewards.b.weights': 'old:4'},
      after='new',
    ),
  })  # fmt: skip
  study.check(demo)
  study.run(demo, ['run'], ['0'], runs)
  first, second, last = children.commands
  for stage, command in ('new-0', first), ('old-4', second):
    assert f'demo-{stage}{end}' in command
    assert '--config.export=exported' in command
  file = lambda stage: f'{runs}/demo-{stage}{end}/exported.safetensors'
  assert (
    f'--config.init={file("new-0")} '
    f'--config.rewards.a.weights={file("new-0")} '
    f'--config.rewards.b.weights={file("old-4")} --workdir' in last
  )
  row = rows.read(demo.folder)[-1]
  assert row['init'] == f'demo-new-0{end}'
  assert row['uses'] == f'demo-new-0{end} demo-old-4{end}'


def test_a_shared_arm_is_run_once(tmp_path, children, monkeypatch):
  (tmp_path / 'other').mkdir()
  arm = study.Arm('configs/toy.py:tiny', 'what all compare with')
  other = _study(
    tmp_path, file=str(tmp_path / 'other' / 'run.py'), arms={'short': arm}
  )
  module = types.SimpleNamespace(STUDY=other)
  monkeypatch.setitem(sys.modules, 'experiments.other', module)
  monkeypatch.setitem(sys.modules, 'experiments.other.run', module)
  shared = arm._replace(shared='other/short')
  mine = _study(tmp_path, arms={'base': shared, 'mine': arm})
  study.check(mine)
  for _ in range(2):
    assert not study.run(mine, ['base', 'mine'], ['0', '1'], tmp_path)
  assert len(children.commands) == 4  # two seeds of two arms
  (theirs,) = [r for r in rows.read(other.folder) if r['seed'] == '1']
  (copy,) = [
    r for r in rows.read(mine.folder) if (r['arm'], r['seed']) == ('base', '1')
  ]
  assert copy == {**theirs, 'arm': 'base'}


def test_vmapped_seeds_share_a_process(tmp_path, children):
  demo = _study(tmp_path, arms={'toy': ARMS['first']._replace(vmap=True)})
  study.run(demo, ['toy'], ['0'], tmp_path / 'runs')
  study.run(demo, ['toy'], ['0', '1', '2'], tmp_path / 'runs')
  first, then = children.commands
  assert first.count('demo-toy') == 1 and '--child=vmap' in first
  assert then.count('demo-toy') == 2 and 'demo-toy-0' not in then
  found = [(r['seed'], r['seeds_at_once']) for r in rows.read(demo.folder)]
  assert found == [('0', '1'), ('1', '2'), ('2', '2')]


def test_another_runner_is_left_its_run(tmp_path, children, capsys):
  demo = _study(tmp_path)
  with files.locked(tmp_path / 'runs' / 'demo-first-0.lock'):
    study.run(demo, ['first'], ['0', '1'], tmp_path / 'runs')
  assert 'demo-first-0 is being run by another' in capsys.readouterr().out
  assert [row['seed'] for row in rows.read(demo.folder)] == ['1']


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(arms={'a': study.Arm('c', '', after='b')}), "'a' comes after 'b'"),
    (
      dict(arms={
        'a': study.Arm('c', '', after='b'), 'b': study.Arm('c', '', after='a'),
      }),
      'may come after',
    ),
    (
      dict(arms={**ARMS, 'v': ARMS['second']._replace(vmap=True)}),
      "'first:0'",
    ),
    (
      dict(arms={
        'a': study.Arm('c', '', uses={'rewards.x.weights': 'b'}),
        'b': study.Arm('c', '', after='c'),
        'c': study.Arm('c', '', uses={'init': 'a'}),
      }),
      "'c' comes after 'a'",
    ),
    (
      dict(arms={'a': study.Arm('c', '', vmap=True, shared='b/c')}),
      "shares 'b/c'",
    ),
    (dict(claims=[study.Claim('', '', 'x.kl', 'first.kl')]), 'x.kl'),
  ],
)  # fmt: skip
def test_studies_that_name_what_is_not(fields, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    study.check(_study(tmp_path, **fields))


def test_the_config_of_a_run_is_that_of_its_command_line(tmp_path):
  words = ['--config=configs/toy.py:tiny', '--config.seed=3',
           '--config.objective.pg.clip=0.5',
           '--config.advantage.name=rloo']  # fmt: skip
  (tmp_path / 'command.json').write_text(json.dumps(words))
  config = study.load_config(tmp_path)
  assert (config.seed, config.objective.pg.clip) == (3, 0.5)
  assert config.name == 'toy:tiny' and config.advantage.name == 'rloo'


def test_children_run_the_code_of_this_checkout(tmp_path, monkeypatch, capfd):
  other = tmp_path / 'other' / 'gen_rl'
  other.mkdir(parents=True)
  (other / '__init__.py').write_text('')
  monkeypatch.setenv('PYTHONPATH', str(other.parent))
  show = 'import gen_rl, os; print(gen_rl.__file__, os.getcwd())'
  with files.locked(tmp_path / 'x.lock') as lock:
    study.call([sys.executable, '-P', '-c', show], lock)
    with pytest.raises(study.RunFailed, match='code 3'):
      study.call([sys.executable, '-c', 'raise SystemExit(3)'], lock)
    with pytest.raises(KeyboardInterrupt):
      study.call([sys.executable, '-c', 'raise SystemExit(130)'], lock)
  said = capfd.readouterr().out
  assert f'{study.ROOT}/gen_rl/__init__.py {study.ROOT}\n' in said


RUN = """
  import os, pathlib, sys
  sys.path.insert(0, {root!r})
  from experiments import study

  def extra(workdir, arm, seed):
    config = study.load_config(workdir)
    return dict(pid=os.getpid(), started=config.init or 'anew', what=arm + seed)

  STUDY = study.Study(
    file=__file__, title='Tiny', extra=extra, columns=dict(pid='process'),
    arms={{
      'first': study.Arm('configs/toy.py:tiny', 'both at once', vmap=True),
      'second': study.Arm('configs/toy.py:tiny', 'one', after='first'),
    }},
  )
  if __name__ == '__main__':
    study.main(STUDY)
"""


def test_a_study_from_its_command_line(tmp_path):
  folder = tmp_path / 'tiny'
  folder.mkdir()
  script = folder / 'run.py'
  script.write_text(textwrap.dedent(RUN.format(root=str(study.ROOT))))

  def start(*words):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    return subprocess.run(
      [sys.executable, script, f'--runs={tmp_path}/runs', *words],
      cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip

  done = start('--arms=third')
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr == "there is no arm 'third'; there are first, second\n"
  done = start('--arms=second', '--seeds=1')
  assert done.returncode == 0, done.stdout + done.stderr
  first, second = rows.read(folder)
  assert (first['arm'], second['arm']) == ('first', 'second')
  assert first['started'] == 'anew' and second['what'] == 'second1'
  assert second['started'].endswith(f'{second["init"]}/exported.safetensors')
  # The second stage begins where the first one ended, in float16.
  assert float(second['base_proxy']) == pytest.approx(
    float(first['proxy']), rel=1e-2
  )
  assert len({first['pid'], second['pid']}) == 2
  assert '| second | 1 |' in done.stdout and '| process |' in done.stdout
  assert (folder / 'results.png').stat().st_size > 10_000
