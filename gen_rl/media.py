"""Which of several media a policy makes: dict(text=tokens, image=pictures)."""

from collections.abc import Mapping
from typing import Any


def image(media: Any) -> Any:
  """The pictures; of a policy that makes one medium, that one."""
  return media['image'] if isinstance(media, Mapping) else media


def text(media: Any) -> Any:
  """The tokens; of a policy that makes one medium, that one."""
  return media['text'] if isinstance(media, Mapping) else media
