"""Reinforcement learning of visual generative models."""

import time

# `time.monotonic()` when the program began, as near as a program can know: the
# system counts the life of a shell that became this process as well.
STARTED = time.monotonic()
