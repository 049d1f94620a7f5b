"""Pictures that are there: of the prompts' source, or scans; and answers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.fields import Count
from gen_rl.models.parts.layers import PAD
from gen_rl.types import Array, PyTree, Rows
from gen_rl.utils import rng, tree

Encode = Callable[[Rows], tuple[Array, PyTree]]


class Shared(NamedTuple):
  """An `Encode` that shows all rows of a prompt the same."""

  encode: Encode

  def __call__(self, rows: Rows) -> tuple[Array, PyTree]:
    """As `encode`."""
    return self.encode(rows)


def digit_scans(size: Count = 24) -> Encode:
  """Scans of handwritten digits, whatever the prompt: real pictures.

  1,797 grey pictures of 8x8 pixels, the test set of Optical Recognition of
  Handwritten Digits (Alpaydin and Kaynak, 1998), which come with scikit-learn
  (extra "test"); every row gets one of them, enlarged linearly.

  Args:
    size: pixels of a side.

  Raises:
    ConfigError: scikit-learn is not installed.
  """
  try:
    from sklearn import datasets
  except ImportError:
    raise ConfigError(
      'pictures "digit_scans" come with scikit-learn, which is not installed; '
      'pip install scikit-learn'
    ) from None
  scans = datasets.load_digits().images.astype(np.uint8)  # [1797 8 8], 0 to 16

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    keys = rng.stream_keys(rows.keys, 'picture')
    which = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(scans)))
    grey = jnp.asarray(scans)[which(keys)] / 16.0
    grey = jax.image.resize(grey, (len(grey), size, size), 'linear')
    return jnp.stack([grey] * 3, -1) * 2.0 - 1.0, rows.cond

  return encode


def member(rows: Rows, group_size: int, what: str) -> Array:
  """[b] 0 for the first row of a pair, 1 for the second."""
  if group_size != 2:
    raise ConfigError(
      f'{what} comes in pairs: data.group_size is {group_size} and must be 2'
    )
  return jnp.arange(rows.group.shape[0]) % 2


def with_wrong(rows: Rows, second: Array) -> tuple[Rows, PyTree]:
  """Rows without their false prompts, and `cond` of those who see them.

  Args:
    rows: whose info has "wrong_tokens", see `pipeline.gather`.
    second: [b] bool, the rows that get the false prompt in place of the true
      one: its tokens, and its features where there are any.
  """
  if 'wrong_tokens' not in rows.info:
    raise ConfigError(
      'pairs of prompts need false ones, which this source has not: take '
      'data.prompts.name="shapes_contrasts", or name those of your file with '
      'data.prompts.wrong_field of metadata_jsonl'
    )
  info = dict(rows.info)
  wrong = {
    name: info.pop(f'wrong_{name}')
    for name in rows.cond
    if f'wrong_{name}' in info
  }
  cond = {
    name: tree.where(second, wrong[name], x) if name in wrong else x
    for name, x in rows.cond.items()
  }
  return rows.replace(info=info), cond


def answers(end: int | None, pad: int = PAD) -> Encode:
  """What is right to say, and the end token, in place of pictures: [b a+1].

  Args:
    end: id of the end token.
    pad: id behind it.
  """
  if end is None:
    raise ConfigError(
      'answers are closed by an end token, and this tokenizer has none; '
      'of a world it is world_words with end=True'
    )

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    if 'answer' not in rows.info:
      raise ConfigError(
        'rollout "answers" needs a prompt source with answers, such as '
        'data.prompts.name="shapes_questions"'
      )
    answer = jnp.pad(rows.info['answer'], ((0, 0), (0, 1)))
    length = (rows.info['answer'] >= 0).sum(1, keepdims=True)
    place = jnp.arange(answer.shape[1])
    said = jnp.where(place < length, answer, pad)
    return jnp.where(place == length, end, said), rows.cond

  return encode


def given_prompt_pairs(group_size: int) -> Encode:
  """A picture of the source under two prompts, its own and a false one (TPO).

  The source is `metadata_jsonl` with `image_field` and `wrong_field`. Goes with
  the reward `ranked` and data.group_size=2.

  Args:
    group_size: of the data; 2.
  """
  show = given()

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    second = member(rows, group_size, 'rollout "given_prompt_pairs"') == 1
    rows, cond = with_wrong(rows, second)
    return show(rows)[0], cond

  return encode


def given() -> Encode:
  """The pictures of the source itself ("media" of the batch).

  Of pairs [b 2 h w c] the first row of a group gets the first picture.
  """

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    if rows.media is None:
      raise ConfigError(
        'pictures "given" need a prompt source with pictures; this one has '
        'none: name them with data.prompts.image_field of metadata_jsonl, '
        'image_column of table or media_field of tfds'
      )
    media = rows.media
    if media.ndim == 5:
      if media.shape[1] != 2:
        raise ConfigError(
          f'pictures "given" are one a prompt, or a pair, and this source has '
          f'{media.shape[1]}; take "references", which draws one of them'
        )
      b = media.shape[0]
      media = media[jnp.arange(b), member(rows, media.shape[1], 'a pair')]
    return media * 2.0 - 1.0, rows.cond

  return encode


def references() -> Encode:
  """One of the several pictures of the prompt, drawn for every row.

  What is real, to a reward that is trained (critic.reals), or what the policy
  learns to make (rollout). The source is `metadata_jsonl`, with a list of paths
  in every line.
  """

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    media = rows.media
    if media is None or media.ndim != 5:
      raise ConfigError(
        'pictures "references" are drawn from several of a prompt, and this '
        'source has none or one: give a list of paths in every line of a file '
        'of metadata_jsonl, and its name as data.prompts.image_field'
      )
    keys = rng.stream_keys(rows.keys, 'picture')
    b, m = media.shape[:2]
    which = jax.vmap(lambda key: jax.random.randint(key, (), 0, m))(keys)
    return media[jnp.arange(b), which] * 2.0 - 1.0, rows.cond

  return encode
