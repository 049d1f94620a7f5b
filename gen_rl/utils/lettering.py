r"""Text in pictures, in any script: a face that has the letters, or escapes.

Pillow's own face has little more than ASCII. Faces that are looked through for
other letters, in this order, and only where a text has some: DejaVu Sans of
matplotlib where that is installed, and those of the system. A text is set in
the face that has most of its letters, the others in the first face that has
them. A letter of no face is written as Python escapes it, \u7ea2; never as the
box a face draws for what it lacks.
"""

from collections.abc import Iterator
import functools
import importlib.util
import os
import pathlib
import unicodedata

from PIL import ImageDraw, ImageFont

# Looked at before the others of the system, by file name.
_KNOWN = (
  'dejavusans', 'notosans-regular', 'notosanscjk-regular', 'wqy-microhei',
  'wqy-zenhei', 'arial', 'arialuni', 'arial unicode', 'msyh', 'pingfang',
  'hiragino sans gb',
)  # fmt: skip
# Shapes of a face that has a plain one, and what draws boxes on purpose.
_OTHERS = ('bold', 'italic', 'oblique', 'light', 'mono', 'emoji', 'lastresort')
_MOST = 200  # faces that are looked through
_MISSING = '\U0010fffe'  # no letter, nor ever one

Face = ImageFont.FreeTypeFont


def readable(text: str) -> str:
  """The text with accents joined to letters, and escapes of what has no face.

  White space becomes single blanks; signs that only say how others are set are
  left out.
  """
  text = ' '.join(unicodedata.normalize('NFC', str(text)).split())
  if text.isascii() and text.isprintable():
    return text
  return ''.join(map(_letter, text))


def length(text: str, size: int) -> float:
  """Pixels of a `readable` text from left to right."""
  return sum(face.getlength(run) for face, run in _runs(text, size))


def draw(
  sheet: ImageDraw.ImageDraw,
  place: tuple[int, int],
  text: str,
  colour: tuple[int, int, int],
  size: int,
) -> None:
  """Draws a `readable` text; its upper left corner is at `place`."""
  x, y = place
  base = y + _faces(size)[0].getmetrics()[0]  # one line for all faces
  for face, run in _runs(text, size):
    sheet.text((x, base), run, colour, face, anchor='ls')
    x += face.getlength(run)


def _letter(letter: str) -> str:
  if _face_of(letter) is not None:
    return letter
  if unicodedata.category(letter) in ('Cf', 'Mn', 'Me'):
    return ''
  return ascii(letter)[1:-1]


def _runs(text: str, size: int) -> Iterator[tuple[Face, str]]:
  """(face, part of the text), from left to right."""
  faces = _faces(size)
  if text.isascii():
    yield faces[0], text
    return
  letters = set(text) - {' '}
  had = [sum(_has(i, letter) for letter in letters) for i in range(len(faces))]
  best = had.index(max(had))
  run, at = '', best
  for letter in text:
    own = best if letter == ' ' or _has(best, letter) else _face_of(letter)
    own = best if own is None else own
    if run and own != at:
      yield faces[at], run
      run = ''
    run, at = run + letter, own
  yield faces[at], run


@functools.cache
def _face_of(letter: str) -> int | None:
  """The first face that has a letter."""
  if letter == ' ' or _has(0, letter):
    return 0
  return next((i for i in range(len(_files()) + 1) if _has(i, letter)), None)


@functools.cache
def _has(i: int, letter: str) -> bool:
  """Does a face draw a letter otherwise than what it lacks?"""
  if not letter.isprintable():
    return False
  return _drawn(i, letter) != _drawn(i, _MISSING)


def _drawn(i: int, letter: str) -> tuple:
  mask = _faces(16)[i].getmask(letter)
  return mask.size, bytes(mask)


@functools.cache
def _faces(size: int) -> tuple[Face, ...]:
  """Pillow's own, then those of `_files`."""
  others = (ImageFont.truetype(path, size) for path in _files())
  return ImageFont.load_default(size), *others


@functools.cache
def _files() -> tuple[str, ...]:
  """Faces that can be read, the likeliest first."""
  paths = []
  if spec := importlib.util.find_spec('matplotlib'):
    home = pathlib.Path(spec.origin).parent
    paths.append(str(home / 'mpl-data' / 'fonts' / 'ttf' / 'DejaVuSans.ttf'))
  found = {}
  for folder in _folders():
    for where, _, names in os.walk(folder):
      for name in names:
        stem, kind = os.path.splitext(name.lower())
        if kind in ('.ttf', '.ttc', '.otf'):
          found.setdefault(stem, os.path.join(where, name))
  known = [stem for stem in _KNOWN if stem in found]
  rest = [
    stem
    for stem in sorted(set(found) - set(known))
    if not any(word in stem for word in _OTHERS)
  ]
  paths += [found[stem] for stem in known + rest]
  return tuple(filter(_is_face, paths[:_MOST]))


def _is_face(path: str) -> bool:
  try:
    ImageFont.truetype(path, 16)
  except (OSError, ValueError):
    return False
  return True


def _folders() -> list[str]:
  """Where systems keep faces: Linux, macOS, Windows."""
  home = os.path.expanduser('~')
  folders = [
    f'{home}/.fonts', f'{home}/.local/share/fonts', f'{home}/Library/Fonts',
    '/usr/local/share/fonts', '/usr/share/fonts', '/Library/Fonts',
    '/System/Library/Fonts',
  ]  # fmt: skip
  if windows := os.environ.get('WINDIR'):
    folders.append(os.path.join(windows, 'Fonts'))
  return folders
