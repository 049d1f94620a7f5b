"""GenEval's scores of pictures, from whatever detects objects in them.

A `Finder` turns pictures into `geneval.Detections`: boxes, confidences, classes
by their places in geneval.CLASSES and colours by theirs in geneval.COLORS. The
benchmark's is a Mask2Former, and a CLIP that names the colour of what is inside
a mask; neither is part of this package. Detections that are sure enough, 16 of
a class at most, are scored by the rules of `geneval`.
"""

from collections.abc import Callable
import importlib
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.fields import Count
from gen_rl.rewards import pixels
from gen_rl.scoring import geneval
from gen_rl.types import Array, Params, PyTree, Reward, RewardInputs, RewardOut

_CLAUSES = tuple(geneval.Clauses.__dataclass_fields__)


class Finder(NamedTuple):
  """Something that detects objects.

  On the device `find` is pure and jittable and gives the same number of slots
  whatever is in a picture; on the host it takes and gives numpy arrays.
  """

  params: Params
  # (params, images [b h w 3] in [0, 1]) -> Detections
  find: Callable[[Params, Array], geneval.Detections]
  where: Literal['device', 'host'] = 'host'


def finder(name: str) -> Finder:
  """What the function 'module:function' of this name makes.

  Raises:
    ConfigError: there is no such module or function, or it makes something
      else.
  """
  module, _, function = name.partition(':')
  try:
    made = getattr(importlib.import_module(module), function)()
  except (ImportError, AttributeError, ValueError) as error:
    raise ConfigError(
      f'a detector is named as "module:function", a function without arguments '
      f'that makes a Finder; {name!r} is none: {error}'
    ) from None
  if not isinstance(made, Finder):
    raise ConfigError(f'{name} made {type(made).__name__}, not a Finder')
  return made


def detected_geneval(
  detector: str | Finder,
  score: Literal['partial', 'strict', 'correct'] = 'partial',
  quirks: bool = True,
  most: Count = 16,
) -> Reward:
  """GenEval by detections, of prompts of `prompts.geneval`.

  Parts: all three scores, and `objects`, how many were sure enough. A picture
  that is not finite is not valid.

  Args:
    detector: 'module:function' that makes a `Finder`, or one.
    score: 'partial' is Flow-GRPO's training reward, 'strict' 1 where that has
      nothing to say against, 'correct' the benchmark's verdict.
    quirks: of 'partial', see `geneval.strict_score`.
    most: objects of a class that are looked at, the surest.

  Raises:
    ConfigError: see `finder`; another score; when scored, prompts that do not
      say what they ask for.
  """
  if score not in ('partial', 'strict', 'correct'):
    raise ConfigError(
      f'score={score!r}; GenEval has partial, strict and correct'
    )
  used = finder(detector) if isinstance(detector, str) else detector

  def judged(found: geneval.Detections, info: PyTree) -> dict[str, Array]:
    clauses = geneval.Clauses(**{name: info[name] for name in _CLAUSES})
    found = geneval.keep_confident(found, info['confidence'], most)
    partial, parts = geneval.strict_score(found, clauses, quirks)
    correct = geneval.correct(found, clauses).astype(jnp.float32)
    objects = jnp.asarray(found.valid).sum(-1).astype(jnp.float32)
    return dict(partial=partial, correct=correct, objects=objects, **parts)

  on_cpu = jax.jit(judged)

  def reward(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    missing = {*_CLAUSES, 'confidence'} - set(inputs.info)
    if missing:
      raise ConfigError(
        'GenEval needs to know what a prompt asks for, and these prompts do '
        f'not say ({", ".join(sorted(missing))} missing); use '
        'data.prompts.name="geneval" with a file like its metadata'
      )
    info = {name: inputs.info[name] for name in (*_CLAUSES, 'confidence')}
    media = pixels.shown(inputs)
    if used.where == 'device':
      finite = jnp.isfinite(media).all((1, 2, 3))
      media = jnp.where(finite[:, None, None, None], media, 0)
      out = judged(used.find(params, media), info)
    else:
      finite = np.isfinite(media).all((1, 2, 3))
      found = used.find(params, np.where(finite[:, None, None, None], media, 0))
      # Not on the accelerator, which is about to sample.
      with jax.default_device(jax.local_devices(backend='cpu')[0]):
        out = jax.device_get(on_cpu(found, info))
    return RewardOut(out[score], out, finite)

  return Reward(
    'detected_geneval',
    used.params,
    reward,
    used.where,
    verdict=score != 'partial',
  )
