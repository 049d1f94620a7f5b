"""Plans against sums by hand and real buffers, and what is said of them."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import types

import jax
from ml_collections import config_dict
from PIL import Image
import pytest

from configs import (
  flow_grpo,
  promptecho_flow_grpo,
  sd3_flow_grpo,
  sd15_tpo,
  toy,
)
from gen_rl import (
  assemble,
  build,
  embed,
  estimate,
  initial,
  plan,
  sharding,
)
from gen_rl.data import columns, feeds, prompts
from gen_rl.models import mixture
from gen_rl.utils import chips, tree


def _config(arg='tiny', **changes):
  config = flow_grpo.get_config(arg)
  config.policy.grid.name = 'sd3'  # is worked out, and no chips of a plan can
  config.update_from_flattened_dict(changes)
  return config


def _points(**changes):
  """A perceptron on points: a whole step, little to compile."""
  config = toy.get_config('tiny')
  config.model.width = 64
  config.update_from_flattened_dict(changes)
  return config


def _quick(config):
  """A transformer, a reward of one line, no base beside it: less to compile."""
  config.model = config_dict.create(
    name='dit', image=(8, 8, 3), patch=4, width=16, heads=2,
    layers=config.model.layers, text_width=16, text_layers=1, scan=True,
  )  # fmt: skip
  config.rewards = config_dict.create(grey=dict(name='saturation', weight=1.0))
  config.objective.kl.weight = 0.0
  return config


@pytest.fixture(scope='module')
def split_points():
  """The perceptron's kernels are cut like those of larger nets."""
  axes = (
    (r'/(kernel|embedding)$', ('embed', 'mlp')), (r'/bias$', (None,))
  )  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mixture, 'AXES', axes)
    yield


@pytest.fixture(scope='module')
def on_tpu(split_points):
  """A tiny step on four chips that are not there."""
  pytest.importorskip('libtpu')
  devices, chip = chips.devices('v5e:2x2')
  changes = {'mesh.data': 1, 'mesh.fsdp': 4, 'data.prompts_per_step': 4}
  config = _points(**{'objective.kl.weight': 0.0})
  return estimate.plan(config, devices, chip, changes, evaluation=False)


def test_state_is_that_of_real_buffers():
  """Each part, and what XLA says the arguments take, on this device."""
  config = _points(trainable='hidden|out')
  devices = jax.devices()[:1]
  built, layout, step, state, batch, key = estimate.abstract(config, devices)
  parts = estimate.state_bytes(state)
  _, tx, advantage = assemble.make_step(config, built, layout)
  params = initial.params(config, built.policy)
  real = layout.put(initial.state(config, built, params, tx, advantage))
  size = lambda x: sum(leaf.nbytes for leaf in jax.tree.leaves(x))
  assert parts['parameters'] == size(real.params) > 0
  assert parts['optimizer'] == size(real.opt_state) > 0
  assert parts['copies'] == size(real.refs) > 0
  assert parts['frozen'] == size(real.frozen) > 0
  assert sum(parts.values()) == size(real)
  with layout.scope():
    compiled = step.train_step.lower(state, batch, key).compile()
  # The batch is all that comes on top; some of the state is not looked at.
  arguments = compiled.memory_analysis().argument_size_in_bytes
  assert (
    arguments <= size(real) + size(next(feeds.training(config, built))[0]) + 64
  )  # noqa: E501
  assert arguments > 0.9 * size(real)


def test_an_evaluation_on_chips_that_are_not_there(on_tpu):
  devices, _ = chips.devices('v5e:2x2')
  config = _points(ema=0.0, **{'objective.kl.weight': 0.0})
  config.eval.gold, config.rollout_chunks = {}, 2
  planned = estimate.with_evaluation(on_tpu, config, devices)
  assert planned.fits and 0 < planned.evaluation < on_tpu.capacity
  assert planned.error == '' and planned.needed == on_tpu.needed


def test_what_is_offloaded_takes_no_memory_of_the_device():
  parts = {}
  for away in ((), ('ema', 'optimizer')):
    _, _, _, state, _, _ = estimate.abstract(
      _config(offload=away, ema=0.9), jax.devices()[:1]
    )
    parts[away] = estimate.state_bytes(state)
  kept, left = parts.values()
  trained = kept['parameters']
  assert kept['optimizer'] == pytest.approx(2 * trained, rel=0.01)
  assert left['optimizer'] < 100  # counters
  assert kept['copies'] - left['copies'] == trained  # the average
  assert left['parameters'] == trained


def test_what_four_chips_hold_and_send(on_tpu):
  p = on_tpu
  assert p.fits and p.chips == 4 and p.mesh == dict(data=1, fsdp=4, tensor=1)
  config = _points()
  built = assemble.setup(config)
  shapes = initial.shapes(config, built.policy)
  whole = sum(4 * x.size for x in jax.tree.leaves(shapes))
  assert p.parameters == (whole // 4, whole // 4)
  # Small parameters stay whole; the rest is in four.
  assert whole / 4 < p.state['parameters'] < 0.6 * whole
  assert p.state['optimizer'] == pytest.approx(
    2 * p.state['parameters'], rel=0.01
  )
  assert p.needed == pytest.approx(
    sum(p.state.values()) + p.temporary + p.program
  )
  assert p.network['all-reduce'] + p.network['reduce-scatter'] > 0
  assert 0 < p.rollout_operations < p.operations
  assert p.seconds['compute'] == p.operations / 197e12
  assert p.bound == max(p.seconds, key=p.seconds.get)


@pytest.mark.parametrize('module', [promptecho_flow_grpo, sd3_flow_grpo])
def test_judges_are_split_over_the_chips(module):
  """A vision-language model's and CLIP's weights; all their axes are known."""
  pytest.importorskip('libtpu')
  config = module.get_config('tiny')
  config.data.prompts_per_step = 8
  config.mesh.update(data=1, fsdp=4)
  devices, _ = chips.devices('v5e:2x2')
  _, _, _, state, _, _ = estimate.abstract(config, devices)
  judges = dict(frozen=state.frozen['rewards'])
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(judges))
  held = estimate.state_bytes(judges)['frozen']
  assert whole / 4 <= held < 0.5 * whole


def test_pictures_are_split_over_the_chips(tmp_path, monkeypatch):
  """And the features of their prompts; one is read, to know what they are."""
  pytest.importorskip('libtpu')
  Image.new('RGB', (16, 16)).save(tmp_path / 'a.png')
  line = dict(prompt='a red cup', image='a.png', wrong_prompts=['a blue cup'])
  path = tmp_path / 'train.jsonl'
  path.write_text((json.dumps(line) + '\n') * 8)
  read, real = [], columns.Pictures._read
  monkeypatch.setattr(
    columns.Pictures, '_read', lambda *a: read.append(a) or real(*a)
  )
  config = sd15_tpo.get_config('files,tiny')
  config.data.prompts.path = config.eval.prompts.path = str(path)
  config.data.prompts_per_step = 8

  def held(batch):
    return {
      name: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for name, x in tree.named(batch).items()
    }

  _, layout, *_, batch, _ = estimate.abstract(
    config, chips.devices('v5e:2x2')[0]
  )
  cut, whole = held(batch), held(sharding.one_device().shapes(batch))
  assert len(read) == 1 and whole['media'] == 8 * 16 * 16 * 3 * 4
  assert {'cond/text', 'info/wrong_text'} <= whole.keys()
  assert cut == {name: size // 4 for name, size in whole.items()}
  # Six prompts are not split over four: all are on every chip.
  six = dict(media=jax.ShapeDtypeStruct((6, 16), 'float32'))
  assert held(layout.shapes(six)) == dict(media=6 * 16 * 4)


def test_operations_do_not_depend_on_the_cut(on_tpu):
  devices, chip = chips.devices('v5e:2x2')
  changes = {'mesh.data': 4, 'data.prompts_per_step': 8}
  config = _points(**{'objective.kl.weight': 0.0})
  p = estimate.plan(config, devices, chip, changes, evaluation=False)
  assert p.operations == pytest.approx(2 * on_tpu.operations, rel=0.01)
  assert p.network['all-gather'] < on_tpu.network['all-gather']


def test_pages(on_tpu):
  text = plan.describe(on_tpu)
  for part in ('4 x TPU v5e', 'parameters', 'optimizer', 'copies', 'fits',
               'roofline', 'bound by', 'samples a step'):  # fmt: skip
    assert part in text
  data = json.loads(json.dumps(plan.as_json(on_tpu)))
  assert data['bound'] == on_tpu.bound and data['chips'] == 4
  table = plan._table([on_tpu])
  assert 'yes' in table


def test_a_program_that_cannot_be_read(monkeypatch):
  """Memory and operations are known all the same."""

  def unreadable(text):
    raise jax.errors.JaxRuntimeError('INTERNAL: RET_CHECK failure (x.cc:390)')

  monkeypatch.setattr(estimate.hlo, 'traffic', unreadable)
  chip = chips.Chip('fast', 2**40, 1e12, 1e12, 1e12)
  p = estimate.plan(_points(), jax.devices()[:1], chip, evaluation=False)
  assert (
    p.fits and not p.read and p.seconds == dict(compute=p.operations / 1e12)
  )
  text = plan.describe(p)
  assert 'unknown, this jaxlib' in text and 'GB' not in text


def test_too_large_for_a_chip_says_so_and_tries_what_helps(monkeypatch, capsys):
  """A device of 0.1 MB; then one of what the best of the changes needs."""
  small = chips.Chip('small', 1e5, None, None, None)
  monkeypatch.setattr(chips, 'devices', lambda _: (jax.devices()[:1], small))
  config = _config(
    **{
      'microbatches': 1, 'data.prompts_per_step': 1, 'data.group_size': 2,
      'model.layers': 3,  # so that most of it is what they keep
      'offload': ('ema', 'optimizer'),  # else tried, and compiled, too
    }
  )  # fmt: skip
  plans = plan.run(_quick(config), 'local', sweep=False)
  out = capsys.readouterr().out
  assert 'DOES NOT FIT' in out and 'trying --config.model.remat=full' in out
  assert 'microbatches=2' in out and 'nothing that was tried fits' in out
  assert not any(p.fits for p in plans)
  assert plans[-1].temporary < plans[0].temporary

  # Nothing but what there is differs: not compiled again.
  made = {str(p.changes): p for p in plans}

  def known(config, devices, chip, changes, evaluation):
    del config, devices, evaluation
    p = made[str(changes)]
    return dataclasses.replace(p, capacity=chip.hbm, fits=p.needed <= chip.hbm)

  enough = small._replace(hbm=min(p.needed for p in plans) + 1)
  monkeypatch.setattr(chips, 'devices', lambda _: (jax.devices()[:1], enough))
  monkeypatch.setattr(plan, 'plan', known)
  monkeypatch.setattr(plan, 'with_evaluation', lambda p, *_: p)
  plans = plan.run(config, 'local', sweep=False)
  out = capsys.readouterr().out
  assert plans[-1].fits and 'nothing' not in out
  assert 'the step is compiled' in out


def test_refused_by_the_compiler():
  """More than the chips hold: in the words of the TPU's compiler."""
  pytest.importorskip('libtpu')
  devices, chip = chips.devices('v5e:2x2')
  config = _points(**{'model.width': 40_000})
  p = estimate.plan(config, devices, chip)
  assert p.fits is False and p.needed > p.capacity > 15 * 2**30
  assert 'DOES NOT FIT' in plan.describe(p)


def test_sweep_ranks_what_fits(on_tpu, monkeypatch, capsys):
  tried = plan.layouts(_config(), 2)
  assert {(c['mesh.data'], c['mesh.fsdp']) for c in tried} == {(1, 2), (2, 1)}
  assert {c['microbatches'] for c in tried} == {2, 4}
  # Two heads are not to be had in four parts, nor 8 rows in 16 microbatches.
  assert {c['mesh.tensor'] for c in plan.layouts(_config(), 4)} == {1}

  def pretended(config, devices, chip, changes, evaluation):
    del config, devices, chip, evaluation
    slow = changes['mesh.data'] + changes['microbatches']
    return dataclasses.replace(
      on_tpu, changes=changes, seconds=dict(compute=slow), fits=slow > 3
    )

  monkeypatch.setattr(plan, 'plan', pretended)
  monkeypatch.setattr(plan, 'with_evaluation', lambda p, *_: p)
  plans = plan.run(_config(), 'v5e:1x2', sweep=True)
  assert [(p.fits, p.step_seconds) for p in plans] == [
    (True, 4), (True, 5), (True, 6), (False, 3),
  ]  # fmt: skip
  assert 'the best' in capsys.readouterr().out
  with pytest.raises(build.ConfigError, match='no layout'):
    plan.run(_config(**{'data.prompts_per_step': 1}), 'v5e:4x4', sweep=True)


# Stable Diffusion 3's encoders, cut to two layers: {part: (of config.json,
# parameters as published, layers there, parameters of one)}.
_CLIP = dict(
  architectures=['CLIPTextModelWithProjection'], vocab_size=49408,
  num_hidden_layers=2,
)  # fmt: skip
_ENCODERS = dict(
  text_encoder=(
    _CLIP | dict(
      hidden_size=768, intermediate_size=3072, num_attention_heads=12,
      projection_dim=768,
    ),
    123_650_304, 12, 4 * 768**2 + 2 * 768 * 3072 + 9 * 768 + 3072,
  ),
  text_encoder_2=(
    _CLIP | dict(
      hidden_size=1280, intermediate_size=5120, num_attention_heads=20,
      projection_dim=1280, hidden_act='gelu',
    ),
    694_659_840, 32, 4 * 1280**2 + 2 * 1280 * 5120 + 9 * 1280 + 5120,
  ),
  text_encoder_3=(
    dict(
      architectures=['T5EncoderModel'], vocab_size=32128, d_model=4096,
      d_kv=64, d_ff=10240, num_layers=2, num_heads=64,
      feed_forward_proj='gated-gelu',
    ),
    4_762_310_656, 24, 4 * 4096**2 + 3 * 4096 * 10240 + 2 * 4096,
  ),
)  # fmt: skip


def test_text_encoders_that_stay(tmp_path):
  """By their configs alone: a quarter on each of the four chips of a host."""
  pytest.importorskip('libtpu')
  for name, (said, *_) in _ENCODERS.items():
    (tmp_path / name).mkdir()
    (tmp_path / name.replace('text_encoder', 'tokenizer')).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps(said))
  config = sd3_flow_grpo.get_config('files').copy_and_resolve_references()
  lines = '\n'.join(f'{n} cats' for n in range(300))
  (tmp_path / 'prompts.txt').write_text(lines)
  for part in (config.data, config.eval):
    part.prompts.path = str(tmp_path / 'prompts.txt')
  config.data.embed.encoder.folder = str(tmp_path)
  source = build.build(prompts, config.data.prompts)
  devices, _ = chips.devices('v5e:4x4')

  def built():
    return types.SimpleNamespace(source=source, embed=feeds.embed(config))

  held = estimate.encoder_bytes(config, built(), devices)
  whole = 2 * sum(
    count - (layers - 2) * layer
    for _, count, layers, layer in _ENCODERS.values()
  )
  # Biases and scales of norms are on every chip.
  assert held == {'text encoders': pytest.approx(whole / 4, rel=1e-3)}
  config.steps = 5  # of 48; those that are evaluated are among them
  config.data.embed.keep = 240  # not the text of no prompt
  assert embed.resident(config, built())
  config.data.embed.keep = 241
  assert estimate.encoder_bytes(config, built(), devices) == {}
  config.data.embed.update(keep=1, cache=str(tmp_path))
  assert estimate.encoder_bytes(config, built(), devices) == {}


def test_host_rewards_have_two_programs(monkeypatch):
  beside = {'text encoders': 2.0**30}
  monkeypatch.setattr(estimate, 'encoder_bytes', lambda *_: beside)
  config = _config('jpeg_host,tiny')
  rewards, kl = config.rewards, config.objective.kl.weight
  config = _quick(config)
  config.rewards, config.objective.kl.weight = rewards, kl
  config.eval.gold = {}  # reads pictures of the world's size
  config.monitors.too = dict(name='host_jpeg_compressibility', scale=2.0)
  p = estimate.plan(config, jax.devices()[:1], chips.devices('local')[1])
  assert p.fits and p.operations > p.rollout_operations > 0
  # The state stays while it is evaluated, beside the base for the KL.
  base = p.state['parameters'] + p.state['frozen']
  assert p.evaluation > sum(p.state.values()) + base > 2**30
  assert p.needed == sum(p.state.values()) + p.temporary + p.program
  assert p.temporary < 2**30 and 'text encoders' in plan.describe(p)
  assert 'all, in evaluation' in plan.describe(p)


def test_bad_input_is_one_sentence(tmp_path):
  def run(*args):
    return subprocess.run(
      [sys.executable, '-m', 'gen_rl.plan', *args],
      capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip

  config = '--config=configs/flow_grpo.py:tiny'
  done = run(config, '--topology=v9:4x4')
  assert done.returncode == 2 and done.stderr.startswith('gen_rl: ')
  assert 'v5e:AxB' in done.stderr and len(done.stderr.splitlines()) == 1
  done = run(config, '--topology=cpu:8', '--config.mesh.fsdp=3')
  assert done.returncode == 2 and '8 devices' in done.stderr
  done = run(config, '--topology=cpu:8', '--config.optimizer.l=3')
  assert done.returncode == 2 and 'lr' in done.stderr


def test_mesh_error_is_that_of_a_run():
  with pytest.raises(build.ConfigError, match='fsdp'):
    estimate.abstract(_config(**{'mesh.fsdp': 3}), jax.devices()[:1])
  assert sharding.one_device().platform == 'cpu'
