"""From a config to the batches of prompts it names."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import ml_collections
import numpy as np

from gen_rl import build
from gen_rl.data import (
  draws,
  embeddings,
  pipeline,
  prompts,
  text_features,
  tokenizers,
)


def reader(config: ml_collections.ConfigDict) -> pipeline.Reader | None:
  """What judges read prompts with, `config.data.reader`; None: nothing."""
  spec = config.data.reader
  if not spec.tokenizer.name:
    return None
  return pipeline.Reader(
    build.build(tokenizers, spec.tokenizer),
    spec.length,
    spec.texts.to_dict(),
    spec.get('truncate', False),
  )


def embed(config: ml_collections.ConfigDict) -> embeddings.Embed | None:
  """Prompts as networks are given them, `config.data.embed`; None: tokens."""
  spec = config.data.embed
  if not spec.encoder.name:
    return None
  encoder = build.build(
    text_features, spec.encoder, truncate=config.data.truncate
  )
  return embeddings.cached(encoder, spec.negative, spec.cache, spec.keep)


def _mixture(
  config: ml_collections.ConfigDict, source: prompts.Prompts
) -> dict[str, Any]:
  """How often its tasks are trained on, as `pipeline` and `draws` are told."""
  return dict(
    weights=config.data.weights.to_dict(),
    balance=config.data.balance and bool(source.tasks),
  )


def training(
  config: ml_collections.ConfigDict,
  built: Any,
  held: np.ndarray | None = None,
) -> pipeline.PromptBatches:
  """The batches of prompts a run trains on, from the first one.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`: its source, tokenizer, reader and embed.
    held: places in a step whose pictures and features are wanted, see
      `pipeline.gather`.
  """
  return pipeline.prompt_batches(
    built.source,
    config.data.prompts_per_step,
    config.seed,
    built.tokenizer,
    config.data.length,
    **_mixture(config, built.source),
    group_size=config.data.group_size,
    truncate=config.data.truncate,
    answer_length=config.data.answer_length,
    reader=built.reader,
    embed=built.embed,
    held=held,
  )


def drawn_by_training(
  config: ml_collections.ConfigDict, source: prompts.Prompts, steps: range
) -> Iterator[int]:
  """Indices into the source, each once, of what these steps train on."""
  return draws.every(
    source,
    config.data.prompts_per_step,
    config.seed,
    steps,
    **_mixture(config, source),
  )


def alone(
  config: ml_collections.ConfigDict,
  built: Any,
  text: str,
  asked: Mapping[str, np.ndarray],
  judged: bool,
) -> pipeline.Batch:
  """The batch of a prompt that is of no source.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`: its tokenizer, reader and embed.
    text: the prompt.
    asked: what it asks for, {name: [...]}, for rewards that have to know.
    judged: rewards are to read it.

  Raises:
    ValueError: the prompt is too long.
  """
  info = {name: x[None] for name, x in asked.items()}
  source = prompts.Prompts(repr(text), (text,), np.zeros(1, np.int32), info)
  if built.embed is not None:
    built.embed.check([text])
  batch, _ = pipeline.gather(
    source,
    [0],
    built.tokenizer,
    config.data.length,
    config.data.truncate,
    reader=built.reader if judged else None,
    embed=built.embed,
  )
  release(built)
  return batch


def release(built: Any) -> None:
  """No prompt is left to encode: frees the devices of text encoders."""
  if built.embed is not None:
    built.embed.free()


def evaluation_prompts(config: ml_collections.ConfigDict) -> prompts.Prompts:
  """`eval.prompts`, on top of `data.prompts` where both are of one source."""
  spec = config.eval.prompts.to_dict()
  if spec.get('name', config.data.prompts.name) == config.data.prompts.name:
    spec = config.data.prompts.to_dict() | spec
  return build.build(prompts, spec)


def trained_on(
  config: ml_collections.ConfigDict, source: prompts.Prompts
) -> float | None:
  """Share of the evaluation's prompts that training draws as well.

  Two prompts are one if their texts, the columns that both sources have and
  their pictures are the same.

  Args:
    config: see configs/base.py.
    source: what training draws.

  Returns:
    0 where all are held out; None where a source is not held in memory.
  """
  evaluated = evaluation_prompts(config)
  if not all(isinstance(s.texts, tuple) for s in (source, evaluated)):
    return None
  common = set(source.texts) & set(evaluated.texts)
  columns = sorted(set(source.info) & set(evaluated.info))
  pictured = source.media is not None and evaluated.media is not None

  def named(of: prompts.Prompts) -> list[tuple]:
    return [
      (text, *(np.asarray(of.info[name][i]).tobytes() for name in columns))
      + ((np.asarray(of.media[i]).tobytes(),) if pictured else ())
      for i, text in enumerate(of.texts)
      if text in common
    ]

  trained = set(named(source))
  both = sum(prompt in trained for prompt in named(evaluated))
  return both / len(evaluated.texts)


def drawn_by_evaluation(
  config: ml_collections.ConfigDict, source: prompts.Prompts
) -> Iterator[int]:
  """Indices into its source, each once, of what `config.eval` evaluates on."""
  return draws.every(
    source, config.eval.num_prompts, 0, range(1), balance=bool(source.tasks)
  )


def evaluation(
  config: ml_collections.ConfigDict, built: Any
) -> tuple[pipeline.Batch, list[str], list[str]]:
  """The batch of evaluation prompts, its texts, its tasks or [].

  See `evaluation_and_asked`.
  """
  return evaluation_and_asked(config, built)[:3]


def evaluation_and_asked(
  config: ml_collections.ConfigDict, built: Any
) -> tuple[pipeline.Batch, list[str], list[str], dict[str, Any]]:
  """The batch of evaluation prompts, its texts, its tasks or [], `asked`.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`: its tokenizer, reader and embed.

  Returns:
    The last is what rewards on the host read of the rows, see `Prompts.asked`.
  """
  source = evaluation_prompts(config)
  batches = pipeline.prompt_batches(
    dataclasses.replace(source, wrong=()),  # nothing evaluated asks for them
    config.eval.num_prompts,
    seed=0,
    tokenizer=built.tokenizer,
    length=config.data.length,
    balance=bool(source.tasks),
    truncate=config.data.truncate,
    answer_length=config.data.answer_length,
    reader=built.reader,
    embed=built.embed,
  )
  batch, texts = next(batches)
  tasks = []
  if source.tasks:
    task_of = dict(zip(source.texts, source.tasks, strict=True))
    tasks = [task_of[text] for text in texts]
  asked = source.asked(batch['prompt_id'], config.eval.samples)
  # A source with few prompts repeats some: each place is its own prompt here.
  batch['source_id'] = batch['prompt_id']
  batch['prompt_id'] = np.arange(len(texts), dtype=np.int32)
  return batch, texts, tasks, asked
