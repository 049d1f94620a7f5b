"""Where prompts come from: files, tensorflow-datasets, the worlds.

Every function that a config can name gives a `Prompts`: a fixed, indexable
list of texts with numeric columns (`info`, these go on the device), Python
columns (`extra`, these stay on the host, for rewards scored there) and a task
label per prompt where the source has one. Nothing is shuffled here; see
`pipeline`.
"""

# ruff: noqa: F401  # what is imported here is what configs can name

from gen_rl.data.prompts.datasets import tfds
from gen_rl.data.prompts.files import (
  geneval,
  metadata_jsonl,
  pairs,
  quoted,
  table,
  txt,
)
from gen_rl.data.prompts.mixed import mixed
from gen_rl.data.prompts.source import Prompts
from gen_rl.data.prompts.worlds import (
  mixture,
  shapes,
  shapes_contrasts,
  shapes_placed,
  shapes_questions,
  world_prompts,
)

BUILDS = ('Prompts',)
