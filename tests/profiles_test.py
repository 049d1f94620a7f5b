"""Which time is whose, of a record by hand; and a record of a run."""

from types import SimpleNamespace as Made

import jax
import jax.numpy as jnp
import pytest

from gen_rl import profiles
from gen_rl.build import ConfigError

TEXT = """HloModule jit_f, is_scheduled=true
  %while.1 = (s32[], f32[4]{0}) while(%t), body=%b, metadata={op_name="jit(f)/rollout/while"}
  ROOT %dot.2 = f32[4]{0} dot(%a, %b), metadata={op_name="jit(f)/rollout/while/body/dot_general" source_line=3}
  %fusion.3 = f32[4]{0} fusion(%a), kind=kLoop, metadata={op_name="jit(f)/update/transpose(jvp())/mul"}
  %copy.4 = f32[4]{0} copy(%a), metadata={op_name="jit(f)/reshape"}
"""  # noqa: E501


def event(name, start, stop):
  module, _, name = name.rpartition(':')
  stats = [('hlo_op', name), ('hlo_module', module or 'jit_f')] if name else []
  return Made(start_ns=start, end_ns=stop, stats=stats)


def test_time_is_that_of_the_innermost_operation():
  line = [
    event('while.1', 0, 100), event('dot.2', 10, 40), event('fusion.3', 50, 60),
    event('copy.4', 100, 130), event('', 0, 1000), event('other.9', 130, 500),
    event('jit_run:fusion.3', 500, 900),  # of another program
  ]  # fmt: skip
  record = Made(planes=[Made(lines=[Made(events=line)])])
  # 130 in all: 90 of the loop and what it calls, 10 of the update, 30 of none.
  assert profiles.shares(record, [TEXT]) == pytest.approx(
    dict(rollout=90 / 130, decode=0, rewards=0, update=10 / 130)
  )
  assert profiles.shares(record, ['']) == {}


@pytest.mark.parametrize('span', ['3', '0:2', '4:2', '2:9', 'a:b', '1:2:3'])
def test_spans_that_are_none(span, tmp_path):
  with pytest.raises(ConfigError, match=f'--profile={span}: .* from 1 to 8'):
    profiles.Profile(span, str(tmp_path), 8)


def test_a_record_names_the_stages(tmp_path):
  @jax.jit
  def f(x):
    with jax.named_scope('rollout'):
      x = jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ x), x)
    with jax.named_scope('update'):
      return jnp.sin(x @ x).sum()

  x = jnp.ones((300, 300))
  traced = f.trace(x)
  jax.block_until_ready(f(x))
  profile = profiles.Profile('2:3', str(tmp_path), 3)
  assert not profile.begins(1) and profile.begins(2) and not profile.ends(3)
  profile.start()
  jax.block_until_ready([f(x), f(x)])
  assert not profile.ends(2) and profile.ends(3)
  found = profile.stop([traced])
  # How long each took is the machine's; that none has the others' is ours.
  assert min(found['rollout'], found['update']) > 0
  assert found['decode'] == found['rewards'] == 0
  assert sum(found.values()) == pytest.approx(1, abs=0.1)
  assert 'updates 2 to 3 are recorded in' in profile.says(found)
  assert profile.missed(1) == '' and '2:3 records nothing' in profile.missed(2)
  profile.give_up()  # of one that has ended: nothing
  assert list((tmp_path / 'tensorboard').glob('plugins/profile/*/*.xplane.pb'))


def test_a_record_that_is_given_up_lets_another_begin(tmp_path):
  for _ in range(2):
    profile = profiles.Profile('1:2', str(tmp_path), 3)
    profile.start()
    profile.give_up()
  assert not profile.ends(2)
