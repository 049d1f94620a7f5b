r"""Rules: verifiable rewards of what a token policy wrote.

A completion is a row of token ids [k], its end token included, whatever stands
behind it; its length n is the number of ids before the end token. A row with
no end token within k is truncated: n = k. The answer of a row is
`info['answer']` [b a] int32, ids without an end token, padded with -1; m of
them count. Content is the whole completion or, with `tags=(begin, close)`, what
stands between the first `begin` and the first `close` behind it.

  (1) exact_match    1 if the completion is the answer and then ends
  (2) tagged_answer  1 if the content is the answer
  (3) tag_format     1 if the completion is open x* close, ..., and then ends;
      format_automaton  the same of any regular template
  (4) choice_accuracy  1 if the first choice named is the answer
  (5) iou            |A and B| / |A or B| of the box that four numbers are
  (6) count_error    max(0, 1 - |c - c'| / max(c', 1)), c the first number, c'
                     the answer

(1) alone, or (2) with (3), are the rewards of CLS-RL (arXiv 2503.16188).
Lengths have rewards of their own in `completion_length`.

What cannot be read is a wrong answer, 0: a rule is exact, and a policy that
writes nonsense is to learn of it. A row whose prompt has no answer, or one that
is not of the kind the rule compares with, is not valid.

Ids are those of the policy's vocabulary: of a word,
`tokenizer.encode([word], 1)[0, 0]`. Everything is jittable.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.fields import Count, Fraction
from gen_rl.rewards import token_rows
from gen_rl.types import Reward

# --- answers


def exact_match(end: int) -> Reward:
  """Equation (1). Part: `finished`, is there an end token?

  Args:
    end: id of the end token.

  Raises:
    ConfigError: an id that cannot be; when scored, prompts without an answer,
      or samples that are no tokens.
  """
  token_rows.check_ids(end=end)

  def verdict(tokens, n, finished, inputs):
    answer = token_rows.answers(inputs)
    right = token_rows.matches(tokens, jnp.zeros_like(n), n, answer) & finished
    return right, token_rows.comparable(answer, end), dict(finished=finished)

  return Reward(
    'exact_match', (), token_rows.scorer(end, verdict), verdict=True
  )


def tagged_answer(
  begin: int, close: int, end: int, whole: bool = False
) -> Reward:
  """Equation (2); the completion need not end. Part: `tagged`, are both there?

  Args:
    begin: id of the tag before the answer.
    close: id of the tag behind it.
    end: id of the end token.
    whole: compare the whole completion where there are no tags, as CLS-RL
      does.

  Raises:
    ConfigError: as `exact_match`.
  """
  token_rows.check_ids(begin=begin, close=close, end=end)

  def verdict(tokens, n, finished, inputs):
    del finished
    answer = token_rows.answers(inputs)
    start, stop, tagged = token_rows.span(tokens, n, (begin, close))
    right = token_rows.matches(tokens, start, stop, answer) & tagged
    if whole:
      right |= (
        token_rows.matches(tokens, jnp.zeros_like(n), n, answer) & ~tagged
      )
    return right, token_rows.comparable(answer, end), dict(tagged=tagged)

  return Reward(
    'tagged_answer', (), token_rows.scorer(end, verdict), verdict=True
  )


def choice_accuracy(
  choices: Sequence[int], end: int, tags: Sequence[int] = ()
) -> Reward:
  """Equation (4). Part: `named`, is there a choice at all?

  Tested, not measured.

  Args:
    choices: ids of the choices, one of which is the answer's only token.
    end: id of the end token.
    tags: (begin, close) of the content; () is all of the completion.

  Raises:
    ConfigError: as `exact_match`.
  """
  token_rows.check_tags(tags, end)
  token_rows.check_ids(end=end, choices=choices)

  def verdict(tokens, n, finished, inputs):
    del finished
    answer = token_rows.answers(inputs)
    is_choice = token_rows.inside(tokens, n, tags) & jnp.isin(
      tokens, jnp.asarray(choices)
    )
    first = jnp.argmax(is_choice, 1, keepdims=True)
    chosen = jnp.take_along_axis(tokens, first, 1)[:, 0]
    named = is_choice.any(1)
    possible = jnp.isin(answer[:, 0], jnp.asarray(choices))
    only = token_rows.sizes(answer) == 1
    right = named & (chosen == answer[:, 0])
    return right, possible & only, dict(named=named)

  return Reward(
    'choice_accuracy', (), token_rows.scorer(end, verdict), verdict=True
  )


def _number_tokens(base: int, size: int, end: int, tags: Sequence[int]) -> None:
  token_rows.check_tags(tags, end)
  token_rows.check_ids(base=base)
  if size < 1:
    raise ConfigError(f'size={size}: there is at least one number')
  taken = [i for i in (end, *tags) if base <= i < base + size]
  if taken:
    raise ConfigError(
      f'the id {taken[0]} is a number (base={base}, size={size}); end and tags '
      'need other ids'
    )


def iou(
  base: int,
  size: Count,
  end: int,
  tags: Sequence[int] = (),
  threshold: Fraction = 0.0,
) -> Reward:
  """Equation (5), of boxes written as x0 y0 x1 y1.

  A box is the content's numbers, whatever else stands between them, if there
  are four; the answer's likewise. Part: `parsed`, are there four?

  Tested, not measured.

  Args:
    base: id of the number 0.
    size: numbers 0 .. size - 1 have the ids from `base` on.
    end: id of the end token.
    tags: (begin, close) of the content; () is all of the completion.
    threshold: above 0, the score is 1 from this overlap on, else 0.

  Raises:
    ConfigError: as `exact_match`; numbers that are other tokens' ids.
  """
  _number_tokens(base, size, end, tags)
  if not 0 <= threshold <= 1:
    raise ConfigError(f'threshold={threshold}: an overlap is in [0, 1]')

  def verdict(tokens, n, finished, inputs):
    del finished
    answer = token_rows.answers(inputs)
    box, found = token_rows.numbers(
      tokens, token_rows.inside(tokens, n, tags), base, size, 4
    )
    true, given = token_rows.numbers(answer, answer >= 0, base, size, 4)
    box, true = box.astype(jnp.float32), true.astype(jnp.float32)
    overlap = jnp.where(found == 4, token_rows.box_iou(box, true), 0.0)
    real = (given == 4) & (true[:, 2:] > true[:, :2]).all(1)
    value = overlap >= threshold if threshold else overlap
    return value, real, dict(parsed=found == 4)

  return Reward('iou', (), token_rows.scorer(end, verdict))


def count_error(
  base: int, size: Count, end: int, tags: Sequence[int] = ()
) -> Reward:
  """Equation (6), c the content's first number.

  Parts: `parsed`, is there a number? `exact`, is it the right one?

  Tested, not measured.

  Args:
    base: id of the number 0.
    size: numbers 0 .. size - 1 have the ids from `base` on.
    end: id of the end token.
    tags: (begin, close) of the content; () is all of the completion.

  Raises:
    ConfigError: as `iou`.
  """
  _number_tokens(base, size, end, tags)

  def verdict(tokens, n, finished, inputs):
    del finished
    answer = token_rows.answers(inputs)
    said, found = token_rows.numbers(
      tokens, token_rows.inside(tokens, n, tags), base, size, 1
    )
    true, given = token_rows.numbers(answer, answer >= 0, base, size, 1)
    said, true, parsed = said[:, 0], true[:, 0], found > 0
    value = 1.0 - jnp.abs(said - true) / jnp.maximum(true, 1)
    value = jnp.where(parsed, jnp.maximum(value, 0.0), 0.0)
    exact = parsed & (said == true)
    return value, given > 0, dict(parsed=parsed, exact=exact)

  return Reward('count_error', (), token_rows.scorer(end, verdict))


# --- templates


def tag_format(tags: Sequence[int], end: int) -> Reward:
  """Equation (3): all tags, once each, in order, and text within pairs only.

  Args:
    tags: ids (open, close, open, close, ...), such as those of a thought and of
      an answer. Between a pair there is any number of other tokens, none
      included; between pairs, before and behind them there is none.
    end: id of the end token, which follows the last tag.

  Raises:
    ConfigError: an odd number of tags; as `exact_match`.
  """
  if not tags or len(tags) % 2:
    raise ConfigError(f'tags={tags}: they come in pairs, (open, close, ...)')
  n = len(tags)
  table = [[-1] * (n + 1) for _ in range(n + 1)]
  for j in range(n):
    table[j][j + 1] = j + 1
    if j % 2:
      table[j][0] = j
  rule = format_automaton([[i] for i in tags], table, [n], end)
  return rule._replace(name='tag_format')


def format_automaton(
  classes: Sequence[Sequence[int]],
  table: Sequence[Sequence[int]],
  accept: Sequence[int],
  end: int,
) -> Reward:
  """Equation (3) for a template that a finite automaton knows.

  Tested, not measured.

  Args:
    classes: ids of the classes 1, 2, ... of tokens; all others are of class 0.
    table: [state][class] -> next state, of as many columns as there are
      classes, and one for class 0; -1 refuses whatever follows. It starts in
      state 0.
    accept: states in which the end token may follow.
    end: id of the end token.

  Raises:
    ConfigError: a table that does not fit; as `exact_match`.
  """
  token_rows.check_ids(end=end, classes=[i for ids in classes for i in ids])
  width, states = len(classes) + 1, len(table)
  if not table or any(len(row) != width for row in table):
    raise ConfigError(
      f'the table has rows of {sorted({len(row) for row in table})} columns; '
      f'{len(classes)} classes of tokens, and the others, make {width}'
    )
  found = {state for row in table for state in row}
  if not found <= set(range(-1, states)) or not set(accept) <= set(
    range(states)
  ):
    raise ConfigError(
      f'the states are 0 .. {states - 1} (-1: refuse), one for every row of '
      f'the table; it moves to {sorted(found)} and accepts {sorted(accept)}'
    )

  def verdict(tokens, n, finished, inputs):
    del inputs
    right = token_rows.accepts(tokens, n, classes, table, accept) & finished
    return right, jnp.ones(right.shape, bool), dict(finished=finished)

  return Reward('format_automaton', (), token_rows.scorer(end, verdict))
