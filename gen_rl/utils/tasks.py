"""Tasks of prompts as numbers, which programs can compare."""

import zlib

# Where the batches of prompts have them, beside what a prompt asks for.
TASK = 'task_code'


def task_code(name: str) -> int:
  """A number of 31 bits that follows from the name of a task alone."""
  return zlib.crc32(name.encode()) >> 1
