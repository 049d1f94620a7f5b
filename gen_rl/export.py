"""Parameters of a policy as a file, or a folder, for other programs."""

from collections.abc import Mapping
import json
import os
import pathlib
import re
from typing import Any

import jax
import ml_collections
import numpy as np

from gen_rl.models.files import weights
from gen_rl.models.parts import lora
from gen_rl.types import Params, Policy
from gen_rl.utils import hosts, tree


def target(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  policy: Policy,
) -> pathlib.Path:
  """Where `write` writes: a folder for a released network, else a file."""
  suffix = '' if policy.save else '.safetensors'
  return pathlib.Path(workdir) / f'{config.export}{suffix}'


def write(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  policy: Policy,
  params: Params,
  steps: int,
  heldout: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes parameters where `target` says; all processes have to call.

  Adapters are merged into the kernels they belong to. As float16, half
  the bytes; `initial_params` reads them back as float32. Of a released network
  a folder of that name is written, for diffusers: its adapters, where nothing
  else was trained, or the whole network.

  Args:
    config: of the run.
    workdir: of the run.
    policy: whose parameters they are.
    params: all of them.
    steps: updates they have seen.
    heldout: what an evaluation said of them, kept in the file.

  Returns:
    The path.
  """
  path = target(config, workdir, policy)
  params = hosts.fetch(params)
  if policy.save:
    trained, _ = tree.split(params, config.trainable)
    if not all(re.search(lora.TRAINABLE, name) for name in tree.named(trained)):
      params = lora.merge(params)
    if jax.process_index() == 0:
      policy.save(str(path), params)
    return path
  facts = dict(config=config.name, steps=str(steps), seed=str(config.seed))
  if heldout is not None:
    facts['heldout'] = json.dumps(heldout)
  half = jax.tree.map(_half, lora.merge(params))
  if jax.process_index() == 0:
    weights.save(str(path), half, facts)
  return path


def learned(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  aux: Mapping[str, Any],
  missing: bool = False,
) -> None:
  """Writes what learners have learned, those whose part has `export`.

  As they are trained, float32. All processes have to call.

  Args:
    config: of the run.
    workdir: of the run.
    aux: of the TrainState.
    missing: only what is not there.
  """
  for label, spec in config.learners.items():
    if not spec.get('export'):
      continue
    path = pathlib.Path(workdir) / f'{spec["export"]}.safetensors'
    if missing and hosts.from_first(path.exists):
      continue
    params = hosts.fetch(aux[label]['params'])
    facts = dict(config=config.name, learner=label, seed=str(config.seed))
    if jax.process_index() == 0:
      weights.save(str(path), params, facts)


def _half(x: Any) -> np.ndarray:
  """As float16; as it is where it holds larger numbers."""
  with np.errstate(over='ignore'):
    out = np.asarray(x, np.float16)
  return out if weights.finite(out) else np.asarray(x)
