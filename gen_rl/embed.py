"""Features of all prompts of a config, before a run: `--mode=embed`.

A run whose prompts are all in `data.embed.cache` never loads the networks that
encode them, which may be larger than what it trains. Every process encodes its
own share; what is in the folder already is left, so that a start that was
stopped goes on.
"""

from collections.abc import Iterator, Sequence

import jax
import ml_collections

from gen_rl import build, evals, schema
from gen_rl.build import ConfigError
from gen_rl.data import feeds, prompts
from gen_rl.utils import progress

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
  mine = texts[jax.process_index() :: jax.process_count()]
  embed.check(mine)
  new = [text for text in mine if not embed.known(text)]
  line = progress.Progress(len(new))
  line.note(
    f'{len(texts):,} different prompts, {len(mine):,} of this process, '
    f'{len(new):,} of them not in {spec.cache}'
  )
  for start in range(0, len(new), AT_A_TIME):
    part = new[start : start + AT_A_TIME]
    embed.rows(part)
    line.update(start + len(part))
  line.close()
  return len(new)


def _texts(config: ml_collections.ConfigDict) -> Iterator[str]:
  """All there are, with repetitions: of no prompt, training, evaluations."""
  negative = config.data.embed.negative
  if negative is not None:
    yield negative
  sources: Sequence[prompts.Prompts] = [
    build.build(prompts, config.data.prompts),
    *map(feeds.evaluation_prompts, evals.configs(config).values()),
  ]
  for source in sources:
    yield from (str(source.texts[i]) for i in range(len(source)))
