"""Reward of text in pictures of any size, read on the host (`read_text`).

Read by RapidOCR, whose package carries its networks (detection and recognition
of PP-OCRv4; Flow-GRPO has PaddleOCR, of the same family), and scored as
Flow-GRPO does, (2) of `scoring.spelling`.
"""

from collections.abc import Callable
import contextlib
import queue

from absl import logging
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.fields import Count
from gen_rl.rewards import pixels
from gen_rl.scoring import spelling
from gen_rl.types import Array, Reward, RewardInputs, RewardOut


def rapid_reader(threads: int = 1) -> Callable[[np.ndarray], str]:
  """RapidOCR: an RGB picture uint8 [h w 3] -> what is written there.

  The pieces of text it is sure of (at least 1/2), from top to bottom and from
  left to right, side by side. Not to be called by two threads at a time.

  Raises:
    ConfigError: the package is not there.
  """
  try:
    import rapidocr_onnxruntime  # noqa: PLC0415
  except ImportError as error:
    raise ConfigError(
      f'text is read with rapidocr-onnxruntime, which cannot be imported '
      f"({error}); pip install 'gen_rl[ocr]'"
    ) from None
  engine = rapidocr_onnxruntime.RapidOCR(
    intra_op_num_threads=threads, inter_op_num_threads=1
  )

  def read(image: np.ndarray) -> str:
    # It takes the channels as OpenCV has them; text upside down is not looked
    # for, as there.
    found, _ = engine(np.ascontiguousarray(image[..., ::-1]), use_cls=False)
    return ''.join(text for _, text, _ in found or ())

  return read


def read_text(
  engine: Callable[[], Callable[[np.ndarray], str]] | None = None,
  column: str = 'text',
  threads: Count = 1,
) -> Reward:
  """(2) of `spelling` for what is read in a picture, in [0, 1]; on the host.

  A picture that is not finite, one that the reader fails at, and a row without
  a text to look for are not valid. Parts: `exact`, 1 where nothing is missing;
  `characters`, how many are read.

  Args:
    engine: makes a function from a picture, uint8 [h w 3], to text, which is
      called by one thread at a time; None: `rapid_reader`.
    column: of info that holds the code points of the text, `prompts.quoted`.
    threads: of `rapid_reader`.

  Raises:
    ConfigError: there is no reader; when scored, the column is missing.
  """
  make = engine or (lambda: rapid_reader(threads))
  idle: queue.SimpleQueue[Callable[[np.ndarray], str]] = queue.SimpleQueue()
  idle.put(make())  # now, so that one that is missing is said at once

  @contextlib.contextmanager
  def borrowed():
    try:
      one = idle.get_nowait()
    except queue.Empty:
      one = make()
    try:
      yield one
    finally:
      idle.put(one)

  def score(params, inputs: RewardInputs, key: Array) -> RewardOut:
    del params, key
    if column not in inputs.info:
      raise ConfigError(
        f'the text to look for is in {column!r}, and these prompts have none; '
        'use data.prompts.name="quoted" with a file whose prompts have a text '
        'in double quotes'
      )
    media = np.asarray(pixels.shown(inputs), np.float32)
    scores = np.full(len(media), np.nan, np.float32)
    characters = np.zeros(len(media), np.float32)
    with borrowed() as read:
      for i, (image, codes) in enumerate(
        zip(media, np.asarray(inputs.info[column]), strict=True)
      ):
        target = ''.join(map(chr, codes[codes != 0]))
        if not target or not np.isfinite(image).all():
          continue
        try:
          found = read(np.round(255 * image.clip(0, 1)).astype(np.uint8))
        except Exception as error:  # whatever a reader raises is its failure
          logging.log_first_n(
            logging.WARNING,
            'read_text: a picture could not be read: %s: %s. Its row is left '
            'out; said once.',
            1,
            type(error).__name__,
            error,
          )
          continue
        scores[i] = spelling.text_score(found, target)
        characters[i] = len(spelling.normalize(found))
    valid = np.isfinite(scores)
    exact = (scores == 1).astype(np.float32)
    return RewardOut(scores, dict(exact=exact, characters=characters), valid)

  return Reward('read_text', (), score, where='host')
