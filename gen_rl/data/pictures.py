"""Where the pictures of a data batch come from: rows -> (latents, cond).

Latents are pictures in [-1, 1]; `cond` is what the policy is given, and labels
where it learns them. Used with `rollout.data_rollout`; a config names one of
these functions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.fields import Count, Fraction, NonNegative
from gen_rl.models.layers import PAD
from gen_rl.types import Array, PyTree, Rows
from gen_rl.utils import rng, tree
from gen_rl.worlds import grammar, shapes

Encode = Callable[[Rows], tuple[Array, PyTree]]


def _scenes(rows: Rows, name: str) -> dict[str, Array]:
  """What the prompts ask a picture to show.

  Raises:
    ConfigError: they are no sentences of the world.
  """
  if not set(grammar.FIELDS) <= set(rows.info):
    raise ConfigError(
      f'pictures {name!r} show what sentences of ShapesWorld say, and some of '
      'these prompts are none; the pictures of a file are seen with '
      'data.view.name="given" and learned from with rollout.name="given"'
    )
  return {field: rows.info[field] for field in grammar.FIELDS}


def shapes_pictures(
  caption_noise: Fraction = 0.0, shared: bool = False
) -> Encode:
  """Renders ShapesWorld on the device, every picture drawn afresh.

  Args:
    caption_noise: share of pictures that contradict their caption in one
      attribute, count or relation, as web captions do.
    shared: the rows of a prompt get one picture, which they are asked about.
  """

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    spec = _scenes(rows, 'shapes_pictures')
    own = rows.group_keys if shared else rows.keys
    if caption_noise:
      keys = rng.stream_keys(own, 'caption noise')
      wrong = jax.vmap(jax.random.bernoulli, (0, None))(keys, caption_noise)
      keys = rng.stream_keys(own, 'mutation')
      spec = tree.where(wrong, jax.vmap(shapes.mutate)(keys, spec), spec)
    keys = rng.stream_keys(own, 'picture')
    return jax.vmap(shapes.render)(keys, spec) * 2.0 - 1.0, rows.cond

  return encode


def shapes_scenes(noise: NonNegative = 0.0) -> Encode:
  """Renders ShapesWorld and keeps what was drawn: labels for a detector.

  `cond` gets "scene", a `shapes.Scene` with rows [b ...].

  Args:
    noise: pixel noise, the standard deviation of the noisiest pictures in
      units of [0, 1]; each picture's is uniform up to it.
  """

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    keys = rng.stream_keys(rows.keys, 'picture')
    spec = _scenes(rows, 'shapes_scenes')
    scene = jax.vmap(shapes.compose)(keys, spec)
    image = jax.vmap(shapes.draw)(scene)
    if noise:
      level = rng.uniform(rng.stream_keys(rows.keys, 'noise level'), ())
      grain = rng.normal(rng.stream_keys(rows.keys, 'noise'), image.shape[1:])
      image += noise * level[:, None, None, None] * grain
      image = jnp.clip(image, 0.0, 1.0)
    return image * 2.0 - 1.0, {**rows.cond, 'scene': scene}

  return encode


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


def _member(rows: Rows, group_size: int, what: str) -> Array:
  """[b] 0 for the first row of a pair, 1 for the second."""
  if group_size != 2:
    raise ConfigError(
      f'{what} comes in pairs: data.group_size is {group_size} and must be 2'
    )
  return jnp.arange(rows.group.shape[0]) % 2


def shapes_preferences(group_size: int) -> Encode:
  """Pairs of renders: the first shows the prompt, the second nearly.

  Goes with the reward `ranked`, data.group_size=2 and a preference objective.
  """

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    wrong = _member(rows, group_size, 'rollout "shapes_preferences"') == 1
    keys = rng.stream_keys(rows.keys, 'mutation')
    spec = _scenes(rows, 'shapes_preferences')
    spec = tree.where(wrong, jax.vmap(shapes.mutate)(keys, spec), spec)
    keys = rng.stream_keys(rows.group_keys, 'picture')
    return jax.vmap(shapes.render)(keys, spec) * 2.0 - 1.0, rows.cond

  return encode


def prompt_pairs(group_size: int, caption_noise: Fraction = 0.0) -> Encode:
  """One render under two prompts, a true and a false one (TDPO).

  The source is `shapes_contrasts`, whose false sentences the second row of a
  pair gets. Goes with the reward `ranked` and data.group_size=2.

  Args:
    group_size: of the data; 2.
    caption_noise: share of pairs whose picture contradicts its true prompt.
  """
  draw = shapes_pictures(caption_noise)

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    second = _member(rows, group_size, 'rollout "prompt_pairs"') == 1
    if 'wrong_tokens' not in rows.info:
      raise ConfigError(
        'rollout "prompt_pairs" needs false prompts, which this source has '
        'not; use data.prompts.name="shapes_contrasts"'
      )
    info = dict(rows.info)
    wrong = info.pop('wrong_tokens')  # [b K l]
    keys = rng.stream_keys(rows.group_keys, 'wrong prompt')
    pick = lambda key: jax.random.randint(key, (), 0, wrong.shape[1])
    chosen = jax.vmap(pick)(keys)
    tokens = jnp.where(
      second[:, None],
      wrong[jnp.arange(len(chosen)), chosen],
      rows.cond['tokens'],
    )
    picture, _ = draw(rows.replace(keys=rows.group_keys, info=info))
    return picture, {**rows.cond, 'tokens': tokens}

  return encode


def answers(end: int | None, pad: int = PAD) -> Encode:
  """What is right to say, and the end token, in place of pictures: [b a+1].

  Args:
    end: id of the end token.
    pad: id behind it.
  """
  if end is None:
    raise ConfigError(
      'answers are closed by an end token, and this tokenizer has none; for '
      'ShapesWorld, tokenizer.name="shapes_language"'
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
      b = media.shape[0]
      media = media[jnp.arange(b), _member(rows, media.shape[1], 'a pair')]
    return media * 2.0 - 1.0, rows.cond

  return encode
