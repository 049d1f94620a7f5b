"""Batches of prompts: what networks and rewards are given of them.

Which prompts step n has is a pure function of (seed, n), see `draws`.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
from typing import Any, NamedTuple

from absl import logging
import grain
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.data import draws, embeddings, prompts, tokenizers
from gen_rl.scoring import spelling
from gen_rl.utils import hosts, tasks

Batch = dict[str, Any]
# Of a prompt in a text that a judge reads: what stands there, and as what.
_PLACES = {
  '{prompt}': str, '{cleaned}': tokenizers.cleaned, '{quoted}': spelling.quoted,
}  # fmt: skip


class Reader(NamedTuple):
  """How a judge reads prompts: with a tokenizer and a wording of its own."""

  tokenizer: tokenizers.Tokenizer
  length: int  # tokens of a text, padded on the right
  # {name in info: text with "{prompt}", or "{cleaned}", the prompt as
  # tokenizers.cleaned has it, or "{quoted}", what it has in double quotes}
  texts: Mapping[str, str] = {}
  truncate: bool = False  # cut texts that are longer

  def read(
    self, prompts: Sequence[str], checks: Sequence[Sequence[str]] = ()
  ) -> dict[str, np.ndarray]:
    """{name: int32 [P length]}, and "checks" [P K length] where there are any.

    Raises:
      ValueError: a text is too long, or a template has no place for a prompt.
    """
    encode = functools.partial(
      self.tokenizer.encode, length=self.length, truncate=self.truncate
    )
    out = {}
    for name, text in self.texts.items():
      places = [place for place in _PLACES if place in text]
      if len(places) != 1:
        raise ValueError(
          f'data.reader.texts.{name} is {text!r}; it needs a "{{prompt}}", a '
          '"{cleaned}" or a "{quoted}"'
        )
      (place,) = places
      said = map(_PLACES[place], prompts)
      out[name] = encode([text.replace(place, p) for p in said])
    if checks:
      asked = encode([question for row in checks for question in row])
      out['checks'] = asked.reshape(len(checks), -1, self.length)
    return out


def gather(
  source: prompts.Prompts,
  indices: Sequence[int] | np.ndarray,
  tokenizer: tokenizers.Tokenizer,
  length: int,
  truncate: bool = False,
  answer_length: int = 0,
  reader: 'Reader | None' = None,
  embed: embeddings.Embed | None = None,
  wrong: Sequence[str] = (),
  held: np.ndarray | None = None,
) -> tuple[Batch, list[str]]:
  """The prompts at `indices` as a batch; also what evaluation uses.

  Args:
    source: see `prompts`.
    indices: [P] of its prompts.
    tokenizer: see `tokenizers`.
    length: l, tokens per prompt.
    truncate: cut prompts that are longer.
    answer_length: tokens of an answer, where the source has any.
    reader: what judges read prompts with.
    embed: what makes features of prompts.
    wrong: [P] a text each that is false where the prompt is true; (): none.
    held: [n] places, ascending, of those whose pictures are read and whose
      features are made; None: all.

  Returns:
    ({"tokens": int32 [P length], "prompt_id": int32 [P], "info": {name:
    [P ...]}}, the P texts), with "media" float32 [P h w c] in [0, 1] where
    the source has any, info "task_code" where it has tasks, and info "answer"
    [P answer_length], without an end token and padded with -1, where it has
    answers; with a reader info has what judges read, see `Reader`, and with
    embed there is "cond", {name: [P ...]}. Of false texts, info has tokens and
    features, "wrong_tokens" and "wrong_NAME". Where not all are held, pictures
    and features are `hosts.Held`. Only numeric info is in the
    batch; the rest is found by `source.by_id(prompt_id)`.
  """
  rows = np.asarray(indices)
  at = np.arange(len(rows)) if held is None else held

  def some(x: np.ndarray) -> np.ndarray | hosts.Held:
    return x if len(at) == len(rows) else hosts.Held(x, at, len(rows))

  texts = [str(source.texts[i]) for i in rows]
  # Where features are what a network is given, tokens are only kept.
  tokens = tokenizer.encode(
    [*texts, *wrong], length, truncate=truncate or embed is not None
  )
  batch = {
    'tokens': tokens[: len(rows)],
    'prompt_id': source.ids[rows].astype(np.int32),
    'info': {name: column[rows] for name, column in source.info.items()},
  }
  if wrong:
    batch['info']['wrong_tokens'] = tokens[len(rows) :]
  if len(source.tasks):
    codes = [tasks.task_code(str(source.tasks[i])) for i in rows]
    batch['info'][tasks.TASK] = np.array(codes, np.int32)
  if source.answers:
    said = [source.answers[i] for i in rows]
    batch['info']['answer'] = tokenizers.encode_answers(
      tokenizer, said, answer_length
    )
  if reader is not None:
    batch['info'] |= reader.read(
      texts, [source.checks[i] for i in rows] if source.checks else ()
    )
  if embed is not None:
    false = [wrong[i] for i in at] if wrong else []
    found = embed.rows([*(texts[i] for i in at), *false])
    batch['cond'] = {name: some(x[: len(at)]) for name, x in found.items()}
    if wrong:
      batch['info'] |= {
        f'wrong_{name}': some(x[len(at) :])
        for name, x in found.items()
        if not name.startswith('null_')
      }
  if source.media is not None:
    # Of none the first one says what they are like.
    batch['media'] = some(source.media[rows[at] if len(at) else rows[:1]])
  return batch, texts


class PromptBatches:
  """Endless iterator of (batch, texts) whose position can be saved."""

  def __init__(
    self,
    steps: grain.MapDataset,
    identity: Mapping[str, Any],
    threads: int = 0,
  ):
    self._identity = dict(identity)
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=2 * threads
    )
    self._iterator = iter(steps.to_iter_dataset(options))

  def __iter__(self) -> 'PromptBatches':
    return self

  def __next__(self) -> tuple[Batch, list[str]]:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """JSON-able: the next step, and what the stream was made of."""
    step = self._iterator.get_state()['next_index']
    return {**self._identity, 'next_step': int(step)}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues where `get_state` was taken; any number of shards may.

    Raises:
      ValueError: the stream differs from the saved one, naming the fields.
    """
    changes = [
      f'{name} was {state.get(name)!r} and is now {value!r}'
      for name, value in self._identity.items()
      if state.get(name) != value
    ]
    if changes or 'next_step' not in state:
      raise ValueError(
        'the prompt stream cannot continue from this checkpoint: '
        + ('; '.join(changes) or 'it holds no next_step')
      )
    self._iterator.set_state({'next_index': int(state['next_step'])})


def _all_texts(source: prompts.Prompts, limit: int = 20_000) -> list[str]:
  """The first of a source in memory, and texts that are false of them."""
  wrong = (text for row in source.wrong[:limit] for text in row)
  return [*source.texts[:limit], *itertools.islice(wrong, limit)]


def _check_texts(
  source: prompts.Prompts,
  tokenizer: tokenizers.Tokenizer,
  length: int,
  truncate: bool,
) -> None:
  """Fails now, not at step 500, on long prompts; reports unknown words once.

  Looks at the first prompts of a source in memory. A file of any words
  is taken as it stands; of a world's prompts that are nearly all unknown, the
  tokenizer is that of another one.
  """
  if not isinstance(source.texts, tuple):
    return
  texts = _all_texts(source)
  tokens = tokenizer.encode(texts, length, truncate=truncate)
  if (tokens == tokenizer.unk_id).any():
    unknown = tokenizer.unknown(texts)
    words = (tokens != tokenizer.pad_id).sum()
    none = (tokens == tokenizer.unk_id).sum() > 0.9 * words
    if none and not source.as_listed:
      most = ', '.join(word for word, _ in unknown.most_common(5))
      raise ConfigError(
        f'the tokenizer knows next to none of the words of {source.name} '
        f'({most}, ...): it is that of other prompts'
      )
    logging.warning(
      '%d words of %s (%d different) are not in the vocabulary and become'
      ' "unknown"%s: %s',
      unknown.total(),
      source.name,
      len(unknown),
      ', nearly all there are' if none else '',
      ', '.join(f'{w} ({n})' for w, n in unknown.most_common(8)),
    )


def prompt_batches(
  source: prompts.Prompts,
  prompts_per_step: int,
  seed: int,
  tokenizer: tokenizers.Tokenizer,
  length: int,
  *,
  weights: Mapping[str, float] | None = None,
  balance: bool = False,
  group_size: int = 1,
  truncate: bool = False,
  answer_length: int = 0,
  reader: Reader | None = None,
  embed: embeddings.Embed | None = None,
  held: np.ndarray | None = None,
) -> PromptBatches:
  """Endless deterministic stream of prompt batches.

  Args:
    source: see `prompts`.
    prompts_per_step: P, the same ones in all processes.
    seed: non-negative.
    tokenizer: see `tokenizers`.
    length: l, tokens per prompt.
    weights: relative frequency by task label; tasks left out are not drawn.
    balance: all tasks equally often (when `weights` is not given), but for
      sources that have a mixture of their own (`Prompts.weights`, `as_listed`).
    group_size: G, samples per prompt. Only recorded, so that a checkpoint is
      not continued with another.
    truncate: cut prompts that are longer than `length` tokens.
    answer_length: tokens of an answer, where the source has any.
    reader: what judges read prompts with.
    embed: what makes features of prompts.
    held: see `gather`.

  Returns:
    Iterator of what `gather` returns. If the source has fewer than P prompts
    some come twice in a step; as sampling keys follow from (step, prompt,
    member) those groups are copies of each other.

  Raises:
    ValueError: sizes that do not fit, unknown tasks, a prompt that is too
      long.
  """
  if prompts_per_step < 1 or length < 1 or seed < 0:
    raise ValueError(
      'prompts_per_step and length must be positive and seed non-negative,'
      f' got {prompts_per_step}, {length} and {seed}'
    )
  weights = draws.task_weights(source, weights, balance)
  if embed is None:
    _check_texts(source, tokenizer, length, truncate)
  elif isinstance(source.texts, tuple):
    embed.check(_all_texts(source))
  if source.answers:
    tokenizers.encode_answers(tokenizer, source.answers, answer_length)
  if weights is None:
    available = len(source)
  else:
    available = sum(weights[task] > 0 for task in source.tasks)
  if available < prompts_per_step:
    logging.warning(
      'only %d prompts for %d prompts per step: some are repeated within a'
      ' step, as copies',
      available,
      prompts_per_step,
    )
  plan = draws.plan(source, prompts_per_step, weights)

  def at(step: int):
    indices = draws.indices(plan, seed, step)
    wrong = [source.wrong[i] for i in indices] if source.wrong else []
    chosen = draws.alternatives(
      [len(texts) for texts in wrong], source.ids[indices][: len(wrong)],
      seed, step,
    )  # fmt: skip
    return gather(
      source, indices, tokenizer, length, truncate, answer_length, reader,
      embed, [texts[k] for texts, k in zip(wrong, chosen, strict=True)], held,
    )  # fmt: skip

  identity = {
    'prompts_per_step': prompts_per_step,
    'group_size': group_size,
    'seed': seed,
    'length': length,
    'weights': weights,
    'source': source.fingerprint,
  } | ({'embed': embed.identity} if embed else {})
  # For prompts in memory threads would only fight for the interpreter. Programs
  # of several devices, which encoders are, are started by one thread: of two,
  # each might wait for a device that the other one has.
  threads = 0 if isinstance(source.texts, tuple) or embed is not None else 2
  steps = grain.MapDataset.range(2**62).map(at)
  return PromptBatches(steps, identity, threads)
