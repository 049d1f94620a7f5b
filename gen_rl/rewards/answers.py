"""What a frozen vision-language model would say, read from its probabilities.

  p(y | x, q) = prod_j p(y_j | x, q, y_<j)                               (1)

of a picture x, a query q and an answer y. `log_probs` has the factors, and
`word_probs` the first of them restricted to some words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import build, models
from gen_rl.build import ConfigError
from gen_rl.data.tokenizers import Tokenizer
from gen_rl.distributions import Categorical
from gen_rl.models.files import weights as weights_lib
from gen_rl.models.parts.layers import TokenNet
from gen_rl.types import Array, Params


class Judge(NamedTuple):
  """A network, its weights, and the tokenizer it reads and speaks with."""

  net: TokenNet
  params: Params
  reader: Tokenizer

  def words(self, words: Sequence[str]) -> np.ndarray:
    """Ids of words that are one token each: [n]."""
    if isinstance(words, str):
      words = (words,)
    try:
      return np.array([self.reader.token_id(word) for word in words])
    except ValueError as error:
      raise ConfigError(f'a judge answers in single tokens: {error}') from None

  def query(self, text: str) -> np.ndarray:
    """Ids of a text, without padding: [1 l]."""
    ids = self.reader.encode([text], len(text.encode()) + 8)
    ids = ids[:, ids[0] != self.reader.pad_id]
    if self.reader.unknown([text]):
      raise ConfigError(
        f'the judge does not know some words of {text!r}: '
        + ', '.join(self.reader.unknown([text]))
      )
    return ids


def load(reader: Tokenizer | None, model: build.Spec, weights: str) -> Judge:
  """A judge from its config.

  Args:
    reader: of `data.reader`.
    model: spec of a network of `models`; `vocab` is the reader's.
    weights: a safetensors file, or "asset:NAME".

  Raises:
    ConfigError: there is no reader, or the model is none that says tokens.
    WeightsError: the file does not fit the model.
  """
  if reader is None:
    raise ConfigError(
      'a judge reads prompts with a tokenizer of its own: set '
      'data.reader.tokenizer.name, to shapes_language for asset:shapes_vlm'
    )
  net = build.build(models, model, vocab=reader.size)
  if not isinstance(net, TokenNet):
    raise ConfigError(
      f'a judge is a network that says tokens, such as vlm; {model} is none'
    )
  like = jax.eval_shape(net.init, jax.random.key(0))
  params, _ = weights_lib.load(weights_lib.find(weights), like, cast=True)
  return Judge(net, params, reader)


def log_probs(
  judge: Judge, params: Params, image: Array, query: Array, answer: Array
) -> Array:
  """Log-probs of the tokens of an answer [b a], 0 at padding; float32.

  Args:
    judge: whose.
    params: its weights.
    image: [b h w c] in [0, 1].
    query: [b l] what comes before.
    answer: [b a], padded on the right.
  """
  cond = dict(tokens=query, image=image)
  logits = judge.net.score(params, cond, answer)
  said = answer != judge.reader.pad_id
  return jnp.where(said, Categorical(logits).log_prob(answer), 0.0)


def word_probs(
  judge: Judge,
  params: Params,
  image: Array,
  query: Array,
  words: Sequence[np.ndarray],
) -> tuple[Array, Array]:
  """The first token of an answer: which of the words is it?

  Args:
    judge: whose.
    params: its weights.
    image: [b h w c] in [0, 1].
    query: [b l].
    words: n sets of ids; the probabilities of a set are added up.

  Returns:
    (probabilities of the sets given that it is one of them [b n], the
    probability that it is [b]); both float32.
  """
  cond = dict(tokens=query, image=image)
  any_answer = jnp.zeros((len(image), 1), jnp.int32)
  logits = judge.net.score(params, cond, any_answer)[:, 0]
  each = jax.nn.log_softmax(logits.astype(jnp.float32))
  sets = jnp.stack([jax.nn.logsumexp(each[:, ids], -1) for ids in words], -1)
  mass = jnp.exp(jax.nn.logsumexp(sets, -1))
  return jax.nn.softmax(sets), mass
