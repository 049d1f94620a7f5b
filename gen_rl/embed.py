"""Features of all prompts before anything else: `ahead` of a run, or `fill`.

Text encoders may be larger than what is trained, and are needed for each prompt
once. Where features of all prompts of a run are kept (`data.embed.cache`, or no
more of them than `data.embed.keep`), `ahead` makes them before there is a train
state, and frees the encoders: the two are never on the devices together. What
a folder has already is left, and if it has all, no encoder is loaded. Else
encoders stay beside the training, and `resident` says so to the plan.

`--mode=embed` (`fill`) does that for all prompts of a config, on any machine.
Of several processes everyone encodes a share, and a start that was stopped goes
on where it was.
"""

from collections.abc import Iterable, Iterator, Sequence
import io
from typing import Any

import jax
import ml_collections

from gen_rl import build, checkpoint, evals, schema
from gen_rl.build import ConfigError
from gen_rl.data import embeddings, feeds, prompts
from gen_rl.utils import hosts, progress

AT_A_TIME = 64  # prompts between two lines of progress, at most


def fill(config: ml_collections.ConfigDict) -> int:
  """Encodes what the folder lacks.

  Args:
    config: see configs/base.py.

  Returns:
    How many prompts this process encoded.

  Raises:
    ConfigError: no encoder, or no folder.
    ValueError: a prompt that the encoder does not read.
  """
  schema.check(config)
  spec = config.data.embed
  if not spec.encoder.name:
    raise ConfigError(
      'this config gives its network tokens, not features of prompts: '
      'data.embed.encoder.name is empty, and there is nothing to encode'
    )
  if not spec.cache:
    raise ConfigError(
      '--mode=embed writes features into data.embed.cache; set '
      '--config.data.embed.cache=FOLDER, here and for the run'
    )
  embed = feeds.embed(config)
  texts = list(dict.fromkeys(_texts(config)))
  mine = _share(texts)
  embed.check(mine)
  new = [text for text in mine if not embed.known(text)]
  line = progress.Progress(len(new))
  line.note(
    f'{len(texts):,} different prompts, {len(mine):,} of this process, '
    f'{len(new):,} of them not in {spec.cache}'
  )
  _encode(embed, new, line)
  embed.free()
  return len(new)


def ahead(
  config: ml_collections.ConfigDict, built: Any, workdir: str
) -> list[str]:
  """Encodes what a run is going to need, if all of it is kept; all have to.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`: its source and embed.
    workdir: of the run, which may have taken some of its steps.

  Returns:
    The prompts this process encoded.

  Raises:
    ValueError: a prompt that the encoder does not read.
  """
  embed = built.embed
  if embed is None or embed.networks is None:
    return []
  primary = jax.process_index() == 0
  done = hosts.from_first(
    lambda: max(checkpoint.steps(f'{workdir}/checkpoints'), default=0)
  )
  if done >= config.steps:
    return []
  texts = _kept(embed, _ahead(config, built.source, done))
  stream = None if primary else io.StringIO()
  if texts is None:
    progress.Progress(0, stream=stream).note(
      'text encoders stay on the devices beside the training: it has more '
      f'prompts than data.embed.keep={embed.keep:,}; with '
      '--config.data.embed.cache=FOLDER they are encoded before it'
    )
    return []
  encoded = []
  # A folder may be that of all processes: each its share, then what is lacking.
  for part in (_share(texts), texts) if config.data.embed.cache else (texts,):
    new = [text for text in part if not embed.known(text)]
    line = progress.Progress(len(new), stream=stream)
    if new:
      embed.check(new)
      line.note(f'{len(new):,} prompts are encoded before the training')
    _encode(embed, new, line)
    encoded += new
    hosts.any_process(bool(new))  # waits for all
  embed.free()
  return encoded


def resident(config: ml_collections.ConfigDict, built: Any) -> bool:
  """Whether text encoders are beside the train state, on the devices.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`: its source and embed.
  """
  embed = built.embed
  if embed is None or embed.networks is None or config.data.embed.cache:
    return False
  return _kept(embed, _ahead(config, built.source, 0)) is None


def _encode(
  embed: embeddings.Embed, texts: Sequence[str], line: progress.Progress
) -> None:
  for start in range(0, len(texts), AT_A_TIME):
    part = texts[start : start + AT_A_TIME]
    embed.rows(part)
    line.update(start + len(part))
  line.close()


def _share(texts: Sequence[str]) -> Sequence[str]:
  """What of it is this process's."""
  return texts[jax.process_index() :: jax.process_count()]


def _kept(embed: embeddings.Embed, texts: Iterable[str]) -> list[str] | None:
  """The different ones; None: they are more than are remembered."""
  found = {}
  for text in texts:
    found[text] = None
    if len(found) > embed.keep:
      return None
  return list(found)


def _texts(config: ml_collections.ConfigDict) -> Iterator[str]:
  """All there are, with repetitions: of no prompt, training, evaluations."""
  yield from _of_no_prompt(config)
  trained = build.build(prompts, config.data.prompts)
  sources: Sequence[prompts.Prompts] = [
    trained,
    *map(feeds.evaluation_prompts, evals.configs(config).values()),
  ]
  for source in sources:
    yield from (str(source.texts[i]) for i in range(len(source)))
  for wrong in trained.wrong:
    yield from wrong


def _ahead(
  config: ml_collections.ConfigDict, source: prompts.Prompts, done: int
) -> Iterator[str]:
  """Those of a run after `done` steps, with repetitions."""
  yield from _of_no_prompt(config)
  for c in evals.configs(config).values():
    evaluated = feeds.evaluation_prompts(c)
    for i in feeds.drawn_by_evaluation(c, evaluated):
      yield str(evaluated.texts[i])
  for i in feeds.drawn_by_training(config, source, range(done, config.steps)):
    yield str(source.texts[i])
    yield from source.wrong[i] if source.wrong else ()


def _of_no_prompt(config: ml_collections.ConfigDict) -> list[str]:
  negative = config.data.embed.negative
  return [] if negative is None else [negative]
