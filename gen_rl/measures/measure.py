"""What a measure of a set is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gen_rl.types import Array, Axes, Params, PyTree, Rows


class Measure(NamedTuple):
  """Features of every sample, on the device, and a number of all of them."""

  params: Params  # of the network that reads pictures
  features: Callable[[Params, Array], Array]  # pictures [b h w c] -> [b d]
  # rows -> (pictures [b h w c] in [-1, 1] to compare with, cond), a function of
  # data.pictures
  real: Callable[[Rows], tuple[PyTree, PyTree]]
  # (features of the samples [N d], of the real ones [N d]) -> the number
  value: Callable[[np.ndarray, np.ndarray], float]
  axes: Axes = ()  # of the parameters' dimensions, as a Policy's
