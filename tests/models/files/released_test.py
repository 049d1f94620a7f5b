"""Released folders: names, orientation, parts, stacks, and what is refused."""

import fnmatch
import json
import os
import pathlib
import subprocess
import sys

from flax import linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.models.files import released, weights
from gen_rl.models.files.weights import WeightsError
from gen_rl.utils import tree

CONFIG = dict(_class_name='Thing', width=3)
NAMES = released.Names(
  rename=((r'^entry\.', 'conv_in.'),),
  stacked={'blocks': ('blocks', 1)},
  ignored=(r'position_ids$',),
  aliases=((r'\.query\.', '.to_q.'),),
)


def numbers(*shape):
  rng = np.random.default_rng(sum(shape))
  return rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def params():
  return tree.nest(
    {
      'blocks_0/to_q/kernel': numbers(3, 5),
      'blocks_0/net_2/bias': numbers(5),
      'blocks/to_q/kernel': numbers(2, 3, 5),
      'blocks/norm/scale': numbers(2, 3),
      'entry/kernel': numbers(3, 1, 4, 6),
      'linear_1/kernel': numbers(2, 7),
      'table/embedding': numbers(4, 2),
      'gate': numbers(2, 3),
      'temperature': np.float32(0.5).reshape(()),
    }
  )


def same(a, b):
  a, b = tree.named(a), tree.named(b)
  assert list(a) == list(b)
  for name, x in a.items():
    assert x.dtype == b[name].dtype
    np.testing.assert_array_equal(x, b[name], name)


def test_names_and_orientation(params, tmp_path):
  released.save(tmp_path, params, NAMES, CONFIG)
  file = tmp_path / 'diffusion_pytorch_model.safetensors'
  found = safetensors.numpy.load_file(file)
  assert {name: x.shape for name, x in found.items()} == {
    'blocks.0.to_q.weight': (5, 3),
    'blocks.0.net.2.bias': (5,),
    'blocks.1.to_q.weight': (5, 3),
    'blocks.2.to_q.weight': (5, 3),
    'blocks.1.norm.weight': (3,),
    'blocks.2.norm.weight': (3,),
    'conv_in.weight': (6, 4, 3, 1),
    'linear_1.weight': (7, 2),
    'table.weight': (4, 2),
    'gate': (2, 3),
    'temperature': (),
  }
  blocks = params['blocks']['to_q']['kernel']
  np.testing.assert_array_equal(found['blocks.2.to_q.weight'], blocks[1].T)
  # A convolution there means the same as ours.
  x = numbers(1, 5, 4, 4)
  ours = nn.Conv(6, (3, 1), use_bias=False).apply(
    {'params': {'kernel': params['entry']['kernel']}}, x
  )
  theirs = jax.lax.conv_general_dilated(
    x.transpose(0, 3, 1, 2), found['conv_in.weight'], (1, 1), 'SAME'
  )
  np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize('part_bytes', [10**9, 100])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip(params, tmp_path, part_bytes, dtype):
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
  released.save(tmp_path, params, NAMES, CONFIG, part_bytes)
  files = list(tmp_path.glob('*.safetensors'))
  assert (len(files) > 3) == (part_bytes == 100)
  same(released.load(tmp_path, params, NAMES, dtype=None), params)
  assert released.config(tmp_path, ('Thing',)) == CONFIG


def test_types(params, tmp_path):
  released.save(tmp_path, params, NAMES, CONFIG)
  got = released.load(
    tmp_path, jax.eval_shape(lambda: params), NAMES, 'bfloat16'
  )
  same(got, jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params))


_SHARDED = """
import sys
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
from gen_rl import sharding
from gen_rl.models.files import released, weights

like = {'conv': {'kernel': np.empty((3, 1, 4, 6), np.float32)}}
mesh = sharding.make_mesh(data=1, fsdp=2)
where = NamedSharding(mesh, PartitionSpec(None, None, None, 'fsdp'))
got = released.load(sys.argv[1], like, shardings={'conv': {'kernel': where}})
kernel = got['conv']['kernel']
assert [x.data.shape for x in kernel.addressable_shards] == [(3, 1, 4, 3)] * 2
np.save(sys.argv[1] + '/whole.npy', kernel)
"""


def test_on_the_host(params, tmp_path):
  released.save(tmp_path, params, NAMES, CONFIG)
  got = released.load(tmp_path, params, NAMES, 'bfloat16', host=True)
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(got))
  same(got, jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params))


def test_each_device_holds_its_part(tmp_path):
  params = {'conv': {'kernel': numbers(3, 1, 4, 6)}}
  released.save(tmp_path, params, released.PLAIN, CONFIG)
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2'
  subprocess.run(
    [sys.executable, '-c', _SHARDED, tmp_path],
    check=True,
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu'),
  )
  whole = np.load(tmp_path / 'whole.npy')
  np.testing.assert_array_equal(whole, params['conv']['kernel'])


def rewrite(folder, change):
  path = os.path.join(folder, 'diffusion_pytorch_model.safetensors')
  found = safetensors.numpy.load_file(path)
  change(found)
  safetensors.numpy.save_file(found, path)


def test_old_names_and_convolutions_of_a_pixel(params, tmp_path):
  released.save(tmp_path, params, NAMES, CONFIG)

  def change(x):
    x['blocks.0.query.weight'] = x.pop('blocks.0.to_q.weight')[:, :, None, None]
    x['text.position_ids'] = np.arange(3)

  rewrite(tmp_path, change)
  same(released.load(tmp_path, params, NAMES), params)


def test_all_that_does_not_fit_is_said_at_once(params, tmp_path):
  released.save(tmp_path, params, NAMES, CONFIG)

  def change(x):
    x['other'] = x.pop('gate')
    x['blocks.2.norm.weight'] = np.zeros(4, np.float32)
    x['linear_1.weight'] = np.zeros((7, 2), np.int64)

  rewrite(tmp_path, change)
  with pytest.raises(WeightsError) as error:
    released.load(tmp_path, params, NAMES)
  text = str(error.value)
  assert 'missing gate; unexpected other;' in text
  assert 'blocks.2.norm.weight is float32[4] where floats[3] are wan' in text
  assert 'linear_1.weight is I64[7, 2] where floats[7, 2] are wanted' in text


def test_a_name_for_two(params):
  with pytest.raises(ValueError, match=r'both named x\.weight'):
    released.places(params, released.Names(rename=((r'.*', 'x.weight'),)))


def test_files(params, tmp_path):
  with pytest.raises(WeightsError, match='There is no folder'):
    released.locate(tmp_path / 'nowhere')
  with pytest.raises(
    WeightsError, match=r'no diffusion_pytorch_model.*nothing'
  ):
    released.load(tmp_path, params, NAMES)
  with pytest.raises(WeightsError, match=r'There is no .*config\.json'):
    released.config(tmp_path)
  released.save(tmp_path / 'unet', params, NAMES, CONFIG, 100)
  with pytest.raises(WeightsError, match='has no folder vae; it has unet'):
    released.locate(tmp_path, 'vae')
  folder = released.locate(tmp_path, 'unet')
  with pytest.raises(WeightsError, match='is of Thing, where Other is wanted'):
    released.config(folder, ('Other',))
  paths = sorted((tmp_path / 'unet').glob('*.safetensors'))
  whole = paths[1].read_bytes()
  paths[1].write_bytes(whole[:-5])
  with pytest.raises(WeightsError, match='is truncated or not'):
    released.load(folder, params, NAMES)
  paths[1].unlink()
  with pytest.raises(WeightsError, match=f'not there: .*{paths[1].name}'):
    released.load(folder, params, NAMES)


def test_a_tensor_in_two_files(params, tmp_path):
  released.save(tmp_path, params, NAMES, CONFIG, 100)
  index = tmp_path / 'diffusion_pytorch_model.safetensors.index.json'
  files = sorted(set(json.loads(index.read_text())['weight_map'].values()))
  (tmp_path / files[1]).write_bytes((tmp_path / files[0]).read_bytes())
  with pytest.raises(WeightsError, match='has tensors in two files'):
    released.load(tmp_path, params, NAMES)


def test_a_file_in_place_of_a_folder(tmp_path):
  path = tmp_path / 'sd3.5_medium.safetensors'
  path.write_bytes(b'x')
  with pytest.raises(WeightsError, match=r'is a file.*from_single_file'):
    released.locate(path, 'transformer')


def test_folders_of_a_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'sd3' / 'vae').mkdir(parents=True)
  assert released.locate('~/sd3', 'vae') == str(tmp_path / 'sd3' / 'vae')
  assert weights.find('~/x.safetensors') == str(tmp_path / 'x.safetensors')


STEM = 'diffusion_pytorch_model'


@pytest.mark.parametrize(
  'there',
  [
    [f'{STEM}.fp16.safetensors'],
    [f'{STEM}.safetensors', f'{STEM}.fp16.safetensors', f'{STEM}.ema.bin'],
    [f'{STEM}.bin'],
    [f'{STEM}.bin', f'{STEM}.fp16.bin', f'{STEM}.fp16.safetensors'],
    [f'{STEM}.fp16.bin', 'training_args.bin'],
    ['pytorch_model.bin', 'optimizer.bin'],
    ['ImageReward.pt'],
    ['pytorch_model.bin.index.json'],
    ['model.safetensors.index.fp16.json'],
  ],
  ids=' '.join,
)
def test_what_may_hold_the_weights(tmp_path, there):
  """The first file that there is; the others are of no use."""
  torch = pytest.importorskip('torch')
  tensors = {'a.weight': numbers(2, 3), 'b': numbers(2)}

  def write(name, tensors):
    if name.endswith('.safetensors'):
      safetensors.numpy.save_file(tensors, tmp_path / name)
    else:
      held = {n: torch.from_numpy(x) for n, x in tensors.items()}
      torch.save(held, tmp_path / name)

  first, *others = there
  for name in others:
    (tmp_path / name).write_bytes(b'not read')
  if first.endswith('.json'):
    ending = 'bin' if '.bin.' in first else 'safetensors'
    parts = {n: f'part-{i}.{ending}' for i, n in enumerate(tensors)}
    for n, part in parts.items():
      write(part, {n: tensors[n]})
    (tmp_path / first).write_text(json.dumps(dict(weight_map=parts)))
  else:
    write(first, tensors)
  like = {'a': {'kernel': np.zeros((3, 2))}, 'b': np.zeros(2)}
  found = released.load(tmp_path, like)
  np.testing.assert_array_equal(found['a']['kernel'], tensors['a.weight'].T)
  np.testing.assert_array_equal(found['b'], tensors['b'])


def test_variants_of_which_none_is_meant(tmp_path):
  for name in ('model.fp16.safetensors', 'model.non_ema.safetensors'):
    safetensors.numpy.save_file({'b': numbers(2)}, tmp_path / name)
  like = {'b': np.zeros(2)}
  with pytest.raises(WeightsError, match=r'no one variant.*model\.fp16'):
    released.load(tmp_path, like)
  released.load(tmp_path, like, variant='fp16')


@pytest.mark.parametrize(
  'weight_map, said',
  [
    (None, 'has no weight_map'), ([1], 'has no weight_map'),
    ({'b': 5}, 'has no weight_map'), ({}, 'not there: none'),
    ({'b': 'p', 'c': 'q'}, 'not there: q'),
    ({'b': 'p', 'c': 'p'}, 'lack what it names: c'),
    ({'b': '../p'}, r'outside of that folder'),
    ({'b': 'link'}, r'outside of that folder'), ({'b': '.'}, 'outside of'),
    ({'b': 'pipe'}, 'a pipe or a device'), ({'b': 'a\0b'}, 'not there'),
  ],
)  # fmt: skip
def test_an_index_that_cannot_be(tmp_path, weight_map, said):
  folder = tmp_path / 'unet'
  folder.mkdir()
  for path in (tmp_path / 'p', folder / 'p'):
    safetensors.numpy.save_file({'b': numbers(2)}, path)
  (folder / 'link').symlink_to('../p')
  os.mkfifo(folder / 'pipe')
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps(dict(weight_map=weight_map)))
  with pytest.raises(WeightsError, match=said):
    released.load(folder, {'b': np.zeros(2)})


@pytest.mark.parametrize('text', ['[' * 10**5, '{"a": ' + '9' * 6000, '\0'])
def test_json_that_is_none(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(WeightsError, match=r'config\.json is no JSON'):
    released.config(tmp_path)


@pytest.mark.parametrize(
  'there', [['pytorch_model.bin'], ['pytorch_model.bin', 'm.safetensors']]
)
def test_a_hub_is_asked_for_files_of_torch(tmp_path, monkeypatch, there):
  """Only where it has nothing better."""

  def snapshot(name, revision, allow_patterns):
    for file in ['config.json', *there]:
      if any(fnmatch.fnmatch(file, x) for x in allow_patterns):
        (tmp_path / file).write_text('')
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
  folder = released.locate('someone/something')
  assert sorted(os.listdir(folder)) == ['config.json', there[-1]]


def test_numbers_that_are_none(tmp_path):
  released.save(tmp_path, {'b': np.float32([1, np.nan])}, NAMES, CONFIG)
  with pytest.raises(WeightsError, match='numbers in b that are not finite'):
    released.load(tmp_path, {'b': np.zeros(2)}, NAMES)


def test_an_id_without_a_network(monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(WeightsError, match='as the id of a released model') as e:
    released.locate('someone/something')
  assert '\n' not in str(e.value)


_MEMORY = """
import re
import sys
import numpy as np
from gen_rl.models.files import released, weights

def peak():  # of this program alone, KiB
  text = open('/proc/self/status').read()
  return int(re.search(r'VmHWM:\\s+(\\d+)', text)[1])

like = {f'block_{i}': {'kernel': np.empty((4096, 4096), np.float32)}
        for i in range(10)}
released.load(sys.argv[2], {'few': {'kernel': np.empty((2, 2), np.float32)}})
before = peak()
params = released.load(sys.argv[1], like)
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='Linux')
def test_files_are_not_held_beside_the_parameters(tmp_path):
  """640 MiB in ten files need little more than themselves."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(4096, 4096)).astype(np.float32)
  params = {f'block_{i}': {'kernel': kernel + i} for i in range(10)}
  released.save(tmp_path / 'many', params, released.PLAIN, CONFIG, 2**26)
  few = {'few': {'kernel': kernel[:2, :2]}}
  released.save(tmp_path / 'few', few, released.PLAIN, CONFIG)
  del params
  out = subprocess.run(
    [sys.executable, '-c', _MEMORY, tmp_path / 'many', tmp_path / 'few'],
    check=True,
    capture_output=True,
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | dict(JAX_PLATFORMS='cpu'),
  ).stdout
  more = int(out) / 2**10  # MiB
  assert 600 < more < 640 + 4 * 64 + 60
