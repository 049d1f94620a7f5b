"""Torch's files: the same numbers, and nothing that runs."""

import collections
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from gen_rl.models.files import pickles
from gen_rl.models.files.weights import WeightsError

torch = pytest.importorskip('torch')


def test_tensors_of_all_kinds(tmp_path):
  base = torch.arange(24.0).reshape(4, 6)
  saved = collections.OrderedDict(
    whole=base, part=base[1:3, ::2], turned=base.T, half=base.half(),
    brain=base.bfloat16(), count=torch.tensor(7), none=torch.zeros(0, 3),
    flags=base > 3, parameter=torch.nn.Parameter(base + 1),
  )  # fmt: skip
  path = tmp_path / 'model.pth'
  torch.save(saved, path)
  with pickles.File(path) as file:
    assert file.keys() == list(saved)
    for name, x in saved.items():
      x = x.detach()
      want = x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
      got = file.get_tensor(name)
      assert got.shape == tuple(x.shape) == tuple(file.get_slice(name).shape)
      np.testing.assert_array_equal(got.astype(want.dtype), want)
    assert file.get_tensor('half').dtype == np.float16
    assert file.get_slice('brain').get_dtype() == 'BF16'
    np.testing.assert_array_equal(file.get_slice('whole')[1:2], base[1:2])


def test_dicts_in_dicts(tmp_path):
  model = torch.nn.Linear(2, 3)
  path = tmp_path / 'model.pt'
  torch.save(dict(epoch=3, state_dict=model.state_dict(), other=[]), path)
  with pickles.File(path) as file:
    assert file.keys() == ['state_dict.weight', 'state_dict.bias']
    np.testing.assert_array_equal(
      file.get_tensor('state_dict.weight'), model.weight.detach()
    )


class _Runs:
  def __reduce__(self):
    return os.mkdir, ('ran',)


def test_nothing_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  torch.save(dict(a=torch.ones(2), b=_Runs()), 'bad.pt')
  with pytest.raises(WeightsError, match=r'bad\.pt names \w+\.mkdir, and only'):
    pickles.File('bad.pt')
  torch.save(torch.nn.Linear(2, 3), 'module.pt')
  with pytest.raises(WeightsError, match=r'names torch\.nn.*state_dict\(\)'):
    pickles.File('module.pt')
  with zipfile.ZipFile('eval.pt', 'w') as f:
    f.writestr('x/data.pkl', b"cbuiltins\neval\n(S\"open('ran', 'w')\"\ntR.")
  with pytest.raises(WeightsError, match=r'names builtins\.eval'):
    pickles.File('eval.pt')
  assert not os.path.exists('ran')


def test_files_that_are_none(tmp_path):
  with pytest.raises(WeightsError, match='There is no weights file'):
    pickles.File(tmp_path / 'absent.pt')
  path = tmp_path / 'x.pt'
  torch.save(dict(a=torch.ones(200)), path)
  whole = path.read_bytes()
  path.write_bytes(whole[:-100])
  with pytest.raises(WeightsError, match='is truncated, or not of torch'):
    pickles.File(path)
  path.write_bytes(pickle.dumps({}))
  with pytest.raises(WeightsError, match='no zip archive'):
    pickles.File(path)
  with zipfile.ZipFile(path, 'w') as f:
    f.writestr('other', 'x')
  with pytest.raises(WeightsError, match=r'has no data\.pkl'):
    pickles.File(path)


def test_a_tensor_beyond_its_storage(tmp_path):
  path, other = tmp_path / 'x.pt', tmp_path / 'y.pt'
  torch.save(dict(a=torch.ones(200)), path)
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, 'w') as new:
    for name in old.namelist():
      data = old.read(name)
      new.writestr(name, data[:8] if name.endswith('data/0') else data)
  with pytest.raises(WeightsError, match='beyond its storage of 2 numbers'):
    pickles.File(other).get_tensor('a')


def _text(x):
  return b'X' + struct.pack('<I', len(x)) + x.encode()


def _numbers(*xs):
  return b''.join(b'J' + struct.pack('<i', x) for x in xs)


def _written(path, offset, shape, stride, kind=b'ctorch\nFloatStorage\n'):
  """A file with one tensor of a storage of four numbers, by hand."""
  data = (
    b'\x80\x02}' + _text('a') + b'ctorch._utils\n_rebuild_tensor_v2\n('
    b'(' + _text('storage') + kind + _text('0') + _text('cpu') + _numbers(4)
    + b'tQ' + _numbers(offset) + b'(' + _numbers(*shape) + b't'
    b'(' + _numbers(*stride) + b't\x89}tRs.'
  )  # fmt: skip
  with zipfile.ZipFile(path, 'w') as f:
    f.writestr('x/data.pkl', data)
    f.writestr('x/data/0', np.arange(4, dtype=np.float32).tobytes())
  return path


def test_only_memory_of_the_storage_is_read(tmp_path):
  """Equation (1); what breaks it would show memory of the process."""
  path = tmp_path / 'x.pt'
  with pickles.File(_written(path, 1, (3,), (1,))) as file:
    np.testing.assert_array_equal(file.get_tensor('a'), [1, 2, 3])
  with pickles.File(_written(path, 0, (5,), (0,))) as file:  # torch's expand
    np.testing.assert_array_equal(file.get_tensor('a'), np.zeros(5))
  for place in (
    (0, (64,), (-1,)), (-2, (4,), (1,)), (0, (-1,), (1,)), (0, (4,), (1, 1)),
  ):  # fmt: skip
    with pytest.raises(WeightsError, match='is broken: it has a tensor of'):
      pickles.File(_written(path, *place))
  for place in ((2, (3,), (1,)), (0, (2, 2), (4, 1))):
    with (
      pickles.File(_written(path, *place)) as file,
      pytest.raises(WeightsError, match='beyond its storage of 4 numbers'),
    ):
      file.get_tensor('a')
  with pytest.raises(WeightsError, match=r"'Odd'.*no storage of FloatStorage"):
    pickles.File(_written(path, 0, (4,), (1,), _text('Odd')))


@pytest.mark.parametrize(
  'data',
  [
    b'\x80\x02h\x05.',  # a memo that is not there
    b'\x80\x02]K\x01K\x02a.',  # a number appended to a number
    b'\x80\x02ctorch\nFloatStorage\n)R.',  # a string called
    b'\x80\x02]q\x00h\x00a.',  # a list in itself
    b'\x80\x09.',  # a protocol to come
    b'',
  ],
)
def test_bytes_that_are_no_pickle(tmp_path, data):
  path = tmp_path / 'x.pt'
  with zipfile.ZipFile(path, 'w') as f:
    f.writestr('x/data.pkl', data)
  with pytest.raises(WeightsError, match=r'x\.pt is broken: \w+'):
    pickles.File(path)


def test_a_storage_that_is_not_there(tmp_path):
  path = _written(tmp_path / 'x.pt', 0, (4,), (1,))
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / 'y', 'w') as f:
    f.writestr('x/data.pkl', old.read('x/data.pkl'))
  with (
    pickles.File(tmp_path / 'y') as file,
    pytest.raises(WeightsError, match=r'is broken: KeyError.*x/data/0'),
  ):
    file.get_tensor('a')


def _packed(path, data, size=16):
  """A file of a pickle and of one storage, zeros."""
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as f:
    f.writestr('x/data.pkl', data)
    f.writestr('x/data/0', bytes(size))
  return path


def test_what_unpacks_to_more_than_it_says(tmp_path, monkeypatch):
  path = _written(tmp_path / 'x.pt', 0, (4,), (1,))
  with zipfile.ZipFile(path) as f:
    data = f.read('x/data.pkl')
  with (
    pickles.File(_packed(tmp_path / 'y.pt', data, 10**6)) as file,
    pytest.raises(WeightsError, match='has 1000000 bytes where 16 are'),
  ):
    file.get_tensor('a')
  monkeypatch.setattr(pickles, '_PICKLE_BYTES', len(data) - 1)
  with pytest.raises(WeightsError, match=r'data\.pkl has'):
    pickles.File(path)


def test_lists_that_many_places_hold(tmp_path):
  """2^40 places of nothing; the same list twice in a list, over and over."""
  data = [1]
  for _ in range(40):
    data = [data, data]
  path = _packed(tmp_path / 'x.pt', pickle.dumps(data))
  with pickles.File(path) as file:
    assert file.keys() == []
  with pytest.raises(WeightsError, match='two tensors have one name'):
    torch.save({'a.b': torch.ones(1), 'a': {'b': torch.ones(1)}}, path)
    pickles.File(path)
