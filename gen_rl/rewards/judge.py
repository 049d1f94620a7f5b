r"""Frozen vision-language models as judges, inside the jitted step.

A judge is a network of `models` that reads a picture x and text (`models.vlm`)
and has weights. What it would say is read from its next-token probabilities; it
is never sampled, so that scores have no chance in them and, but for `hard`
ones, a gradient in the pixels. With q a query, y a text and Y, N and B sets of
words,

  echo             1/m sum_j log p(y_j | x, q, y_<j)                     (1)
                   PromptEcho (arXiv 2604.12652): y is the prompt
  yes_probability  p(Y | x, q) / (p(Y | x, q) + p(N | x, q))             (2)
                   RewardDance (arXiv 2509.08826), restricted to two words
  expected_score   sum_{w in B} s_w p(w | x, q) / sum_{w in B} p(w | x, q)
                   Z-Reward (arXiv 2606.09076)                           (3)
  checklist        the mean of (2) over the questions of a prompt        (4)
  judged_win_rate  the share of the others of its group that a picture
                   beats, where of two pictures side by side
                   p(first | x x', q) / (p(first | .) + p(second | .))   (5)
                   says how far x is the better one (Pref-GRPO,
                   arXiv 2508.20751), asked both ways round

(2) to (5) read the first token only. Where the words it is to be one of have
less than `least` of the probability, the judge is about to say something else:
that is no judgement, and the row is not valid (never a 0).

Prompts are read with the tokenizer of the judge, `data.reader` of a config, and
written into its templates: data.reader.texts.caption='{prompt}' makes the
column `caption` that (1) reads, '{quoted}' the word in quotes, for a query that
asks what is written. Means over tokens weigh grammar as much as content; within
a group only the pictures differ, and what no picture changes cancels in a
group's mean.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import build
from gen_rl.build import ConfigError
from gen_rl.data.tokenizers import Tokenizer
from gen_rl.fields import Fraction, NonNegative, RowsOrAll
from gen_rl.rewards import answers, pairwise, pixels
from gen_rl.types import Array, Params, Reward, RewardInputs, RewardOut
from gen_rl.utils import rng

DESCRIBE = 'describe the picture .'
_TINY = 1e-30


def _pictures(inputs: RewardInputs) -> tuple[Array, Array]:
  """(pictures that are finite, which were)."""
  media = pixels.shown(inputs)
  finite = jnp.isfinite(media).all((1, 2, 3))
  return jnp.where(finite[:, None, None, None], media, 0.0), finite


def _column(inputs: RewardInputs, name: str) -> Array:
  if name not in inputs.info:
    raise ConfigError(
      f'the judge is to read {name!r} and these prompts have none: say what it '
      f'is, such as data.reader.texts.{name}="{{prompt}}"; there are '
      f'{", ".join(sorted(inputs.info))}'
    )
  return inputs.info[name]


def _asked(judge: answers.Judge, question: str, column: str) -> Callable:
  """RewardInputs -> queries [b l]: of a column, or the same for all."""
  if question:
    ids = judge.query(question)
    return lambda inputs: jnp.broadcast_to(
      ids, (len(inputs.image), ids.shape[1])
    )
  return lambda inputs: _column(inputs, column)


def _reward(name: str, judge: answers.Judge, score: Callable, **kwargs: Any):
  """A Reward with the judge's weights, split as its network says."""
  return Reward(name, judge.params, score, axes=judge.net.axes, **kwargs)


def echo(
  reader: Tokenizer | None,
  model: build.Spec,
  weights: str = 'asset:shapes_vlm',
  query: str = DESCRIBE,
  text: str = 'caption',
  reduce: Literal['mean', 'sum'] = 'mean',
) -> Reward:
  """How likely the judge is to say the prompt of the picture, equation (1).

  Part: `worst`, the log-probability of the least likely token.

  Args:
    reader: bound, the tokenizer of config.data.reader.
    model: spec of the judge.
    weights: of the judge.
    query: q.
    text: column of info that is y, padded on the right.
    reduce: mean over tokens, or their sum.

  Raises:
    ConfigError: as `load`; when scored, pictures or a column that are missing.
  """
  judge = answers.load(reader, model, weights)
  ids = judge.query(query)
  if reduce not in ('mean', 'sum'):
    raise ConfigError(f"echo: reduce is {reduce!r}; it is 'mean' or 'sum'")

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    image, finite = _pictures(inputs)
    answer = _column(inputs, text)
    queries = jnp.broadcast_to(ids, (len(answer), ids.shape[1]))
    log_prob = answers.log_probs(judge, params, image, queries, answer)
    said = (answer != judge.reader.pad_id).sum(1)
    total = log_prob.sum(1)
    if reduce == 'mean':
      total = total / jnp.maximum(said, 1)
    return RewardOut(total, dict(worst=log_prob.min(1)), finite & (said > 0))

  return _reward('echo', judge, score, differentiable=True)


def yes_probability(
  reader: Tokenizer | None,
  model: build.Spec,
  weights: str = 'asset:shapes_vlm',
  question: str = '',
  column: str = 'question',
  yes: Sequence[str] = ('yes',),
  no: Sequence[str] = ('no',),
  odds: bool = False,
  least: Fraction = 0.1,
) -> Reward:
  """The probability of a yes, equation (2). Part: `mass`, of yes and no.

  Tested, not measured.

  Args:
    reader: bound, the tokenizer of config.data.reader.
    model: spec of the judge.
    weights: of the judge.
    question: asked of every picture; '': that of the row.
    column: of info that holds it.
    yes: words that mean yes.
    no: words that mean no.
    odds: the score is log p(Y) - log p(N), which does not saturate.
    least: smallest mass of a judgement.

  Raises:
    ConfigError: as `load`; a word that is no token; when scored, pictures or a
      column that are missing.
  """
  judge = answers.load(reader, model, weights)
  sets = judge.words(yes), judge.words(no)
  asked = _asked(judge, question, column)

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    image, finite = _pictures(inputs)
    probs, mass = answers.word_probs(judge, params, image, asked(inputs), sets)
    value = probs[:, 0]
    if odds:
      value = jnp.log(value + _TINY) - jnp.log(probs[:, 1] + _TINY)
    return RewardOut(value, dict(mass=mass), finite & (mass >= least))

  return _reward('yes_probability', judge, score, differentiable=True)


def expected_score(
  reader: Tokenizer | None,
  model: build.Spec,
  words: Sequence[str],
  values: Sequence[float] = (),
  weights: str = 'asset:shapes_vlm',
  question: str = '',
  column: str = 'question',
  least: Fraction = 0.1,
) -> Reward:
  """The mean of a distribution over scores, equation (3).

  Parts: `mass`, of the words; `spread`, the standard deviation of the scores.

  Tested, not measured.

  Args:
    reader: bound, the tokenizer of config.data.reader.
    model: spec of the judge.
    words: B, what the judge says for each score.
    values: s, by default 1, 2, ....
    weights: of the judge.
    question: asked of every picture; '': that of the row.
    column: of info that holds it.
    least: smallest mass of a judgement.

  Raises:
    ConfigError: as `yes_probability`; as many values as words are needed.
  """
  judge = answers.load(reader, model, weights)
  values = tuple(values) or tuple(range(1, len(words) + 1))
  if len(values) != len(words) or len(words) < 2:
    raise ConfigError(
      f'expected_score has {len(words)} words and {len(values)} values; it '
      'needs two scores or more, a value for each word'
    )
  scale = np.array(values, np.float32)
  sets = judge.words(words)[:, None]
  asked = _asked(judge, question, column)

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    image, finite = _pictures(inputs)
    probs, mass = answers.word_probs(judge, params, image, asked(inputs), sets)
    mean = probs @ scale
    away = jnp.square(scale - mean[:, None])
    spread = jnp.sqrt(jax.lax.stop_gradient((probs * away).sum(-1)))
    return RewardOut(
      mean, dict(mass=mass, spread=spread), finite & (mass >= least)
    )

  return _reward('expected_score', judge, score, differentiable=True)


def checklist(
  reader: Tokenizer | None,
  model: build.Spec,
  weights: str = 'asset:shapes_vlm',
  yes: Sequence[str] = ('yes',),
  no: Sequence[str] = ('no',),
  hard: bool = False,
  least: Fraction = 0.1,
) -> Reward:
  """The share of a prompt's questions that are answered by yes, equation (4).

  The questions are those of the prompts (`Prompts.checks`). A prompt without
  any, or with one that is not judged, is not valid. Parts: `all`, the product
  over the questions; `questions`, their number.

  Args:
    reader: bound, the tokenizer of config.data.reader.
    model: spec of the judge.
    weights: of the judge.
    yes: words that mean yes.
    no: words that mean no.
    hard: a question counts 0 or 1, which has no gradient.
    least: smallest mass of a judgement.

  Raises:
    ConfigError: as `yes_probability`.
  """
  judge = answers.load(reader, model, weights)
  sets = judge.words(yes), judge.words(no)

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    image, finite = _pictures(inputs)
    checks = _column(inputs, 'checks')
    b, n, _ = checks.shape
    probs, mass = answers.word_probs(
      judge, params, jnp.repeat(image, n, 0), checks.reshape(b * n, -1), sets
    )
    met = probs[:, 0].reshape(b, n)
    if hard:
      met = (met > 0.5).astype(jnp.float32)
    there = (checks != judge.reader.pad_id).any(-1)
    count = there.sum(1)
    readable = (mass.reshape(b, n) >= least) | ~there
    return RewardOut(
      jnp.where(there, met, 0.0).sum(1) / jnp.maximum(count, 1),
      dict(
        all=jnp.where(there, met, 1.0).prod(1),
        questions=count.astype(jnp.float32),
      ),
      finite & readable.all(1) & (count > 0),
    )

  return _reward('checklist', judge, score, differentiable=not hard)


def judged_win_rate(
  reader: Tokenizer | None,
  model: build.Spec,
  weights: str,
  first: str,
  second: str,
  question: str = '',
  column: str = 'question',
  tie: NonNegative = 0.0,
  soft: bool = False,
  chunk: RowsOrAll = 0,
  least: Fraction = 0.1,
) -> Reward:
  """Win rate in [0, 1] of a row in its group, equation (5).

  The judge sees two pictures side by side as one, twice as wide. Parts: `ties`,
  the share of comparisons that were none; `opponents`, how many there were.

  Tested, not measured.

  Args:
    reader: bound, the tokenizer of config.data.reader.
    model: spec of the judge; its pictures have twice the width.
    weights: of the judge.
    first: word that says that the left one is better.
    second: word that says that the right one is better.
    question: asked of every pair; '': that of the row.
    column: of info that holds it.
    tie: a probability closer to 1/2 than half of this is a tie.
    soft: count the probability in place of a verdict.
    chunk: pairs of a group that are judged at a time; 0: all.
    least: smallest mass of a judgement.

  Raises:
    ConfigError: as `yes_probability`; when scored, groups of one.
  """
  judge = answers.load(reader, model, weights)
  sets = judge.words(first), judge.words(second)
  asked = _asked(judge, question, column)

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    size = int(inputs.group_size)
    if size < 2:
      raise ConfigError(
        'a win rate compares the samples of a prompt: data.group_size and '
        'eval.samples must be at least 2'
      )
    image, finite = _pictures(inputs)

    def compare(left, right, keys):
      del keys
      both = jnp.concatenate([left['image'], right['image']], 2)
      probs, mass = answers.word_probs(judge, params, both, left['query'], sets)
      readable = (mass >= least) & left['finite'] & right['finite']
      return jnp.where(readable, probs[:, 0], jnp.nan)

    items = dict(image=image, query=asked(inputs), finite=finite)
    items = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), items)
    keys = rng.stream_keys(rng.per_row(key, len(image)), 'judge')
    wins = pairwise.pairwise_matrix(
      compare, items, keys.reshape(-1, size), swap=True, chunk=chunk
    )
    seen = jnp.isfinite(wins)
    verdict = pairwise.score_judge(tie / 2)(wins, 0.5 * jnp.ones_like(wins), ())
    ties, opponents = pairwise.pairwise_win_rate(
      jnp.where(seen, (verdict == 0.5) * 1.0, jnp.nan)
    )
    rate, _ = pairwise.pairwise_win_rate(wins if soft else verdict)
    opponents = opponents.reshape(-1)
    return RewardOut(
      rate.reshape(-1),
      dict(ties=ties.reshape(-1), opponents=opponents),
      finite & (opponents > 0),
    )

  return _reward(
    'judged_win_rate', judge, score, differentiable=soft, called_on='groups'
  )
