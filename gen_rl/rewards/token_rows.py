"""Reading rows of token ids, for rewards: where they end, what they say.

A completion is a row of ids [k], its end token included, whatever stands behind
it: padding is the tokenizer's, and an id of padding that was said is a token
like others. Its length n is the number of ids before the end token; without one
the row was cut off: n = k. Answers are padded with NONE, which is no token of
any vocabulary (`tokenizers.encode_answers`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.data.tokenizers import NONE
from gen_rl.types import Array, Params, RewardInputs, RewardOut


def lengths(
  tokens: Int[Array, 'b k'], end: int
) -> tuple[Int32[Array, ' b'], Bool[Array, ' b']]:
  """(n, is there an end token?); n is at most k."""
  ends = tokens == end
  finished = ends.any(1)
  n = jnp.where(finished, jnp.argmax(ends, 1), tokens.shape[1])
  return n.astype(jnp.int32), finished


def sizes(answer: Int[Array, 'b a']) -> Int32[Array, ' b']:
  """m, the ids of an answer."""
  return (answer >= 0).sum(1, dtype=jnp.int32)


def span(
  tokens: Int[Array, 'b k'], n: Int[Array, ' b'], tags: Sequence[int] = ()
) -> tuple[Int32[Array, ' b'], Int32[Array, ' b'], Bool[Array, ' b']]:
  """Where the content starts and stops, and whether there are both tags.

  Content is the whole completion or, with tags (begin, close), what stands
  between the first `begin` and the first `close` behind it. Content that is
  not there starts and stops at 0.
  """
  if not tags:
    return jnp.zeros_like(n), n, jnp.ones(n.shape, bool)
  begin, close = tags
  place = jnp.arange(tokens.shape[1])
  before_end = place < n[:, None]
  opens = (tokens == begin) & before_end
  start = jnp.argmax(opens, 1) + 1
  closes = (tokens == close) & before_end & (place >= start[:, None])
  found = opens.any(1) & closes.any(1)
  start, stop = (
    jnp.where(found, x, 0).astype(jnp.int32)
    for x in (start, jnp.argmax(closes, 1))
  )
  return start, stop, found


def inside(
  tokens: Int[Array, 'b k'], n: Int[Array, ' b'], tags: Sequence[int] = ()
) -> Bool[Array, 'b k']:
  """Which ids are content, see `span`."""
  start, stop, _ = span(tokens, n, tags)
  place = jnp.arange(tokens.shape[1])
  return (place >= start[:, None]) & (place < stop[:, None])


def matches(
  tokens: Int[Array, 'b k'],
  start: Int[Array, ' b'],
  stop: Int[Array, ' b'],
  answer: Int[Array, 'b a'],
) -> Bool[Array, ' b']:
  """Is tokens[start:stop] the answer, with nothing missing and nothing more?"""
  place, m = jnp.arange(answer.shape[1]), sizes(answer)
  at = jnp.minimum(start[:, None] + place, tokens.shape[1] - 1)
  same = jnp.take_along_axis(tokens, at, 1) == answer
  return (same | (place >= m[:, None])).all(1) & (stop - start == m)


def numbers(
  tokens: Int[Array, 'b k'],
  where: Bool[Array, 'b k'],
  base: int,
  size: int,
  count: int,
) -> tuple[Int32[Array, 'b {count}'], Int32[Array, ' b']]:
  """The first `count` numbers of a row, and how many there are in all.

  Args:
    tokens: id base + v is the number v, 0 <= v < size.
    where: to look.
    base: id of 0.
    size: numbers there are.
    count: numbers wanted; those that are missing are 0.
  """
  is_number = where & (tokens >= base) & (tokens < base + size)
  order = jnp.argsort(~is_number, axis=1, stable=True)
  values = jnp.where(is_number, tokens - base, 0)
  values = jnp.take_along_axis(values, order, 1)
  values = jnp.pad(values, ((0, 0), (0, max(0, count - values.shape[1]))))
  return values[:, :count].astype(jnp.int32), is_number.sum(1, dtype=jnp.int32)


def accepts(
  tokens: Int[Array, 'b k'],
  n: Int[Array, ' b'],
  classes: Sequence[Sequence[int]],
  table: Sequence[Sequence[int]],
  accept: Sequence[int],
) -> Bool[Array, ' b']:
  """Does a finite automaton accept tokens[:n]?

  Args:
    tokens: of rows.
    n: ids that are read.
    classes: ids of the classes 1, 2, ...; all other ids are of class 0.
    table: [state][class] -> next state; -1 refuses whatever follows. The first
      state is 0.
    accept: states in which a row may end.
  """
  dead = len(table)
  moves = np.array([*table, [dead] * (len(classes) + 1)], np.int32)
  moves = jnp.asarray(np.where(moves < 0, dead, moves))
  kind = jnp.zeros(tokens.shape, jnp.int32)
  for i, ids in enumerate(classes, 1):
    kind = jnp.where(jnp.isin(tokens, jnp.asarray(ids)), i, kind)

  def read(state, x):
    j, seen = x
    return jnp.where(j < n, moves[state, seen], state), None

  state, _ = jax.lax.scan(
    read, jnp.zeros_like(n), (jnp.arange(tokens.shape[1]), kind.T)
  )
  return jnp.isin(state, jnp.asarray(accept))


def box_iou(
  a: Float[Array, 'b 4'], b: Float[Array, 'b 4']
) -> Float32[Array, ' b']:
  """Intersection over union of boxes (x0, y0, x1, y1); 0 if one is empty.

  A box whose second corner is not below and right of its first is empty.
  """
  area = lambda box: jnp.maximum(box[:, 2:] - box[:, :2], 0.0).prod(1)
  both = jnp.concatenate(
    [jnp.maximum(a[:, :2], b[:, :2]), jnp.minimum(a[:, 2:], b[:, 2:])], 1
  )
  shared = jnp.where((area(a) > 0) & (area(b) > 0), area(both), 0.0)
  return shared / jnp.maximum(area(a) + area(b) - shared, 1e-9)


# --- what rewards of tokens have in common


def check_ids(**ids: int | Sequence[int]) -> None:
  """Refuses ids that cannot be told apart, or are none.

  Raises:
    ConfigError: says which.
  """
  flat = [i for x in ids.values() for i in (x if np.ndim(x) else (x,))]
  named = ', '.join(f'{name}={x}' for name, x in ids.items())
  if not all(isinstance(i, int | np.integer) and i >= 0 for i in flat):
    raise ConfigError(f'{named}: token ids are whole numbers from 0 on')
  if len(set(flat)) < len(flat):
    raise ConfigError(f'{named}: every one of these needs an id of its own')


def check_tags(tags: Sequence[int], end: int) -> None:
  """Refuses tags that are not two, and as `check_ids`."""
  if len(tags) not in (0, 2):
    raise ConfigError(f'tags={tags}: there are two, (begin, close), or none')
  check_ids(end=end, tags=tags)


def completions(inputs: RewardInputs) -> Int[Array, 'b k']:
  """The samples, where they are token ids.

  Raises:
    ConfigError: they are something else.
  """
  media = inputs.text
  shape, dtype = getattr(media, 'shape', None), getattr(media, 'dtype', None)
  if shape is None or len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer):
    raise ConfigError(
      'this reward reads token ids [b k], as policies of tokens give; these '
      f'samples are {dtype} of shape {shape}'
    )
  return media


def answers(inputs: RewardInputs) -> Int[Array, 'b a']:
  """What the prompts say the answer is.

  Raises:
    ConfigError: they do not, or not as rows of ids.
  """
  if 'answer' not in inputs.info:
    raise ConfigError(
      "this reward compares with info['answer'], which these prompts do not "
      f'have (they have {", ".join(sorted(inputs.info)) or "nothing"}); use '
      'prompts with an answer, or another reward'
    )
  answer = inputs.info['answer']
  if answer.ndim != 2 or not jnp.issubdtype(answer.dtype, jnp.integer):
    raise ConfigError(
      f"info['answer'] must be token ids [b a], padded with {NONE}; it is "
      f'{answer.dtype} of shape {answer.shape}'
    )
  return answer


def comparable(answer: Int[Array, 'b a'], end: int) -> Bool[Array, ' b']:
  """Is there an answer, which no end token makes impossible to give?"""
  return (answer[:, 0] >= 0) & ~(answer == end).any(1)


def scorer(
  end: int, verdict: Callable[..., tuple[Array, Array, dict[str, Array]]]
) -> Callable[..., RewardOut]:
  """`Reward.score` of (tokens, n, finished, inputs) -> (score, valid, parts).

  Args:
    end: id of the end token.
    verdict: takes the completions [b k] and their `lengths`.
  """

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del params, key
    tokens = completions(inputs)
    n, finished = lengths(tokens, end)
    value, valid, parts = verdict(tokens, n, finished, inputs)
    parts = {k: jnp.asarray(x, jnp.float32) for k, x in parts.items()}
    return RewardOut(jnp.asarray(value, jnp.float32), parts, valid)

  return score
