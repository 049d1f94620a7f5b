"""The evaluations a config names: `eval`, and `evals` beside it.

Each of `evals` is a set of changes to `eval`: other prompts, judges, numbers of
samples, samplers, guidance or cadence. What it does not change is as there.
"""

from collections.abc import Mapping
import copy
from typing import Any

import ml_collections

MAIN = ''  # label of `eval` itself

# Dicts that a change replaces as a whole: keywords of one function, or the
# labels of one set of judges, mean nothing to another.
_WHOLE = (
  'prompts', 'rollout', 'view', 'policy', 'gold', 'sets', 'search',
)  # fmt: skip


def configs(
  config: ml_collections.ConfigDict,
) -> dict[str, ml_collections.ConfigDict]:
  """{label: the config whose `eval` is that evaluation}, the main one first.

  Args:
    config: see configs/base.py.
  """
  changes = config.get('evals', {})
  return {
    MAIN: config,
    **{label: changed(config, changes[label]) for label in changes},
  }


def changed(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """The config with these changes to its `eval`."""
  out = config.copy_and_resolve_references()
  # A field may be of another type than what it was: None, or a number.
  with out.unlocked(), out.eval.ignore_type():
    for key, value in changes.items():
      if key in _WHOLE:
        plain = copy.deepcopy(dict(value))
        out.eval[key] = ml_collections.ConfigDict(plain)
      else:
        out.eval[key] = value
  return out
