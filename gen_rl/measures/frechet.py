r"""Frechet distance of two sets of pictures (arXiv 1706.08500).

With means m and covariances C of features, of the samples and of real pictures
for the same prompts,

  d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})                (1)

the squared 2-Wasserstein distance of the Gaussians that have them (C of N - 1,
as the published code has it). Its expectation falls with N: compare sets of one
size alone, and with features of d numbers take several times d samples.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
import numpy as np

from gen_rl import build
from gen_rl.data import pictures
from gen_rl.measures import features as features_lib
from gen_rl.measures.measure import Measure


def frechet(
  features: Mapping[str, Any] | str = 'shapes_detector',
  real: Mapping[str, Any] | str = 'shapes_pictures',
) -> Measure:
  """(1), of samples that are finite.

  Args:
    features: spec of a function of `measures.features`: of a network that the
      policy was not trained on.
    real: spec of a function of `data.pictures` that makes or reads pictures of
      the prompts.
  """
  read = build.build(features_lib, features)
  encode = build.build(pictures, real, group_size=1)
  return Measure(read.params, read.apply, encode, distance, read.axes)


def distance(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm d']) -> float:
  """(1) in float64; NaN of fewer than two rows."""
  if min(len(a), len(b)) < 2:
    return float('nan')
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  first, second = (np.cov(x, rowvar=False).reshape(x.shape[1], -1)
                   for x in (a, b))  # fmt: skip
  # (C_1 C_2)^{1/2} and (C_1^{1/2} C_2 C_1^{1/2})^{1/2} have one trace.
  values, vectors = np.linalg.eigh(first)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  cross = np.linalg.eigvalsh(root @ second @ root)
  shift = np.square(a.mean(0) - b.mean(0)).sum()
  trace = np.trace(first) + np.trace(second)
  return float(shift + trace - 2 * np.sqrt(np.maximum(cross, 0)).sum())
