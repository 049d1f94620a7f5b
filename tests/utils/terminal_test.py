import io
import os
import sys

import pytest

from gen_rl.utils import terminal


@pytest.mark.parametrize(
  'encoding, written',
  [
    ('ascii', b'0.6 -> 0.9 (-1 x), l\\xe4uft \\u4e24'),
    ('latin-1', b'0.6 -> 0.9 (-1 \xd7), l\xe4uft \\u4e24'),
    ('utf-8', '0.6 → 0.9 (−1 ×), läuft 两'.encode()),
  ],
)
def test_what_a_terminal_lacks_is_ascii(encoding, written):
  data = io.BytesIO()
  stream = io.TextIOWrapper(data, encoding, errors='gen_rl.plain')
  stream.write('0.6 → 0.9 (−1 ×), läuft 两')
  stream.flush()
  assert data.getvalue() == written


def test_a_reader_that_is_gone_stops_nothing():
  reader, writer = os.pipe()
  stream = terminal.Lasting(open(writer, 'w', closefd=False))  # noqa: SIM115
  stream.write('a')
  stream.flush()
  assert os.read(reader, 9) == b'a'
  os.close(reader)
  stream.write('b' * 100_000)
  stream.flush()
  stream.write('c')
  stream.flush()
  assert not stream.isatty() and stream.fileno() == writer
  os.close(writer)


def test_it_lasts_for_the_length_of_a_run(monkeypatch):
  reader, writer = os.pipe()
  own = open(writer, 'w')  # noqa: SIM115
  monkeypatch.setattr(sys, 'stdout', own)
  with terminal.kept_open():
    sys.stdout.close()
    print('a')
  assert sys.stdout is own and not own.closed
  own.close()
  assert os.read(reader, 9) == b'a\n'
  os.close(reader)


def test_who_closes_it_closes_it_for_nobody():
  reader, writer = os.pipe()
  stream = terminal.Lasting(open(writer, 'w', closefd=False))  # noqa: SIM115
  stream.write('a')
  stream.close()
  stream.write('b')
  stream.flush()
  assert os.read(reader, 9) == b'ab'
  os.close(writer)  # behind its back
  for _ in range(2):  # to nowhere, and what was held back with it
    stream.write('c')
    stream.flush()
  os.close(writer)
  assert os.read(reader, 9) == b''
  os.close(reader)
