import errno

from jax._src import lru_cache
import pytest

from gen_rl.utils import compiled


@pytest.fixture
def cache(tmp_path):
  inner = lru_cache.LRUCache(str(tmp_path), max_size=-1)
  return compiled.Checked(inner, str(tmp_path))


def _cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
  data = bytearray(path.read_bytes())
  data[40] ^= 1
  path.write_bytes(data)


def _folder(path):
  path.unlink()
  path.mkdir()


@pytest.mark.parametrize(
  'damage', [_cut, _flip, _folder, lambda path: path.write_bytes(b'')]
)
def test_a_damaged_entry_is_written_again(damage, cache, tmp_path):
  value = bytes(range(100))
  assert cache.get('key') is None
  cache.put('key', value)
  assert cache.get('key') == value
  (entry,) = tmp_path.iterdir()
  damage(entry)
  assert cache.get('key') is None
  cache.put('key', value)
  assert cache.get('key') == value


def test_an_entry_of_another_program_is_none(cache, tmp_path):
  cache.put('a', b'program a')
  (tmp_path / 'a-sha256-cache').rename(tmp_path / 'b-sha256-cache')
  (tmp_path / 'c-cache').write_bytes(b'of another user of the folder')
  assert cache.get('b') is None and cache.get('c') is None
  assert [p.name for p in tmp_path.iterdir()] == ['c-cache']


def test_a_full_disk_is_said_once(tmp_path, capsys):
  class Full:
    def put(self, key, value):
      (tmp_path / f'{key}-cache').write_bytes(value[:3])
      raise OSError(errno.ENOSPC, 'No space left on device')

  cache = compiled.Checked(Full(), str(tmp_path))
  cache.put('a', b'value')
  cache.put('b', b'value')
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'No space left' in error
  assert not list(tmp_path.iterdir())
