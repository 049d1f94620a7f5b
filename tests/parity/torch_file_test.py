"""Files that torch writes, read without it."""

import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.models import torch_file
from gen_rl.models.weights import WeightsError

torch = pytest.importorskip('torch')


def state():
  """All types; views that share a storage; a parameter; nothing; a number."""
  base = torch.arange(24.0).reshape(4, 6)
  out = {
    'whole': base,
    'turned': base.t(),
    'part': base[1:3, ::2],
    'last': base[3, 5],
    'empty': torch.zeros(0, 3),
    'one': torch.tensor(2.5),
    'spread': torch.ones(1).expand(5),
    'parameter': torch.nn.Parameter(torch.randn(3, 2)),
  }
  for name in ('float64', 'float16', 'bfloat16', 'int64', 'int32', 'uint8'):
    out[name] = torch.tensor([1, 2, 250]).to(getattr(torch, name))
  return out | dict(bool=torch.tensor([True, False]))


def check(found, want):
  assert list(found) == list(want)
  for name, x in want.items():
    x = x.detach()
    dtype = str(x.dtype).removeprefix('torch.')
    assert found[name].dtype == jnp.dtype(dtype), name
    assert found[name].shape == tuple(x.shape), name
    np.testing.assert_array_equal(
      np.asarray(found[name], np.float64), x.double().numpy(), name
    )


def test_state_dicts(tmp_path):
  want = state()
  torch.save(want, tmp_path / 'a.pt')
  check(torch_file.load(tmp_path / 'a.pt'), want)
  # Of a module: an ordered dictionary with versions beside it.
  module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
  torch.save(module.state_dict(), tmp_path / 'b.pt')
  check(torch_file.load(tmp_path / 'b.pt'), module.state_dict())


def test_a_part_of_a_file(tmp_path):
  path = tmp_path / 'a.pt'
  torch.save(dict(epoch=3, name='x', state_dict=state()), path)
  check(torch_file.load(path, 'state_dict'), state_names(path))
  with pytest.raises(WeightsError, match='which part of it is: epoch, name'):
    torch_file.load(path)
  with pytest.raises(WeightsError, match="no 'model'; it has epoch, name"):
    torch_file.load(path, 'model')


def state_names(path):
  return torch.load(path)['state_dict']


def test_folders_that_are_released(tmp_path):
  want = {'a.weight': torch.randn(3, 4), 'b': torch.randn(2).bfloat16()}
  torch.save(want, tmp_path / 'a.pt')
  torch_file.rewrite(tmp_path / 'a.pt', tmp_path / 'out', dict(model_type='x'))
  found = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert set(found) == set(want)
  np.testing.assert_array_equal(found['a.weight'], want['a.weight'])
  config = tmp_path / 'out' / 'config.json'
  torch_file.rewrite(tmp_path / 'a.pt', tmp_path / 'again', config)
  assert (tmp_path / 'again' / 'config.json').read_text() == config.read_text()


class Harm:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_nothing_is_run(tmp_path):
  """Neither by a name in the pickle nor by those that are known."""
  path, made = tmp_path / 'a.pt', tmp_path / 'made'
  torch.save(dict(x=torch.ones(2), y=Harm(made)), path)
  with pytest.raises(WeightsError, match=r'asks for posix\.mkdir'):
    torch_file.load(path)
  assert not made.exists()
  torch.save(torch.nn.Linear(2, 2), path)
  with pytest.raises(WeightsError, match=r'asks for torch\.nn'):
    torch_file.load(path)


def test_views_beyond_their_storage(tmp_path):
  """A file that would read other memory."""
  path = tmp_path / 'a.pt'
  torch.save(dict(x=torch.ones(4)), path)
  with zipfile.ZipFile(path) as archive:
    files = {name: archive.read(name) for name in archive.namelist()}
  (name,) = (n for n in files if n.endswith('data.pkl'))
  # The size (4,) and nothing else is a tuple of one 4: K\x04\x85.
  for old, new in ((b'K\x04\x85', b'K\x09\x85'), (b'K\x01\x85', b'K\x09\x85')):
    assert old in files[name]
    changed = tmp_path / 'b.pt'
    with zipfile.ZipFile(changed, 'w') as archive:
      for n, data in files.items():
        archive.writestr(n, data.replace(old, new) if n == name else data)
    with pytest.raises(WeightsError, match='not within its 4 numbers'):
      torch_file.load(changed)


def test_other_files(tmp_path):
  path = tmp_path / 'a.pt'
  with pytest.raises(WeightsError, match=r'There is no weights file .*a\.pt'):
    torch_file.load(path)
  torch.save(state(), path, _use_new_zipfile_serialization=False)
  with pytest.raises(WeightsError, match='1.6 or later.*not a zip file'):
    torch_file.load(path)
  path.write_bytes(pickle.dumps({}))
  with pytest.raises(WeightsError, match='not a zip file'):
    torch_file.load(path)
  torch.save(state(), path)
  path.write_bytes(path.read_bytes()[:-400])
  with pytest.raises(WeightsError, match='not a zip file'):
    torch_file.load(path)
  torch.save([1, 2], path)
  with pytest.raises(WeightsError, match='no state dict.*list'):
    torch_file.load(path)
