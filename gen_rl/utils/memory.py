"""The allocator of the C library. Imports nothing that starts threads."""

import ctypes
import sys

# Options of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Tells glibc to reuse freed memory instead of giving it back at once.

  XLA's CPU backend allocates its temporaries at every execution. By default
  each large block is mapped afresh, and the kernel clears every page of it
  again: a third of the time of a training step. Does nothing without glibc.

  Call it before other modules are imported: heaps of threads that exist already
  stay as they are.
  """
  if sys.platform != 'linux':
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:  # another C library
    return
  for option, value in (
    (_M_MMAP_MAX, 0),  # no block is a mapping of its own
    (_M_TRIM_THRESHOLD, -1),  # as unsigned: the heap never shrinks
    (_M_ARENA_MAX, 1),  # one heap, so that threads share what is free
  ):
    mallopt(option, value)
