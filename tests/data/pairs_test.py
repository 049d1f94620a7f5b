"""Files of pairs of pictures, whole and damaged."""

import os
import zipfile

import numpy as np
import pytest

from gen_rl.data import prompts


def test_pairs_file(tmp_path):
  path = tmp_path / 'pairs.npz'
  rng = np.random.default_rng(0)
  best = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
  np.savez(
    path,
    prompt=['a red circle', 'two squares'],
    preferred=best,
    other=255 - best,
  )
  source = prompts.pairs(path)
  assert source.texts == ('a red circle', 'two squares')
  np.testing.assert_allclose(source.media[:, 0], best / 255, rtol=1e-6)
  np.testing.assert_allclose(source.media.sum(1), 1.0, rtol=1e-6)
  assert source.tasks == ('colors', 'counting')
  np.savez(tmp_path / 'no.npz', prompt=['x'])
  with pytest.raises(ValueError, match='lacks other, preferred; it has prompt'):
    prompts.pairs(tmp_path / 'no.npz')
  (tmp_path / 'text.npz').write_text('no zip')
  with pytest.raises(ValueError, match='is no .npz file'):
    prompts.pairs(tmp_path / 'text.npz')
  with pytest.raises(FileNotFoundError, match='does not exist'):
    prompts.pairs(tmp_path / 'absent.npz')


def _npz(path, **changed):
  rng = np.random.default_rng(0)
  one, two = rng.random((2, 3, 4, 4, 3), np.float32)
  arrays = dict(prompt=['a', 'b', 'c'], preferred=one, other=two) | changed
  np.savez(path, **{k: x(one) if callable(x) else x for k, x in arrays.items()})
  return path


@pytest.mark.parametrize(
  'changed, said',
  [
    (dict(other=lambda x: x * np.nan), r'other has numbers .* nan to nan'),
    (dict(preferred=lambda x: 255 * x), r'preferred has numbers .* not in'),
    (dict(other=lambda x: np.uint8(x)), 'are float32 and uint8; pictures'),
    (dict(other=lambda x: x + 1j), 'are float32 and complex64'),
    (dict(other=lambda x: x[:, :2]), r'are \(3,\), \(3, 4, 4, 3\), \(3, 2'),
    (dict(preferred=lambda x: x[:2], other=lambda x: x[:2]), 'are'),
    (dict(prompt=np.arange(3)), 'prompt is no text but int64'),
    (dict(prompt=['a', ' ', 'c']), 'prompt is blank in row 1'),
    (dict(prompt='a'), r'are \(\), '),
    (dict(prompt=np.array([{}], object)), 'objects, which are not read'),
  ],
)
def test_pairs_that_cannot_be(tmp_path, changed, said):
  path = _npz(tmp_path / 'pairs.npz', **changed)
  with pytest.raises(ValueError, match=said):
    prompts.pairs(path)


@pytest.mark.parametrize('keep', [0, 1, 200, -1])
def test_broken_pairs(tmp_path, keep):
  path = _npz(tmp_path / 'pairs.npz')
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r'file of pairs .*no \.npz file'):
    prompts.pairs(path)


def test_a_header_that_lies(tmp_path):
  """Four terabytes that are not there; and nothing waits for a pipe."""
  path = tmp_path / 'pairs.npz'
  with zipfile.ZipFile(path, 'w') as f, f.open('prompt.npy', 'w') as part:
    np.lib.format.write_array_header_1_0(
      part, dict(descr='<f4', fortran_order=False, shape=(1 << 40,))
    )
  with pytest.raises(ValueError, match=r'says \[1099511627776\] .* 0 bytes'):
    prompts.pairs(path)
  os.mkfifo(tmp_path / 'pipe.npz')
  with pytest.raises(ValueError, match='a pipe or a device'):
    prompts.pairs(tmp_path / 'pipe.npz')
