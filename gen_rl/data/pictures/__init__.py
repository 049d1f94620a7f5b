"""Where the pictures of a data batch come from: rows -> (latents, cond).

Latents are pictures in [-1, 1]; `cond` is what the policy is given, and labels
where it learns them. Used with `rollout.data_rollout`; a config names one of
these functions.
"""

# ruff: noqa: F401  # what is imported here is what configs can name

from gen_rl.data.pictures.given import (
  Encode,
  answers,
  digit_scans,
  given,
  given_prompt_pairs,
  references,
)
from gen_rl.data.pictures.worlds import (
  prompt_pairs,
  shapes_inked,
  shapes_pictures,
  shapes_preferences,
  shapes_scenes,
  world_pictures,
  world_preferences,
)

BUILDS = ('Encode',)
